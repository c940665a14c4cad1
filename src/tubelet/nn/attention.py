"""Attention by scaled_dot_product_attention. The forms differ in how queries, keys and values are made; the product is one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.errors import ConfigError

AttentionKind = Literal["qv_bias", "bias", "no_bias", "cosine"]


def head_width(dim: int, heads: int) -> int:
    """Channels per head. Raises ConfigError where the heads do not divide the width."""
    if heads < 1 or dim % heads:
        raise ConfigError(f"a width of {dim} cannot be split into {heads} heads; choose heads that divide it")
    return dim // heads


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, scale: float | None = None) -> Tensor:
    """(B, H, Q, d), (B, H, K, d) x 2 -> (B, Q, H*d). ``valid`` (B, K) bool, False = this key is padding. Scale None = d^-0.5."""
    mask = None if valid is None else valid[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module, ABC):
    """(B, N, D) -> (B, N, D): every token reads every token that is not padding. ``qkv.weight`` (3D, D), then ``proj``."""

    def __init__(self, *, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.width = heads, head_width(dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    @abstractmethod
    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor: ...

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, 3D) -> three of (B, H, N, d)."""
        q, k, v = qkv.unflatten(2, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        return q, k, v


class PlainAttention(SelfAttention):
    """q, k and v all with bias (MAE, MAE-ST) or all without."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.proj(attend(*self.split(self.qkv(x)), valid))


class _QVBias(SelfAttention, ABC):
    """Learned biases of query and value; a key bias would cancel in the softmax and is fixed at zero (BEiT)."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__(dim=dim, heads=heads, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, H, N, d)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.split(F.linear(x, self.qkv.weight, bias))


class QVBiasAttention(_QVBias):
    """The official VideoMAE form (section 2.4)."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.proj(attend(*self.project(x), valid))


class CosineAttention(_QVBias):
    """Logits are cosines times a learned temperature per head, at most 100 (Swin V2; optional in VideoMAE V2 section 2).

    ``scale`` (H, 1, 1) holds its logarithm, starting at ln 10.
    """

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__(dim=dim, heads=heads)
        self.scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x)
        temperature = self.scale.float().clamp(max=4.6052).exp()  # ln 100 as the official code rounds it
        q, k = F.normalize(q.float(), dim=-1) * temperature, F.normalize(k.float(), dim=-1)
        return self.proj(attend(q.to(v.dtype), k.to(v.dtype), v, valid, scale=1.0))


class CrossAttention(nn.Module):
    """Queries (B, Q, D) read a context (B, K, D_context); its ``valid`` (B, K) False = padding. Biases everywhere or on none of q, k, v."""

    def __init__(self, *, dim: int, context: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.width = heads, head_width(dim, heads)
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(context, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, valid: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(2, (self.heads, self.width)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, valid))


KINDS: dict[AttentionKind, Callable[..., SelfAttention]] = {
    "qv_bias": QVBiasAttention,
    "bias": partial(PlainAttention, bias=True),
    "no_bias": partial(PlainAttention, bias=False),
    "cosine": CosineAttention,
}


def make_attention(kind: AttentionKind, *, dim: int, heads: int) -> SelfAttention:
    """A self-attention form by name."""
    return KINDS[kind](dim=dim, heads=heads)
