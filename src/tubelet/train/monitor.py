"""What a run says while it goes: metrics.jsonl, and one line of progress. Figures are copied from the device without waiting for it."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.train.checkpoint import write_text


@dataclass
class Pending:
    """Figures on their way to the host."""

    step: int
    names: list[str]
    values: Tensor
    ready: torch.cuda.Event | None
    extra: dict[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, float]:
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def send(step: int, figures: Mapping[str, Tensor], extra: dict[str, Any] | None = None) -> Pending:
    """Start copying scalars to the host."""
    values = torch.stack([v.detach().to(torch.float32).reshape(()) for v in figures.values()])
    if values.device.type != "cuda":
        return Pending(step, list(figures), values.cpu(), None, extra or {})
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))
    return Pending(step, list(figures), host, event, extra or {})


class Window:
    """Sums of the figures since the last line of metrics.jsonl; part of a checkpoint, so that a resumed run writes the same lines."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        for name, value in figures.items():
            value = value.detach().to(torch.float32).reshape(())
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Each figure's mean over the steps that had it; the window starts anew."""
        out = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return out

    def state(self) -> tuple[Tensor, dict[str, int]]:
        """The sums, and names with counts in the same order."""
        return torch.stack(list(self.sums.values())) if self.sums else torch.zeros(0), dict(self.counts)

    def load(self, sums: Tensor, counts: Mapping[str, int]) -> None:
        self.sums, self.counts = dict(zip(counts, sums.unbind(), strict=True)), dict(counts)


class MetricsFile:
    """metrics.jsonl: one object a line, each with its ``step``. On resume, lines after the checkpoint's step are dropped."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        self.path = path
        if resume_step is not None and path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resume_step]
            write_text(path, "".join(line + "\n" for line in lines))
        elif resume_step is None:
            write_text(path, "")
        self.file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run, closed in close())

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            self.file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")
            self.file.flush()
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error}; free some space, then continue with --resume") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a line that could not be written is tried again here, and has been reported
            self.file.close()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else repr(value)
    return value


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill


class Rate:
    """Clips per second and data-wait share over the last steps."""

    def __init__(self, window: int = 50) -> None:
        self.steps: deque[tuple[float, float, int]] = deque(maxlen=window)

    def add(self, seconds: float, waited: float, samples: int) -> None:
        self.steps.append((seconds, waited, samples))

    @property
    def seconds_per_sample(self) -> float:
        samples = sum(n for _, _, n in self.steps)
        return sum(s for s, _, _ in self.steps) / samples if samples else 0.0

    @property
    def wait_share(self) -> float:
        total = sum(s for s, _, _ in self.steps)
        return sum(w for _, w, _ in self.steps) / total if total else 0.0


def duration(seconds: float) -> str:
    """``45s``, ``12m05s``, ``3h10m``, ``2d04h``."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("figures", ""))


class Reporter:
    """Progress on a terminal, or a plain line every ``every`` seconds where there is none. Silent with ``quiet``."""

    def __init__(self, total: int, *, quiet: bool = False, every: float = 10.0, stream: TextIO | None = None) -> None:
        self.total, self.quiet, self.every = total, quiet, every
        self.console = Console(file=stream or sys.stderr)
        self.last = -math.inf
        self.live: Progress | None = None

    def _live(self) -> Progress:
        if self.live is None:
            live = Progress(TextColumn("step {task.completed}/{task.total}"), BarColumn(), _Figures(), console=self.console)
            live.start()
            self.live, self.task = live, live.add_task("train", total=self.total)
        return self.live

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, step: int, loss: float, rate: Rate, lr: float, remaining_samples: int) -> None:
        per = rate.seconds_per_sample
        speed = 1 / per if per else 0.0
        eta = duration(remaining_samples * per)
        text = f"loss {loss:.4f}  lr {lr:.2e}  {speed:.1f} clips/s  wait {100 * rate.wait_share:.0f}%  ETA {eta}"
        if self.quiet:
            return
        if self.console.is_terminal:
            self._live().update(self.task, completed=step, figures=text)
        elif time.monotonic() - self.last >= self.every or step >= self.total:
            self.last = time.monotonic()
            self.say(f"step {step}/{self.total}  {text}")

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
