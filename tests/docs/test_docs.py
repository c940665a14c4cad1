"""Code in README.md, docs/ and examples/ is executed, in a folder as a reader would have it.

Fenced ``python`` and ``bash`` blocks of a page run in order, in one folder per page that holds ``my_videos/`` (a folder of clips) and
``labelled/`` (with manifest.csv: labels and splits), and ``runs/a`` (a small finished run) where the page does not make it. A block whose
info string says ``no-run`` is not executed; the reason stands in the info string. A block with ``file=NAME`` becomes that file instead, and
is the example of that name, letter by letter. A ``bash`` block of nothing but ``tubelet`` commands runs them in this process, which saves
loading torch for each; all others are given to bash.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from tubelet.cli import run
from tubelet.config import config_class, import_file
from tubelet.core import Batch, CounterDraw, Mask, Step, TokenGrid

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted(p for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".yaml"))
MASKINGS, METHODS = ["checker_mask"], ["mean_colour"]
SMALL = ["method.dim=32", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]",
         "data.size=32", "data.stride=1", "data.workers=0", "train.device=cpu"]  # fmt: skip
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of the blocks to execute, and ("file=NAME", text) of files to write."""
    found = []
    for info, code in FENCE.findall(page.read_text(encoding="utf-8")):
        words = info.split()
        file = [w for w in words if w.startswith("file=")]
        if file:
            found.append((file[0], code))
        elif words and words[0] in ("python", "bash") and not any(w.startswith("no-run") for w in words):
            found.append((words[0], code))
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """What a reader of the documentation has at hand."""
    import tubelet

    home = tmp_path_factory.mktemp("reader")
    manifest = tubelet.make_playground(home / "labelled", clips=48, seed=3, scene="easy", size=32, frames=16)
    (home / "my_videos").mkdir()
    for path in sorted((manifest.parent / "clips").glob("*.mp4"))[:4]:
        shutil.copy(path, home / "my_videos")
    settings = [*SMALL, "method.decoder={dim: 16, depth: 1, heads: 2}", "epochs=null", "steps=3", "batch=4"]
    tubelet.pretrain(home / "my_videos", out=home / "runs" / "a", recipe="tiny-cpu", settings=settings, quiet=True)
    return home


def commands(code: str) -> list[list[str]] | None:
    """The words after ``tubelet`` of each line, or None where a block needs a shell."""
    lines = code.replace("\\\n", " ").strip().splitlines()
    if any(not line.startswith("tubelet ") or re.search(r"[|&;<>$`*~#]", line) for line in lines):
        return None
    return [shlex.split(line)[1:] for line in lines]


