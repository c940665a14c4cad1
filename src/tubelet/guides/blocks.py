"""Block matching on the frames themselves: motion without a codec, without weights, on the device (MGM section 3d)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting

from tubelet.config import Settings
from tubelet.core import Batch, Field, Guide, to_unit
from tubelet.nn.motion import block_match

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


class Config(Settings):
    """``block``: side in pixels. ``search``: how far, in pixels of the half-size picture, so twice as far in the clip."""

    kind: Literal["blocks"] = "blocks"
    block: int = Setting(default=16, ge=4, le=128)
    search: int = Setting(default=8, ge=1, le=32)

    def build(self) -> Blocks:
        return Blocks(block=self.block, search=self.search)


class Blocks(Guide):
    """Field: flow (B, 2, T, rows, columns), one vector a block, from the frame before to this one; the first frame has the second's."""

    def __init__(self, *, block: int = 16, search: int = 8) -> None:
        super().__init__()
        self.block, self.search = block, search

    @torch.no_grad()
    def forward(self, batch: Batch, stream: str) -> Field:
        video = to_unit(batch.stream(stream).data)
        weights = video.new_tensor(GREY if video.shape[1] == 3 else [1 / video.shape[1]] * video.shape[1])
        luma_BTHW = (video * weights.view(-1, 1, 1, 1)).sum(1)
        with torch.autocast(video.device.type, enabled=False):  # sums of differences must not be rounded
            # All clips as one film, whose first frames are then mended: a clip's first frame has what its second has.
            film = block_match(luma_BTHW.flatten(0, 1), block=self.block, search=self.search).unflatten(0, luma_BTHW.shape[:2])
            found = torch.cat([film[:, 1:2], film[:, 1:]], 1) if film.shape[1] > 1 else torch.zeros_like(film)
        return Field(found.transpose(1, 2), "flow")
