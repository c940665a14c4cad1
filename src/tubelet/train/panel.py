"""What a person sees of a run while it goes: one calm panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tubelet.train.monitor import duration

BARS = "▁▂▃▄▅▆▇█"
SHARES = ("probe", "knn", "val_top1")  # figures under these names are shares of right answers


def trend(values: Sequence[float], width: int = 24) -> str:
    """A line of ``width`` small bars at most, each the mean of an equal part of the finite values, from their lowest to their highest."""
    finite = [v for v in values if math.isfinite(v)]
    n = min(width, len(finite))
    if n < 2:
        return ""
    means = []
    for i in range(n):
        part = finite[i * len(finite) // n : (i + 1) * len(finite) // n]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    top = len(BARS) - 1
    return "".join(BARS[round((v - low) / (high - low) * top) if high > low else 0] for v in means)


class View:
    """What is known of a run, in words. ``total``: its steps. ``folder``: the run's folder. ``peak``: what MFU is measured against."""

    def __init__(self, total: int, *, folder: Path | None = None, peak: str = "") -> None:
        self.total, self.folder, self.peak = total, folder, peak
        self.step, self.doing, self.eta = 0, "", math.nan
        self.losses: list[float] = []
        self.last: dict[str, Any] = {}
        self.first_seen: dict[str, float] = {}
        self.seen: dict[str, float] = {}
        self.picture: Path | None = None
        self.faults: Mapping[str, Any] = {}

    def take(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl: of training, where it has a loss, or of what hooks found."""
        if "loss" in row:
            self.last = dict(row)
            self.losses.append(float(row["loss"]))  # a figure that was not finite is written as a word
            return
        for name, value in row.items():
            if name == "picture":  # in the file, a path inside the run's folder
                self.picture = value if isinstance(value, Path) else (self.folder or Path()) / value
            elif isinstance(value, int | float) and name not in ("step", "samples", "epoch"):
                self.first_seen.setdefault(name, value)
                self.seen[name] = value

    def loss(self) -> str:
        zero = self.last.get("zero_answer")
        return f"{float(self.last['loss']):.4f}" + (f"  (answering zero: {float(zero):.4f})" if zero is not None else "")

    def speed(self, *, against: bool = True) -> str:
        """``against``: name the peak, too."""
        parts = [f"{self.last['clips_per_s']:.1f} clips/s", f"waiting for data {100 * self.last['wait']:.0f} %"]
        if "mfu" in self.last:
            parts.append(f"MFU {100 * self.last['mfu']:.1f} %" + (f" of {self.peak}" if against else ""))
        elif "tflops" in self.last:
            parts.append(f"{self.last['tflops']:.3g} TFLOP/s")
        return "  ".join(parts)

    def probes(self, *, rise: bool = True) -> list[tuple[str, str]]:
        """(group, text) of what hooks found: ``probe/mean`` and ``probe/slots`` are one group. ``rise``: from what it was at first."""
        groups: dict[str, list[str]] = {}
        for name, now in self.seen.items():
            head, _, tail = name.partition("/")
            if tail in ("n", "fit", "chance"):
                continue
            share = head in SHARES
            before, last = (f"{100 * v:.1f}" if share else f"{v:.3g}" for v in (self.first_seen[name], now))
            shown = (f"{before} → {last}" if rise and before != last else last) + " %" * share
            groups.setdefault(head, []).append(f"{tail} {shown}".strip())
        if "probe" in groups and {"probe/n", "probe/chance"} <= self.seen.keys():
            groups["probe"].append(f"({self.seen['probe/n']:.0f} items, chance {100 * self.seen['probe/chance']:.1f} %)")
        return [(head, "  ".join(parts)) for head, parts in groups.items()]

    def bad(self) -> str:
        videos, replaced = self.faults.get("bad_videos", 0), self.faults.get("samples_replaced", 0)
        return f"{videos} cannot be read, {replaced} samples replaced (bad_videos.jsonl)" if videos else ""

    def line(self) -> str:
        """The training figures as one plain line."""
        bad, known = self.faults.get("bad_videos", 0), self.last
        loss = f"step {known['step']}/{self.total}  loss {float(known['loss']):.4f}  lr {known['lr']:.2e}"
        return f"{loss}  {self.speed(against=False)}  {self.remaining()}".rstrip() + (f"  bad videos {bad}" if bad else "")

    def remaining(self) -> str:
        return f"ETA {duration(self.eta)}" if math.isfinite(self.eta) and self.step < self.total else ""

    def render(self, width: int) -> RenderableType:
        """The panel, for a terminal of ``width`` columns."""
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        known = self.last
        share = self.step / self.total if self.total else 0.0
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=self.total, completed=self.step, complete_style="cyan", finished_style="green")
        head.add_row(f"{self.step} / {self.total}", bar, f"{100 * share:.0f} %  {self.remaining()}".strip())
        table.add_row("step", head)
        if known:
            table.add_row("loss", Text.assemble(self.loss(), "  ", (trend(self.losses, max(8, min(40, width - 60))), "cyan")))
            table.add_row("lr", f"{known['lr']:.2e}   epoch {known['epoch']:.4g}")
            table.add_row("speed", self.speed())
            if "memory_gib" in known:
                table.add_row("memory", f"{known['memory_gib']:.2f} GiB at most")
        for group, text in self.probes():
            table.add_row(group, text)
        if self.picture is not None:
            table.add_row("picture", str(self.picture))
        if self.bad():
            table.add_row("videos", Text(self.bad(), "yellow"))
        if self.doing:
            table.add_row("now", Text(self.doing, "italic"))
        title = Text(str(self.folder), "bold") if self.folder is not None else None
        return Frame(table, title=title, title_align="left", box=box.ROUNDED, border_style="dim", padding=(0, 1))


class Panel:
    """Shows a :class:`View`: drawn again at most twice a second on a terminal; a line every ``every`` seconds where there is none. Silent
    with ``quiet``. No thread draws it, so decoding processes may fork at any moment."""

    def __init__(
        self,
        total: int,
        *,
        folder: Path | None = None,
        peak: str = "",
        quiet: bool = False,
        every: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.view = View(total, folder=folder, peak=peak)
        self.quiet, self.every = quiet, every
        self.console = Console(file=stream or sys.stderr)
        self.drawn = self.said = -math.inf
        self.live: Live | None = None

    @property
    def _terminal(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """What the run wrote before it was resumed."""
        for row in rows:
            self.view.take(row)

    def step(self, step: int, remaining_seconds: float) -> None:
        """A step is done."""
        self.view.step, self.view.eta = step, remaining_seconds
        self._draw()

    def doing(self, what: str) -> None:
        """What the run does between two steps; empty: it goes on."""
        self.view.doing = what
        self._draw(now=True)

    def row(self, row: Mapping[str, Any], faults: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, and the feed's counts."""
        view, view.faults = self.view, faults
        view.take(row)
        if self.quiet:
            return
        if self._terminal:
            self._draw(now="loss" not in row)
        elif "loss" not in row:
            found = [f"{group} {text}" for group, text in view.probes(rise=False)]
            picture = [f"picture {view.picture}"] if "picture" in row else []
            self.say(f"step {row['step']}  " + "; ".join([*found, *picture]))
        elif time.monotonic() - self.said >= self.every or row["step"] >= view.total:
            self.said = time.monotonic()
            self.say(view.line())

    def _draw(self, *, now: bool = False) -> None:
        if self.quiet or not self._terminal or (not now and time.monotonic() - self.drawn < 0.5):
            return
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        self.live.update(self.view.render(self.console.width), refresh=True)
        self.drawn = time.monotonic()

    def close(self) -> None:
        """Leave the panel as it is last."""
        if self.live is not None:
            self._draw(now=True)
            self.live.stop()
            self.live = None
