"""Position tables: what tells a token where it is. Every module maps (raster index, grid) to rows; index -1 has no place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.core import TokenGrid
from tubelet.errors import ConfigError

PositionKind = Literal["sinusoid", "learned", "separable", "sincos2d", "sincos3d"]


def sinusoid(place: Tensor, dim: int, layout: Literal["interleaved", "blocked"] = "interleaved") -> Tensor:
    """(n,) places -> (n, dim) float64 waves of angle place / 10000^(2j / dim), j = 0..dim/2-1.

    "interleaved": columns sin, cos, sin, cos ... (VideoMAE section 2.2, Transformer). "blocked": all sines, then all cosines (MAE).
    Raises ConfigError for an odd width.
    """
    if dim % 2:
        raise ConfigError(f"a sinusoid table needs an even width, got {dim}")
    rate = 10000.0 ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    angle = place.double()[:, None] * rate
    waves = (angle.sin(), angle.cos())
    return torch.stack(waves, dim=2).flatten(1) if layout == "interleaved" else torch.cat(waves, dim=1)


def thw(grid: TokenGrid) -> tuple[int, int, int]:
    """Slots, rows and columns of any grid: a picture has one slot; a sequence has steps only."""
    if len(grid.shape) > 3:
        raise ConfigError(f"position tables know up to 3 axes, this grid has {grid.axes}")
    t, h, w = {1: (*grid.shape, 1, 1), 2: (1, *grid.shape), 3: grid.shape}[len(grid.shape)]
    return t, h, w


def resize_table(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """A learned (t*h*w, D) table for another grid: bicubic over rows and columns in every slot, then linear over slots.

    Half-pixel centres (align_corners False), as the official fine-tuning code resizes tables. Differentiable.
    """
    if old == new:
        return table
    dim = table.shape[-1]
    slots = table.reshape(*old, dim).permute(0, 3, 1, 2)
    if old[1:] != new[1:]:
        slots = F.interpolate(slots.float(), size=new[1:], mode="bicubic", align_corners=False).to(table.dtype)
    if old[0] != new[0]:
        columns = slots.flatten(1).T[None]
        columns = F.interpolate(columns.float(), size=new[0], mode="linear", align_corners=False).to(table.dtype)
        slots = columns[0].T.unflatten(1, (dim, *new[1:]))
    return slots.permute(0, 2, 3, 1).reshape(-1, dim)


class Position(nn.Module, ABC):
    """(B, K) raster indices and their grid -> (B, K, D) rows to add. Index -1 gets zeros, or the learned class row."""

    def __init__(self, *, dim: int, grid: TokenGrid, class_row: bool = False) -> None:
        super().__init__()
        self.dim, self.shape = dim, thw(grid)
        self.class_row = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=0.02)) if class_row else None

    @abstractmethod
    def table(self, grid: TokenGrid) -> Tensor:
        """(grid.n, D) rows of any grid, interpolated or computed anew where it is not the one this module was made for."""

    def forward(self, index: Tensor, grid: TokenGrid) -> Tensor:
        rows = self.table(grid)
        last = rows.new_zeros(1, self.dim) if self.class_row is None else self.class_row
        return torch.cat([rows, last])[index]


class _Computed(Position, ABC):
    """Not learned and not saved: computed in float64, kept in float32."""

    fixed: Tensor

    def __init__(self, *, dim: int, grid: TokenGrid, class_row: bool = False) -> None:
        super().__init__(dim=dim, grid=grid, class_row=class_row)
        self.register_buffer("fixed", self.compute(*self.shape).float(), persistent=False)

    @abstractmethod
    def compute(self, t: int, h: int, w: int) -> Tensor:
        """(t*h*w, D) float64."""

    def table(self, grid: TokenGrid) -> Tensor:
        shape = thw(grid)
        return self.fixed if shape == self.shape else self.compute(*shape).to(self.fixed)


class Sinusoid(_Computed):
    """1-D over the flattened raster index, not separable in space and time (VideoMAE section 2.2)."""

    def compute(self, t: int, h: int, w: int) -> Tensor:
        return sinusoid(torch.arange(t * h * w), self.dim)


class SinCos2d(_Computed):
    """MAE's image table, the same in every slot: first half of the channels is the column, second half the row, each blocked.

    The width must be a multiple of 4.
    """

    def compute(self, t: int, h: int, w: int) -> Tensor:
        return _space(h, w, self.dim).repeat(t, 1)


class SinCos3d(_Computed):
    """First quarter of the channels is the slot, blocked; the other three quarters are :class:`SinCos2d` of row and column.

    The width must be a multiple of 16, so that every part holds whole sine-cosine pairs.
    """

    def compute(self, t: int, h: int, w: int) -> Tensor:
        if self.dim % 16:
            raise ConfigError(f"a 3-D sine-cosine table needs a width that is a multiple of 16, got {self.dim}")
        slot = sinusoid(torch.arange(t), self.dim // 4, "blocked").repeat_interleave(h * w, 0)
        return torch.cat([slot, _space(h, w, self.dim * 3 // 4).repeat(t, 1)], dim=1)


def _space(h: int, w: int, dim: int) -> Tensor:
    if dim % 4:
        raise ConfigError(f"a 2-D sine-cosine table needs a width that is a multiple of 4, got {dim}")
    column = sinusoid(torch.arange(w), dim // 2, "blocked").repeat(h, 1)
    row = sinusoid(torch.arange(h), dim // 2, "blocked").repeat_interleave(w, 0)
    return torch.cat([column, row], dim=1)


class Learned(Position):
    """One learned row for every token: ``rows`` (t*h*w, D), truncated normal std .02."""

    def __init__(self, *, dim: int, grid: TokenGrid, class_row: bool = False) -> None:
        super().__init__(dim=dim, grid=grid, class_row=class_row)
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(grid.n, dim), std=0.02))

    def table(self, grid: TokenGrid) -> Tensor:
        return resize_table(self.rows, self.shape, thw(grid))


class Separable(Position):
    """Learned ``space`` (h*w, D) plus learned ``time`` (t, D), truncated normal std .02 (MAE-ST section 2.4)."""

    def __init__(self, *, dim: int, grid: TokenGrid, class_row: bool = False) -> None:
        super().__init__(dim=dim, grid=grid, class_row=class_row)
        t, h, w = self.shape
        self.space = nn.Parameter(nn.init.trunc_normal_(torch.empty(h * w, dim), std=0.02))
        self.time = nn.Parameter(nn.init.trunc_normal_(torch.empty(t, dim), std=0.02))

    def table(self, grid: TokenGrid) -> Tensor:
        (t0, h0, w0), (t, h, w) = self.shape, thw(grid)
        space = resize_table(self.space, (1, h0, w0), (1, h, w))
        time = resize_table(self.time, (t0, 1, 1), (t, 1, 1))
        return (time[:, None] + space[None]).flatten(0, 1)


KINDS: dict[PositionKind, type[Position]] = {
    "sinusoid": Sinusoid,
    "learned": Learned,
    "separable": Separable,
    "sincos2d": SinCos2d,
    "sincos3d": SinCos3d,
}


def make_position(kind: PositionKind, *, dim: int, grid: TokenGrid, class_row: bool = False) -> Position:
    """A position module by name."""
    return KINDS[kind](dim=dim, grid=grid, class_row=class_row)
