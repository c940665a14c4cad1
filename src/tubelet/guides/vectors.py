"""Codec motion vectors: motion that is already in the compressed file (MGM section 3a). The loader reads them while it decodes.

Frames without vectors (key frames, intra-coded ones) take the next known field of the clip, else the last one before. Clips without any
(codecs whose decoder exports none, pictures) come with block matching on their frames. The file does not tell how many frames away a
block's reference lies, so vectors of streams with several references can be too long: what exceeds a clip's percentile is shortened.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import Batch, Field, Guide


class Config(Settings):
    """``limit``: share of a clip's vectors that are kept as long as they are; the others are shortened to that length. ``camera``: "median"
    takes each frame's median vector away, which is the camera's motion where most of the picture is background."""

    kind: Literal["vectors"] = "vectors"
    limit: float = Setting(default=0.99, gt=0, le=1)
    camera: Literal["keep", "median"] = "keep"

    def build(self) -> Vectors:
        return Vectors(limit=self.limit, camera=self.camera == "median")


class Vectors(Guide):
    """Field: flow (B, 2, T, H', W') on cells of four pixels, from the frame before to this one."""

    needs = frozenset({"motion"})

    def __init__(self, *, limit: float = 0.99, camera: bool = False) -> None:
        super().__init__()
        self.limit, self.camera = limit, camera

    def forward(self, batch: Batch, stream: str) -> Field:
        motion = batch.stream("motion")
        assert motion.valid is not None
        known = motion.valid.any(1)
        data = filled(motion.data.float(), motion.valid)
        if self.camera:
            data = data - data.flatten(3).median(3).values[..., None, None]
        if self.limit < 1:
            data = shortened(data, self.limit)
        log = {"frames_without_vectors": 1 - motion.valid.float().mean(), "clips_without_vectors": 1 - known.float().mean()}
        return Field(data, "flow", torch.ones_like(known), log)


def filled(data_BCTHW: Tensor, valid_BT: Tensor) -> Tensor:
    """Frames that are not valid as the next valid one, else the last before; clips without any stay as they are."""
    t = valid_BT.shape[1]
    place = torch.arange(t, device=valid_BT.device).expand_as(valid_BT)
    after = torch.where(valid_BT, place, t).flip(1).cummin(1).values.flip(1)
    before = torch.where(valid_BT, place, -1).cummax(1).values
    source = torch.where(after < t, after, torch.where(before >= 0, before, place))
    return data_BCTHW.gather(2, source[:, None, :, None, None].expand_as(data_BCTHW))


def shortened(data_BCTHW: Tensor, share: float) -> Tensor:
    """Vectors of (B, 2, T, H, W) that are longer than ``share`` of their clip's, cut to that length."""
    length = data_BCTHW.square().sum(1, keepdim=True).sqrt()
    ranked = length.flatten(1).sort(1).values
    limit = ranked[:, min(ranked.shape[1] - 1, int(share * ranked.shape[1]))].view(-1, 1, 1, 1, 1)
    return data_BCTHW * torch.where(length > limit, limit / length.clamp(min=1e-12), 1.0)
