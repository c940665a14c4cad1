"""The report's parts: figures as words, curves, pictures that fit, and run folders in every state."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import run_folders as make

from tubelet.viz.report import chart as charts
from tubelet.viz.report import details, figures, images, render, scores, words
from tubelet.viz.report.chart import Series, chart
from tubelet.viz.report.folder import read


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of run folders, by name."""
    home = tmp_path_factory.mktemp("runs")
    for name, build in make.ALL.items():
        build(home / name)
    return home


def words_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


# Words


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.written(0.02411), "0.02411"),
        (words.written(0.3651, "share"), "36.5 %"),
        (words.written(1234.5, "rate"), "1,234"),
        (words.written(3.456, "gib"), "3.46 GiB"),
        (words.tick(0.025, "share"), "2.5 %"),
        (words.tick(2000), "2,000"),
        (words.tick(150000), "150k"),
        (words.seconds(0.42), "0.4 s"),
        (words.seconds(725), "12 min 05 s"),
        (words.seconds(11400), "3 h 10 min"),
        (words.seconds(187200), "2 d 04 h"),
        (words.large(2.272e15, "FLOP"), "2.27 PFLOP"),
        (words.plural(1, "clip"), "1 clip"),
        (words.plural(3840, "clip"), "3,840 clips"),
        (words.setting([2, 8, 8]), "[2, 8, 8]"),
        (words.setting(None), "null"),
        (words.text(["a", "b"]), "a, b"),
        (details.when("2025-03-01T10:00:00+01:00"), "2025-03-01 09:00:00 UTC"),
        (details.when("yesterday"), "yesterday"),
    ],
)
def test_figures_as_words(said: str, wanted: str):
    assert said.replace("\u00a0", " ") == wanted


@pytest.mark.parametrize("value", [True, None, "3", "nan", math.nan, math.inf, 10**400, [1], {}])
def test_what_is_no_finite_number_is_none(value: object):
    assert words.figure(value) is None


# Curves


