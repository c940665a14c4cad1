"""Targets and errors of classification."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def smooth_one_hot(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """(B,) int64 -> (B, classes): (1 - smoothing) on the label plus smoothing / classes everywhere."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mix_targets(target: Tensor, partner: Tensor, share: Tensor | float) -> Tensor:
    """(B, K) soft targets of mixed clips: share * own + (1 - share) * partner's. ``share``: a number, or (B, 1).

    Mixup and cutmix pair each clip with the one at the mirrored place of its batch: ``partner = target.flip(0)``.
    """
    return target * share + partner * (1 - share)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(B, K) logits and soft targets that sum to 1 -> (B,) float32 errors. With a one-hot target: the cross entropy."""
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(-1)
