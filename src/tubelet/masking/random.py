"""Space-time agnostic masking: any token may be hidden (MAE-ST section 3; VideoMAE's ablation)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import Batch, Mask, Masker, Step, TokenGrid
from tubelet.masking._select import Rounding, first, hidden_count, split


class Config(Settings):
    """``ratio`` of all tokens. ``rounding``: "visible" keeps int(n * (1 - ratio)) tokens as MAE-ST does; "hidden" hides int(ratio * n) as
    VideoMAE does."""

    kind: Literal["random"] = "random"
    ratio: float = Field(0.9, gt=0, lt=1)
    rounding: Rounding = "visible"

    def build(self) -> Random:
        return Random(ratio=self.ratio, rounding=self.rounding)


class Random(Masker):
    """A random share of all tokens of a clip, drawn for every sample."""

    def __init__(self, *, ratio: float, rounding: Rounding = "visible") -> None:
        super().__init__()
        self.ratio = ratio
        self.rounding: Rounding = rounding

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        count = hidden_count(self.ratio, grid.n, self.rounding)
        return split(grid, first(at.draw.permutation("mask", grid.n), count), count)
