"""What every masking strategy needs: how many tokens are hidden, which ones by their scores, and index sets from a map of hidden places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tubelet.core import Draw, Mask, TokenGrid
from tubelet.errors import ConfigError

Rounding = Literal["hidden", "visible"]
Select = Literal["top", "bottom", "random"]


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


def places(grid: TokenGrid) -> tuple[int, int, int]:
    """(slots, rows, columns) of a video's grid. Raises ConfigError for another lattice."""
    if grid.axes != ("t", "h", "w"):
        raise ConfigError(f"this masking works on videos, whose tokens have slots, rows and columns, not on a grid of {grid.axes}")
    t, h, w = grid.shape
    return t, h, w


def first(order: Tensor, count: int) -> Tensor:
    """(..., n) bool, True at the first ``count`` entries of each row's permutation ``order`` (..., n)."""
    chosen = torch.zeros_like(order, dtype=torch.bool)
    return chosen.scatter_(-1, order[..., :count], True)


def pick(scores: Tensor, count: int, select: Literal["top", "bottom"] = "top") -> Tensor:
    """(..., n) bool, True at exactly ``count`` places of every row: those of the highest (lowest) scores; of equal ones the first in
    raster order."""
    return first(torch.argsort(scores, dim=-1, descending=select == "top", stable=True), count)


def slots(scores: Tensor, ok: Tensor | None, draw: Draw, count: int, select: Select = "top") -> Tensor:
    """(B, S, n) scores -> (B, S, n) bool: ``count`` places of every slot, by score or at random (draws ``mask``).

    Samples that are not ``ok`` (B,), or whose scores are not all finite, get places at random.
    """
    chance = draw.uniform("mask", *scores.shape[1:])
    if select == "random":
        return pick(chance, count)
    usable = scores.isfinite().flatten(1).all(1) if ok is None else ok & scores.isfinite().flatten(1).all(1)
    return pick(torch.where(usable[:, None, None], scores.float(), chance), count, select)


def split(grid: TokenGrid, hidden: Tensor, count: int, log: Mapping[str, Tensor] | None = None) -> Mask:
    """A mask from (B, N) bool that is True at exactly ``count`` places of every row; both index sets in raster order.

    The count is the caller's word: nothing waits for the device. (The first mask of every masker is validated.)
    """
    order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
    return Mask(grid, order[:, : grid.n - count], order[:, grid.n - count :], log=log or {})
