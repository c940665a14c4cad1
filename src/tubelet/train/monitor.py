"""A run's figures: copied from the device without waiting for it, averaged, written to metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
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
    """metrics.jsonl: one object a line, each with its ``step``. On resume, lines after the checkpoint's step are dropped; ``kept`` holds
    the others."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        self.path, self.kept = path, list[dict[str, Any]]()
        if resume_step is not None and path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resume_step]
            self.kept = [json.loads(line) for line in lines]
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

    def figures(self) -> dict[str, float]:
        per = self.seconds_per_sample
        return {"wait": self.wait_share, "clips_per_s": 1 / per if per else 0.0}


@dataclass(frozen=True)
class Yardstick:
    """What utilisation is measured with. ``forward_flops``: matrix products and attention of one sample's forward pass. ``peak``: name and
    FLOP/s of one process's device, None = not known."""

    forward_flops: float
    peak: tuple[str, float] | None

    def figures(self, clips_per_s: float, processes: int) -> dict[str, float]:
        """``tflops``: what the model's own arithmetic comes to, a backward pass counted as two forward passes, over all processes.
        ``mfu``: its share of the peaks. Recomputed activations do not count."""
        rate = 3 * self.forward_flops * clips_per_s
        return {"tflops": rate / 1e12} | ({"mfu": rate / (self.peak[1] * processes)} if self.peak else {})

    def describe(self) -> dict[str, Any]:
        """For run.json."""
        return {"forward_flops": self.forward_flops, "peak": dict(zip(("name", "flops"), self.peak, strict=True)) if self.peak else None}


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


def peak_memory(device: torch.device) -> float | None:
    """GiB: the most that tensors on a GPU took, elsewhere the most main memory that this process took. None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
