"""Answers for asked tokens. One layout: visible tokens first, then the queries; attention does not care about the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tubelet.core import Tokens
from tubelet.errors import ConfigError
from tubelet.nn.encoder import run
from tubelet.nn.position import Position


class MaskToken(nn.Module):
    """The learned vector that stands for every hidden token: ``token`` (1, 1, D), normal std .02 cut at +-.02."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02, a=-0.02, b=0.02))

    def forward(self, index: Tensor) -> Tensor:
        """(B, M) raster indices -> (B, M, D)."""
        return self.token.expand(*index.shape, -1)


class Decoder(nn.Module):
    """[bridge(visible) + position, query + position] -> blocks -> last M rows -> norm.

    ``bridge`` maps the encoder's width to the decoder's. ``blocks``: :func:`~tubelet.nn.block.stack`, or
    :func:`~tubelet.nn.block.cross_stack` for a decoder that reads a context in every block.
    """

    def __init__(self, *, bridge: nn.Module, position: Position, blocks: nn.ModuleList, norm: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        self.bridge, self.position, self.blocks, self.norm = bridge, position, blocks, norm
        self.recompute = recompute

    def arrange(self, visible: Tokens | None, query: Tokens) -> Tokens:
        """The sequence that the blocks read: (B, V + M, Dd), visible first, places added."""
        parts = [query] if visible is None else [replace(visible, x=self.bridge(visible.x), layers=()), query]
        return Tokens.join([replace(part, x=part.x + self._place(part)) for part in parts])[0]

    def _place(self, part: Tokens) -> Tensor:
        if part.grid is None:
            raise ValueError("the decoder needs tokens with a grid: it looks their positions up")
        return self.position(part.index, part.grid)

    def forward(self, visible: Tokens | None, query: Tokens, context: Sequence[Tokens] = ()) -> Tensor:
        """(B, M, Dd): one answer for each query, in the queries' order.

        ``query.x`` (B, M, Dd) without positions: mask tokens, noised patches, shuffled tokens. ``context``: one for all blocks or
        one for each, in the width that the blocks were built for.
        """
        tokens = self.arrange(visible, query)
        x, recompute = tokens.x, self.recompute and self.training
        for block, memory in zip(self.blocks, self._memories(context), strict=True):
            seen = () if memory is None else (memory.x, memory.valid)
            x = run(block, recompute, x, tokens.valid, *seen)
        return self.norm(x[:, -query.x.shape[1] :])

    def _memories(self, context: Sequence[Tokens]) -> Sequence[Tokens | None]:
        depth = len(self.blocks)
        if len(context) not in (0, 1, depth):
            raise ConfigError(f"a decoder of {depth} blocks reads one context or {depth}, got {len(context)}")
        return context if len(context) == depth else [context[0] if context else None] * depth
