"""MGMAE: a visibility map that is warped along optical flow, so that hidden things stay hidden (Huang et al., ICCV 2023, arXiv 2308.10794).

    map of one frame -> warped frame by frame along the flow -> summed over tubelets -> the places with most of it stay visible

``variant = consistent`` (the default) follows the flow in both directions. ``released`` is the published code, which uses the flow from
the later to the earlier frame before the base frame, too, so that the map moves the wrong way there. As in that code a flow of one
pixel moves the map by (width - 1) / width pixels.
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
from tubelet.guides.flow import Config as Flow
from tubelet.masking._fields import said
from tubelet.masking._select import hidden_count, pick, places, split

EMPTY = 1e-8  # of places that start hidden: exact zeros mean "came from outside"


class Config(Settings):
    """``ratio`` of the places of a slot. ``start``: the first map: "gauss" (a bump around each visible place), "pixel" or "token" (random
    ones). ``base``: its frame. ``warp``: "backward" (bilinear lookup) or "forward" (splatting). ``holes``: what comes in from outside takes
    the first map's values ("consist") or stays empty ("none"). ``variant``: see the module. ``across``: choose over the whole clip instead
    of per slot. ``exposure``: chance that one slot of a clip gets noise on its scores. ``guide``: where the flow comes from."""

    kind: Literal["mgmae"] = "mgmae"
    ratio: float = Field(default=0.9, gt=0, lt=1)
    start: Literal["gauss", "pixel", "token"] = "gauss"
    base: Literal["middle", "first", "random"] = "middle"
    warp: Literal["backward", "forward"] = "backward"
    holes: Literal["consist", "none"] = "consist"
    variant: Literal["consistent", "released"] = "consistent"
    across: bool = False
    exposure: float = Field(default=0.0, ge=0, le=1)
    guide: Annotated[SerializeAsAny[Settings], Family("tubelet.guides", default="flow")] = Flow()

    def build(self) -> FlowGuided:
        return FlowGuided(guide=cast(Any, self.guide).build(), settings=self)


class FlowGuided(Masker):
    """Samples whose flow is unknown or not finite get a map that stands still: a tube."""

    def __init__(self, *, guide: Guide, settings: Config) -> None:
        super().__init__()
        self.guide, self.settings = guide, settings
        self.needs = guide.needs

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        t, h, w = places(grid)
        s = self.settings
        count = hidden_count(s.ratio, h * w, "visible", "places per slot")
        scores, log = self.scores(grid, batch, stream, at)
        scores = scores.round(decimals=3)  # so that what is equal stays so after the lookup's rounding, and the first place wins
        if s.across:
            hidden = ~pick(scores.flatten(1), t * (h * w - count))
        else:
            hidden = ~pick(scores, h * w - count).flatten(1)
        return split(grid, hidden, t * count, log)

    def scores(self, grid: TokenGrid, batch: Batch, stream: str, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, slots, places): sums of the warped map over the tokens, high = visible; and what the guide said."""
        t, h, w = places(grid)
        s, frames, size = self.settings, grid.size[0], (grid.size[1], grid.size[2])
        first_B1HW = start_map(grid, s.start, s.ratio, at.draw)
        if frames == 1:
            maps, log = first_B1HW, {}
        else:
            field = self.guide(batch, stream)
            ahead, back = both_ways(field, frames, size)
            ok = ahead.isfinite().flatten(1).all(1) & back.isfinite().flatten(1).all(1)
            ok = ok if field.ok is None else ok & field.ok
            ahead, back = (torch.where(ok.view(-1, 1, 1, 1, 1), flow, 0.0) for flow in (ahead, back))
            base = {"middle": frames // 2, "first": 0}.get(s.base)
            if base is None:
                base = int(at.draw.integers("mask/base", frames, per="batch"))
            maps = warped(first_B1HW, ahead, back if s.variant == "consistent" else None, back, base, s.warp, s.holes == "consist")
            log = {**said(field), "guided": ok.float().mean()}
        scores = maps.unflatten(1, (t, -1)).unflatten(3, (h, -1)).unflatten(5, (w, -1)).sum((2, 4, 6)).flatten(2)
        if s.exposure:
            slot = at.draw.integers("mask/slot", t)
            chosen = (torch.arange(t, device=scores.device) == slot[:, None]) & (at.draw.uniform("mask/exposed") < s.exposure)[:, None]
            scores = scores + chosen[:, :, None] * at.draw.normal("mask/noise", h * w)[:, None]
        return scores, log


def start_map(grid: TokenGrid, kind: str, ratio: float, draw: Draw) -> Tensor:
    """(B, 1, H, W) in [0, 1]: what is visible of the base frame. Visible places: places - int(ratio * places), drawn for every sample."""
    _, h, w = places(grid)
    ph, pw = grid.patch[1:]
    if kind == "pixel":
        n = h * ph * w * pw
        chosen = pick(draw.uniform("mask", n), max(1, int(n * (1 - ratio)))).view(-1, 1, h * ph, w * pw)
        return torch.where(chosen, 1.0, EMPTY)
    order = draw.permutation("mask", h * w)[:, : h * w - int(ratio * h * w)]
    if kind == "token":
        chosen = torch.zeros(len(order), h * w, dtype=torch.bool, device=order.device).scatter_(1, order, True)
        chosen = chosen.view(-1, h, w).repeat_interleave(ph, 1).repeat_interleave(pw, 2)[:, None]
        return torch.where(chosen, 1.0, EMPTY)
    y, x = (torch.arange(n, device=order.device, dtype=torch.float32) for n in (h * ph, w * pw))
    total = torch.zeros(len(order), h * ph, w * pw, device=order.device)
    for at in order.unbind(1):
        row, column = (at // w * ph + (ph - 1) / 2)[:, None], (at % w * pw + (pw - 1) / 2)[:, None]
        bump = torch.exp(-(((y - row) / ph) ** 2))[:, :, None] * torch.exp(-(((x - column) / pw) ** 2))[:, None]
        total = torch.maximum(total, bump)
    return (total / total.amax((1, 2), keepdim=True))[:, None]


def both_ways(field: core.Field, frames: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, T - 1, 2, H, W) each: the flow from frame k to k + 1, and from k + 1 to k, at the resolution of the clip (``size``).

    Where a guide gives one direction, the other is its negative at the same place. Raises ConfigError for scores and labels, or for
    another number of frames.
    """
    if field.kind != "flow":
        raise ConfigError("mgmae follows a flow, and its guide gives none; take flow, blocks or vectors")
    data = field.data.float()
    if data.shape[2] == frames:  # from the frame before to this one, where it arrived: the way back is exact
        ahead, back = data[:, :2, 1:], -data[:, :2, 1:]
    elif data.shape[2] == frames - 1:
        ahead, back = data[:, :2], data[:, 2:4] if data.shape[1] >= 4 else -data[:, :2]
    else:
        raise ConfigError(f"the guide's flow has {data.shape[2]} frames, this clip has {frames}")
    both = torch.stack([ahead, back], 1).transpose(2, 3)  # (B, 2, T - 1, 2, H', W')
    if both.shape[-2:] != size:
        both = F.interpolate(both.flatten(0, 2), size, mode="bilinear", align_corners=False).unflatten(0, both.shape[:3])
    return both[:, 0], both[:, 1]


def warped(first_B1HW: Tensor, ahead: Tensor, before: Tensor | None, back: Tensor, base: int, warp: str, consist: bool) -> Tensor:
    """(B, T, H, W): the map of the base frame, moved frame by frame away from it. ``before`` None: the published code's wrong direction."""
    maps = {base: first_B1HW}

    def moved(map_B1HW: Tensor, lookup: Tensor, way: Tensor) -> Tensor:
        out = backward(map_B1HW, lookup) if warp == "backward" else forward(map_B1HW, way)
        return torch.where(out == 0, first_B1HW, out) if consist else out

    for i in range(base, ahead.shape[1]):
        maps[i + 1] = moved(maps[i], back[:, i], ahead[:, i])
    for i in range(base - 1, -1, -1):
        maps[i] = moved(maps[i + 1], back[:, i] if before is None else ahead[:, i], back[:, i])
    return torch.cat([maps[i] for i in sorted(maps)], 1)


def backward(map_B1HW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """The map looked up at (column + dx, row + dy), bilinear, zero outside."""
    h, w = map_B1HW.shape[-2:]
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, device=flow_B2HW.device) for n in (h, w)), indexing="ij")
    place = torch.stack([x + flow_B2HW[:, 0] / (w / 2), y + flow_B2HW[:, 1] / (h / 2)], -1)
    return F.grid_sample(map_B1HW, place, mode="bilinear", padding_mode="zeros", align_corners=True)


def forward(map_B1HW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """Every pixel of the map put down at (column + dx, row + dy), shared between the four pixels around, divided by the
    shares that came."""
    b, _, h, w = map_B1HW.shape
    y, x = torch.meshgrid(*(torch.arange(n, device=flow_B2HW.device, dtype=torch.float32) for n in (h, w)), indexing="ij")
    to_x, to_y = x + flow_B2HW[:, 0], y + flow_B2HW[:, 1]
    left, top = to_x.floor(), to_y.floor()
    value, share = torch.zeros(b, h * w, device=map_B1HW.device), torch.zeros(b, h * w, device=map_B1HW.device)
    for down in (0, 1):
        for right in (0, 1):
            px, py = left + right, top + down
            part = (1 - (to_x - px).abs()) * (1 - (to_y - py).abs())
            part = torch.where((px >= 0) & (px < w) & (py >= 0) & (py < h), part, 0.0).flatten(1)
            index = (py.clamp(0, h - 1) * w + px.clamp(0, w - 1)).long().flatten(1)
            value.scatter_add_(1, index, part * map_B1HW.flatten(1))
            share.scatter_add_(1, index, part)
    return torch.where(share > 0, value / share.clamp(min=1e-12), 0.0).view(b, 1, h, w)
