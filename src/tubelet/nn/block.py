"""Transformer blocks. Noise comes in as numbers drawn outside, so that a block is a function of its inputs alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.core import Draw
from tubelet.nn.attention import AttentionKind, CrossAttention, SelfAttention, make_attention

Gelu = Literal["none", "tanh"]


def drop(x: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Dropout with given numbers in [0, 1) that broadcast to ``x``: zero where below ``rate``, else x / (1 - rate)."""
    return x * (uniform >= rate).to(x.dtype) / (1 - rate)


def path_scale(draw: Draw, rate: float, depth: int, branches: int = 2) -> Tensor:
    """(B, depth, branches) multipliers of residual branches, drawn per sample: 0 (dropped) or 1 / (1 - rate of that block).

    Rates grow linearly from 0 at the first block to ``rate`` at the last.
    """
    uniform = draw.uniform("drop_path", depth, branches)
    rates = torch.linspace(0, rate, depth, device=uniform.device)[:, None]
    return (uniform >= rates).float() / (1 - rates)


class MLP(nn.Module):
    """Linear -> GELU -> Linear. Dropout follows the second Linear only (VideoMAE section 2.4)."""

    def __init__(self, *, dim: int, hidden: int, gelu: Gelu = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _gamma(dim: int, init_values: float) -> nn.Parameter | None:
    return nn.Parameter(torch.full((dim,), init_values)) if init_values > 0 else None


def _residual(x: Tensor, branch: Tensor, gamma: Tensor | None, path: Tensor | None) -> Tensor:
    if gamma is not None:
        branch = branch * gamma
    if path is not None:
        branch = branch * path[:, None, None].to(branch.dtype)
    return x + branch


class Block(nn.Module):
    """Pre-norm: x += path * gamma_1 * attn(norm1 x); x += path * gamma_2 * mlp(norm2 x). LayerScale exists only if init_values > 0.

    ``hidden`` of the MLP is int(dim * mlp_ratio).
    """

    def __init__(
        self,
        *,
        dim: int,
        attention: SelfAttention,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        init_values: float = 0.0,
        gelu: Gelu = "none",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim=dim, hidden=int(dim * mlp_ratio), gelu=gelu)
        self.gamma_1, self.gamma_2 = _gamma(dim, init_values), _gamma(dim, init_values)

    def forward(
        self, x: Tensor, valid: Tensor | None = None, path: Tensor | None = None, dropout: tuple[float, Tensor] | None = None
    ) -> Tensor:
        """(B, N, D). ``valid`` (B, N): keys that are real. ``path`` (B, 2): this block's row of :func:`path_scale`. ``dropout``: its rate
        and (B, N, D) uniform numbers."""
        attn_path, mlp_path = (None, None) if path is None else path.unbind(1)
        x = _residual(x, self.attn(self.norm1(x), valid), self.gamma_1, attn_path)
        branch = self.mlp(self.norm2(x))
        if dropout is not None:
            branch = drop(branch, *dropout)
        return _residual(x, branch, self.gamma_2, mlp_path)


class CrossBlock(nn.Module):
    """Pre-norm: self-attention, then attention to a context, then MLP (DiffMAE's cross-self decoder block)."""

    def __init__(
        self,
        *,
        dim: int,
        context: int,
        heads: int,
        attention: SelfAttention,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        gelu: Gelu = "none",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm_cross = nn.LayerNorm(dim, eps=eps)
        self.cross = CrossAttention(dim=dim, context=context, heads=heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim=dim, hidden=int(dim * mlp_ratio), gelu=gelu)

    def forward(self, x: Tensor, valid: Tensor | None, context: Tensor, context_valid: Tensor | None = None) -> Tensor:
        """(B, N, D) and a context (B, K, D_context)."""
        x = x + self.attn(self.norm1(x), valid)
        x = x + self.cross(self.norm_cross(x), context, context_valid)
        return x + self.mlp(self.norm2(x))


def stack(
    *,
    dim: int,
    depth: int,
    heads: int,
    mlp_ratio: float = 4.0,
    attention: AttentionKind = "qv_bias",
    eps: float = 1e-6,
    init_values: float = 0.0,
    gelu: Gelu = "none",
) -> nn.ModuleList:
    """``depth`` equal blocks of self-attention."""
    return nn.ModuleList(
        Block(
            dim=dim,
            attention=make_attention(attention, dim=dim, heads=heads),
            mlp_ratio=mlp_ratio,
            eps=eps,
            init_values=init_values,
            gelu=gelu,
        )
        for _ in range(depth)
    )


def cross_stack(
    *,
    dim: int,
    depth: int,
    heads: int,
    context: int,
    mlp_ratio: float = 4.0,
    attention: AttentionKind = "bias",
    eps: float = 1e-6,
    gelu: Gelu = "none",
) -> nn.ModuleList:
    """``depth`` equal blocks of self-attention, then attention to a context of width ``context``."""
    return nn.ModuleList(
        CrossBlock(
            dim=dim,
            context=context,
            heads=heads,
            attention=make_attention(attention, dim=dim, heads=heads),
            mlp_ratio=mlp_ratio,
            eps=eps,
            gelu=gelu,
        )
        for _ in range(depth)
    )
