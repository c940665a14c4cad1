"""Anti-aliased shapes: signed distances in an object's own coordinates, its shading and pattern, and the pixels it covers.

Pixels are computed with + - * / sqrt min max only, whose float32 results IEEE 754 fixes, so frames agree between machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.playground._draw import Floats

Image = NDArray[np.floating[Any]]  # always float32; numpy's stubs lose that beside Python numbers
Distance = Callable[[Image, Image], Image]

EXTENT = 1.2  # no shape reaches farther from its centre, in radii
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.24, 0.25),
    "orange": (0.96, 0.54, 0.18),
    "yellow": (0.97, 0.80, 0.22),
    "green": (0.30, 0.68, 0.36),
    "turquoise": (0.13, 0.70, 0.68),
    "blue": (0.22, 0.45, 0.90),
    "purple": (0.56, 0.32, 0.80),
    "pink": (0.95, 0.47, 0.67),
}
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")


def _circle(u: Image, v: Image) -> Image:
    return np.sqrt(u * u + v * v) - 1


def _ring(u: Image, v: Image) -> Image:
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.29


def _box(u: Image, v: Image, width: float, height: float) -> Image:
    du, dv = np.abs(u) - np.float32(width), np.abs(v) - np.float32(height)
    outside = np.sqrt(np.maximum(du, 0) ** 2 + np.maximum(dv, 0) ** 2)
    return outside + np.minimum(np.maximum(du, dv), 0)


def _square(u: Image, v: Image) -> Image:
    return _box(u, v, 0.66, 0.66) - 0.18


def _cross(u: Image, v: Image) -> Image:
    return np.minimum(_box(u, v, 0.88, 0.24), _box(u, v, 0.24, 0.88)) - 0.12


def _planes(u: Image, v: Image, count: int) -> list[Image]:
    """Heights of the points over ``count`` lines through the centre, one normal pointing down."""
    angles = [math.pi / 2 + 2 * math.pi * i / count for i in range(count)]
    return [math.cos(a) * u + math.sin(a) * v for a in angles]


def _triangle(u: Image, v: Image) -> Image:
    a, b, c = _planes(u, v, 3)
    return np.maximum(np.maximum(a, b), c) - 0.58


def _star(u: Image, v: Image) -> Image:
    # A pentagram is where at most one of its five lines is passed: the second largest height counts.
    first, *rest = _planes(u, v, 5)
    second = np.full_like(first, -np.inf)
    for height in rest:
        second = np.maximum(second, np.minimum(first, height))
        first = np.maximum(first, height)
    return second - 0.37


def _heart(u: Image, v: Image) -> Image:
    # A square on its corner with a disc on each of its upper sides.
    half = 0.58
    p, q = (u + v) * 0.70710678, (v - u) * 0.70710678
    p, q = p - 0.08, q - 0.08
    square = np.maximum(np.abs(p), np.abs(q)) - half
    left = np.sqrt((p + half) ** 2 + q * q) - half
    right = np.sqrt(p * p + (q + half) ** 2) - half
    return np.minimum(square, np.minimum(left, right))


def _moon(u: Image, v: Image) -> Image:
    bite = np.sqrt((u - 0.55) ** 2 + (v + 0.25) ** 2) - 0.78
    return np.maximum(np.sqrt(u * u + v * v) - 1.08, -bite)


SHAPES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
}


@dataclass(frozen=True)
class Stamp:
    """Where N drawn copies of a shape fall: windows of S x S pixels on a torus."""

    pixel: NDArray[np.int64]  # (N, S, S) index into the N * H * W pixels
    cover: Image  # (N, S, S) share of the pixel in [0, 1]
    right: Image  # (N, 1, S) pixels from the centre
    down: Image  # (N, S, 1)
    u: Image  # (N, S, S) own coordinates: radii from the centre, turned with the object
    v: Image
    distance: Image  # (N, S, S) to the outline in radii, negative inside


def stamp(
    shape: Distance, *, x: Floats, y: Floats, radius: Floats, angle: Floats, height: int, width: int, frame: NDArray[np.int64]
) -> Stamp:
    """Place a shape at the centres (N,) in pixels into the frames (N,), numbers of H x W images stacked in memory."""
    reach = int(np.ceil(EXTENT * radius.max() + 1))
    span = np.arange(-reach, reach + 1)
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right = (span[None] - (x - column)[:, None]).astype(np.float32)[:, None, :]
    down = (span[None] - (y - row)[:, None]).astype(np.float32)[:, :, None]
    columns, rows = (column[:, None] + span) % width, (row[:, None] + span) % height
    pixel = (frame[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    cos, sin = ((f(angle) / radius).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u, v = right * cos + down * sin, down * cos - right * sin
    distance = shape(u, v)
    cover = np.clip(0.5 - distance * radius.astype(np.float32)[:, None, None], 0, 1)
    return Stamp(pixel, cover, right, down, u, v, distance)


def _ridge(x: Image) -> Image:
    """A smooth wave of period 1 in [0, 1] without a cosine."""
    w = np.abs(2 * (x - np.floor(x)) - 1)
    return w * w * (3 - 2 * w)


def _pattern(texture: str, u: Image, v: Image) -> Image | None:
    if texture == "striped":
        return _ridge(1.15 * v + 0.2 * u)
    if texture == "dotted":
        return np.clip(2.5 * _ridge(1.1 * u) * _ridge(1.1 * v) - 0.5, 0, 1)
    return None


def paint_stamp(pixels: NDArray[np.uint8], mark: Stamp, colour: Image, texture: str) -> None:
    """Draw a stamp into (N * H * W, 3) pixels in place: ``colour`` (N, 3) in [0, 1], lit from its own upper left, darker at the rim."""
    u, v, cover = mark.u, mark.v, mark.cover
    rim = np.clip(1 + mark.distance * 2.5, 0, 1)
    light = 1 - 0.22 * (rim * rim) - 0.07 * u - 0.11 * v
    gleam = np.clip(1 - ((u + 0.35) ** 2 + (v + 0.45) ** 2) * 2.2, 0, 1)
    gleam = 0.45 * gleam * gleam
    pattern = _pattern(texture, u, v)
    window = pixels[mark.pixel]
    for channel in range(3):
        base = colour[:, channel, None, None]
        if pattern is not None:
            base = base + pattern * ((1 - base) * 0.55)
        lit = base * light
        lit = np.clip((lit + gleam * (1 - lit)) * 255, 0, 255)
        below = window[..., channel].astype(np.float32)
        window[..., channel] = (below + cover * (lit - below) + 0.5).astype(np.uint8)
    pixels[mark.pixel] = window
