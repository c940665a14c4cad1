"""How weights start. Both schemes leave embeddings, position tables and tokens as their own modules start them."""

from __future__ import annotations

from torch import nn


def xavier(module: nn.Module) -> None:
    """Every Linear below ``module``: xavier-uniform weight, zero bias (VideoMAE pre-training)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def truncated(module: nn.Module, std: float = 0.02) -> None:
    """Every Linear below ``module``: truncated normal weight, zero bias (VideoMAE fine-tuning)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
