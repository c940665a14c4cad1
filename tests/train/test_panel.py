"""What is shown of a run: the words, on terminals of several widths and where there is none."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from tubelet.train.panel import Panel, View, trend

ROW = {
    "step": 20, "loss": 0.8123, "zero_answer": 1.01, "lr": 1.2e-3, "epoch": 2.5, "samples": 160, "wait": 0.031, "clips_per_s": 38.24,
    "memory_gib": 1.234, "tflops": 0.5, "mfu": 0.123,
}  # fmt: skip
UNTRAINED = {
    "step": 0, "samples": 0, "epoch": 0.0, "probe/mean": 0.07, "probe/slots": 0.08, "probe/n": 98.0, "probe/fit": 102.0,
    "probe/chance": 0.05, "knn/mean": 0.06, "rank/mean": 7.25, "rank/n": 200.0, "picture": "pictures/step_00000000.png",
}  # fmt: skip
LATER = UNTRAINED | {"step": 500, "probe/mean": 0.213, "rank/mean": 31.0, "picture": "pictures/step_00000500.png"}


def view(*rows) -> View:
    out = View(80, folder=Path("runs/first"), peak="H100 SXM bf16")
    for row in rows:
        out.take(row)
    out.step, out.eta = 20, 725.0
    return out


def drawn(shown: View, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, legacy_windows=False)
    console.print(shown.render(width))
    return console.file.getvalue().splitlines()


def test_everything_is_in_the_panel():
    shown = view(UNTRAINED, LATER, ROW | {"step": 10, "loss": 1.2}, ROW)
    shown.faults = {"bad_videos": 2, "samples_replaced": 9}
    text = "\n".join(drawn(shown))
    for words in (
        "runs/first", "20 / 80", "25 %", "ETA 12m05s", "loss     0.8123  (answering zero: 1.0100)  █▁", "1.20e-03   epoch 2.5",
        "38.2 clips/s  waiting for data 3 %  MFU 12.3 % of H100 SXM bf16", "1.23 GiB",
        "mean 7.0 → 21.3 %  slots 8.0 %  (98 items, chance 5.0 %)", "knn      mean 6.0 %", "rank     mean 7.25 → 31",
        "runs/first/pictures/step_00000500.png", "2 cannot be read, 9 samples replaced",
    ):  # fmt: skip
        assert words in text, f"{words!r} is missing in\n{text}"


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_panel_keeps_its_height_and_fits(width):
    lines = drawn(view(UNTRAINED, LATER, ROW), width)
    assert len(lines) == len(drawn(view(UNTRAINED, LATER, ROW), 100))
    assert all(len(line) <= width for line in lines)
    assert any("0.8123" in line for line in lines)


def test_a_run_of_which_little_is_known_is_shown_too():
    shown = View(80)
    assert "0 / 80" in "\n".join(drawn(shown))
    shown.take({k: v for k, v in ROW.items() if k not in ("mfu", "zero_answer", "memory_gib")})
    text = "\n".join(drawn(shown))
    assert "0.5 TFLOP/s" in text
    assert "MFU" not in text
    assert "answering zero" not in text


def test_a_loss_that_was_not_finite_does_not_break_the_panel():
    """metrics.jsonl holds it as a word."""
    shown = view(ROW, ROW | {"loss": "nan"}, ROW | {"loss": 0.5})
    assert "█▁" in "\n".join(drawn(shown))
    shown.take(ROW | {"loss": "nan"})
    assert "nan" in "\n".join(drawn(shown))


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([], 4, ""),
        ([1.0], 4, ""),
        ([3.0, 2.0, 1.0, 0.0], 4, "█▆▃▁"),
        ([4, 4, 0, 0], 2, "█▁"),
        ([2.0, 2.0], 4, "▁▁"),
        ([5.0, math.nan, 1.0], 4, "█▁"),
    ],
)
def test_trend(values, width, bars):
    assert trend(values, width) == bars


def test_lines_where_there_is_no_terminal():
    out = io.StringIO()
    panel = Panel(80, folder=Path("runs/first"), peak="H100 SXM bf16", stream=out, every=0)
    panel.doing("probe")
    panel.row(UNTRAINED, {})
    panel.step(20, 725.0)
    panel.row(ROW, {"bad_videos": 2})
    panel.row(LATER, {})
    panel.close()
    untrained, training, later = out.getvalue().splitlines()
    assert untrained.startswith("step 0  probe mean 7.0 %  slots 8.0 %  (98 items, chance 5.0 %); knn mean 6.0 %; rank mean 7.25")
    assert untrained.endswith("picture runs/first/pictures/step_00000000.png")
    assert training == ("step 20/80  loss 0.8123  lr 1.20e-03  38.2 clips/s  waiting for data 3 %  MFU 12.3 %  ETA 12m05s  bad videos 2")
    assert "probe mean 21.3 %" in later


def test_lines_come_at_most_every_few_seconds_and_at_the_end():
    out = io.StringIO()
    panel = Panel(30, stream=out, every=1000)
    for step in (10, 20, 30):
        panel.row(ROW | {"step": step}, {})
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["10/30", "30/30"]


def test_quiet_is_silent(capsys):
    panel = Panel(30, quiet=True)
    panel.say("a")
    panel.doing("b")
    panel.row(ROW, {})
    panel.row(LATER, {})
    panel.step(30, 0.0)
    panel.close()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_panel_that_stays(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    panel = Panel(80, folder=Path("runs/first"), stream=out)
    panel.recall([UNTRAINED])
    panel.step(1, 10.0)
    panel.row(LATER, {})
    panel.say("a line that stays")
    panel.step(80, 0.0)
    panel.close()
    written = out.getvalue()
    assert "a line that stays" in written
    assert written.count("runs/first/pictures/step_00000500.png") >= 1
    last = written[written.rindex("╭") :]
    assert "80 / 80" in last
    assert "100 %" in last
    assert "7.0 → 21.3 %" in last, "what was known before a resume is the start of the rise"


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    panel = Panel(80, stream=out, every=0)
    panel.step(20, 1.0)
    panel.row(ROW, {})
    panel.close()
    assert "╭" not in out.getvalue()
    assert out.getvalue().startswith("step 20/80")
