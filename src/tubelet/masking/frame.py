"""Frame masking: whole time slots are hidden (VideoMAE's ablation, 7 of 8 slots)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import Batch, Mask, Masker, Step, TokenGrid
from tubelet.masking._select import Rounding, first, hidden_count, split


class Config(Settings):
    """``ratio`` of the time slots. ``rounding``: "hidden" hides int(ratio * t) of them."""

    kind: Literal["frame"] = "frame"
    ratio: float = Field(0.875, gt=0, lt=1)
    rounding: Rounding = "hidden"

    def build(self) -> Frame:
        return Frame(ratio=self.ratio, rounding=self.rounding)


class Frame(Masker):
    """A random share of the time slots, hidden whole; drawn for every sample. The grid's first axis is time."""

    def __init__(self, *, ratio: float, rounding: Rounding = "hidden") -> None:
        super().__init__()
        self.ratio = ratio
        self.rounding: Rounding = rounding

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        slots = grid.shape[grid.axis("t")]
        count = hidden_count(self.ratio, slots, self.rounding, "time slots")
        hidden = first(at.draw.permutation("mask", slots), count)
        places = grid.n // slots
        return split(grid, hidden.repeat_interleave(places, 1), count * places)
