"""report.html of real and of hostile run folders: one file, nothing from outside, nothing that runs but our own script."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tubelet
from tubelet.cli import run as command_line
from tubelet.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).parents[1] / "viz"))
import run_folders as make

RECIPE = """
about: a very small model
method: {kind: videomae, dim: 32, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 16, depth: 1, heads: 2}}
masking: {kind: tube, ratio: 0.5}
data: {frames: 4, stride: 1, size: 16, workers: 0, cache: none}
train: {steps: 4, batch: 4, device: cpu, lr: 0.01, lr_batch: null, log_every: 1}
"""


class Page(HTMLParser):
    """What an HTML reader makes of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.raw: dict[str, str] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            self.raw[self.inside] = self.raw.get(self.inside, "") + data
        else:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as pretrain leaves it."""
    home = tmp_path_factory.mktemp("trained")
    (home / "small.yaml").write_text(RECIPE)
    tubelet.make_playground(home / "clips", clips=16, scene="easy", size=16, frames=4)
    asked = ["masking.ratio=0.75", "watch.tensorboard=false"]
    tubelet.pretrain(home / "clips", out=home / "run", recipe=home / "small.yaml", settings=asked, quiet=True)
    return home / "run"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of all kinds of run."""
    home = tmp_path_factory.mktemp("runs")
    return {name: tubelet.report(build(home / name)) for name, build in make.ALL.items()}


def test_a_real_run_lacks_nothing(trained: Path):
    page = Page(tubelet.report(trained))
    assert "4 steps, 16 clips in " in page.text
    assert re.search(r"masking\.ratio 0\.75 --set", page.text)
    assert f"train.batch 4 file {trained.parent / 'small.yaml'}" in page.text
    assert "CPU-hours" in page.text
    assert re.findall(r'<p class="missing">(.*?)</p>', (trained / "report.html").read_text()) == ["None was recorded."], "no bad videos"
    titles = [t for t in page.texts if t in ("Loss", "Learning rate", "Clips per second", "Waiting for data", "MFU")]
    assert len(titles) >= 5
    assert len(page.all("img")) == 2, "before the first step and after the last"
    assert len([c for c in page.all("svg") if c.get("class") == "plot"]) >= 7


def test_it_is_written_where_asked(trained: Path, tmp_path: Path):
    assert tubelet.report(trained) == trained / "report.html"
    other = tubelet.report(str(trained), out=tmp_path / "new" / "mine.html")
    assert other == tmp_path / "new" / "mine.html"
    assert other.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(p.name for p in other.parent.iterdir()) == ["mine.html"]


def test_mistakes(trained: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such run folder"):
        tubelet.report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file; give the run folder"):
        tubelet.report(trained / "config.yaml")
    with pytest.raises(DataError, match=r"is not a run folder.*it holds the runs run: give .*run"):
        tubelet.report(trained.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no config\.yaml, metrics\.jsonl"):
        tubelet.report(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"is a folder; give a file such as .*report\.html"):
        tubelet.report(trained, out=tmp_path)
    assert not list(tmp_path.rglob("*.html"))


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) > 1)
    out = tmp_path / "a b.html"
    assert command_line(["report", str(trained), "--out", str(out), "--open"]) == 0
    seen = capsys.readouterr()
    assert seen.out == f"{out}\n"
    assert opened == [out.as_uri()]
    assert "no browser was found here" in seen.err
    assert command_line(["report", str(trained), "--out", str(out), "--open"]) == 0
    assert capsys.readouterr().err == ""
    assert command_line(["report", str(tmp_path / "nowhere")]) == 1
    assert "no such run folder" in capsys.readouterr().err
    assert command_line(["report", str(trained), "--opne"]) == 2
    assert "did you mean '--open'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", make.ALL)
def test_nothing_from_outside_and_nothing_foreign_runs(name: str, pages: dict[str, Path]):
    page = Page(pages[name])
    for tag, attrs in page.tags:
        assert not [k for k in attrs if k.startswith("on") or k == "style"], tag
        for key in ("src", "href", "action", "data", "poster", "srcset", "background"):
            value = attrs.get(key)
            assert value is None or value.startswith(("#", "data:image/")), (tag, key, value)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "base", "form", "foreignobject", "use", "image"})
    assert (len(page.all("script")), len(page.all("style"))) == (1, 1)
    (policy,) = [m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.raw[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.all("a")} | {s.get("aria-labelledby") or ids[0] for s in page.all("section")} <= set(ids)


def test_names_and_settings_are_shown_as_they_are(tmp_path: Path):
    page = Page(tubelet.report(make.nasty(tmp_path / "<mark>run")))
    for place in (
        f"{make.NASTY} Reason reason {make.BREAKOUT} Times 2",
        f"masking.ratio 0.9 {make.NASTY}",
        f"about {make.NASTY}",
        f"{make.NASTY} failed 3 times",
        f"trained on 640 items of {make.NASTY}, {make.BREAKOUT}",
        "caf?.mp4",
        shlex.quote(make.NASTY),
    ):
        assert place in page.text, place
    assert page.text.count("<mark>run") >= 3, "title, heading, folder"
    ours = "html head meta title style body header h1 h2 h3 p span nav a main section dl div dt dd b strong figure figcaption svg text"
    ours += " line path circle details summary table thead tbody tr th td code pre fieldset legend input label img ul li footer script"
    assert {tag for tag, _ in page.tags} <= set(ours.split())
    assert [i["src"][:11] for i in page.all("img") if i["src"]] == ["data:image/"] * 6


def test_the_page_stays_small(tmp_path: Path):
    run = make.several(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    for path in run.glob("pretrain/pictures/*.png"):
        Image.fromarray(noise).save(path)
    rows = [{**make.metrics(10, probes=1)[1], "step": i} for i in range(4_000)]
    make.lines(run / "pretrain" / "metrics.jsonl", rows)
    make.lines(run / "pretrain" / "bad_videos.jsonl", [{"key": f"{i}.mp4", "reason": "x" * 200} for i in range(5000)])
    page = tubelet.report(run)
    assert page.stat().st_size < 5 * 2**20
    assert "… and 4,900 more in bad_videos.jsonl" in " ".join(Page(page).text.split())


@pytest.mark.parametrize("name", ["complete", "stopped", "killed", "failed", "old", "empty", "several", "finetuned", "nasty"])
def test_the_commands_that_come_next_are_command_lines(name: str, pages: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    page = Page(pages[name])
    reached: list[str] = []

    def note(what: str):
        def called(*args: object, **more: object):
            reached.append(what)
            raise ConfigError("reached")

        return called

    for what in ("pretrain", "embed", "probe", "evaluate", "replay", "finetune"):
        monkeypatch.setitem(vars(tubelet), what, note(what))
    text = pages[name].read_text(encoding="utf-8")
    lines = [re.sub(r"<[^>]*>", "", block) for block in re.findall(r"<pre>(.*?)</pre>", text, flags=re.DOTALL)]
    assert len(lines) == len(page.all("pre")) >= 1

    for line in lines:
        words = shlex.split(html.unescape(line))
        before = len(reached)
        assert words[0] == "tubelet"
        assert command_line(words[1:]) == 2
        assert reached[before:] == [words[1]], line
