"""RandAugment on clips that are on the device: the same operations at the same magnitudes for all frames of a clip.

Cubuk et al. 2020 (arXiv 1909.13719) with timm's fifteen operations, magnitudes, magnitude noise and chance of each operation, as VideoMAE
fine-tunes with (``rand-m7-n4-mstd0.5-inc1``). Every operation takes clips (K, 3, T, H, W) in [0, 1] and one number per clip, and gives what
Pillow gives for each frame, to 1/255. What an operation measures (range, histogram, mean grey) it measures on each frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.core import Draw
from tubelet.data.settings import RandPolicy

FILL = 128 / 255  # what moves in from outside the picture
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's integer weights of ITU-R BT.601


def levels(x: Tensor) -> Tensor:
    """[0, 1] -> the nearest of 0..255, as floats."""
    return (x * 255 + 0.5).floor()


def _wide(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1, 1)


def _grey(x: Tensor) -> Tensor:
    """(K, 1, T, H, W): luma on whole levels."""
    return levels((x * x.new_tensor(_LUMA).view(1, 3, 1, 1, 1)).sum(1, keepdim=True)) / 255


def auto_contrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel of every frame to the whole range."""
    low, high = levels(x.amin((3, 4), keepdim=True)) / 255, levels(x.amax((3, 4), keepdim=True)) / 255
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1 / 255), x).clamp(0, 1)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Map every channel of every frame so that its histogram is flat."""
    k, c, t, h, w = x.shape
    at = levels(x).long().reshape(k * c * t, h * w)
    count = at.new_zeros(len(at), 256).scatter_add_(1, at, torch.ones_like(at))
    highest = at.amax(1, keepdim=True)
    step = (h * w - count.gather(1, highest)) // 255
    below = count.cumsum(1) - count
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    flat = torch.where(step > 0, table.gather(1, at), at)
    return (flat.to(x.dtype) / 255).view(k, c, t, h, w)


def invert(x: Tensor, _: Tensor) -> Tensor:
    """1 - x."""
    return 1 - x


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of the eight of a level."""
    step = torch.exp2(8 - _wide(bits))
    return (levels(x) / step).floor() * step / 255


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels from ``threshold`` on."""
    return torch.where(levels(x) < _wide(threshold), x, 1 - x)


def solarize_add(x: Tensor, add: Tensor) -> Tensor:
    """Add ``add`` levels to those below 128."""
    return torch.where(levels(x) < 128, (x + _wide(add) / 255).clamp(max=1), x)


def color(x: Tensor, factor: Tensor) -> Tensor:
    """Away from grey: 0 = grey, 1 = as it is."""
    grey = _grey(x)
    return (grey + (x - grey) * _wide(factor)).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the frame's mean grey."""
    mean = levels(_grey(x).mean((3, 4), keepdim=True, dtype=torch.float64)).to(x.dtype) / 255
    return (mean + (x - mean) * _wide(factor)).clamp(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Away from black."""
    return (x * _wide(factor)).clamp(0, 1)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Away from a smoothed copy: 3x3, the centre counting five of thirteen, border pixels as they are."""
    k, c, t, h, w = x.shape
    if min(h, w) < 3:
        return x
    frames = x.reshape(k, c * t, h, w)
    smooth = frames.clone()
    inner = frames[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = levels((F.avg_pool2d(frames, 3, stride=1) * 9 + inner * 4) / 13) / 255
    smooth = smooth.view(k, c, t, h, w)
    return (smooth + (x - smooth) * _wide(factor)).clamp(0, 1)


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """``matrix`` (K, 2, 3): where each output pixel (x, y, 1) is read, in coordinates where pixel i covers [i, i + 1). Bilinear; what lies
    outside becomes ``FILL``."""
    k, c, t, h, w = x.shape
    column, row = torch.arange(w, device=x.device) + 0.5, torch.arange(h, device=x.device)[:, None] + 0.5
    a = matrix[:, None, None]
    at = a[..., 0] * column[..., None] + a[..., 1] * row[..., None] + a[..., 2]  # no matrix product: its rounding depends on the batch
    size = at.new_tensor([w, h])
    inside = ((at >= 0) & (at < size)).all(-1)
    read = F.grid_sample(x.reshape(k, c * t, h, w), 2 * at / size - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], read, FILL).view(k, c, t, h, w)


def _matrix(amount: Tensor, row: int, column: int, scale: float = 1.0) -> Tensor:
    """The identity with ``amount`` x ``scale`` at one place."""
    matrix = torch.eye(2, 3, device=amount.device).repeat(len(amount), 1, 1)
    matrix[:, row, column] += amount * scale
    return matrix


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """About the centre, against the clock."""
    h, w = x.shape[-2:]
    angle = torch.deg2rad(degrees.double())
    cos, sin = angle.cos(), angle.sin()
    across, down = w / 2 - w / 2 * cos + h / 2 * sin, h / 2 - w / 2 * sin - h / 2 * cos
    return warp(x, torch.stack([cos, -sin, across, sin, cos, down], 1).to(x.dtype).view(-1, 2, 3))


def shear_x(x: Tensor, factor: Tensor) -> Tensor:
    """Read ``factor`` pixels further right for every row further down."""
    return warp(x, _matrix(factor, 0, 1))


def shear_y(x: Tensor, factor: Tensor) -> Tensor:
    """Read ``factor`` pixels further down for every column further right."""
    return warp(x, _matrix(factor, 1, 0))


def translate_x(x: Tensor, share: Tensor) -> Tensor:
    """Read further right by a ``share`` of the width."""
    return warp(x, _matrix(share, 0, 2, x.shape[-1]))


def translate_y(x: Tensor, share: Tensor) -> Tensor:
    """Read further down by a ``share`` of the height."""
    return warp(x, _matrix(share, 1, 2, x.shape[-2]))


class Operation(NamedTuple):
    """``amount(level, sign, increasing)``: the number for a magnitude in 0..10 and a random sign of +-1."""

    apply: Callable[[Tensor, Tensor], Tensor]
    amount: Callable[[float, float, bool], float]


def _enhance(level: float, sign: float, increasing: bool) -> float:
    return 1 + sign * 0.09 * level if increasing else 0.1 + 0.18 * level


def _bits(level: float, sign: float, increasing: bool) -> float:
    kept = int(level / 10 * 4)
    return 4 - kept if increasing else kept


def _threshold(level: float, sign: float, increasing: bool) -> float:
    below = int(level / 10 * 256)
    return 256 - below if increasing else below


def _none(level: float, sign: float, increasing: bool) -> float:
    return 0.0


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": Operation(auto_contrast, _none),
    "equalize": Operation(equalize, _none),
    "invert": Operation(invert, _none),
    "rotate": Operation(rotate, lambda level, sign, _: sign * 3 * level),
    "posterize": Operation(posterize, _bits),
    "solarize": Operation(solarize, _threshold),
    "solarize_add": Operation(solarize_add, lambda level, sign, _: int(level / 10 * 110)),
    "color": Operation(color, _enhance),
    "contrast": Operation(contrast, _enhance),
    "brightness": Operation(brightness, _enhance),
    "sharpness": Operation(sharpness, _enhance),
    "shear_x": Operation(shear_x, lambda level, sign, _: sign * 0.03 * level),
    "shear_y": Operation(shear_y, lambda level, sign, _: sign * 0.03 * level),
    "translate_x": Operation(translate_x, lambda level, sign, _: sign * 0.045 * level),
    "translate_y": Operation(translate_y, lambda level, sign, _: sign * 0.045 * level),
}


