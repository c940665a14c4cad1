"""Alignment of a clip's visible tokens with its caption: the second half of TGM's unified framework, for any method and masking.

mean of the encoder's visible tokens -> linear -> length 1; caption -> frozen text encoder -> length 1; InfoNCE over the global batch
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.config import Settings
from tubelet.core import Frozen, Tokens
from tubelet.errors import ConfigError
from tubelet.guides._dual import frozen_dual, width_of
from tubelet.nn.dual import MOST_SCALE
from tubelet.objectives.contrast import info_nce
from tubelet.objectives.losses import reduce


class AlignConfig(Settings):
    """``model``: whose text encoder, a folder as in ``masking.guide.model``. ``width`` of its vectors; None = what its settings say.
    ``weight`` of the loss beside the reconstruction's (TGM: 1). ``temperature``: where its learned value starts. ``twins``: clips with the
    very same caption are wrong answers to each other ("wrong", as in the paper) or left out ("skip")."""

    model: str = Field(min_length=1)
    width: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    twins: Literal["wrong", "skip"] = "wrong"

    def build(self, *, dim: int) -> Alignment:
        """For tokens ``dim`` wide. Raises CheckpointError where ``width`` is not given and the model is not there to say it."""
        return Alignment(text=frozen_dual(self.model), dim=dim, width=self.width or width_of(self.model), settings=self)


class Alignment(nn.Module):
    """``text``: frozen, with ``text(texts)`` -> (n, width). It gets no gradient; the projection and the temperature are learned."""

    def __init__(self, *, text: Frozen, dim: int, width: int, settings: AlignConfig) -> None:
        super().__init__()
        self.text, self.settings = text, settings
        self.video_proj = nn.Linear(dim, width)
        nn.init.xavier_uniform_(self.video_proj.weight)
        nn.init.zeros_(self.video_proj.bias)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / settings.temperature)))

    def open(self) -> Alignment:
        """Get the text encoder now. Raises ConfigError where its vectors have another width than the settings say."""
        width = self.text.inner.text(["a"]).shape[1]
        if width != self.video_proj.out_features:
            raise ConfigError(
                f"method.align.width is {self.video_proj.out_features}, and {self.settings.model} gives vectors of {width}; set it to "
                f"{width}, or to null to have the model asked"
            )
        return self

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.logit_scale.float().exp()

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the temperature at 1 / 100 or above: the number itself is held, so that it can come back."""
        self.logit_scale.clamp_(max=math.log(MOST_SCALE))

    def video(self, tokens: Tokens) -> Tensor:
        """Tokens (B, K, D) -> (B, width) of length 1: the mean over those that have a place and are real, projected."""
        real = tokens.index >= 0 if tokens.valid is None else (tokens.index >= 0) & tokens.valid
        share = real.to(tokens.x.dtype)[..., None]
        mean = (tokens.x * share).sum(1) / share.sum(1).clamp(min=1)
        return F.normalize(self.video_proj(mean).float(), dim=-1)

    def words(self, texts: Sequence[str]) -> Tensor:
        """(n, width) of length 1."""
        return self.text.inner.text(texts)

    def forward(self, tokens: Tokens, texts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and figures for the log. Samples without a caption do not count, but are wrong answers for others."""
        if len(texts) != len(tokens.x):
            raise ConfigError("method.align needs captions, and this batch has none")
        video, words = self.video(tokens), self.words(texts)
        same = same_text(texts, video.device, skip_twins=self.settings.twins == "skip")
        weight = captioned(texts).to(video.device, non_blocking=True)
        error = info_nce(video, words, self.scale, same=same)
        return reduce(error, weight), agreement(video, words, self.scale)


def same_text(texts: Sequence[str], device: torch.device, *, skip_twins: bool) -> Tensor | None:
    """(B,) int64: equal for equal texts; None where that does not matter."""
    if not skip_twins:
        return None
    ids = [int.from_bytes(hashlib.blake2b(t.strip().encode(), digest_size=7).digest(), "little") for t in texts]
    return torch.tensor(ids).to(device, non_blocking=True)


def captioned(texts: Sequence[str]) -> Tensor:
    """(B,) float: 1 where there is a caption."""
    return torch.tensor([float(bool(text.strip())) for text in texts])


@torch.no_grad()
def agreement(video: Tensor, text: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Share of clips whose own text is the nearest of this process's batch, and 1 / temperature."""
    with torch.autocast(video.device.type, enabled=False):
        nearest = (video.float() @ text.float().T).argmax(1)
    return {"match": (nearest == torch.arange(len(video), device=video.device)).float().mean(), "scale": scale.detach()}
