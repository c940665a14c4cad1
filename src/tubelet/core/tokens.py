"""Embedded tokens together with which ones they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tubelet.core.grid import TokenGrid


@dataclass(frozen=True)
class Tokens:
    """Gathering, pruning, joining and shuffling keep both the vectors and their places.

    ``x`` (B, K, D). ``index`` (B, K) int64 raster indices, which are rows of the position table; -1 = no place (class, register,
    bottleneck). ``valid`` (B, K) bool key padding, None = all real. ``layers``: block outputs, when asked for.
    Raises ValueError where shapes disagree.
    """

    x: Tensor
    index: Tensor
    grid: TokenGrid | None = None
    valid: Tensor | None = None
    layers: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if self.x.ndim != 3:
            raise ValueError(f"tokens must be (B, K, D), got {tuple(self.x.shape)}")
        for name in ("index", "valid"):
            value: Tensor | None = getattr(self, name)
            if value is not None and value.shape != self.x.shape[:2]:
                raise ValueError(f"tokens.{name} has shape {tuple(value.shape)}, expected {tuple(self.x.shape[:2])}")

    def take(self, which: Tensor) -> Tokens:
        """The tokens at positions ``which`` (B, K') of this sequence (not raster indices)."""
        gather = which[..., None].expand(-1, -1, self.x.shape[-1])
        valid = None if self.valid is None else self.valid.gather(1, which)
        return replace(self, x=self.x.gather(1, gather), index=self.index.gather(1, which), valid=valid, layers=())

    @staticmethod
    def join(parts: Sequence[Tokens]) -> tuple[Tokens, Callable[[Tokens], list[Tokens]]]:
        """One sequence of all parts, and the function that splits such a sequence again.

        Parts may come from different grids; the joined tokens keep a grid only where all share it. Padding is kept.
        """
        if not parts:
            raise ValueError("nothing to join")
        x = torch.cat([p.x for p in parts], dim=1)
        index = torch.cat([p.index for p in parts], dim=1)
        valid = None
        if any(p.valid is not None for p in parts):
            valid = torch.cat([p.valid if p.valid is not None else torch.ones_like(p.index, dtype=torch.bool) for p in parts], dim=1)
        grid = parts[0].grid if all(p.grid == parts[0].grid for p in parts) else None
        sizes = [p.x.shape[1] for p in parts]

        def split(joined: Tokens) -> list[Tokens]:
            if joined.x.shape[1] != sum(sizes):
                raise ValueError(f"cannot split {joined.x.shape[1]} tokens into {sizes}")
            xs, indices = joined.x.split(sizes, 1), joined.index.split(sizes, 1)
            valids = [None] * len(sizes) if joined.valid is None else list(joined.valid.split(sizes, 1))
            layers = [tuple(layer.split(sizes, 1)[i] for layer in joined.layers) for i in range(len(sizes))]
            return [Tokens(a, b, p.grid, v, ls) for a, b, p, v, ls in zip(xs, indices, parts, valids, layers, strict=True)]

        return Tokens(x, index, grid, valid), split
