"""Random numbers of a batch of clips: every value is a function of (seed, clip number, name), see :mod:`tubelet.core.draw`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tubelet.core.draw import CounterDraw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


class Dice:
    """Named draws for B clips, as float64 and int64 arrays; nothing is consumed, so the order of asking does not matter."""

    def __init__(self, seed: int, clips: Sequence[int] | Ints, prefix: str) -> None:
        self.clips = np.asarray(clips, dtype=np.int64)
        self._draw = CounterDraw(seed, torch.from_numpy(self.clips), prefix=prefix)

    def child(self, name: str) -> Dice:
        """Independent draws for the same clips."""
        return Dice(self._draw.seed, self.clips, f"{self._draw.prefix}{name}/")

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Floats:
        """(B,) in [low, high)."""
        unit = self._draw.uniform(name, 1)[:, 0].numpy().astype(np.float64)
        return low + (high - low) * unit

    def table(self, name: str, **spans: tuple[float, float]) -> dict[str, Floats]:
        """Several (B,) draws in their [low, high) from one hash: quicker than a name each. A new one belongs at the end."""
        unit = self._draw.uniform(name, len(spans)).numpy().astype(np.float64)
        return {key: low + (high - low) * unit[:, i] for i, (key, (low, high)) in enumerate(spans.items())}

    def integers(self, name: str, high: int) -> Ints:
        """(B,) in [0, high)."""
        return (self.uniform(name) * high).astype(np.int64)

    def order(self, name: str, n: int) -> Ints:
        """(B, n): a random order of range(n) for every clip."""
        return self._draw.permutation(name, n).numpy()
