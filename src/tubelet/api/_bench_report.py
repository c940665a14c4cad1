"""What measuring the data path found: figures, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tubelet.api._run_plan import period
from tubelet.data.check import size_of
from tubelet.data.pace import Rate


@dataclass(frozen=True)
class Scaling:
    """Clips a second of wall time with so many decoding processes."""

    workers: int
    rate: float


@dataclass(frozen=True)
class Sample:
    """``seconds`` of ``items`` videos, raw and prepared at ``size`` pixels: rates with 1 and 4 clips from each opened file. ``hour``: bytes
    of an hour of prepared video; ``encoding``: seconds of one core for it."""

    items: int
    seconds: float
    raw: tuple[Rate, ...]
    prepared: tuple[Rate, ...]
    size: int
    hour: float
    encoding: float


@dataclass(frozen=True)
class Need:
    """What one GPU trains on: ``rate`` clips a second with a recipe. ``basis``: what that rests on."""

    gpu: str
    recipe: str
    rate: float
    basis: str

    def cores(self, rate: float) -> float:
        """That keep up with it, at so many clips a second of a core."""
        return self.rate / rate


@dataclass(frozen=True)
class DataBench:
    """What :func:`tubelet.bench_data` found. ``source``: raw, prepared, or mixed. ``clip``: (frames, height, width). ``rates``: of one
    core. ``sample``: None = no part of the sources was prepared. ``need``: None = not known. ``failures``: (key, reason) of files that
    could not be read. ``str()`` is the report."""

    sources: str
    items: int
    source: str
    clip: tuple[int, int, int]
    decoder: str
    rates: tuple[Rate, ...]
    scaling: tuple[Scaling, ...]
    sample: Sample | None
    need: Need | None
    failures: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def cores(self) -> dict[str, float]:
        """Cores that keep the GPU busy, by what is read and how many clips of each opened file; none where its pace is not known."""
        if self.need is None:
            return {}
        found = {f"{self.source}, {r.clips}": self.need.cores(r.rate) for r in self.rates}
        if self.sample is not None:
            found |= {f"prepared, {r.clips}": self.need.cores(r.rate) for r in self.sample.prepared}
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"cores": self.cores()}

    def __str__(self) -> str:
        t, h, w = self.clip
        what = {"raw": "", "prepared": ", a prepared set", "mixed": ", partly of prepared sets"}[self.source]
        lines = [f"{self.sources}: {self.items:,} items{what}; clips of {t} frames at {h}x{w}; {self.decoder}, one core's time", ""]
        lines += _table(self.rates, self.need, self.source)
        if self.sample is not None:
            lines += ["", *_sample(self.sample, self.need)]
        if self.scaling:
            first = self.scaling[0].rate / self.scaling[0].workers
            parts = [f"{s.workers}: {s.rate:,.1f}" + (f" ({s.rate / first:.2f}x)" if s.workers > 1 else "") for s in self.scaling]
            lines += ["", f"decoding processes, clips/s of wall time: {', '.join(parts)}"]
        if self.need is not None:
            lines += ["", f"one {self.need.gpu} trains on {self.need.rate:,.0f} clips/s of recipe {self.need.recipe}, {self.need.basis}"]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _table(rates: Sequence[Rate], need: Need | None, source: str) -> list[str]:
    cores = need is not None
    head = f"{'':<12}{'clips a file':>13}{'clips/s/core':>14}{'range':>16}{'bytes/clip':>12}{'opening':>9}{'decoding':>10}{'cutting':>9}"
    lines = [head + ("  cores for the GPU" if cores else "")]
    for r in rates:
        spread = f"{r.low:,.1f} - {r.high:,.1f}"
        size = "?" if r.bytes is None else size_of(r.bytes)
        line = f"{source:<12}{r.clips:>13}{r.rate:>14,.1f}{spread:>16}{size:>12}"
        line += f"{r.shares['opening']:>9.0%}{r.shares['decoding']:>10.0%}{r.shares['cutting']:>9.0%}"
        lines.append(line + (f"{need.cores(r.rate):>19,.1f}" if need is not None else ""))
    waited = max(r.waited for r in rates)
    if waited > 0.3:
        lines.append(f"it waited up to {waited:.0%} of the time, for the disk or for other programs; that is not in the figures")
    return lines


def _sample(s: Sample, need: Need | None) -> list[str]:
    gains = ", ".join(f"{p.rate / r.rate:.1f} x with {r.clips}" for r, p in zip(s.raw, s.prepared, strict=True))
    return [
        f"the same {s.seconds:,.0f} s of {s.items} videos, raw and prepared (tubelet prepare --size {s.size}): {gains} a file",
        *_table(s.raw, need, "raw"),
        *_table(s.prepared, need, "prepared")[1:],
        f"an hour of video prepared: {size_of(s.hour)}, {period(s.encoding)} of one core",
    ]
