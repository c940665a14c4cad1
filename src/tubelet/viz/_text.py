"""Words in pictures: Pillow's own font, measured."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

INK = (32, 36, 42)
FAINT = (100, 108, 118)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)


def width(line: str, size: int) -> int:
    """Pixels that a line takes."""
    left, _, right, _ = font(size).getbbox(line)
    return int(right - left) + 1


def height(size: int) -> int:
    """Pixels from the top of a line to the bottom of its lowest letter."""
    return int(font(size).getbbox("Mgy|")[3]) + 1


def fit(line: str, size: int, limit: int) -> str:
    """The line, cut short with an ellipsis where it is wider than ``limit`` pixels."""
    if width(line, size) <= limit:
        return line
    while line and width(line + "...", size) > limit:
        line = line[:-1]
    return line + "..." if line else ""


def wrap(paragraph: str, size: int, limit: int) -> list[str]:
    """Lines of at most ``limit`` pixels, broken between words; a longer word is cut."""
    lines: list[str] = []
    for word in paragraph.split():
        if lines and width(f"{lines[-1]} {word}", size) <= limit:
            lines[-1] += f" {word}"
        else:
            lines.append(fit(word, size, limit))
    return lines