def pairs(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_a_falling_curve_falls_inside_its_box():
    drawn = chart("Loss", [Series("loss", [(0, 1.0), (50, 0.4), (100, 0.2)]), Series("zero", [(0, 0.9), (100, 0.9)], dashed=True)])
    assert drawn is not None
    loss, zero = drawn.lines
    at = pairs(loss.path)
    assert [x for x, _ in at] == [0, 500, 1000]
    assert at[0][1] < at[1][1] < at[2][1], "y runs downwards"
    assert all(0 <= y <= 1000 for _, y in at + pairs(zero.path))
    assert (zero.dashed, loss.dashed) == (True, False)
    assert (loss.last, loss.t) == ("0.2", "1|0.4|0.2")
    assert drawn.y_ticks[0] == ("100.00%", "0")
    assert drawn.summary.startswith("Loss: loss from 1 at step 0 to 0.2 at step 100")


def test_places_agree_with_the_axis():
    drawn = chart("x", [Series("x", [(0, 0.25), (200, 0.5)], baseline=0.25)], unit="share")
    assert drawn is not None
    heights = {text: float(place[:-1]) for place, text in drawn.y_ticks}
    (line,) = drawn.lines
    assert pairs(line.path)[1][1] / 10 == pytest.approx(heights["50\u00a0%"])
    assert line.level is not None
    assert float(line.level[:-1]) == pytest.approx(pairs(line.path)[0][1] / 10)
    assert [words for _, words in drawn.x_ticks] == ["0", "50", "100", "150", "200"]


def test_gaps_single_points_and_nothing():
    drawn = chart("x", [Series("x", [(0, 1.0), (1, math.nan), (2, 2.0), (3, 3.0)])])
    assert drawn is not None
    assert drawn.lines[0].path.count("M") == 2
    assert len(drawn.lines[0].dots) == 3
    assert chart("x", [Series("x", [(5, 0.0)])]) is not None
    assert chart("x", [Series("x", [(0, math.nan)]), Series("y", [])]) is None


@pytest.mark.parametrize(("values", "log"), [((0.25, 0.02), True), ((1.0, 0.6), False), ((1.0, 0.0), False), ((1.0, -1.0), False)])
def test_a_free_axis_is_logarithmic_where_values_span_much(values: tuple[float, float], log: bool):
    drawn = chart("x", [Series("x", list(enumerate(values)))], free=True)
    assert drawn is not None
    assert drawn.log == log
    tops = [y for _, y in pairs(drawn.lines[0].path)]
    assert 0 <= tops[0] < tops[1] <= 1000


@given(st.lists(st.tuples(st.integers(0, 10**6), st.one_of(st.floats(-1e9, 1e9), st.just(math.nan))), max_size=900), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_points_stay_inside_and_are_thinned(points: list[tuple[float, float]], free: bool):
    points = sorted(points, key=lambda p: p[0])
    finite = [p for p in points if p[1] == p[1]]
    drawn = chart("x", [Series("x", points)], free=free)
    assert (drawn is None) == (not finite)
    if drawn is None:
        return
    placed = pairs(drawn.lines[0].path)
    assert 0 < len(placed) <= max(charts.MOST + 2, 2)
    assert all(-0.11 <= v <= 1000.11 for p in placed for v in p)
    assert drawn.lines[0].last == words.written(finite[-1][1])
    assert len(drawn.lines[0].x.split(",")) == len(drawn.lines[0].t.split("|")) == len(placed)


def test_thinning_keeps_spikes():
    points = [(float(i), 1.0) for i in range(5000)]
    points[1234], points[3333] = (1234.0, 9.0), (3333.0, -9.0)
    kept = charts._thin(points)
    assert len(kept) <= charts.MOST + 2
    assert {points[1234], points[3333], points[0], points[-1]} <= set(kept)
    assert kept == sorted(kept)


# Pictures


def test_pictures_fit_the_budget_and_are_still_pictures(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (1000, 800, 3), dtype=np.uint8)
    for step in (0, 500):
        Image.fromarray(noise).save(tmp_path / f"step_{step:08d}.png")
    found, broken = images.inline([(s, tmp_path / f"step_{s:08d}.png") for s in (0, 500)], 150_000)
    assert not broken
    assert sum(len(p.url) for p in found) <= 150_000 * 4 / 3 + 200
    for one in found:
        data = base64.b64decode(one.url.partition("base64,")[2])
        assert Image.open(io.BytesIO(data)).size == (one.width, one.height)
        assert one.width / one.height == pytest.approx(800 / 1000, abs=0.01)


def test_a_small_picture_is_not_enlarged_and_a_tall_one_is_cut_down(tmp_path: Path):
    make.picture(tmp_path / "a.png", 0.5, size=(200, 100))
    Image.new("RGB", (100, 20000)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found, broken = images.inline([(0, tmp_path / "a.png"), (1, tmp_path / "b.png"), (2, tmp_path / "c.png")], 10**6)
    assert [(p.step, p.width) for p in found] == [(0, 200), (1, 20)]
    assert broken == ["c.png"]


@given(st.integers(1, 60), st.integers(2, 9))
def test_first_and_last_picture_are_always_shown(count: int, most: int):
    all_of_them = [(10 * i, Path(f"{i}.png")) for i in range(count)]
    chosen = images.choose(all_of_them, most)
    assert len(chosen) == len(set(chosen)) == min(count, most)
    assert (chosen[0], chosen[-1]) == (all_of_them[0], all_of_them[-1])


# Run folders

SAID = {
    "complete": [
        "complete videomae (3.1 M parameters, tube masking 90 %), trained on 640 items of my_videos, clips of 16 x 96 x 96.",
        "2,000 steps, 64,000 clips in 17 min 30 s.",
        "GPU-hours 0.584 2 x NVIDIA H100",
        "Computed 211 TFLOP 3 x a clip's forward pass, 1.1 GFLOP",
        "of H100 SXM bf16 (989 TFLOP/s)",
        "b1.mp4 Reason moov atom not found Times 1",
        "masking.ratio 0.9 --set",
        "train.batch 32 recipe tiny-cpu",
        "scored on 200 others, so that a figure is uncertain by up to 7 points",
        "Recipe tiny-cpu: A laptop without a GPU",
        "tubelet embed",
    ],
    "stopped": [
        "Stopped by SIGTERM at step 700 of 2,000 after 6 min 07 s.",
        "Continue from the newest checkpoint (in /home/ada/films)",
        "tubelet pretrain my_videos --out runs/a --set masking.ratio=0.9 --resume",
    ],
    "killed": ["not finished", "the last that is known is step 700 of 2,000. No end was recorded, so it is still running or was killed."],
    "failed": [
        "NonFiniteError: the gradient of step 704 is not finite",
        "Failed after 6 min 20 s; the last that is known is step 700 of 2,000.",
    ],
    "old": [
        "complete",
        "60 steps, 1,920 clips",
        "worked out from clips/s; the run did not record it",
        "run.json is missing",
        "No pictures: the run saved none.",
        "No probe curves",
        "Where each value came from was not recorded.",
        "None was recorded.",
    ],
    "empty": ["not finished", "metrics.jsonl is missing or empty", "Nothing was recorded of time or clips.", "Start it again"],
    "several": [
        "stopped 3 stages:",
        "pretrain 2,000 steps, 64,000 clips",
        "again Stopped by SIGINT at step 700 of 2,000",
        "last Not started.",
        "to be trained on my_videos",
    ],
    "finetuned": [
        "A classifier on videomae (3.1 M parameters, 12 classes), fine-tuned from runs/a/model.safetensors on 500 items of labelled.csv",
        "top\u20111 61.3 % 95 % interval 54.4 to 67.8 %; 198 of 200 items scored; 12 classes, chance 8.3 %",
        "top\u20115 91.4 %",
        "Held-out top-1",
        "sit stand 7 of 17",
        "tubelet evaluate",
    ],
}


@pytest.mark.parametrize("name", SAID)
def test_every_kind_of_run_is_told(folders: Path, name: str):
    seen = words_of(render(folders / name))
    assert [line for line in SAID[name] if line not in seen] == []
    assert "None" not in seen.replace("None was recorded", "")


def test_a_complete_run_lacks_nothing(folders: Path):
    assert 'class="missing"' not in render(folders / "complete")


def test_defaults_are_told_apart_from_choices(folders: Path):
    (part,) = read(folders / "complete").parts
    chosen, rest = details.settings(part)
    assert chosen[0] == ("masking.ratio", "0.9", "--set")
    assert {origin for _, _, origin in chosen} == {"--set", "recipe tiny-cpu"}
    assert {origin for _, _, origin in rest} == {"default"}
    assert ("method.patch", "[2, 16, 16]", "recipe tiny-cpu") in chosen


def test_untrained_values_are_those_of_step_0(folders: Path):
    (part,) = read(folders / "complete").parts
    first = json.loads((folders / "complete" / "metrics.jsonl").read_text().splitlines()[0])
    probe = figures.probe_curves(part)[0]
    slots = probe.lines[0]
    assert slots.name == "slots"
    assert slots.t.split("|")[0] == words.written(first["probe/slots"], "share")
    assert slots.level is not None
    assert float(slots.level[:-1]) == pytest.approx(float(slots.y.split(",")[0]) / 10, abs=0.1)
    for row in part.rows:
        if row["step"] == 0:
            row.clear()
    assert all(line.level is None for c in figures.probe_curves(part) for line in c.lines)
    assert {row[1] for row in figures.probe_table(part)} == {"not measured"}


def test_a_stage_is_also_a_run(folders: Path):
    seen = words_of(render(folders / "several" / "again"))
    assert "Stopped by SIGINT at step 700" in seen
    assert "masking.ratio 0.9 --set" in seen


def test_settings_of_stages_keep_their_origins(folders: Path):
    for part in read(folders / "several").parts:
        assert details.settings(part)[0][0] == ("masking.ratio", "0.9", "--set"), part.name


def test_hooks_that_failed_and_damaged_files_are_named(folders: Path, tmp_path: Path):
    run = make.old(tmp_path / "run")
    (run / "run.json").write_text(json.dumps({"report": {"hooks_failed": {"probe": 3}}}))
    (run / "results.json").write_text("{")
    (run / "pictures").mkdir()
    (run / "pictures" / "step_00000010.png").write_bytes(b"no picture")
    (run / "model.safetensors").write_bytes(b"\x08\x00")
    seen = words_of(render(run))
    assert "probe failed 3 times" in seen
    for name in ("results.json: ", "step_00000010.png: not a readable picture", "model.safetensors: "):
        assert name in seen


def test_a_resumed_command_does_not_say_resume_twice(tmp_path: Path):
    run = make.stopped(tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"command": [*about["command"], "--resume"]}))
    assert words_of(render(run)).count("--resume") == 2  # the command itself, and the next one
    (run / "run.json").write_text(json.dumps(about | {"command": ["/usr/bin/pytest", "-q", "x"], "imports": ["my mask.py"]}))
    assert f"tubelet pretrain my_videos --out {run} --import 'my mask.py' --resume" in words_of(render(run))


def test_a_step_that_was_not_finite_can_be_looked_at(folders: Path):
    (part,) = (run := read(folders / "failed")).parts
    assert part.ended == "failed"
    assert details.commands(run)[0][1] == f"tubelet replay {folders / 'failed'} 704"


def test_results_of_any_shape():
    assert scores.results({"test": {"top1": 0.5, "loss": 1.25, "note": "x"}}) == [
        ("test / top1", "50.0\u00a0%", ""), ("test / loss", "1.25", ""), ("test / note", "x", "")]  # fmt: skip
    assert scores.results("nothing") == scores.results(None) == scores.results([1, 2]) == []


# What a file may hold

FUZZ = 25

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda child: st.one_of(st.lists(child, max_size=3), st.dictionaries(st.text(max_size=6), child, max_size=3)),
    max_leaves=8,
)
FACTS = [
    "command", "folder", "sources", "exclude", "imports", "origins", "items", "started", "sessions", "ended", "stopped_by", "error",
    "machine", "parameters", "steps", "total_steps", "samples", "forward_flops", "peak", "watch_seconds", "seconds", "report", "start",
]  # fmt: skip
FIGURES = [
    "step",
    "loss",
    "zero_answer",
    "lr",
    "wait",
    "clips_per_s",
    "mfu",
    "memory_gib",
    "samples",
    "epoch",
    "probe/slots",
    "knn/mean",
    "x",
]


