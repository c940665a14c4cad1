"""InfoNCE between two views of the same samples, over the global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from tubelet.errors import ConfigError


def info_nce(one: Tensor, two: Tensor, scale: Tensor | float, *, same: Tensor | None = None) -> Tensor:
    """(B, D) x 2 of length 1 -> (B,) errors: the mean of both directions' cross entropies, each sample's partner among all of the batch
    (CLIP; TGM section 2.8).

    ``scale``: multiplies the cosines, 1 / temperature. ``same`` (B,) int64: samples of equal numbers are no negatives of each other (their
    texts are the same). In a process group the negatives are those of all processes, with gradient: with :func:`~.losses.reduce` over the
    errors, loss and gradients are those of one big batch; the processes tell each other their counts, which waits for the device. With
    gradient accumulation the negatives are those of a micro-batch. Raises ConfigError for a batch of one sample, which has no negatives.
    """
    if one.shape != two.shape or one.ndim != 2:
        raise ValueError(f"two views of the same samples are needed, got {tuple(one.shape)} and {tuple(two.shape)}")
    counts = shares(len(one), one.device)
    total, begin = sum(counts), sum(counts[: dist.get_rank()]) if len(counts) > 1 else 0
    if total < 2:
        raise ConfigError("a contrastive loss needs other samples as negatives, and this batch has one: raise train.batch (or train.micro)")
    place = torch.arange(begin, begin + len(one), device=one.device)
    everyone = None if same is None else gather(same, counts)
    error = one.new_zeros(len(one), dtype=torch.float32)
    for query, keys in ((one, two), (two, one)):
        with torch.autocast(one.device.type, enabled=False):  # cosines near each other are the point
            logits = query.float() @ gather(keys.float(), counts).T * scale
        if same is not None and everyone is not None:
            twins = same[:, None] == everyone[None]
            twins[torch.arange(len(same), device=same.device), place] = False
            logits = logits.masked_fill(twins, -torch.inf)
        error = error + F.cross_entropy(logits, place, reduction="none") / 2
    return error


def shares(mine: int, device: torch.device) -> list[int]:
    """How many samples each process has."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = mine
    dist.all_reduce(counts)
    return counts.tolist()


def gather(x: Tensor, counts: list[int]) -> Tensor:
    """Rows of all processes in order of rank, with gradient to every one of them."""
    return x if len(counts) == 1 else _Gather.apply(x, counts)  # type: ignore[return-value]  # typed as Any


class _Gather(torch.autograd.Function):
    """Backward: the sum over processes of what reached one's own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        most = max(counts)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.counts)[dist.get_rank()], None