class Choice(NamedTuple):
    """One operation on one clip."""

    clip: int
    name: str
    amount: float


def choose(policy: RandPolicy, draw: Draw) -> list[list[Choice]]:
    """What is done in each of ``policy.ops`` turns. Draws ``op``, ``on``, ``level``, ``sign`` per sample; read on the host, so give a draw
    that is bound to samples on the CPU where waiting for the device matters."""
    n, names = policy.ops, list(OPERATIONS)
    kind = draw.integers("op", len(names), n).tolist()
    on = (draw.uniform("on", n) < policy.chance).tolist()
    level = (policy.magnitude + policy.std * draw.normal("level", n)).clamp(0, 10).tolist()
    sign = (draw.uniform("sign", n) < 0.5).tolist()
    turns: list[list[Choice]] = [[] for _ in range(n)]
    for clip, row in enumerate(kind):
        for turn in range(n):
            if on[clip][turn]:
                name = names[row[turn]]
                amount = OPERATIONS[name].amount(level[clip][turn], 1.0 if sign[clip][turn] else -1.0, policy.increasing)
                turns[turn].append(Choice(clip, name, amount))
    return turns


def rand_augment(x: Tensor, turns: list[list[Choice]]) -> Tensor:
    """Clips (B, 3, T, H, W) in [0, 1] after all turns; in each, the clips with the same operation are done together."""
    out = x.clone()
    for turn in turns:
        for name, operation in OPERATIONS.items():
            same = [c for c in turn if c.name == name]
            if same:
                rows = torch.tensor([c.clip for c in same]).to(x.device, non_blocking=True)
                amount = torch.tensor([c.amount for c in same], dtype=x.dtype).to(x.device, non_blocking=True)
                out[rows] = operation.apply(out[rows], amount)
    return out
