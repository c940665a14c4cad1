"""Errors of answers, and the one way in which they become a loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["mse", "l1", "smooth_l1"]

_POINTWISE = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


def answer_error(pred: Tensor, target: Tensor, kind: LossKind = "mse") -> Tensor:
    """(B, M, E) x 2 -> (B, M) float32: the mean over a row's elements. smooth_l1 turns at 1. Raises ValueError where shapes differ."""
    if pred.shape != target.shape:
        raise ValueError(f"answers {tuple(pred.shape)} and targets {tuple(target.shape)} differ in shape")
    return _POINTWISE[kind](pred.float(), target.float(), reduction="none").mean(-1)


def reduce(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """The weighted mean of ``error`` over the global batch: sum(weight * error) / sum(weight); 0 where all weights are 0.

    ``weight``: same shape, None = 1. In a process group the denominator is summed over all ranks and the result is multiplied by their
    number, so that the mean of the ranks' losses and of their gradients (what DDP takes) is exactly that of one big batch, whatever
    the ranks' shares. A collective call then: every rank must make it. Nothing waits for the device.
    """
    if weight is None:
        total, count = error.sum(), error.new_full((), error.numel())
    else:
        if weight.shape != error.shape:
            raise ValueError(f"weights {tuple(weight.shape)} and errors {tuple(error.shape)} differ in shape")
        weight = weight.to(error.dtype)
        total = torch.where(torch.gt(weight, 0), error * weight, 0.0).sum()
        count = weight.detach().sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        total = total * dist.get_world_size()
    return total / torch.where(count > 0, count, 1.0)
