"""A confusion matrix as a picture, for two classes or hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from tubelet.errors import ConfigError
from tubelet.viz import _text as text

RIGHT, WRONG, EMPTY = (24, 92, 168), (198, 82, 10), (226, 229, 233)
LINE = (205, 210, 216)
SIDE, LARGEST, SMALLEST = 960, 64, 3  # pixels: the matrix, about, and the limits of a cell
PAD, GAP, NAMES, NARROWEST = 18, 6, 190, 470
FONT, FONT_MIN = 14, 9


@dataclass(frozen=True)
class _Layout:
    """Where things are, in pixels. ``every``: how many classes share one label. ``gamma``: how quickly shades rise with the share."""

    cell: int
    size: int
    every: int
    gamma: float
    left: int
    top: int
    side: int
    right: int

    @property
    def tick(self) -> int:
        """Length of the marks that tie a label to its class, where it is not the only one there."""
        return 0 if self.every == 1 else 6


def confusion(counts_CC: np.ndarray, classes: Sequence[str], *, title: str = "") -> Image.Image:
    """Rows are true classes, columns predicted ones; a cell's shade is its share of the row: blue where right, orange where wrong.

    ``counts_CC`` (C, C) integers in the order of ``classes``. Counts and class names are written where they fit; where they do not, every
    second, fifth, tenth ... class is named. A row of a class without items is grey. Raises ConfigError where shapes disagree.
    """
    counts = np.asarray(counts_CC)
    if counts.shape != (len(classes), len(classes)) or not len(classes):
        raise ConfigError(f"a confusion matrix of {len(classes)} classes cannot be drawn from counts of shape {counts.shape}")
    at = _layout(counts, classes)
    width = max(NARROWEST, at.left + at.side + at.right + PAD)
    heading = text.wrap(title, 17, width - 2 * PAD)
    legend = PAD + len(heading) * (text.height(17) + 4) + (4 if heading else 0)
    at = replace(at, top=legend + 12 + text.height(at.size) + 2 * GAP)
    names = [text.fit(name, at.size, NAMES) for name in classes[:: at.every]]
    bottom = at.top + at.side + GAP + at.tick + max(text.width(name, at.size) for name in names)
    out = Image.new("RGB", (width, bottom + GAP + text.height(FONT) + PAD), "white")
    draw = ImageDraw.Draw(out)
    for i, line in enumerate(heading):
        draw.text((PAD, PAD + i * (text.height(17) + 4)), line, fill=text.INK, font=text.font(17))
    _legend(draw, at, legend)
    cells = Image.fromarray(_colours(counts, at)).resize((at.side, at.side), Image.Resampling.NEAREST)
    out.paste(cells, (at.left, at.top))
    _frame(draw, at, len(classes))
    _labels(out, draw, at, names)
    _counts(draw, at, counts)
    _recalls(draw, at, counts)
    draw.text((at.left + at.side / 2, bottom + GAP), "predicted class", fill=text.FAINT, font=text.font(FONT), anchor="mt")
    _upright(out, "true class", FONT, text.FAINT, PAD, at.top + at.side // 2, anchor="middle")
    return out


def _layout(counts: np.ndarray, classes: Sequence[str]) -> _Layout:
    cell = min(LARGEST, max(SMALLEST, SIDE // len(classes)))
    size = min(FONT, max(FONT_MIN, cell - 3))
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100) if n * cell >= size + 2)
    wide = max(text.width(text.fit(name, size, NAMES), size) for name in classes[::every])
    right = GAP + text.width(_recall(counts.sum(), counts.sum()), size) if every == 1 else 0
    at = _Layout(cell, size, every, 0.5 if cell >= 8 else 0.35, PAD + text.height(FONT) + 2 * GAP + wide, 0, cell * len(classes), right)
    return replace(at, left=at.left + at.tick)


def _shade(share: np.ndarray, full: np.ndarray, at: _Layout) -> np.ndarray:
    """Colours (..., 3) from white, for a share of 0, to ``full``; steep at first, so that single mistakes show."""
    return 255 + share[..., None] ** at.gamma * (full - 255)


def _colours(counts: np.ndarray, at: _Layout) -> np.ndarray:
    """(C, C, 3) uint8."""
    total = counts.sum(1, keepdims=True)
    full = np.where(np.eye(len(counts), dtype=bool)[..., None], np.array(RIGHT, float), np.array(WRONG, float))
    pixels = np.where(total[..., None] > 0, _shade(counts / np.maximum(total, 1), full, at), np.array(EMPTY, float))
    return pixels.round().astype(np.uint8)


def _frame(draw: ImageDraw.ImageDraw, at: _Layout, n: int) -> None:
    """A box, lines between classes (or between groups that share a label)."""
    step = at.every if at.cell < 8 else 1
    if at.cell >= 8 or at.every >= 5:
        for i in range(step, n, step):
            line = i * at.cell
            draw.line([(at.left + line, at.top), (at.left + line, at.top + at.side - 1)], fill=(238, 240, 243))
            draw.line([(at.left, at.top + line), (at.left + at.side - 1, at.top + line)], fill=(238, 240, 243))
    draw.rectangle((at.left - 1, at.top - 1, at.left + at.side, at.top + at.side), outline=LINE)


def _labels(out: Image.Image, draw: ImageDraw.ImageDraw, at: _Layout, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        middle = int((i * at.every + 0.5) * at.cell)
        y, x = at.top + middle, at.left + middle
        if at.tick:
            draw.line([(at.left - at.tick, y), (at.left - 2, y)], fill=text.FAINT)
            draw.line([(x, at.top + at.side + 1), (x, at.top + at.side + at.tick)], fill=text.FAINT)
        draw.text((at.left - GAP - at.tick, y), name, fill=text.INK, font=text.font(at.size), anchor="rm")
        _upright(out, name, at.size, text.INK, x - text.height(at.size) // 2, at.top + at.side + GAP + at.tick, anchor="end")


def _upright(out: Image.Image, line: str, size: int, colour: tuple[int, int, int], x: int, y: int, *, anchor: str) -> None:
    """Words that read upwards: their end at ``y`` ("end"), or their middle."""
    wide, high = text.width(line, size), text.height(size)
    word = Image.new("RGB", (wide, high), "white")
    ImageDraw.Draw(word).text((0, 0), line, fill=colour, font=text.font(size))
    out.paste(word.rotate(90, expand=True), (x, y if anchor == "end" else y - wide // 2))


def _counts(draw: ImageDraw.ImageDraw, at: _Layout, counts: np.ndarray) -> None:
    """The numbers, if the largest fits its cell; zeros are left out."""
    size = min(FONT, at.cell - 4)
    while size >= FONT_MIN and text.width(str(counts.max()), size) > at.cell - 2:
        size -= 1
    if size < FONT_MIN:
        return
    dark = _colours(counts, at) @ np.array([0.299, 0.587, 0.114]) < 145
    for i, j in zip(*np.nonzero(counts), strict=True):
        centre = (at.left + (j + 0.5) * at.cell, at.top + (i + 0.5) * at.cell)
        ink = "white" if dark[i, j] else text.INK
        draw.text(centre, str(counts[i, j]), fill=ink, font=text.font(size), anchor="mm")


def _recall(right: int, n: int) -> str:
    return f"{100 * right / n:.0f} % of {n}" if n else "none"


def _recalls(draw: ImageDraw.ImageDraw, at: _Layout, counts: np.ndarray) -> None:
    """Beside every row: the share that was right, and of how many."""
    if not at.right:
        return
    x = at.left + at.side + GAP
    draw.text((x, at.top - GAP), "recall", fill=text.FAINT, font=text.font(at.size), anchor="lb")
    for i, (right, n) in enumerate(zip(counts.diagonal().tolist(), counts.sum(1).tolist(), strict=True)):
        words = _recall(right, n)
        draw.text((x, at.top + (i + 0.5) * at.cell), words, fill=text.FAINT, font=text.font(at.size), anchor="lm")


def _legend(draw: ImageDraw.ImageDraw, at: _Layout, y: int) -> None:
    """What the shades mean."""
    x, box = PAD, 12
    shares = np.array([0.02, 0.1, 0.25, 0.5, 1.0])
    for name, full in (("right", RIGHT), ("wrong", WRONG)):
        draw.text((x, y + box / 2), name, fill=text.FAINT, font=text.font(12), anchor="lm")
        x += text.width(name, 12) + GAP
        for shade in _shade(shares, np.array(full, float), at).round().astype(int).tolist():
            draw.rectangle((x, y, x + box, y + box), fill=tuple(shade), outline=LINE)
            x += box + 2
        x += 12
    draw.text((x - 4, y + box / 2), "2, 10, 25, 50, 100 % of the row", fill=text.FAINT, font=text.font(12), anchor="lm")
