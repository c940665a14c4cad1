"""Which item sample number k is: counters only, any number at random access."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

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
    """Sample k -> epoch k // length, position k % length, row permutation(seed, epoch)[position // clips_per_video].

    The permutations of the last few epochs are kept, so that neighbours across an epoch's end cost nothing.
    """

    def __init__(self, items: int, *, seed: int, clips_per_video: int = 1, keep: int = 3) -> None:
        assert items > 0
        assert clips_per_video > 0
        self.items, self.seed, self.clips, self._keep = items, seed, clips_per_video, keep
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return self.items * self.clips

    def __getitem__(self, sample: int) -> Place:
        if sample < 0:
            raise ValueError(f"sample numbers start at 0, got {sample}")
        epoch, position = divmod(sample, len(self))
        slot, clip = divmod(position, self.clips)
        return Place(epoch, epoch * self.items + slot, int(self._rows(epoch)[slot]), clip)

    def _rows(self, epoch: int) -> Tensor:
        if epoch not in self._kept:
            self._kept[epoch] = permutation(self.seed, epoch, self.items).to(torch.int64)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(epoch)
        return self._kept[epoch]
