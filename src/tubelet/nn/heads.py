"""From pooled vectors to answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tubelet.core import Draw
from tubelet.nn.block import drop


class ClassHead(nn.Module):
    """[LayerNorm ->] dropout -> Linear (VideoMAE section 2, classifier: ``fc_norm``, ``head``).

    ``norm_eps`` None = no norm. The Linear's start is scaled by ``init_scale`` so that fine-tuning begins with flat predictions.
    """

    def __init__(self, *, dim: int, classes: int, norm_eps: float | None = 1e-6, dropout: float = 0.0, init_scale: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = dropout
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.mul_(init_scale)

    def forward(self, x: Tensor, draw: Draw | None = None) -> Tensor:
        """(B, D) -> (B, classes). Raises ValueError where dropout is to act in training without ``draw``."""
        x = self.norm(x)
        if self.training and self.dropout > 0:
            if draw is None:
                raise ValueError("a head with dropout needs draw= while it trains (call eval() to predict)")
            x = drop(x, self.dropout, draw.uniform("head_dropout", x.shape[-1]))
        return self.linear(x)
