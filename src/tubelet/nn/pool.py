"""From tokens to one vector per clip, or one per time slot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.core import Tokens
from tubelet.errors import ConfigError
from tubelet.nn.attention import CrossAttention

PoolKind = Literal["mean", "slots", "class", "attentive"]


def _placed(tokens: Tokens) -> Tensor:
    """(B, K) bool: real tokens that have a place, so not class tokens, registers or padding."""
    placed = tokens.index >= 0
    return placed if tokens.valid is None else placed & tokens.valid


def mean(tokens: Tokens) -> Tensor:
    """(B, D): mean over the tokens that have a place (class tokens and padding are left out)."""
    weight = _placed(tokens).to(tokens.x.dtype)[..., None]
    return (tokens.x * weight).sum(1) / weight.sum(1).clamp_min(1)


def slots(tokens: Tokens) -> Tensor:
    """(B, t, D): mean over the tokens of each time slot; zeros where a slot has none. Raises ValueError without a time axis."""
    if tokens.grid is None or "t" not in tokens.grid.axes:
        raise ValueError("pooling per slot needs tokens of a grid with a time axis")
    t = tokens.grid.shape[tokens.grid.axis("t")]
    slot = tokens.grid.where("t", tokens.index)
    member = (slot[:, None] == torch.arange(t, device=slot.device)[None, :, None]) & _placed(tokens)[:, None]
    weight = member.to(tokens.x.dtype)
    return weight @ tokens.x / weight.sum(2, keepdim=True).clamp_min(1)


def class_token(tokens: Tokens) -> Tensor:
    """(B, D): the first token, which must have no place. The caller knows that its encoder has a class token."""
    return tokens.x[:, 0]


class Pool(nn.Module, ABC):
    """Tokens -> (B, ``width``)."""

    width: int

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor: ...


class Mean(Pool):
    """See :func:`mean`."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.width = dim

    def forward(self, tokens: Tokens) -> Tensor:
        return mean(tokens)


class Slots(Pool):
    """The means of all ``t`` slots, one after the other: keeps the order of events, which the mean forgets."""

    def __init__(self, *, dim: int, t: int) -> None:
        super().__init__()
        self.width, self.t = dim * t, t

    def forward(self, tokens: Tokens) -> Tensor:
        pooled = slots(tokens)
        if pooled.shape[1] != self.t:
            raise ValueError(f"this pool was made for {self.t} time slots, the clip has {pooled.shape[1]}")
        return pooled.flatten(1)


class ClassToken(Pool):
    """See :func:`class_token`."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.width = dim

    def forward(self, tokens: Tokens) -> Tensor:
        return class_token(tokens)


class Attentive(Pool):
    """One learned query reads all real tokens (attentive probing). ``query`` (1, 1, D), truncated normal std .02."""

    def __init__(self, *, dim: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width = dim
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.cross = CrossAttention(dim=dim, context=dim, heads=heads)

    def forward(self, tokens: Tokens) -> Tensor:
        query = self.query.expand(tokens.x.shape[0], -1, -1)  # len() would fix the batch of an exported graph
        return self.cross(query, self.norm(tokens.x), tokens.valid)[:, 0]


def make_pool(kind: PoolKind, *, dim: int, heads: int = 1, t: int | None = None) -> Pool:
    """A pool by name. ``t``: time slots, for "slots". ``heads``: for "attentive". Raises ConfigError where ``t`` is missing."""
    if kind == "slots":
        if t is None:
            raise ConfigError("pool 'slots' needs the number of time slots")
        return Slots(dim=dim, t=t)
    if kind == "attentive":
        return Attentive(dim=dim, heads=heads)
    return ClassToken(dim=dim) if kind == "class" else Mean(dim=dim)
