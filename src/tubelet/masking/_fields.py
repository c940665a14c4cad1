"""What a guide says about pixels, as numbers of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.core import Field, TokenGrid
from tubelet.errors import ConfigError
from tubelet.masking._select import places


def over_slots(data: Tensor, grid: TokenGrid) -> Tensor:
    """(B, C, T', H', W') -> (B, C, slots, rows, columns): means over the tokens; a coarser map is interpolated, bilinear between centres.

    T' may be the clip's frames, its slots, one frame for the whole clip, or one pair fewer than the frames (the last pair counts twice).
    Raises ConfigError for another number of frames.
    """
    t, h, w = places(grid)
    frames = grid.size[0]
    if data.shape[2] == frames - 1 and frames > 1 and data.shape[2] not in (1, t):
        data = torch.cat([data, data[:, :, -1:]], 2)
    if data.shape[2] == frames:
        data = data.unflatten(2, (t, -1)).mean(3)
    elif data.shape[2] == 1:
        data = data.expand(-1, -1, t, -1, -1)
    elif data.shape[2] != t:
        raise ConfigError(
            f"the guide's maps have {data.shape[2]} frames; this clip has {frames} in {t} slots: give one map for each frame or slot, or "
            "one for all"
        )
    flat = data.transpose(1, 2).flatten(0, 1).float()
    if flat.shape[-2] >= h and flat.shape[-1] >= w:
        flat = F.adaptive_avg_pool2d(flat, (h, w))
    else:
        flat = F.interpolate(flat, (h, w), mode="bilinear", align_corners=False)
    return flat.unflatten(0, (len(data), t)).transpose(1, 2)


def interest(field: Field, grid: TokenGrid) -> Tensor:
    """(B, slots, rows, columns): a score map as it is; of a flow the length of its vectors, in pixels, means over the tokens."""
    if field.kind == "label":
        raise ConfigError("this masking follows scores or motion; its guide gives regions with labels")
    data = field.data
    if field.kind == "flow":
        data = data[:, :2].float().square().sum(1, keepdim=True).sqrt()
    elif data.shape[1] != 1:
        raise ConfigError(f"a score map has one channel, the guide's has {data.shape[1]}")
    return over_slots(data, grid)[:, 0]


def said(field: Field) -> dict[str, Tensor]:
    """The field's figures, and the share of samples that it says something about."""
    share = {} if field.ok is None else {"guided": field.ok.float().mean()}
    return {**share, **{name: value.detach() for name, value in field.log.items()}}
