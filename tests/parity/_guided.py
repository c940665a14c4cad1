"""A guide that says what a file says, and the models around the maskings of the guided families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tubelet.core import Batch, CounterDraw, Draw, Field, FixedDraw, Guide, Masker, Step, Stream
from tubelet.interop.videomae import from_official
from tubelet.methods.videomae import Config, VideoMAE


class Said(Guide):
    """A given field."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, batch: Batch, stream: str) -> Field:
        return self.field


def batch_of(video: Tensor, text: tuple[str, ...] = (), **fixed: Tensor) -> tuple[Batch, Step]:
    """A batch and a step; ``fixed``: draws by name."""
    sample = torch.arange(len(video))
    draw: Draw = FixedDraw(CounterDraw(0, sample), fixed)
    return Batch({"video": Stream(video)}, {}, sample, text=text), Step(0, 0, 0.0, 0.0, draw)


def unit(video: Tensor, config: Config) -> Tensor:
    """Pixels in [0, 1] of a normalised clip."""
    mean, std = (video.new_tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.std))
    return video * std + mean


def model_of(config: Config, masker: Masker, weights: dict[str, Tensor], video: Tensor) -> VideoMAE:
    """Our model with official weights, in eval mode."""
    model = config.build(masking=masker, frames=video.shape[2], size=(video.shape[3], video.shape[4]))
    model.load_state_dict(from_official(weights, "pretrain"))
    return model.eval()


def shape(golden: Any, **names: str) -> dict[str, Any]:
    """Our settings' names -> the file's options."""
    return {ours: golden.option(theirs) for ours, theirs in names.items()}
