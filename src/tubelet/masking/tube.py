"""Tube masking: one spatial mask for all time slots, so that nothing hidden shows in a neighbouring frame (VideoMAE section 3)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import Batch, Mask, Masker, Step, TokenGrid
from tubelet.masking._select import Rounding, first, hidden_count, split


class Config(Settings):
    """``ratio`` of the places of one slot. ``rounding``: "hidden" hides int(ratio * h * w) places (VideoMAE)."""

    kind: Literal["tube"] = "tube"
    ratio: float = Field(0.9, gt=0, lt=1)
    rounding: Rounding = "hidden"

    def build(self) -> Tube:
        return Tube(ratio=self.ratio, rounding=self.rounding)


class Tube(Masker):
    """A random share of the places of a slot, hidden in every slot; drawn for every sample. The grid's first axis is time."""

    def __init__(self, *, ratio: float, rounding: Rounding = "hidden") -> None:
        super().__init__()
        self.ratio = ratio
        self.rounding: Rounding = rounding

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        slots = grid.shape[grid.axis("t")]
        places = grid.n // slots
        count = hidden_count(self.ratio, places, self.rounding, "places per slot")
        hidden = first(at.draw.permutation("mask", places), count)
        return split(grid, hidden.repeat(1, slots), slots * count)
