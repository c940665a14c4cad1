"""Where the frames of a video are in time: what frame-exact seeking needs to know."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Timeline:
    """Frames in the order of presentation.

    ``times`` (n,) float64: seconds on the container's clock, 0 = where players start. ``kind``: ``packets``: read from every packet;
    ``decoded``: found by decoding everything; ``estimate``: a regular grid from the header (files too large to scan).
    ``pts`` (n,) int64 in the stream's time base, None where the file's stamps cannot be trusted. ``keys``: pts of key frames, sorted.
    ``first``: pts, dts, place and size of the file's first packet, by which it is known again.
    """

    times: np.ndarray
    kind: Literal["packets", "decoded", "estimate"]
    pts: np.ndarray | None = None
    keys: np.ndarray | None = None
    first: tuple[int | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def tolerance(self) -> int:
        """How far a frame's stamp may be from the grid, in the stream's time base."""
        if self.kind != "estimate" or self.pts is None or len(self) < 2:
            return 0
        return int((self.pts[-1] - self.pts[0]) / (len(self) - 1) / 2)

    def key_before(self, index: int) -> int | None:
        """Stamp to seek to for a frame: the last key frame not after it; None = start of the file."""
        assert self.pts is not None
        if self.keys is None:
            return int(self.pts[index]) if index else None
        at = int(np.searchsorted(self.keys, self.pts[index], side="right")) - 1
        return int(self.keys[at]) if at > 0 else None

    def skips(self, here: int, index: int) -> bool:
        """Whether seeking from frame ``here`` to ``index`` saves decoding at least 8 frames."""
        assert self.pts is not None
        if index - here <= 8:
            return False
        if self.keys is None:
            return index - here > 250
        key = self.key_before(index)
        return key is not None and int(np.searchsorted(self.pts, key)) - here > 8


class TimelineCache:
    """Scanned timelines of local files, the least recently used dropped first. A file is known by path, size and time of change."""

    def __init__(self, max_frames: int = 8_000_000) -> None:
        self._max, self._frames = max_frames, 0
        self._kept: OrderedDict[tuple[str, int, int, str], Timeline] = OrderedDict()

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self._frames = 0

    @staticmethod
    def _identity(path: str, kind: str) -> tuple[str, int, int, str] | None:
        if "://" in path:
            return None
        info = os.stat(path)
        return path, info.st_size, info.st_mtime_ns, kind

    def get(self, path: str, kind: str) -> Timeline | None:
        key = self._identity(path, kind)
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, path: str, timeline: Timeline) -> None:
        key = self._identity(path, timeline.kind)
        if key is None or len(timeline) > self._max or key in self._kept:
            return
        self._kept[key] = timeline
        self._frames += len(timeline)
        while self._frames > self._max:
            self._frames -= len(self._kept.popitem(last=False)[1])
