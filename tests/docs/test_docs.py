"""Code in README.md, docs/ and examples/ is executed, in a folder as a reader would have it.

Fenced ``python`` and ``bash`` blocks of a page run in order, in one folder per page that holds ``my_videos/`` (a folder of clips) and
``labelled/`` (with manifest.csv: labels and splits), and ``runs/a`` (a small finished run) where the page does not make it. A block whose
info string says ``no-run`` is not executed; the reason stands in the info string.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of the blocks to execute."""
    found = []
    for info, code in FENCE.findall(page.read_text(encoding="utf-8")):
        words = info.split()
        if words and words[0] in ("python", "bash") and not any(w.startswith("no-run") for w in words):
            found.append((words[0], code))
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """What a reader of the documentation has at hand."""
    import tubelet

    home = tmp_path_factory.mktemp("reader")
    manifest = tubelet.make_playground(home / "labelled", clips=48, seed=3, scene="easy", size=32, frames=16)
    (home / "my_videos").mkdir()
    for path in sorted((manifest.parent / "clips").glob("*.mp4"))[:12]:
        shutil.copy(path, home / "my_videos")
    settings = [
        "method.dim=32",
        "method.depth=1",
        "method.heads=2",
        "method.patch=[2,8,8]",
        "data.size=32",
        "data.stride=1",
        "data.workers=0",
    ]
    decoder = "method.decoder={dim: 16, depth: 1, heads: 2}"
    tubelet.pretrain(
        home / "my_videos",
        out=home / "runs" / "a",
        recipe="tiny-cpu",
        settings=[*settings, decoder, "epochs=null", "steps=3", "batch=4"],
        quiet=True,
    )
    return home


def execute(language: str, code: str, folder: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{code}\n--- stdout\n{done.stdout[-3000:]}\n--- stderr\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_page(page, reader, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(reader, home)
    if "--out runs/a" in page.read_text(encoding="utf-8"):
        shutil.rmtree(home / "runs")
    for language, code in blocks(page):
        execute(language, code, home)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example(example, reader, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(reader, home)
    execute("python", example.read_text(encoding="utf-8"), home)


def test_links_inside_the_documentation_lead_somewhere():
    broken = []
    for page in PAGES:
        targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        broken += [f"{page.relative_to(ROOT)} -> {t}" for t in targets if not (page.parent / t).exists()]
    assert not broken, broken
