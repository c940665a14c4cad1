"""What every masking strategy needs: how many tokens are hidden, and index sets from a map of hidden places."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tubelet.core import Mask, TokenGrid
from tubelet.errors import ConfigError

Rounding = Literal["hidden", "visible"]


def hidden_count(ratio: float, n: int, rounding: Rounding, what: str = "tokens") -> int:
    """How many of ``n`` are hidden. ``rounding``: which of the two counts is rounded down, in floating point as the papers' code does it.

    "hidden": int(ratio * n) (VideoMAE). "visible": n - int(n * (1 - ratio)) (MAE, MAE-ST). Raises ConfigError where nothing would be
    hidden or nothing left.
    """
    hidden = int(ratio * n) if rounding == "hidden" else n - int(n * (1 - ratio))
    if not 0 < hidden < n:
        state = "none" if hidden == 0 else "all"
        raise ConfigError(f"masking.ratio {ratio} hides {state} of the {n} {what} of this grid; choose a ratio that hides 1 to {n - 1}")
    return hidden


def first(order: Tensor, count: int) -> Tensor:
    """(B, n) bool, True at the first ``count`` entries of each row's permutation ``order`` (B, n)."""
    chosen = torch.zeros_like(order, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :count], True)


def split(grid: TokenGrid, hidden: Tensor, count: int) -> Mask:
    """A mask from (B, N) bool that is True at exactly ``count`` places of every row; both index sets in raster order.

    The count is the caller's word: nothing waits for the device. (The first mask of every masker is validated.)
    """
    order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
    return Mask(grid, order[:, : grid.n - count], order[:, grid.n - count :])
