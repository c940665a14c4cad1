"""The raster lattice of tokens that a clip, picture, spectrogram or sequence is cut into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Tokens in raster order, last axis fastest; the axes say what the lattice is made of.

    ``axes``: names such as ("t", "h", "w"), ("h", "w"), ("time", "freq"), ("step",). ``shape``: tokens per axis.
    ``patch``: samples per token on each axis, e.g. (2, 16, 16). Raises ValueError where they do not agree.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    patch: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.axes) == len(self.shape) == len(self.patch):
            raise ValueError(f"a grid needs one size and one patch per axis: {self.axes}, {self.shape}, {self.patch}")
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axis names repeat: {self.axes}")
        if any(s < 1 for s in self.shape + self.patch):
            raise ValueError(f"sizes and patches must be positive: shape {self.shape}, patch {self.patch}")

    @classmethod
    def of(cls, size: Sequence[int], patch: Sequence[int], axes: tuple[str, ...] = ("t", "h", "w")) -> TokenGrid:
        """The grid of data with ``size`` samples per axis, e.g. (16, 224, 224) with patch (2, 16, 16) -> 8x14x14 tokens.

        Raises ValueError naming every axis whose size is not a multiple of its patch.
        """
        if len(size) != len(patch):
            raise ValueError(f"data of {len(size)} axes {tuple(size)} cannot be cut by a patch of {len(patch)} {tuple(patch)}")
        bad = [f"{a}: {s} is not a multiple of {p}" for a, s, p in zip(axes, size, patch, strict=True) if s < p or s % p]
        if bad:
            raise ValueError(f"size {tuple(size)} cannot be cut into patches {tuple(patch)}: {'; '.join(bad)}")
        return cls(axes, tuple(s // p for s, p in zip(size, patch, strict=True)), tuple(patch))

    @property
    def n(self) -> int:
        """Number of tokens."""
        return math.prod(self.shape)

    @property
    def size(self) -> tuple[int, ...]:
        """Samples per axis: shape x patch."""
        return tuple(s * p for s, p in zip(self.shape, self.patch, strict=True))

    def axis(self, name: str) -> int:
        """Position of an axis. Raises ValueError naming the axes there are."""
        if name not in self.axes:
            raise ValueError(f"this grid has axes {self.axes}, no {name!r}")
        return self.axes.index(name)

    def where(self, axis: str, index: Tensor) -> Tensor:
        """The coordinate of raster indices on one axis: slot, row or column. Same shape as ``index``."""
        i = self.axis(axis)
        return index // math.prod(self.shape[i + 1 :]) % self.shape[i]
