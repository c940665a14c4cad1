"""Which item sample number k is: counters only, any number at random access."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.core import permutation


@dataclass(frozen=True)
class Place:
    """``visit``: number of the opening of a file in the whole run, shared by its clips. ``row``: table row.
    ``clip``: 0 .. clips_per_video - 1."""

    epoch: int
    visit: int
    row: int
    clip: int


class Order:
    """Sample k -> epoch k // length, position k % length, row order(epoch)[position // clips_per_video].

    The order of an epoch is a permutation of all items. With ``shards`` (items,) it is sorted by windows of ``mixed`` shards, the shards
    dealt to windows by a permutation of their own: at any time only the shards of a window or two are read. The orders of the last few
    epochs are kept, so that neighbours across an epoch's end cost nothing.
    """

    def __init__(
        self, items: int, *, seed: int, clips_per_video: int = 1, keep: int = 3, shards: np.ndarray | None = None, mixed: int = 8
    ) -> None:
        assert items > 0
        assert clips_per_video > 0
        assert mixed > 0
        self.items, self.seed, self.clips, self._keep, self.mixed = items, seed, clips_per_video, keep, mixed
        self._shards: Tensor | None = None
        if shards is not None:
            assert len(shards) == items
            self._names, inside = np.unique(shards, return_inverse=True)
            self._shards = torch.from_numpy(inside.astype(np.int64))
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return self.items * self.clips

    def __getitem__(self, sample: int) -> Place:
        if sample < 0:
            raise ValueError(f"sample numbers start at 0, got {sample}")
        epoch, position = divmod(sample, len(self))
        slot, clip = divmod(position, self.clips)
        return Place(epoch, epoch * self.items + slot, int(self._rows(epoch)[slot]), clip)

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on besides seed and number of items; nothing without shards."""
        if self._shards is None:
            return {}
        return {"shuffle_shards": self.mixed, "shards": hashlib.blake2b(self._shards.numpy().tobytes(), digest_size=8).hexdigest()}

    def _rows(self, epoch: int) -> Tensor:
        if epoch not in self._kept:
            self._kept[epoch] = self._make(epoch)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(epoch)
        return self._kept[epoch]

    def _make(self, epoch: int) -> Tensor:
        rows = permutation(self.seed, epoch, self.items).to(torch.int64)
        if self._shards is None:
            return rows
        return rows[torch.argsort(self._windows(epoch)[self._shards[rows]], stable=True)]

    def _windows(self, epoch: int) -> Tensor:
        """(shards,) int64: the window of each shard."""
        number = len(self._names)
        window = torch.empty(number, dtype=torch.int64)
        window[permutation(self.seed, epoch, number, "order/shards").to(torch.int64)] = torch.arange(number) // self.mixed
        return window

    def shards_from(self, sample: int) -> tuple[list[int], list[int]]:
        """Numbers of the shards of the window that a sample lies in, and of the window after it, which may be the next epoch's."""
        assert self._shards is not None
        place = self[sample]
        windows = self._windows(place.epoch)
        here = int(windows[self._shards[place.row]])
        now = torch.nonzero(windows == here)[:, 0]
        after = torch.nonzero(windows == here + 1)[:, 0]
        if not len(after):
            after = torch.nonzero(self._windows(place.epoch + 1) == 0)[:, 0]
        return [int(self._names[i]) for i in now], [int(self._names[i]) for i in after]