def some(names: list[str], **better: st.SearchStrategy) -> st.SearchStrategy:
    """Mappings with any of these names."""
    return st.fixed_dictionaries({}, optional={**dict.fromkeys(names, JSON), **better})


STAGES = st.lists(
    some(["name", "method", "masking", "data", "train", "classifier"], name=st.sampled_from(["a", "b", "", "..", "x/y", "<b>"]))
)


@given(
    facts=some(FACTS),
    rows=st.lists(st.one_of(JSON, some(FIGURES, step=st.integers(0, 9))), max_size=5),
    book=st.one_of(JSON, some(["about", "table", "deviations", "stages", "method", "data"], stages=STAGES)),
    header=st.one_of(JSON, some(["step", "samples", "total_steps", "config"], config=some(["method", "classes", "start", "data"]))),
)
@settings(max_examples=FUZZ, deadline=None)
def test_whatever_the_files_hold_there_is_a_page(tmp_path_factory: pytest.TempPathFactory, facts, rows, book, header):
    run = tmp_path_factory.mktemp("any")
    for folder in (run, run / "a"):
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps(facts))
        (folder / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
        (folder / "config.yaml").write_text(json.dumps(book))
        (folder / "results.json").write_text(json.dumps(rows))
        (folder / "bad_videos.jsonl").write_text("\n".join(json.dumps(r) for r in [facts, *rows]))
        make.weights(folder / "checkpoints" / "step-00000010.safetensors", header)
    page = render(run)
    assert page.endswith("</html>")
    assert page.count("<script>") == page.count("<style>") == 1


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"{", b"[" * 1200, b"null", b"- 1\n- 2", b"{a: [b: }"])
def test_damaged_files_give_a_page(tmp_path: Path, data: bytes):
    for name in ("run.json", "metrics.jsonl", "config.yaml", "bad_videos.jsonl", "items.txt", "results.json", "model.safetensors"):
        (tmp_path / name).write_bytes(data)
    assert "Settings" in words_of(render(tmp_path))


def test_the_hardest_clips_of_a_test():
    from tubelet.viz.report.scores import hardest

    clip = {"key": "a.mp4", "true": "run", "predicted": "sit", "probability": 0.036}
    assert hardest([{"hardest": [clip]}]) == [("a.mp4", "run, taken for sit", "3.6\u00a0%")]
    assert hardest([]) == hardest([{}]) == hardest([{"hardest": "damaged"}]) == []
