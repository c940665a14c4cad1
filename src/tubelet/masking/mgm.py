"""Motion-guided masking: a box in every slot whose place follows the motion (Fan et al., ICCV 2023, arXiv 2308.12962).

    motion vectors of the compressed file -> length of motion on the tokens -> the box with most of it is hidden

How the paper turns the field into a mask is not published in full; of the readings offered here "window" is the default (one box per slot,
where the mean motion is largest), "track" moves one box along, "topk" drops the box, "simulated" is the control without any motion data.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor
from torch.nn import functional as F

from tubelet import core
from tubelet.config import Family, Settings
from tubelet.core import Batch, Draw, Guide, Mask, Masker, Step, TokenGrid
from tubelet.errors import ConfigError
from tubelet.guides.vectors import Config as Vectors
from tubelet.guides.vectors import filled
from tubelet.masking._boxes import best_window, box_size, distance
from tubelet.masking._fields import interest, said
from tubelet.masking._select import hidden_count, pick, places, slots, split

Mode = Literal["window", "track", "topk", "simulated"]
STILL = 1e-3  # pixels: clips that move less get a box at random


class Config(Settings):
    """``ratio`` of the places of a slot. ``mode``: see the module. ``fill``: hide exactly int(ratio * places), by trimming the box at its
    rim or filling up around it, where counts equal to other maskings are wanted. ``guide``: where the motion comes from."""

    kind: Literal["mgm"] = "mgm"
    ratio: float = Field(default=0.75, gt=0, lt=1)
    mode: Mode = "window"
    fill: bool = False
    guide: Annotated[SerializeAsAny[Settings], Family("tubelet.guides", default="vectors")] = Vectors()

    def build(self) -> MotionGuided:
        guide = None if self.mode == "simulated" else cast(Any, self.guide).build()
        return MotionGuided(guide=guide, ratio=self.ratio, mode=self.mode, fill=self.fill)


class MotionGuided(Masker):
    """A box (or the most moving places) of every slot. Nothing is drawn, but for clips that do not move or whose guide has nothing to
    say."""

    def __init__(self, *, guide: Guide | None, ratio: float, mode: Mode = "window", fill: bool = False) -> None:
        super().__init__()
        if guide is None and mode != "simulated":
            raise ConfigError(f"masking.mode = {mode} needs a guide")
        self.guide, self.ratio, self.fill = guide, ratio, fill
        self.mode: Mode = mode
        self.needs = frozenset() if guide is None else guide.needs

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        t, h, w = places(grid)
        size = box_size(self.ratio, h, w)
        count = size[0] * size[1]
        if self.fill or self.mode == "topk":
            count = hidden_count(self.ratio, h * w, "hidden", "places per slot")
        elif count == h * w:
            raise ConfigError(f"masking.ratio {self.ratio} makes a box of all {h} x {w} places of a slot; lower it")
        if self.guide is None:
            corners = _bouncing(at.draw, t, size, h, w)
            return split(grid, pick(distance(*corners, size, h, w), count, "bottom").flatten(1), t * count)
        field = self.guide(batch, stream)
        motion_BSHW = interest(field, grid)
        moves = motion_BSHW.isfinite().flatten(1).all(1)
        if field.kind == "score":  # any numbers: only where they are larger counts
            motion_BSHW = motion_BSHW - motion_BSHW.flatten(2).amin(2)[..., None, None]
            moves &= motion_BSHW.flatten(1).amax(1) > 0
        else:
            moves &= motion_BSHW.flatten(1).amax(1) > STILL
        ok = moves if field.ok is None else moves & field.ok
        log = {**said(field), "guided": ok.float().mean()}
        # Where nothing moves for a while the box waits for the next thing that does, else it would jump to the first place.
        motion_BSHW = filled(motion_BSHW[:, None], motion_BSHW.flatten(2).amax(2) > STILL)[:, 0]
        if self.mode == "topk":
            return split(grid, slots(motion_BSHW.flatten(2), ok, at.draw, count).flatten(1), t * count, log)
        motion_BSHW = torch.where(ok[:, None, None, None], motion_BSHW, 0.0)
        top, left = self._corners(motion_BSHW, field, grid, size)
        still = _at_random(at.draw, t, size, h, w)
        top, left = (torch.where(ok[:, None], mine, other) for mine, other in zip((top, left), still, strict=True))
        return split(grid, pick(distance(top, left, size, h, w), count, "bottom").flatten(1), t * count, log)

    def _corners(self, motion_BSHW: Tensor, field: core.Field, grid: TokenGrid, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(top, left), each (B, S)."""
        if self.mode == "window":
            return best_window(motion_BSHW, size)
        if field.kind != "flow":
            raise ConfigError("masking.mode = track follows displacements, which this guide does not give; take mode = window or topk")
        flow_BCTHW = torch.nan_to_num(field.data[:, :2].float())
        return _tracked(flow_BCTHW, best_window(motion_BSHW[:, 0], size), size, grid)


