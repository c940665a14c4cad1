"""What a guide says about a clip, as pictures: scores as warmth over the frames, flow as colours of direction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tubelet.core import Field, to_unit
from tubelet.viz.pictures import picture, spread, table

SHARE = 0.65  # of a warm colour over the frame


def heat(scores: Tensor, frames: Tensor) -> Tensor:
    """(T, H, W) in [0, 1] over (3, T, H, W) in [0, 1]: grey frames, from dark blue (0) over green to yellow (1)."""
    stops = scores.new_tensor([[0.27, 0.0, 0.33], [0.13, 0.57, 0.55], [0.99, 0.91, 0.14]])
    place = scores.clamp(0, 1)[..., None] * 2
    colour = torch.where(place < 1, torch.lerp(stops[0], stops[1], place), torch.lerp(stops[1], stops[2], place - 1))
    grey = frames.mean(0, keepdim=True).expand_as(frames)
    return torch.lerp(grey, colour.permute(3, 0, 1, 2), SHARE)


def wheel(flow: Tensor, most: Tensor | float) -> Tensor:
    """(2, T, H, W) pixels -> (3, T, H, W): hue says the direction (red = right, yellow-green = down, cyan = left, violet = up), strength
    the length, full at ``most`` pixels; white stands still."""
    angle = torch.atan2(flow[1], flow[0]) / (2 * math.pi) % 1
    strength = (flow.square().sum(0).sqrt() / most).clamp(0, 1)
    thirds = torch.tensor([5.0, 3.0, 1.0], device=flow.device).view(3, 1, 1, 1)
    k = (thirds + angle * 6) % 6
    return 1 - strength * torch.minimum(k, 4 - k).clamp(0, 1)


def panels(field: Field, video: Tensor) -> list[tuple[str, Tensor]]:
    """(heading, (3, T, H, W) in [0, 1]) of a batch of one: the clip with each part of the field."""
    frames = to_unit(video)[0]
    _, t, h, w = frames.shape
    data = field.data[0].float().nan_to_num()
    if field.kind == "flow":
        longest = data[:2].square().sum(0).sqrt().amax().clamp(min=1e-6)
        names = ["flow"] if len(data) == 2 else ["flow to the next frame", "flow to the frame before"]
        return [
            (f"{name}\n{longest:.1f} px at most", wheel(_sized(part, t, h, w), longest))
            for name, part in zip(names, data.split(2), strict=True)
        ]
    low, high = data.amin(), data.amax()
    scaled = (data - low) / (high - low).clamp(min=1e-12)
    return [(f"{field.kind}\n{low:.3f} to {high:.3f}", heat(_sized(scaled[:1], t, h, w)[0], frames))]


def _sized(data: Tensor, t: int, h: int, w: int) -> Tensor:
    """(C, T', H', W') -> (C, t, h, w): the nearest frame in time, bilinear in space."""
    have = data.shape[1]
    index = torch.arange(t, device=data.device)
    index = index.clamp(max=have - 1) if have in (t, t - 1) else index * have // t
    return F.interpolate(data[:, index].transpose(0, 1), (h, w), mode="bilinear", align_corners=False).transpose(0, 1)


def field_figure(video: Tensor, time: Tensor, shown: Sequence[tuple[str, Tensor]], *, frames: int, title: str, caption: str) -> Image.Image:
    """The clip (1, C, T, H, W) and one row for each (heading, (3, T, H, W)). ``time`` (1, T): seconds."""
    pick = spread(video.shape[2], frames)
    rows = [("input", to_unit(video)[0]), *shown]
    pictures = [(name, [picture(clip[:, i].cpu(), 112) for i in pick]) for name, clip in rows]
    return table(pictures, [f"{float(time[0, i]):.2f} s" for i in pick], title, caption)
