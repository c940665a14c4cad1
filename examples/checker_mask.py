"""A masking strategy of your own is a file like this one. Use it with

tubelet pretrain my_videos/ --out runs/checker --import checker_mask.py --set masking=checker_mask
"""

import torch

from tubelet.config import Settings
from tubelet.core import Mask, Masker


class Config(Settings):
    phase: int = 0

    def build(self) -> "Checker":
        return Checker(self.phase)


class Checker(Masker):
    """Hides every other place of each frame, like the squares of a chess board that moves on with time."""

    def __init__(self, phase: int) -> None:
        super().__init__()
        self.phase = phase

    def forward(self, grid, batch, stream, at, tokens=None):
        index = torch.arange(grid.n, device=batch.sample.device)
        parity = sum(grid.where(axis, index) for axis in grid.axes) + self.phase
        return Mask.of_hidden(grid, (parity % 2 == 0).expand(len(batch), -1))