def _tracked(flow_BCTHW: Tensor, start: tuple[Tensor, Tensor], size: tuple[int, int], grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """A box that moves on with the mean displacement inside it, kept inside the grid. The mean is weighted by how far each cell of the
    field moves: a plain one would be slowed down by the ground around what moves."""
    t, h, w = places(grid)
    thick, last = grid.patch[0], flow_BCTHW.shape[2] - 1
    late = int(flow_BCTHW.shape[2] == grid.size[0])  # such a field says at each frame how it came there, not how it goes on
    weight_BTHW = flow_BCTHW.square().sum(1).sqrt()
    top, left = start[0].float(), start[1].float()
    tops, lefts = [start[0]], [start[1]]
    for s in range(1, t):
        inside = distance(tops[-1], lefts[-1], size, h, w).unflatten(1, (h, w)) <= 0
        inside_BHW = F.interpolate(inside[:, None].float(), flow_BCTHW.shape[-2:], mode="nearest")[:, 0]
        frames = [min(f + late, last) for f in range((s - 1) * thick, s * thick)]
        weight = weight_BTHW[:, frames] * inside_BHW[:, None]
        total = weight.flatten(1).sum(1, keepdim=True).clamp(min=1e-9)
        step_B2 = (flow_BCTHW[:, :, frames] * weight[:, None]).flatten(2).sum(2) / total * thick
        left = (left + step_B2[:, 0] / grid.patch[2]).clamp(0, w - size[1])
        top = (top + step_B2[:, 1] / grid.patch[1]).clamp(0, h - size[0])
        tops.append(top.round().long())
        lefts.append(left.round().long())
    return torch.stack(tops, 1), torch.stack(lefts, 1)


def _at_random(draw: Draw, t: int, size: tuple[int, int], h: int, w: int) -> tuple[Tensor, Tensor]:
    """One place a clip, the same in all slots."""
    u = draw.uniform("mask/still", 2)
    top, left = ((u[:, i] * (room + 1)).long().clamp(max=room) for i, room in enumerate((h - size[0], w - size[1])))
    return top[:, None].expand(-1, t), left[:, None].expand(-1, t)


def _bouncing(draw: Draw, t: int, size: tuple[int, int], h: int, w: int) -> tuple[Tensor, Tensor]:
    """A box that starts anywhere and moves evenly, up to its whole room in the length of the clip, bouncing at the borders."""
    u = draw.uniform("mask", 4)
    time = torch.arange(t, device=u.device) / max(1, t - 1)
    found = []
    for i, room in enumerate((h - size[0], w - size[1])):
        way = u[:, i, None] * room + (2 * u[:, 2 + i, None] - 1) * room * time
        back = (way % (2 * room)) if room else way * 0
        found.append(torch.where(back > room, 2 * room - back, back).round().long())
    return found[0], found[1]
