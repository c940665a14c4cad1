"""Which tokens are read and which are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tubelet.core.grid import TokenGrid


@dataclass(frozen=True)
class Mask:
    """Index sets of a batch: rectangular, with explicit padding where counts differ between samples.

    ``visible`` (B, V) and ``target`` (B, M): int64 raster indices of ``grid``, in any order; they may overlap, M may be 0.
    ``weight`` (B, M): loss weight of each answer, 0 = not scored, None = 1. ``visible_valid`` (B, V) and ``target_valid``
    (B, M): bool, False = padding, None = all real. ``logp`` (B, N): log-probability of a learned sampler, with gradient. ``log``: detached
    scalars about how the mask came about, such as the share of samples that its guide could say something about.
    Shapes and dtypes are checked here (ValueError); values by :meth:`validate`, which reads them and so waits for the device.
    """

    grid: TokenGrid
    visible: Tensor
    target: Tensor
    weight: Tensor | None = None
    visible_valid: Tensor | None = None
    target_valid: Tensor | None = None
    logp: Tensor | None = None
    log: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("visible", "target"):
            index: Tensor = getattr(self, name)
            if index.ndim != 2 or index.dtype != torch.int64:
                raise ValueError(f"mask.{name} must be (B, K) int64, got {tuple(index.shape)} {index.dtype}")
        if self.visible.shape[0] != self.target.shape[0]:
            raise ValueError(f"mask.visible has {self.visible.shape[0]} samples, mask.target {self.target.shape[0]}")
        if self.visible.shape[1] == 0:
            raise ValueError("a mask must leave at least one token visible; lower the masking ratio")
        for name, like in (("weight", self.target), ("target_valid", self.target), ("visible_valid", self.visible)):
            value: Tensor | None = getattr(self, name)
            if value is not None and value.shape != like.shape:
                raise ValueError(f"mask.{name} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
            if value is not None and name.endswith("valid") and value.dtype != torch.bool:
                raise ValueError(f"mask.{name} must be bool, got {value.dtype}")
        if self.logp is not None and self.logp.shape != (self.visible.shape[0], self.grid.n):
            raise ValueError(f"mask.logp must be (B, {self.grid.n}), got {tuple(self.logp.shape)}")

    @classmethod
    def of_hidden(cls, grid: TokenGrid, hidden: Tensor) -> Mask:
        """From (B, N) bool, True = hidden; both sets in raster order. Every sample must hide the same count (ValueError)."""
        if hidden.ndim != 2 or hidden.shape[1] != grid.n or hidden.dtype != torch.bool:
            raise ValueError(f"hidden must be (B, {grid.n}) bool for this grid, got {tuple(hidden.shape)} {hidden.dtype}")
        counts = hidden.sum(1)
        if bool((counts != counts[0]).any()):
            raise ValueError(f"every sample must hide the same number of tokens, got {sorted(set(counts.tolist()))}")
        order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
        visible = grid.n - int(counts[0])
        return cls(grid, order[:, :visible], order[:, visible:])

    def hidden(self) -> Tensor:
        """(B, *grid.shape) bool, True where a token is not read: for full-grid encoders and for pictures."""
        batch = self.visible.shape[0]
        read = torch.zeros(batch, self.grid.n, dtype=torch.uint8, device=self.visible.device)
        real = torch.ones_like(self.visible, dtype=torch.uint8) if self.visible_valid is None else self.visible_valid.to(torch.uint8)
        read.scatter_reduce_(1, self.visible, real, reduce="amax")
        return (read == 0).reshape(batch, *self.grid.shape)

    def validate(self) -> Mask:
        """Check the values: indices inside the grid, no real index twice, finite weights >= 0. Raises ValueError; returns self."""
        for name in ("visible", "target"):
            index: Tensor = getattr(self, name)
            valid: Tensor | None = getattr(self, f"{name}_valid")
            if index.numel() and (int(index.min()) < 0 or int(index.max()) >= self.grid.n):
                raise ValueError(f"mask.{name} holds indices outside 0..{self.grid.n - 1}")
            seen = torch.zeros(index.shape[0], self.grid.n, dtype=torch.int32, device=index.device)
            real = torch.ones_like(index) if valid is None else valid
            seen.scatter_add_(1, index, real.to(torch.int32))
            if int(seen.max()) > 1:
                raise ValueError(f"mask.{name} names a token twice")
            if valid is not None and name == "visible" and not bool(valid.any(1).all()):
                raise ValueError("a sample of this mask leaves no token visible")
        if self.weight is not None and not bool((torch.isfinite(self.weight) & (self.weight >= 0)).all()):
            raise ValueError("mask.weight must be finite and >= 0")
        return self
