"""How many decoding processes a run takes, and how far they work ahead: from what decoding and training were measured to take."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.settings import AHEAD
from tubelet.data.workers import local_ranks

MARGIN = 1.25  # decoding is to be so much faster than training: it varies, and other programs run too
SLIGHT = 0.02  # share of a step below which decoding is left to the training process
MOST_AHEAD = 8  # batches a process
MEMORY_SHARE = 0.25  # of free memory that may hold batches


@dataclass(frozen=True)
class Pace:
    """How long making clips takes. ``group``: clips that were made at once; ``seconds`` (n,): of each group."""

    group: int
    seconds: np.ndarray

    @property
    def clip(self) -> float:
        """Seconds a clip."""
        return float(self.seconds.mean()) / self.group

    def spread(self, batch: int) -> float:
        """Standard deviation of a batch's seconds: its groups are drawn independently."""
        return float(self.seconds.std()) * math.sqrt(batch / self.group)


@dataclass(frozen=True)
class Supply:
    """``workers``: decoding processes. ``prefetch``: batches that each prepares ahead. ``why``: one line. ``decode``: clips/s of one core
    and ``need``: clips/s of training, as measured; None = not measured."""

    workers: int
    prefetch: int
    why: str
    decode: float | None = None
    need: float | None = None

    def describe(self) -> dict[str, Any]:
        """For run.json."""
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}


def choose(pace: Pace, need: float, *, batch: int, clip_bytes: int, cores: int, free: int, prefetch: int | None = None) -> Supply:
    """Enough processes that decoding outruns training by a margin, and so many batches ahead that a slow one is not waited for.

    ``need``: clips/s of training. ``batch``: clips. ``cores``: that may be used beside the training process. ``free``: bytes of memory.
    ``prefetch``: None = to be chosen. No processes where decoding hardly counts or there is no core for it.
    """
    rate = 1 / pace.clip
    said = f"decoding {_rate(rate)} clips/s a core, a step needs {_rate(need)}"
    if cores < 1:
        return Supply(0, prefetch or AHEAD, f"{said}: no core is left for decoding processes", rate, need)
    if need / rate < SLIGHT:
        return Supply(0, prefetch or AHEAD, f"{said}: decoded between steps", rate, need)
    wanted = math.ceil(MARGIN * need / rate)
    workers = min(wanted, cores)
    ahead = prefetch or AHEAD
    if prefetch is None:
        # A batch that takes three deviations longer than others is made good by those that the processes have ready.
        ahead = min(MOST_AHEAD, max(AHEAD, 1 + math.ceil(3 * pace.spread(batch) * need / (batch * workers))))
        room = int(MEMORY_SHARE * free / max(1, batch * clip_bytes))
        ahead = max(1, min(ahead, room // workers))
        if workers * ahead > room:
            workers = max(1, room)
    short = workers / wanted if workers < wanted else 1.0
    waits = f"; training will wait for data ({short:.0%} of what it could take)" if short * MARGIN < 1 else ""
    processes = f"{workers} worker{'s' * (workers > 1)}"
    return Supply(workers, ahead, f"{said}: {processes}, {ahead} batch{'es' * (ahead > 1)} ahead{waits}", rate, need)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def batch_room(free: int) -> int:
    """Bytes for batches: free main memory, and where that is smaller, this process's share of the shared memory that they travel in."""
    place = Path("/dev/shm")
    return min(free, shutil.disk_usage(place).free // local_ranks()) if place.is_dir() else free
