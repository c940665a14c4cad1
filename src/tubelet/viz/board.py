"""Panels that play side by side, with a heading each and words below."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from tubelet.viz import _text as text

PAD, GAP, SIZE = 10, 6, 13
MIN_PANEL = 192  # smaller panels are enlarged by a whole factor, to about this shorter side


class Board:
    """Panels of one size in rows of ``columns``.

    ``headings``: one for each panel, one or more lines (the first in ink), "" for none. ``panel``: (width, height) in pixels.
    ``caption``: below all, wrapped. ``titled``: keep a line above every row for the titles that :meth:`draw` gets.
    """

    def __init__(self, headings: Sequence[str], *, panel: tuple[int, int], columns: int, caption: str = "", titled: bool = False) -> None:
        self.panel, self.columns, self.titled = panel, min(columns, len(headings)), titled
        width = 2 * PAD + self.columns * (panel[0] + GAP) - GAP
        lines = text.wrap(caption, SIZE, width - 2 * PAD)
        line = text.height(SIZE) + 3
        self._tops: list[tuple[int, int]] = []  # of every row: its title, its panels
        y = PAD
        for start in range(0, len(headings), self.columns):
            row = headings[start : start + self.columns]
            above = line * titled + line * max(len(h.split("\n")) if h else 0 for h in row)
            self._tops.append((y, y + above))
            y += above + panel[1] + GAP
        height = y + len(lines) * line + PAD
        self._ground = Image.new("RGB", (width + width % 2, height + height % 2), "white")
        draw = ImageDraw.Draw(self._ground)
        for i, heading in enumerate(headings):
            x, _ = self._corner(i)
            top = self._tops[i // self.columns][0] + line * titled
            for k, said in enumerate(heading.split("\n") if heading else []):
                fill = text.FAINT if k else text.INK
                draw.text((x, top + k * line), text.fit(said, SIZE, panel[0]), fill=fill, font=text.font(SIZE))
        for i, said in enumerate(lines):
            draw.text((PAD, y + i * line), said, fill=text.FAINT, font=text.font(SIZE))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a frame: even numbers."""
        return self._ground.size

    def _corner(self, i: int) -> tuple[int, int]:
        return PAD + i % self.columns * (self.panel[0] + GAP), self._tops[i // self.columns][1]

    def draw(self, panels: Sequence[Image.Image], titles: Sequence[str] = ()) -> Image.Image:
        """One frame. ``titles``: of the rows, where the board is titled."""
        out = self._ground.copy()
        for i, panel in enumerate(panels):
            out.paste(panel, self._corner(i))
        if self.titled:
            draw = ImageDraw.Draw(out)
            for (y, _), title in zip(self._tops, titles, strict=True):
                draw.text((PAD, y), text.fit(title, SIZE, out.width - 2 * PAD), fill=text.INK, font=text.font(SIZE))
        return out
