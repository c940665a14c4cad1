"""AdaMAE: a small network learns which few tokens to show (Bandara et al., CVPR 2023, arXiv 2211.09120).

    all tokens -> one attention block -> probability of each -> drawn without replacement: visible
    loss: -mean over hidden tokens of log p(token) * its error, so that what is hard to imagine is shown more often

The embedding is not detached, as in the released code: the patch embedding gets this loss's gradient, too; its small weight protects it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tubelet.config import Settings
from tubelet.core import Batch, Draw, Mask, Masker, Step, TokenGrid
from tubelet.errors import ConfigError
from tubelet.masking._select import first, hidden_count, split
from tubelet.nn.attention import make_attention
from tubelet.nn.block import Block, drop
from tubelet.objectives.losses import reduce


class Config(Settings):
    """``ratio`` of all tokens. ``weight`` of the sampler's loss beside the reconstruction's. ``heads``, ``mlp_ratio``, ``dropout``: of its
    one attention block."""

    kind: Literal["adamae"] = "adamae"
    ratio: float = Field(default=0.95, gt=0, lt=1)
    weight: float = Field(1e-4, ge=0)
    heads: int = Field(default=8, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, *, grid: TokenGrid, dim: int) -> Adaptive:
        """For tokens of ``grid``, ``dim`` wide. Raises ConfigError where the heads do not divide the width."""
        if dim % self.heads:
            raise ConfigError(f"masking.heads {self.heads} must divide the width of the tokens, {dim}")
        sampler = Sampler(tokens=grid.n, dim=dim, heads=self.heads, mlp_ratio=self.mlp_ratio, dropout=self.dropout)
        return Adaptive(sampler=sampler, ratio=self.ratio, weight=self.weight)


class Sampler(nn.Module):
    """(B, N, D) -> probabilities (B, N), float32: learned positions, one pre-norm block without q, k, v bias, one number a token."""

    def __init__(self, *, tokens: int, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(tokens, dim))
        self.block = Block(dim=dim, attention=make_attention("no_bias", dim=dim, heads=heads), mlp_ratio=mlp_ratio, eps=1e-5)
        self.score = nn.Linear(dim, 1)
        self.dropout = dropout
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, draw: Draw) -> Tensor:
        if x.shape[1:] != self.position.shape:
            raise ConfigError(
                f"masking adamae was built for {tuple(self.position.shape)} (tokens, width), got {tuple(x.shape[1:])}: it works with clips "
                "of the length and size that it was trained with"
            )
        x = x + self.position
        x = x + self._drop(self.block.attn(self.block.norm1(x)), draw, "attention")
        x = x + self._drop(self.block.mlp(self.block.norm2(x)), draw, "mlp")
        logits = torch.nan_to_num(self.score(x)[..., 0].float())
        return logits.softmax(-1)

    def _drop(self, x: Tensor, draw: Draw, name: str) -> Tensor:
        return drop(x, self.dropout, draw.uniform(name, *x.shape[1:])) if self.training and self.dropout else x


class Adaptive(Masker):
    """Draws the visible tokens by a learned distribution; learns from the errors of the hidden ones."""

    reads_tokens = True

    def __init__(self, *, sampler: Sampler, ratio: float, weight: float) -> None:
        super().__init__()
        self.sampler, self.ratio, self.loss_weight = sampler, ratio, weight

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        if tokens is None:
            raise ConfigError("masking adamae looks at embedded tokens, which this method does not hand to its masking")
        count = hidden_count(self.ratio, grid.n, "visible")
        p = self.sampler(tokens, at.draw.child("sampler"))
        logp = p.clamp(min=torch.finfo(p.dtype).eps).log()  # as the reference's categorical distribution clamps them
        # The largest of log p + Gumbel noise are a draw without replacement by p.
        noise = -torch.log(-torch.log(at.draw.uniform("mask", grid.n).clamp(1e-7, 1 - 1e-7)))
        order = torch.argsort(logp.detach() + noise, dim=1, descending=True, stable=True)
        mask = split(grid, ~first(order, grid.n - count), count)
        entropy = -(p * logp).sum(1).mean()
        log = {"sampler_entropy": entropy, "sampler_peak": p.amax(1).mean() * grid.n}
        return Mask(grid, mask.visible, mask.target, logp=logp, log={k: v.detach() for k, v in log.items()})

    def loss(self, mask: Mask, error_BM: Tensor) -> Tensor | None:
        """Section 2.7: mean over samples and hidden tokens of -log p * error."""
        assert mask.logp is not None
        return reduce(-mask.logp.gather(1, mask.target) * error_BM.detach())
