"""Clips as a picture: one row of frames each, with its caption and class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tubelet.playground._scene import Clip

_MARGIN, _GAP = 24, 8
_INK, _FAINT, _PAPER = (38, 42, 51), (125, 131, 143), (255, 255, 255)


def contact_sheet(clips: Sequence[Clip], *, columns: int = 8, height: int = 112) -> Image.Image:
    """An RGB picture: ``columns`` evenly spaced frames of each clip, ``height`` pixels high, its caption and class above them.

    Raises ValueError without clips or with fewer than 1 column or 16 pixels.
    """
    if not clips or columns < 1 or height < 16:
        raise ValueError("a contact sheet needs at least one clip, one column and frames 16 pixels high")
    font, line = ImageFont.load_default(15), 21
    widths = [round(height * clip.frames.shape[2] / clip.frames.shape[1]) for clip in clips]
    width = 2 * _MARGIN + columns * (max(widths) + _GAP) - _GAP
    texts = [_wrap(clip.caption, font, width - 2 * _MARGIN - font.getlength(_title(clip)) - 24) for clip in clips]
    tops = _MARGIN + np.cumsum([0, *(len(text) * line + height + 28 for text in texts)])
    sheet = Image.new("RGB", (width, int(tops[-1]) + _MARGIN - 22), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for clip, wide, text, top in zip(clips, widths, texts, tops.tolist(), strict=False):
        draw.text((width - _MARGIN - font.getlength(_title(clip)), top), _title(clip), fill=_FAINT, font=font)
        for words in text:
            draw.text((_MARGIN, top), words, fill=_INK, font=font)
            top += line
        for j, t in enumerate(np.linspace(0, len(clip.frames) - 1, columns).round().astype(int)):
            tile = Image.fromarray(clip.frames[t]).resize((wide, height), Image.Resampling.BICUBIC)
            sheet.paste(tile, (_MARGIN + j * (wide + _GAP), top + 4), _rounded(tile.size))
    return sheet


def _title(clip: Clip) -> str:
    return clip.motion.replace("_", " ")


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> list[str]:
    """Lines no longer than ``room`` pixels; a word longer than that keeps a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with soft round corners, drawn four times too large."""
    mask = Image.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] * 4 - 1, size[1] * 4 - 1), radius=24, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)
