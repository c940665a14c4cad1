"""report.html in a browser: on a laptop, on a phone, in the dark, on paper, without scripts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "viz"))
import run_folders as make
from chrome import NAMES, Chrome, chrome, find

import tubelet

pytestmark = pytest.mark.skipif(find() is None, reason=f"needs a browser in PATH: {', '.join(NAMES)}")
LAPTOP, PHONE = (1280, 900), (390, 844)
ALWAYS = ("complete", "empty", "several", "finetuned", "nasty")
KINDS = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in make.ALL]

# Elements that reach over the window's sides without lying in something that scrolls.
OVER = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || (box.right <= innerWidth + 1 && box.left >= -1)) return false;
  for (let p = e; p; p = p.parentElement) if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return false;
  return true;
}).map(e => e.tagName + "." + e.className + ": " + e.textContent.slice(0, 40))"""

# Texts whose contrast with what lies behind them is below WCAG's 4.5 : 1.
PALE = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (let p = e; p; p = p.parentElement) {
      const colour = rgb(getComputedStyle(p).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const out = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const a = light(rgb(e instanceof SVGElement ? style.fill : style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push(ratio.toFixed(2) + " " + e.className + " " + walk.currentNode.textContent.slice(0, 30));
  }
  return out;
})()"""

SHIFTS = """new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => list.getEntries().forEach(e => sum += e.value)).observe({type: "layout-shift", buffered: true});
  requestAnimationFrame(() => requestAnimationFrame(() => done(sum)));
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chrome() as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of every kind of run."""
    home = tmp_path_factory.mktemp("runs")
    for name, build in make.ALL.items():
        tubelet.report(build(home / name), out=home / f"{name}.html")
    return home


def look(browser: Chrome, page: Path, size: tuple[int, int]) -> None:
    """What must hold for every page at every size."""
    browser.open(page, width=size[0], height=size[1])
    assert browser.ask("document.documentElement.scrollWidth") <= size[0]
    assert browser.ask(OVER) == []
    assert browser.ask("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)") == []
    assert browser.problems == []
    assert browser.asked == [page.as_uri()], "the page asks for nothing but itself"


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("name", KINDS)
def test_it_fits_and_says_no_word_on_the_console(browser: Chrome, pages: Path, name: str, size: tuple[int, int]):
    look(browser, pages / f"{name}.html", size)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") <= size[0], "with all details open"
    assert browser.ask(OVER) == []


def test_the_sections_are_there_in_order(browser: Chrome, pages: Path):
    browser.open(pages / "complete.html")
    titles = browser.ask("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert titles == [
        "Curves",
        "Probes while training",
        "Pictures over time",
        "Cost",
        "Bad videos",
        "Settings",
        "Recipe and machine",
        "Next",
    ]
    assert browser.ask("[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.getAttribute('href'))).length") == 0
    browser.open(pages / "several.html")
    assert browser.ask("[...document.querySelectorAll('h2.stage')].map(h => h.textContent)") == ["pretrain", "again", "last"]
    assert browser.ask("[...document.querySelectorAll('#s1-curves, #s1-pictures, #s1-settings')].length") == 3


@pytest.mark.parametrize("name", ["complete", "several", "finetuned"])
def test_headings_pictures_and_curves_can_be_heard(browser: Chrome, pages: Path, name: str):
    browser.open(pages / f"{name}.html")
    levels = browser.ask("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), "no level is left out"
    assert browser.ask("[...document.images].filter(i => i.alt.length < 20).length") == 0
    assert (
        browser.ask("[...document.querySelectorAll('svg.plot')].filter(s => !s.getAttribute('aria-label').includes(' at step ')).length")
        == 0
    )
    assert browser.ask("[...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th')).length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_every_text_can_be_read(browser: Chrome, pages: Path, name: str, dark: bool):
    browser.open(pages / f"{name}.html", dark=dark)
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(19, 22, 25)" if dark else "rgb(247, 247, 245)")
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.ask(PALE) == []


def test_figures_are_read_off_a_curve_and_nothing_moves(browser: Chrome, pages: Path):
    browser.open(pages / "complete.html")
    rest = browser.ask("document.querySelector('.readout').innerText")
    left, top, width, height = browser.ask(
        "(() => { const b = document.querySelector('.plot').getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
    )
    browser.move(left + width / 4, top + 10)
    read = browser.ask("document.querySelector('.readout').innerText")
    assert read.split("\n")[0].split()[:2] == ["step", "500"]
    row = next(r for r in make.metrics(2000) if r["step"] == 500)
    assert f"{row['loss']:.4g}" in read
    assert f"{row['zero_answer']:.4g}" in read
    x, y = browser.ask(
        "(() => { const b = document.querySelector('.plot .mark').getBoundingClientRect(); return [b.x + b.width/2, b.y + b.height/2] })()"
    )
    assert x == pytest.approx(left + width / 4, abs=1)
    assert top < y < top + height
    browser.move(5, 5)
    assert browser.ask("document.querySelector('.readout').innerText") == rest
    assert browser.ask(SHIFTS) < 0.001


def test_pictures_change_with_the_step(browser: Chrome, pages: Path):
    browser.open(pages / "complete.html", width=PHONE[0], height=PHONE[1])
    shown = "[...document.querySelectorAll('.panels figure')].map(f => f.checkVisibility())"
    assert browser.ask(shown) == [False] * 5 + [True]
    browser.ask("document.querySelector('label[for=s0-step1]').click()")
    assert browser.ask(shown) == [True] + [False] * 5
    browser.ask("document.getElementById('s0-step1').focus()")
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    assert browser.ask(shown) == [False, True] + [False] * 4
    browser.open(pages / "several.html")
    browser.ask("document.querySelector('label[for=s0-step1]').click()")
    assert browser.ask("document.getElementById('s1-step3').checked"), "another stage's pictures stay"


def test_it_is_whole_without_scripts(browser: Chrome, pages: Path):
    browser.open(pages / "complete.html", script=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.ask("[...document.querySelectorAll('.plot path')].every(p => p.getBBox().width > 500)")
    assert browser.ask("document.querySelector('.readout').innerText").startswith("step 2,000")
    assert browser.ask("[...document.querySelectorAll('.panels figure')].filter(f => f.checkVisibility()).length") == 1


def test_on_paper_everything_is_shown_in_black_on_white(browser: Chrome, pages: Path, tmp_path: Path):
    browser.open(pages / "complete.html", width=794, height=1123, dark=True, paper=True)
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("[...document.querySelectorAll('.panels figure')].every(f => f.checkVisibility())")
    assert browser.ask("[...document.querySelectorAll('details table')].every(t => t.checkVisibility({contentVisibilityAuto: true}))")
    assert not browser.ask("document.querySelector('nav').checkVisibility()")
    assert browser.ask("document.documentElement.scrollWidth") <= 794
    assert browser.ask(PALE) == []
    browser.pdf(tmp_path / "run.pdf")
    assert (tmp_path / "run.pdf").read_bytes().startswith(b"%PDF")


def test_names_with_markup_do_nothing(browser: Chrome, pages: Path):
    browser.open(pages / "nasty.html")
    assert browser.ask(f"document.body.innerText.includes({make.NASTY!r})")
    assert browser.ask("document.scripts.length") == 1
    assert browser.ask("document.querySelectorAll('img:not([src^=\"data:image/\"])').length") == 0
    assert browser.problems == []


def test_the_policy_stops_what_would_slip_through(browser: Chrome, pages: Path, tmp_path: Path):
    """Were something not escaped, it would still neither run nor be fetched."""
    bad = "<script>document.title = 'ran'</script><img src='https://example.invalid/x.png' onerror=\"document.title = 'ran'\">"
    page = tmp_path / "page.html"
    page.write_text((pages / "complete.html").read_text(encoding="utf-8").replace("<main>", f"<main>{bad}"), encoding="utf-8")
    browser.open(page)
    assert browser.ask("document.title") != "ran"
    assert len([p for p in browser.problems if "Content Security Policy" in p]) >= 2
    assert browser.asked == [page.as_uri()]
