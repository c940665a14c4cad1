"""Pictures small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

BUDGET = 3_300_000  # bytes of all pictures of a page; base64 makes them a third larger
MATRIX = 200_000  # bytes of a confusion matrix
MOST = 6  # pictures of a stage
WIDEST, TALLEST = 1400, 4000  # pixels


@dataclass(frozen=True)
class Inlined:
    """A picture as a data URL, with its size in pixels on the page."""

    step: int
    url: str
    width: int
    height: int


def choose(pictures: Sequence[tuple[int, Path]], most: int = MOST) -> list[tuple[int, Path]]:
    """The first, the last, and some between them, evenly spread."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[round(i * (len(pictures) - 1) / (most - 1))] for i in range(most)]


def inline(pictures: Sequence[tuple[int, Path]], budget: int) -> tuple[list[Inlined], list[str]]:
    """Pictures of at most ``budget`` bytes together, and the names of those that cannot be read."""
    out, broken = [], []
    for step, path in pictures:
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(path.name)
            continue
        kind, data, size = _within(image, budget // len(pictures))
        out.append(Inlined(step, f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", *size))
    return out, broken


def _within(image: Image.Image, budget: int) -> tuple[str, bytes, tuple[int, int]]:
    """As large and as fine as fits; the last, smallest try where nothing does."""
    image.thumbnail((WIDEST, TALLEST), Image.Resampling.LANCZOS)
    kind = "webp" if features.check("webp") else "jpeg"
    small, data = image, b""
    for quality in (86, 75, 75, 75, 75):
        if data:
            share = min(1.0, 0.95 * math.sqrt(budget / len(data)))
            size = max(1, round(small.width * share)), max(1, round(small.height * share))
            small = image.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format=kind, quality=quality)
        data = buffer.getvalue()
        if len(data) <= budget:
            break
    return kind, data, small.size
