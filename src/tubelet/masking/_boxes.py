"""Boxes of tokens, one a slot: where they lie, and masks of an exact count around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TIE = 1e-5  # relative: windows whose means differ by less count as equal


def box_size(ratio: float, rows: int, columns: int) -> tuple[int, int]:
    """(height, width) in tokens of a box that covers about ``ratio`` of a slot, in the shape of the slot."""
    height = min(rows, max(1, round(rows * ratio**0.5)))
    return height, min(columns, max(1, round(ratio * rows * columns / height)))


def distance(top: Tensor, left: Tensor, size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """(...,) corners of boxes -> (..., rows * columns): how far each place lies outside its box in rings, 1 = next to it; inside it is zero
    at the rim and negative towards the middle.

    The ``count`` smallest are exactly the box where it has that many places, else the box trimmed at its rim or filled up around it.
    """
    y, x = torch.arange(rows, device=top.device), torch.arange(columns, device=top.device)
    top, left = top[..., None], left[..., None]
    down = torch.maximum(top - y, y - (top + size[0] - 1))
    across = torch.maximum(left - x, x - (left + size[1] - 1))
    return torch.maximum(down[..., :, None], across[..., None, :]).flatten(-2)


def best_window(weight: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(..., rows, columns) >= 0 -> (top, left), each (...,) int64: the window with the largest mean; of equally good ones the one whose
    centre is nearest to the weights' centre of mass, then the first in raster order (MGM section 3c)."""
    rows, columns = weight.shape[-2:]
    flat = weight.reshape(-1, 1, rows, columns).float()
    means = F.avg_pool2d(flat, size, stride=1)[:, 0]  # (n, rows - h + 1, columns - w + 1)
    down, right = means.shape[1:]
    y, x = torch.arange(rows, device=weight.device), torch.arange(columns, device=weight.device)
    total = flat.sum((1, 2, 3)).clamp(min=1e-12)
    middle_y = (flat[:, 0].sum(2) * y).sum(1) / total
    middle_x = (flat[:, 0].sum(1) * x).sum(1) / total
    gap_y = (y[:down] + (size[0] - 1) / 2)[None] - middle_y[:, None]
    gap_x = (x[:right] + (size[1] - 1) / 2)[None] - middle_x[:, None]
    gap = (gap_y.square()[:, :, None] + gap_x.square()[:, None, :]).flatten(1)
    means = means.flatten(1)
    good = means >= means.amax(1, keepdim=True) * (1 - TIE)
    chosen = torch.argsort(torch.where(good, gap, torch.inf), dim=1, stable=True)[:, 0]
    lead = weight.shape[:-2]
    return (chosen // right).reshape(lead), (chosen % right).reshape(lead)
