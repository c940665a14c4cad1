"""The site: every page has its place, what is written from the code is up to date, links lead somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from tubelet.config import kinds

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def places(nav: list[Any]) -> Iterator[str]:
    """Every page that the navigation names."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else (entry,):
            yield from places(value) if isinstance(value, list) else (value,)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and the hosting sites make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


LOOK = """
import json, generate
names = lambda: sorted(path.name for path in generate.stale())
now, read = names(), generate.read
edits = {"train.md": ("≥ 1", "≥ 2"), "cli.md": ("| `--recipe` |", "| `--recipes` |")}
generate.read = lambda path: read(path).replace(*edits.get(path.name, ("", "")))
print(json.dumps([now, names()]))
"""


def test_what_is_written_from_the_code_is_up_to_date():
    """As it is, and that the check finds a changed bound and a changed option."""
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=DOCS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    now, edited = json.loads(done.stdout.splitlines()[-1])
    assert now == [], "run python docs/generate.py"
    assert edited == ["cli.md", "train.md"]


def test_every_setting_says_what_it_is():
    rows = [line for page in (DOCS / "settings").glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()]
    bare = {line.split("`")[1] for line in rows if re.fullmatch(r"\| `[\w.]+` \|.*\|  \|", line)}
    assert sum(line.startswith("| `") for line in rows) > 100
    assert not bare, f"describe {sorted(bare)}: Field(description=...) or a sentence that starts with the name"


def test_every_page_is_in_the_navigation():
    named = list(places(CONFIG["nav"]))
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert set(named) == there, "mkdocs.yml's nav and docs/ differ"
    assert len(named) == len(set(named))


def test_every_method_has_a_page():
    assert {p.stem for p in (DOCS / "methods").glob("*.md")} >= set(kinds("tubelet.methods", own=False))


def test_links_lead_somewhere():
    broken = []
    for page in PAGES:
        for target, anchor in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)):
            file = page.parent / target if target else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)} -> {target}{'#' + anchor if anchor else ''}")
    assert not broken, broken


def test_pictures_are_small_and_shown():
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    pictures = [p for p in (DOCS / "images").rglob("*") if p.is_file()]
    assert pictures
    for picture in pictures:
        place = picture.relative_to(DOCS).as_posix()
        assert picture.stat().st_size <= 300_000, place
        assert f"{place})" in text, f"{place} is shown nowhere"


def test_the_house_has_every_room():
    """The picture of the architecture names what the package consists of, and loads nothing."""
    source = ROOT / "src" / "tubelet"
    rooms = {p.parent.name for p in source.glob("*/__init__.py")} - {"recipes"}
    tree = ElementTree.parse(DOCS / "images" / "house.svg")
    said = {"".join(t.itertext()) for t in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert rooms <= said, rooms - said
    for picture in (DOCS / "images").glob("*.svg"):
        assert "href" not in picture.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built from a copy."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("the site's generator is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(DOCS, folder / "docs")
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_the_site_has_every_page_and_no_script_of_ours(site):
    built = {p.relative_to(site).with_suffix(".md").as_posix() for p in site.rglob("*.html")} - {"404.md"}
    assert built == set(places(CONFIG["nav"]))
    assert not [p for p in site.rglob("*") if p.suffix in (".py", ".pyc")]


def test_pages_load_nothing_from_elsewhere(site):
    """No fonts, scripts, styles or pictures of other hosts, in pages or style sheets; links are free."""
    loads = re.compile(r"""<(?:script|img|iframe|link|source|video)\b[^>]*?\b(?:src|href|srcset)=["']?((?:https?:)?//[^"'\s>]+)""")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert loads.findall(text) == [], page
        assert "no-run:" not in text, f"{page.name} shows the marks of its tests"
        assert 'class="mermaid"' not in text, f"{page.name}: the theme would fetch mermaid"
    for sheet in site.rglob("*.css"):
        assert re.findall(r"""(?:url\(|@import\s*)["']?(?:https?:)?//[^"')]+""", sheet.read_text(encoding="utf-8")) == [], sheet


@pytest.mark.slow
def test_the_gallery_is_what_its_script_draws():
    """Pictures of the same sizes, so with the same rows: a new masking strategy must be drawn, too."""
    script = (
        "import make_gallery as g\n"
        "for make in (g.worlds, g.truth, g.masks):\n    for name, image in make().items():\n        print(name, *image.size)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=DOCS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    drawn = {name: (int(width), int(height)) for name, width, height in (line.split() for line in done.stdout.splitlines())}
    assert drawn == {name: Image.open(DOCS / "images" / f"{name}.png").size for name in ("worlds", "truth", "masks")}
