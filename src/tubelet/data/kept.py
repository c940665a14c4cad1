"""Decoded frames that are kept, and the clips that are cut from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tubelet.data import transform
from tubelet.data.clip import Clips, Look, Plan, looks_at
from tubelet.data.displacement import seen_where_untold, told
from tubelet.data.vectors import UNIT, cut_field
from tubelet.data.workers import batch_memory
from tubelet.errors import DecodeError


@dataclass(frozen=True)
class Kept:
    """``frames`` (n, h, w, 3) uint8, scaled so that the short side is at most the cache's. ``source``: (h, w) before that. ``motion``
    (n, h', w', 2) int16: from each frame's predecessor to it in 1/16 pixels of ``frames``, over cells of 4x4; ``known`` (n,) bool."""

    frames: Tensor
    times: np.ndarray
    source: tuple[int, int]
    motion: np.ndarray | None = None
    known: np.ndarray | None = None


class FrameCache(ABC):
    """Every item's frames at stride 1. An item that could not be decoded raises its DecodeError whenever it is asked for."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[np.ndarray, tuple[int, int], tuple[int, int]]] = {}  # seconds, size in the source, size kept
        self._failed: dict[int, str] = {}
        self._moves: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of Kept: motion, known

    def __len__(self) -> int:
        """Items that can be read."""
        return len(self._known)

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory taken."""

    def add(self, row: int, answer: Kept | str) -> None:
        """An item's frames, or why there are none."""
        if isinstance(answer, str):
            self._failed[row] = answer
            return
        self._keep(row, answer.frames)
        if answer.motion is not None and answer.known is not None:
            self._moves[row] = answer.motion, answer.known
        self._known[row] = (answer.times, answer.source, (int(answer.frames.shape[1]), int(answer.frames.shape[2])))

    @abstractmethod
    def _keep(self, row: int, frames: Tensor) -> None:
        """Copy frames (n, h, w, 3) uint8 to where they stay."""

    @abstractmethod
    def seal(self, free: int) -> None:
        """All items were added. ``free``: bytes that are left where they are."""

    def looks(self, row: int, plan: Plan, out: tuple[int, int]) -> list[Look]:
        """The clips of a visit, not cut yet. Raises DecodeError."""
        if row in self._failed:
            raise DecodeError(self._failed[row])
        return looks_at(row, *self._known[row], plan, out)

    def clips(self, looks: Sequence[Look], out: tuple[int, int], *, motion: bool = False) -> Clips:
        """Clips of the same length, with what lies beside them; ``motion``: of a cache that was filled with it."""
        data = self.cut(looks, out)
        time, crop, share = (torch.from_numpy(np.stack([getattr(k, name) for k in looks])) for name in ("time", "crop", "share"))
        scores = [k.score for k in looks if k.score is not None]
        clips = Clips(data, time, crop, share, looks[0].source, score=torch.stack(scores) if scores else None)
        if not motion:
            return clips
        parts = zip(*(told(self._fields(k, out), k.window, out) for k in looks), strict=True)
        moved, known = (torch.from_numpy(np.stack(part)) for part in parts)
        return replace(clips, motion=seen_where_untold(moved, known, data), known=known)

    def _fields(self, look: Look, out: tuple[int, int]) -> list[np.ndarray | None]:
        """The displacements of a clip's frames, cut as its pixels are."""
        fields, known = self._moves[look.row]
        have = self._known[look.row][2]
        return [cut_field(fields[i] / np.float32(UNIT), have, look.box, out) if known[i] else None for i in look.window.tolist()]

    @abstractmethod
    def cut(self, looks: Sequence[Look], out: tuple[int, int]) -> Tensor:
        """The pixels of clips of the same length, (V, T, h, w, 3) uint8."""


class MemoryCache(FrameCache):
    """In main memory, which forked processes share."""

    def __init__(self) -> None:
        super().__init__()
        self._frames: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(frames.numel() for frames in self._frames.values()) + sum(motion.nbytes for motion, _ in self._moves.values())

    def _keep(self, row: int, frames: Tensor) -> None:
        self._frames[row] = frames.clone()  # out of the decoding process's shared memory

    def seal(self, free: int) -> None:
        """Nothing is left to be done."""

    def cut(self, looks: Sequence[Look], out: tuple[int, int]) -> Tensor:
        return cut_in_memory(self._frames, looks, out)


def cut_in_memory(kept: Mapping[int, Tensor], looks: Sequence[Look], out: tuple[int, int]) -> Tensor:
    """Clips (V, T, h, w, 3) from the frames (n, h, w, 3) of each row, written where the batch will stay."""
    data = batch_memory((len(looks), len(looks[0].window), *out, 3))
    for clip, look in zip(data, looks, strict=True):
        y, x, h, w = look.box
        shown = _frames(kept[look.row][:, y : y + h, x : x + w], look.window)  # cut first: the rest is not read
        clip.copy_(transform.cut(shown, transform.Box(0, 0, h, w), out))
    return data


def _frames(frames: Tensor, window: np.ndarray) -> Tensor:
    """Frames (n, h, w, 3) of these numbers, contiguous: the resizing kernel is a third slower on a view."""
    first, step = int(window[0]), int(window[1] - window[0]) if len(window) > 1 else 1
    if step > 0 and (np.diff(window) == step).all():
        return frames[first : int(window[-1]) + 1 : step].contiguous()
    return torch.stack([frames[i] for i in window.tolist()])
