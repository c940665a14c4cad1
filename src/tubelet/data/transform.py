"""Crops in the worker: boxes of whole source pixels, one for all frames of a clip, and the affine that says what they did."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# VideoMAE (after TSN): corners, middle, edge middles, and the four quarter points, in steps of a quarter of the room.
_OFFSETS = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))
ATTEMPTS = 10  # tries of random_resized before it falls back to the centre, as torchvision


class Box(NamedTuple):
    """Top left corner, height and width in pixels."""

    y: int
    x: int
    h: int
    w: int


def largest(h: int, w: int, out: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of the output's shape that fits into h x w, at least 1 x 1."""
    if h * out[1] <= w * out[0]:
        return h, max(1, min(w, round(h * out[1] / out[0])))
    return max(1, min(h, round(w * out[0] / out[1]))), w


def centre(h: int, w: int, out: tuple[int, int]) -> Box:
    """The largest central box of the output's shape."""
    bh, bw = largest(h, w, out)
    return Box((h - bh) // 2, (w - bw) // 2, bh, bw)


def three(h: int, w: int, out: tuple[int, int]) -> list[Box]:
    """The largest boxes of the output's shape at 0, 1/2 and 1 of the room that is left (VideoMAE, test)."""
    bh, bw = largest(h, w, out)
    return [Box(int((h - bh) * k / 2), int((w - bw) * k / 2), bh, bw) for k in range(3)]


def multiscale(h: int, w: int, out: tuple[int, int], sides: tuple[float, ...], u: np.ndarray) -> Box:
    """VideoMAE's multi-scale crop: height and width from ``sides`` x the largest box, their positions in the list at most one apart,
    at one of 13 fixed places. ``u`` (2,) in [0, 1)."""
    pairs = [(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1]
    a, b = pairs[min(int(u[0] * len(pairs)), len(pairs) - 1)]
    base_h, base_w = largest(h, w, out)
    bh, bw = max(1, int(base_h * a)), max(1, int(base_w * b))
    down, right = _OFFSETS[min(int(u[1] * len(_OFFSETS)), len(_OFFSETS) - 1)]
    return Box(down * ((h - bh) // 4), right * ((w - bw) // 4), bh, bw)


def random_resized(h: int, w: int, out: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], u: np.ndarray) -> Box:
    """A box with a random share of the area and a random width / height (times the output's own), the first that fits of
    ``u`` (ATTEMPTS, 4) in [0, 1); else the centre (Szegedy et al. 2015, as torchvision)."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for share, shape, down, right in u:
        pixels = h * w * (area[0] + share * (area[1] - area[0]))
        aspect = math.exp(low + shape * (high - low)) * out[1] / out[0]
        bw, bh = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < bw <= w and 0 < bh <= h:
            return Box(min(int(down * (h - bh + 1)), h - bh), min(int(right * (w - bw + 1)), w - bw), bh, bw)
    return centre(h, w, out)


def rescale(box: Box, source: tuple[int, int], have: tuple[int, int]) -> Box:
    """The box of ``source`` (h, w) pixels on frames kept at ``have`` (h, w), to whole pixels."""
    if source == have:
        return box
    sy, sx = have[0] / source[0], have[1] / source[1]
    y, x = min(round(box.y * sy), have[0] - 1), min(round(box.x * sx), have[1] - 1)
    h, w = max(1, round((box.y + box.h) * sy) - y), max(1, round((box.x + box.w) * sx) - x)
    return Box(y, x, min(h, have[0] - y), min(w, have[1] - x))


def affine(box: Box, out: tuple[int, int], source: tuple[int, int], have: tuple[int, int]) -> np.ndarray:
    """(2, 3) float32: source pixel (x, y, 1) -> output pixel (x, y), in coordinates where pixel i covers [i, i + 1).

    ``box`` is in pixels of frames of ``have`` (h, w), which were scaled from ``source`` (h, w); turned videos count as displayed.
    """
    sy, sx = out[0] / box.h, out[1] / box.w
    return np.array([[sx * have[1] / source[1], 0, -sx * box.x], [0, sy * have[0] / source[0], -sy * box.y]], np.float32)


def cut(frames: Tensor, box: Box, out: tuple[int, int]) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, h, w, 3) uint8: the box, resized bilinearly with antialiasing.

    On the CPU torch's integer kernel: within one level of exact arithmetic and three times as fast as Pillow.
    """
    part = frames[:, box.y : box.y + box.h, box.x : box.x + box.w]
    if (box.h, box.w) == out:
        return part
    images = part.permute(0, 3, 1, 2)
    if images.device.type == "cpu":
        images = F.interpolate(images, out, mode="bilinear", antialias=True)
    else:  # no integer kernel there
        images = F.interpolate(images.float(), out, mode="bilinear", antialias=True).round_().clamp_(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1)
