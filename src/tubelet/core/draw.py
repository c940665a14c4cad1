"""All randomness of a step, by name: f(seed, name, sample) or f(seed, name, step).

Counter-based: nothing is consumed, nothing has to be saved. The value drawn for a sample is the same in any process, for any
batch size, any number of workers or ranks, and after any resume.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Per = Literal["sample", "batch"]


def _wrap(x: int) -> int:
    """The int64 with the same bits as ``x`` modulo 2**64."""
    return (x + 2**63) % 2**64 - 2**63


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_M1 = _wrap(0xBF58476D1CE4E5B9)
_M2 = _wrap(0x94D049BB133111EB)


def mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64 tensors (Steele et al. 2014); shifts are made logical by masking the sign away."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _M1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _M2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def name_key(seed: int, name: str) -> int:
    """64 bits of (seed, name), computed on the host so that compiled code only sees an integer."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return _wrap(int.from_bytes(digest, "little"))


def hash_uniform(key: int, counter: Tensor, n: int) -> Tensor:
    """(..., n) float32 in [0, 1) with 24 random bits for every counter value (int64, any shape)."""
    base = mix(counter * _GOLDEN + key)
    lane = torch.arange(1, n + 1, device=counter.device, dtype=torch.int64) * _GOLDEN
    bits = (mix(base[..., None] + lane) >> 40) & 0xFFFFFF
    return bits.to(torch.float32) * 2.0**-24


def permutation(seed: int, epoch: int, n: int, name: str = "order") -> Tensor:
    """The order of ``n`` items in one epoch: a permutation that is a function of (seed, name, epoch) alone. (n,) int64."""
    base = mix(torch.tensor(epoch * _GOLDEN % 2**62 + name_key(seed, name) % 2**62))
    return torch.argsort(mix(base + torch.arange(1, n + 1) * _GOLDEN), stable=True)


class Draw(ABC):
    """Named random numbers of one batch. Any name can be fixed (see :class:`FixedDraw`)."""

    @abstractmethod
    def uniform(self, name: str, *shape: int, per: Per = "sample") -> Tensor:
        """float32 in [0, 1): (B, *shape) for ``per="sample"``, (*shape) for ``per="batch"``."""

    @abstractmethod
    def normal(self, name: str, *shape: int, per: Per = "sample") -> Tensor:
        """Standard normal float32, shaped as :meth:`uniform`."""

    @abstractmethod
    def child(self, name: str) -> Draw:
        """Independent numbers under a prefix: a second view, a second modality."""

    @abstractmethod
    def bind(self, sample: Tensor, step: int) -> Draw:
        """The same source for another batch: (B,) int64 global sample numbers on the wanted device, and its step."""

    def permutation(self, name: str, n: int, per: Per = "sample") -> Tensor:
        """(B, n) or (n,) int64: a uniformly random order of range(n)."""
        return torch.argsort(self.uniform(name, n, per=per), dim=-1, stable=True)

    def integers(self, name: str, high: int, *shape: int, per: Per = "sample") -> Tensor:
        """int64 in [0, high)."""
        return (self.uniform(name, *shape, per=per).double() * high).long().clamp_(max=high - 1)


class CounterDraw(Draw):
    """The source that training uses.

    ``sample``: (B,) int64 global sample numbers; results live on its device. ``step`` keys ``per="batch"`` draws.
    """

    def __init__(self, seed: int, sample: Tensor, step: int = 0, prefix: str = "") -> None:
        self.seed, self.sample, self.step, self.prefix = seed, sample, step, prefix

    def uniform(self, name: str, *shape: int, per: Per = "sample") -> Tensor:
        key = name_key(self.seed, self.prefix + name)
        n = math.prod(shape)
        if per == "batch":
            counter = torch.full((), self.step, dtype=torch.int64, device=self.sample.device)
            return hash_uniform(key ^ 0x5BD1E995, counter, n).reshape(shape)
        return hash_uniform(key, self.sample, n).reshape(-1, *shape)

    def normal(self, name: str, *shape: int, per: Per = "sample") -> Tensor:
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(name + "/radius", *shape, per=per)))
        return radius * torch.cos(2.0 * math.pi * self.uniform(name + "/angle", *shape, per=per))

    def child(self, name: str) -> CounterDraw:
        return CounterDraw(self.seed, self.sample, self.step, f"{self.prefix}{name}/")

    def bind(self, sample: Tensor, step: int) -> CounterDraw:
        return CounterDraw(self.seed, sample, step, self.prefix)


class FixedDraw(Draw):
    """Another source with some names replaced by given tensors: how goldens and tests inject noise.

    Raises ValueError where a fixed tensor's shape is not the one asked for.
    """

    def __init__(self, base: Draw, fixed: Mapping[str, Tensor], prefix: str = "") -> None:
        self.base, self.fixed, self.prefix = base, fixed, prefix

    def _fixed(self, name: str, shape: tuple[int, ...], per: Per) -> Tensor | None:
        value = self.fixed.get(self.prefix + name)
        lead = 1 if per == "sample" else 0
        if value is not None and (value.ndim != len(shape) + lead or tuple(value.shape[lead:]) != shape):
            raise ValueError(f"draw {self.prefix + name!r} is fixed at shape {tuple(value.shape)}, asked for {shape} per {per}")
        return value

    def uniform(self, name: str, *shape: int, per: Per = "sample") -> Tensor:
        value = self._fixed(name, shape, per)
        return self.base.uniform(name, *shape, per=per) if value is None else value

    def normal(self, name: str, *shape: int, per: Per = "sample") -> Tensor:
        value = self._fixed(name, shape, per)
        return self.base.normal(name, *shape, per=per) if value is None else value

    def child(self, name: str) -> FixedDraw:
        return FixedDraw(self.base.child(name), self.fixed, f"{self.prefix}{name}/")

    def bind(self, sample: Tensor, step: int) -> FixedDraw:
        return FixedDraw(self.base.bind(sample, step), self.fixed, self.prefix)
