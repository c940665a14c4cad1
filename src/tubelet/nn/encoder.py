"""Tokens -> Tokens: a plain vision transformer that reads whatever tokens it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tubelet.core import Draw, Tokens
from tubelet.nn.block import path_scale


@dataclass(frozen=True)
class Size:
    """Width, blocks, heads and MLP ratio of an encoder and, as the papers pair them, of its decoder."""

    dim: int
    depth: int
    heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0


SIZES: dict[str, Size] = {
    "tiny": Size(192, 12, 3, 96, 4, 3),
    "small": Size(384, 12, 6, 192, 4, 3),
    "base": Size(768, 12, 12, 384, 4, 6),
    "large": Size(1024, 24, 16, 512, 12, 8),
    "huge": Size(1280, 32, 16, 640, 12, 8),
    "giant": Size(1408, 40, 16, 512, 4, 8, 48 / 11),
}
"""VideoMAE section 2 (small to huge), VideoMAE V2 section 2 (giant, meant for patch 14); tiny is ours."""


def run(block: nn.Module, recompute: bool, *args: Any) -> Tensor:
    """One block; with ``recompute`` its activations are computed again in the backward pass instead of kept.

    No random state needs restoring for that: blocks get their noise as arguments.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
    return block(*args)


class Encoder(nn.Module):
    """Blocks and a final norm (None = none). ``drop_path``: rate of the last block. ``dropout``: after every MLP. ``recompute``:
    activation checkpointing.

    The two rates act in training only and need ``draw``; without it forward raises ValueError.
    """

    def __init__(
        self, *, blocks: nn.ModuleList, norm: nn.Module | None, drop_path: float = 0.0, dropout: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = nn.Identity() if norm is None else norm
        self.drop_path, self.dropout, self.recompute = drop_path, dropout, recompute

    def variant(self, *, norm: bool, drop_path: float) -> Encoder:
        """The same blocks (shared, not copied) with another drop path and, if so asked, without the final norm."""
        return Encoder(
            blocks=self.blocks, norm=self.norm if norm else None, drop_path=drop_path, dropout=self.dropout, recompute=self.recompute
        )

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = (), draw: Draw | None = None) -> Tokens:
        """(B, K, D) tokens, same places. ``layers``: blocks whose outputs (before the final norm) are wanted, from 0 or, negative, from
        the end; they come back in that order. Raises ValueError for a block that does not exist."""
        depth = len(self.blocks)
        if any(not -depth <= i < depth for i in layers):
            raise ValueError(f"layers {tuple(layers)} asked of an encoder with blocks 0..{depth - 1}")
        wanted = {i % depth for i in layers}
        paths = self._paths(draw)
        outputs: dict[int, Tensor] = {}
        x = tokens.x
        for i, block in enumerate(self.blocks):
            path = None if paths is None else paths[:, i]
            x = run(block, self.recompute and self.training, x, tokens.valid, path, self._dropout(draw, i, x))
            if i in wanted:
                outputs[i] = x
        return replace(tokens, x=self.norm(x), layers=tuple(outputs[i % depth] for i in layers))

    def _paths(self, draw: Draw | None) -> Tensor | None:
        if not self.training or self.drop_path == self.dropout == 0:
            return None
        if draw is None:
            raise ValueError("an encoder with drop_path or dropout needs draw= while it trains (call eval() for features)")
        return path_scale(draw, self.drop_path, len(self.blocks)) if self.drop_path > 0 else None

    def _dropout(self, draw: Draw | None, i: int, x: Tensor) -> tuple[float, Tensor] | None:
        if not self.training or self.dropout == 0 or draw is None:
            return None
        return self.dropout, draw.uniform(f"dropout/{i}", *x.shape[1:])
