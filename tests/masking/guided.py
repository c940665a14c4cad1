"""Guides that say what a test wants, and clips without pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet.core import Batch, CounterDraw, Field, Guide, Mask, Masker, Step, Stream, TokenGrid


class Says(Guide):
    """A given field."""

    def __init__(self, data: Tensor, kind: str = "score", ok: Tensor | None = None) -> None:
        super().__init__()
        self.field = Field(data, kind, ok)  # type: ignore[arg-type]  # a test's own word

    def forward(self, batch: Batch, stream: str) -> Field:
        return self.field


def mask_by(masker: Masker, grid: TokenGrid, n: int, *, seed: int = 0, first: int = 0, index: int = 0) -> Mask:
    """The mask of n clips."""
    sample = torch.arange(first, first + n)
    batch = Batch({"video": Stream(torch.zeros(n, 3, *grid.size))}, {}, sample)
    return masker(grid, batch, "video", Step(index, 0, 0.0, 0.0, CounterDraw(seed, sample, index)))
