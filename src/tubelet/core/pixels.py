"""Pixels and the cubes (tubelets, patches) that a grid cuts them into. Shared by the embedding, the targets and the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.core.grid import TokenGrid


def to_unit(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 0..255 -> ``dtype`` in [0, 1]; floating pixels are taken to be in [0, 1] already. Raises ValueError for other dtypes."""
    if pixels.dtype == torch.uint8:
        return pixels.to(dtype) / 255
    if not pixels.is_floating_point():
        raise ValueError(f"pixels must be uint8 in 0..255 or floating point in 0..1, got {pixels.dtype}")
    return pixels


def patchify(data: Tensor, grid: TokenGrid, index: Tensor | None = None) -> Tensor:
    """(B, C, *grid.size) -> cubes (B, K, C, *grid.patch).

    ``index`` (B, K): raster indices of the wanted cubes, read straight from ``data`` without copying the others; None = all N in
    raster order. Raises ValueError where data and grid disagree.
    """
    axes = len(grid.shape)
    if data.ndim != axes + 2 or tuple(data.shape[2:]) != grid.size:
        raise ValueError(
            f"data {tuple(data.shape)} does not fit a grid of size {grid.size}: expected (B, C, {', '.join(map(str, grid.size))})"
        )
    split = data.reshape(*data.shape[:2], *(n for pair in zip(grid.shape, grid.patch, strict=True) for n in pair))
    cubes = split.permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    if index is None:
        return cubes.flatten(1, axes)
    rows = torch.arange(data.shape[0], device=data.device)[:, None]
    return cubes[(rows, *(grid.where(axis, index) for axis in grid.axes))]


def unpatchify(cubes: Tensor, grid: TokenGrid) -> Tensor:
    """All cubes in raster order (B, N, C, *grid.patch) -> (B, C, *grid.size): the inverse of :func:`patchify`."""
    axes = len(grid.shape)
    if cubes.ndim != axes + 3 or cubes.shape[1] != grid.n or tuple(cubes.shape[3:]) != grid.patch:
        raise ValueError(f"cubes {tuple(cubes.shape)} do not fill a grid of {grid.n} patches {grid.patch}")
    split = cubes.unflatten(1, grid.shape)
    places = (n for i in range(axes) for n in (1 + i, 2 + axes + i))
    return split.permute(0, 1 + axes, *places).reshape(cubes.shape[0], cubes.shape[2], *grid.size)


def _order(grid: TokenGrid, order: str) -> list[int]:
    """Places of ``order``'s letters among (channel, *patch axes). Letters of axes that the grid lacks are passed over."""
    letters = "c" + "".join(axis[0] for axis in grid.axes)
    if len(set(order)) != len(order) or not set(letters) <= set(order):
        raise ValueError(f"element order {order!r} must name each of {', '.join(letters)} once")
    return [letters.index(letter) for letter in order if letter in letters]


def flatten_cubes(cubes: Tensor, grid: TokenGrid, order: str) -> Tensor:
    """(B, K, C, *patch) -> rows (B, K, E) whose elements lie in ``order``, last letter fastest.

    Letters: "c" and the first letters of the grid's axes. "thwc": pixels first, colour fastest (VideoMAE); "cthw": colour slowest
    (MARLIN). Raises ValueError for an order that does not name each once.
    """
    return cubes.permute(0, 1, *(2 + i for i in _order(grid, order))).flatten(2)


def unflatten_cubes(rows: Tensor, grid: TokenGrid, order: str) -> Tensor:
    """Rows (B, K, E) -> cubes (B, K, C, *patch): the inverse of :func:`flatten_cubes`."""
    places = _order(grid, order)
    sizes: Sequence[int] = (-1, *grid.patch)
    cubes = rows.unflatten(2, [sizes[i] for i in places])
    return cubes.permute(0, 1, *(2 + places.index(i) for i in range(len(places))))
