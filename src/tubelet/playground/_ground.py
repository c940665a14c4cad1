"""The ground: an endless plane of two close tones, smooth or patterned, at rest or drifting with its own true flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tubelet.playground._draw import Bytes, Dice, Floats, Ints

TONES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "navy": ((0.07, 0.10, 0.19), (0.13, 0.18, 0.30)),
    "charcoal": ((0.11, 0.11, 0.13), (0.20, 0.20, 0.23)),
    "plum": ((0.13, 0.07, 0.14), (0.22, 0.14, 0.24)),
    "pine": ((0.05, 0.12, 0.12), (0.11, 0.20, 0.19)),
    "cream": ((0.99, 0.97, 0.92), (0.93, 0.89, 0.81)),
    "mist": ((0.94, 0.96, 0.98), (0.83, 0.88, 0.92)),
    "lilac": ((0.96, 0.94, 0.99), (0.88, 0.85, 0.95)),
    "mint": ((0.94, 0.99, 0.96), (0.83, 0.93, 0.88)),
    "slate": ((0.42, 0.44, 0.50), (0.50, 0.52, 0.58)),
    "stone": ((0.45, 0.45, 0.45), (0.55, 0.55, 0.55)),
    "heather": ((0.48, 0.42, 0.47), (0.56, 0.50, 0.56)),
    "moss": ((0.42, 0.48, 0.45), (0.50, 0.56, 0.53)),
}
DARK_AND_LIGHT, MIDDLE = tuple(TONES)[:8], tuple(TONES)[8:]
PATTERNS: tuple[str, ...] = ("smooth", "clouds", "stripes", "checks", "dots")
_WAVES = 3


@dataclass(frozen=True, kw_only=True)
class Ground:
    """B planes. A wave is cos(kx x + ky y + phase), x and y in pixels."""

    tone: Ints  # (B,) index into TONES
    pattern: Ints  # (B,) index into PATTERNS
    kx: Floats  # (B, 3) radians a pixel
    ky: Floats
    phase: Floats  # (B, 3)
    vx: Floats  # (B,) pixels a frame
    vy: Floats

    @property
    def moves(self) -> bool:
        """Whether any of the planes drifts."""
        return bool(self.vx.any() or self.vy.any())


def draw_ground(dice: Dice, *, pattern: Ints, drift: Floats, short: int, frames: int, tones: tuple[str, ...]) -> Ground:
    """Planes for the clips of the dice. ``drift`` (B,): way during the clip in shorter sides, 0 is at rest. ``tones``: names in TONES."""
    full = (0.0, 2 * math.pi)
    drawn = dice.table(
        "ground",
        angle=full,
        heading=full,
        phase0=full,
        phase1=full,
        phase2=full,
        wide=(1.4, 2.2),
        length=(0.24, 0.40),
        tone=(0, len(tones)),
    )
    smooth, clouds = (pattern == PATTERNS.index(name) for name in ("smooth", "clouds"))
    # The second wave stands square to the first (checks, dots); clouds take three of different lengths.
    angles = drawn["angle"][:, None] + np.where(clouds[:, None], [0, 1.1, 2.3], [0, math.pi / 2, 2.3])
    factor = np.where(clouds[:, None], [1.0, 0.63, 1.31], 1.0)
    k = 2 * math.pi * factor / (np.where(smooth, drawn["wide"], drawn["length"]) * short)[:, None]
    speed = drift * short / frames
    return Ground(
        tone=np.array([list(TONES).index(t) for t in tones])[drawn["tone"].astype(np.int64)],
        pattern=pattern,
        kx=k * np.cos(angles),
        ky=k * np.sin(angles),
        phase=np.stack([drawn[f"phase{i}"] for i in range(_WAVES)], 1),
        vx=speed * np.cos(drawn["heading"]),
        vy=speed * np.sin(drawn["heading"]),
    )


def _relief(pattern: str, wave: list[np.ndarray]) -> np.ndarray:
    """The share of the second tone in [0, 1], from waves in [-1, 1]."""
    if pattern == "smooth":
        return wave[0] * 0.5 + 0.5
    if pattern == "clouds":
        return np.clip((wave[0] + wave[1] + wave[2]) * 0.27 + 0.5, 0, 1)
    if pattern == "stripes":
        h = np.clip(wave[0] * 0.9 + 0.5, 0, 1)
    elif pattern == "checks":
        h = np.clip(wave[0] * wave[1] * 1.6 + 0.5, 0, 1)
    else:
        h = np.clip((wave[0] + wave[1]) * 0.9 - 0.4, 0, 1)
    return h * h * (3 - 2 * h)


_NEEDS = {"smooth": 1, "clouds": 3, "stripes": 1, "checks": 2, "dots": 2}


def paint_ground(ground: Ground, *, frames: int, height: int, width: int) -> Bytes:
    """(B, T, H, W, 3) uint8. cos(a + b) splits into products of rows and columns, so no cosine is taken per pixel."""
    out = np.empty((len(ground.tone), frames, height, width, 3), np.uint8)
    times = np.arange(frames if ground.moves else 1)
    low, high = (np.array([tones[i] for tones in TONES.values()], np.float32)[ground.tone] * 255 for i in (0, 1))
    for kind in np.unique(ground.pattern):
        rows = np.flatnonzero(ground.pattern == kind)
        waves = []
        for i in range(_NEEDS[PATTERNS[kind]]):
            kx, ky = ground.kx[rows, i], ground.ky[rows, i]
            shift = ground.phase[rows, i][:, None] - (kx * ground.vx[rows] + ky * ground.vy[rows])[:, None] * times
            across = kx[:, None] * np.arange(width)
            along = ky[:, None, None] * np.arange(height) + shift[..., None]
            ca, sa, cb, sb = (a.astype(np.float32) for a in (np.cos(across), np.sin(across), np.cos(along), np.sin(along)))
            waves.append(cb[..., None] * ca[:, None, None] - sb[..., None] * sa[:, None, None])
        relief = _relief(PATTERNS[kind], waves)
        for channel in range(3):
            a, b = (tone[rows, channel][:, None, None, None] for tone in (low, high))
            out[rows, ..., channel] = (a + relief * (b - a) + 0.5).astype(np.uint8)
    return out