def execute_here(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One command line in this process, with nothing left over from the one before; runs of a recipe's full length have two epochs."""
    if words[0] == "pretrain" and not any(word == "--resume" or "epochs=" in word or "steps=" in word for word in words):
        words = [*words, "--set", "epochs=2"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tubelet.config._user_kinds", {})
    capsys.readouterr()
    code = run(words)
    out, err = capsys.readouterr()
    assert code == 0, f"tubelet {shlex.join(words)}\n--- stdout\n{out[-3000:]}\n--- stderr\n{err[-3000:]}"


def execute(language: str, code: str, folder: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{code}\n--- stdout\n{done.stdout[-3000:]}\n--- stderr\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_page(page, reader, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    shutil.copytree(reader, home)
    if "--out runs/a" in page.read_text(encoding="utf-8"):
        shutil.rmtree(home / "runs")
    for language, code in blocks(page):
        here = commands(code) if language == "bash" else None
        if language.startswith("file="):
            (home / language.removeprefix("file=")).write_text(code, encoding="utf-8")
        elif here is None:
            execute(language, code, home)
        for words in here or ():
            execute_here(words, home, monkeypatch, capsys)


def test_files_shown_in_the_documentation_are_the_examples():
    shown = {name.removeprefix("file="): code for page in PAGES for name, code in blocks(page) if name.startswith("file=")}
    assert shown == {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES}


def test_every_block_names_its_language():
    bare = [
        f"{page.name}: {code[:40]!r}"
        for page in PAGES
        for info, code in FENCE.findall(page.read_text(encoding="utf-8"))
        if not info.split()
    ]
    assert not bare, bare


def test_no_page_is_left_unfinished():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    left = [
        f"{p.name}: {m[0]}" for p in pages for m in [re.search(r"^(FIGURES|TODO|TBD|XXX)\b.*$", p.read_text(encoding="utf-8"), re.M)] if m
    ]
    assert not left


def test_every_example_is_tried():
    assert sorted({p.stem for p in EXAMPLES}) == sorted([*MASKINGS, *METHODS])


def train(source: Path, out: Path, example: str, *settings: str, steps: int) -> list[dict[str, float]]:
    """A short run with an example; its lines of metrics."""
    sets = [word for s in (*SMALL, "epochs=null", f"steps={steps}", "batch=4", "log_every=1", *settings) for word in ("--set", s)]
    file = str(ROOT / "examples" / f"{example}.py")
    assert run(["pretrain", str(source), "--out", str(out), "--import", file, "--quiet", *sets]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("example", MASKINGS)
def test_an_example_of_a_masking_strategy_trains(example, reader, tmp_path, monkeypatch):
    """Two steps with it on the reader's videos, and what it hid in them."""
    seen = []

    class Watching(Mask):
        def validate(self):
            seen.append(self)
            return super().validate()

    monkeypatch.setattr("tubelet.core.Mask", Watching)
    out = tmp_path / "run"
    lines = train(reader / "my_videos", out, example, "masking=" + example, "method.decoder={dim: 16, depth: 1, heads: 2}", steps=2)
    assert len(lines) == 2
    assert all(0 < line["loss"] < 10 for line in lines)
    assert f"kind: {example}" in (out / "config.yaml").read_text()
    assert len(seen) == 1
    assert 0 < seen[0].visible.shape[1] < seen[0].grid.n


@pytest.mark.parametrize("example", METHODS)
def test_an_example_of_a_method_learns(example, tmp_path, monkeypatch):
    """Cards of one colour each: what is visible says what is hidden, and 60 steps through the loop are enough to see it."""
    (tmp_path / "cards").mkdir()
    colours = torch.randint(0, 256, (16, 3), generator=torch.Generator().manual_seed(1))
    for i, colour in enumerate(colours.tolist()):
        Image.new("RGB", (32, 32), tuple(colour)).save(tmp_path / "cards" / f"{i:02}.png")
    cards = ["data.images=items", "data.frames=2", "data.cache=none", "data.augment.flip=0", "crop=centre"]
    settings = ["method=" + example, "masking.ratio=0.5", "lr=3e-3", "train.warmup_epochs=0", "batch=16", *cards]
    lines = train(tmp_path / "cards", tmp_path / "run", example, *settings, steps=60)
    last = {name: sum(line[name] for line in lines[-5:]) / 5 for name in ("colour", "blind")}
    assert last["colour"] < 0.25 * last["blind"]


def test_the_checker_board_alternates_in_every_direction():
    grid = TokenGrid(("t", "h", "w"), (2, 3, 4), (1, 1, 1))
    batch = Batch({}, {}, torch.arange(2))
    import_file(ROOT / "examples" / "checker_mask.py")
    boards = []
    for phase in (0, 1):
        masker = cast(Any, config_class("tubelet.masking", "checker_mask")(phase=phase)).build()
        mask = masker(grid, batch, "video", Step(0, 0, 0.0, 0.0, CounterDraw(0, batch.sample)))
        boards.append(torch.zeros(2, grid.n).scatter(1, mask.visible, 1.0).reshape(2, 2, 3, 4))
    for axis in (1, 2, 3):
        assert (boards[0].diff(dim=axis) != 0).all()
    assert torch.equal(boards[0], 1 - boards[1])
