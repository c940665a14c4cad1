"""The sound of events: one short tone each. Pitch follows the size of the body (large is low), timbre its shape; silence in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # samples a second, mono
TONE_SECONDS = 0.12
_ATTACK = 0.002
# (glide in octaves over the tone, decay time in seconds, loudness)
_KINDS = {
    "bounce": (-0.35, 0.030, 1.0),
    "start": (0.60, 0.035, 0.8),
    "stop": (-0.90, 0.030, 0.8),
    "pop": (1.40, 0.025, 1.0),
    "cross": (0.0, 0.045, 0.6),
}
EVENTS: tuple[str, ...] = tuple(_KINDS)


def pitch(size: float) -> float:
    """Hertz for a middle radius in shorter sides of the frame: from about 500 for the largest to 2,100 for the smallest."""
    return 105.0 / size


def tone(event: str, *, size: float, shape: int, gain: float) -> NDArray[np.float64]:
    """(TONE_SECONDS * RATE,) samples in [-1, 1]."""
    glide, decay, loudness = _KINDS[event]
    t = np.arange(round(TONE_SECONDS * RATE)) / RATE
    phase = 2 * np.pi * pitch(size) * np.cumsum(2.0 ** (glide * t / TONE_SECONDS)) / RATE
    second, third = 0.5 * (shape % 3) / 2, 0.4 * (shape // 3 % 3) / 2
    wave = (np.sin(phase) + second * np.sin(2 * phase) + third * np.sin(3 * phase)) / (1 + second + third)
    end = np.minimum(1, (TONE_SECONDS - t) / 0.02)
    return gain * loudness * wave * np.minimum(1, t / _ATTACK) * np.exp(-t / decay) * end


def score(
    events: Iterable[tuple[float, str, int]], *, seconds: float, sizes: Sequence[float], shapes: Sequence[int]
) -> NDArray[np.float32]:
    """(samples,) in [-1, 1] on the 16-bit grid, from (second, event, body number); body 1 is the loudest."""
    out = np.zeros(round(seconds * RATE))
    for at, event, number in events:
        sound = tone(event, size=sizes[number - 1], shape=shapes[number - 1], gain=0.6 if number == 1 else 0.3)
        start = round(at * RATE)
        piece = sound[: max(len(out) - start, 0)]
        out[start : start + len(piece)] += piece
    return (np.round(np.clip(out, -1, 1) * 32767) / 32767).astype(np.float32)
