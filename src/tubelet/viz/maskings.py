"""Masking strategies on one clip, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from tubelet.core import Mask, to_unit
from tubelet.viz.board import MIN_PANEL, Board
from tubelet.viz.pictures import hidden_targets, hide, picture, spread, table
from tubelet.viz.saving import Timed

CAPTION = "Grey tubelets are hidden."
COLUMNS = 4


@dataclass(frozen=True)
class ShownMask:
    """What one masking does to one clip. ``settings``: those of its kind, resolved. ``mask``: of a batch of one.

    ``visible`` and ``hidden`` tubelets are all ``n`` of the grid; ``asked``: hidden ones that the decoder answers.
    """

    kind: str
    settings: dict[str, Any]
    mask: Mask

    @property
    def n(self) -> int:
        return self.mask.grid.n

    @property
    def hidden(self) -> int:
        return int(self.mask.hidden().sum())

    @property
    def visible(self) -> int:
        return self.n - self.hidden

    @property
    def asked(self) -> int:
        return int(hidden_targets(self.mask).sum())

    def lines(self) -> list[str]:
        """Kind, ratio as set, exact counts."""
        ratio = self.settings.get("ratio")
        asked = [] if self.asked == self.hidden else [f"{self.asked} asked for"]
        return [self.kind, *([f"ratio {ratio:g}"] if isinstance(ratio, int | float) else []), f"{self.visible} of {self.n} visible", *asked]

    def __str__(self) -> str:
        name, *rest = self.lines()
        return f"{name}: {', '.join(rest)} ({100 * self.visible / self.n:.1f} %)"


def mask_figure(
    video: Tensor, time: Tensor, shown: Sequence[ShownMask], *, frames: int = 8, cell: int = 112, title: str = ""
) -> Image.Image:
    """One row for the clip (1, C, T, H, W) and one for each masking; at most ``frames`` columns. ``time`` (1, T): seconds."""
    pick = spread(video.shape[2], frames)
    clips = [("input", to_unit(video)), *(("\n".join(s.lines()), hide(video, s.mask.grid, s.mask.hidden())) for s in shown)]
    rows = [(name, [picture(clip[0, :, i], cell) for i in pick]) for name, clip in clips]
    return table(rows, [f"{float(time[0, i]):.2f} s" for i in pick], title, CAPTION)


def mask_frames(video: Tensor, shown: Sequence[ShownMask], *, seconds: float, title: str = "") -> Iterator[Timed]:
    """The same as an animation: a panel for the clip and one for each masking, each frame for ``seconds``."""
    clips = [to_unit(video), *(hide(video, s.mask.grid, s.mask.hidden()) for s in shown)]
    cell = max(MIN_PANEL, min(video.shape[3:]))
    panel = picture(clips[0][0, :, 0], cell).size
    headings = ["input", *("\n".join(s.lines()) for s in shown)]
    rows = -(-len(headings) // COLUMNS)
    board = Board(headings, panel=panel, columns=-(-len(headings) // rows), caption=f"{title} {CAPTION}".strip())
    for i in range(video.shape[2]):
        yield board.draw([picture(clip[0, :, i], cell) for clip in clips]), seconds
