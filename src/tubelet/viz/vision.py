"""One masked clip with what a model made of it, as a picture or as panels that play."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tubelet.methods.videomae import Reconstruction
from tubelet.viz.board import MIN_PANEL, Board
from tubelet.viz.pictures import Statistics, caption, figure, picture, triptych
from tubelet.viz.saving import Timed
from tubelet.viz.trivial import MaskedError, masked_error

PANELS = ("input", "what the model sees", "what it imagines")


@dataclass(frozen=True)
class Vision:
    """``video`` (1, 3, T, H, W) with the answer for it, both of one clip; ``time`` (1, T): seconds. ``mean``, ``std`` (C,): the network's.

    ``fresh``: the first frame to play; those before it have been played by the clip before.
    """

    key: str
    video: Tensor
    time: Tensor
    answer: Reconstruction
    statistics: Statistics
    mean: Tensor
    std: Tensor
    fresh: int = 0

    @cached_property
    def error(self) -> MaskedError:
        return masked_error(self.video, self.answer, statistics=self.statistics, mean=self.mean, std=self.std)

    @cached_property
    def seconds(self) -> Tensor:
        """(T',) when the frames that are predicted are on screen."""
        return self.answer.target.select(self.time[:, None, :, None, None], self.answer.mask.grid).flatten().cpu()

    @property
    def gap(self) -> float:
        """Seconds from frame to frame; 1 for a single frame."""
        steps = np.diff(self.seconds.numpy())
        return float(np.median(steps)) if len(steps) and np.median(steps) > 0 else 1.0

    @property
    def words(self) -> str:
        return caption(self.answer, self.statistics)

    def figure(self, frames: int) -> Image.Image:
        """In three rows, with the masked error below: see :func:`tubelet.viz.pictures.figure`."""
        return figure(
            self.video, self.answer, statistics=self.statistics, frames=frames, time=self.time, title=self.key, mean=self.mean,
            std=self.std, note=f"Masked error: {self.error.verdict()}.",
        )  # fmt: skip

    def panels(self) -> list[Tensor]:
        """Input, seen, imagined: (C, T', H, W) uint8."""
        parts = triptych(self.video, self.answer, statistics=self.statistics, mean=self.mean, std=self.std)
        return [(part[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu() for part in parts]


def movie(groups: Iterable[Sequence[Vision]]) -> Iterator[Timed]:
    """(picture, seconds): the clips of a group play at once, one below the other, three panels each; groups follow each other.

    All groups have as many clips, and all clips the same size and number of frames. A group plays at the rate of its first clip.
    """
    board: Board | None = None
    for group in groups:
        panels = [vision.panels() for vision in group]
        cell = max(MIN_PANEL, min(panels[0][0].shape[2:]))
        if board is None:
            size = picture(panels[0][0][:, 0], cell).size
            headings = [*PANELS, *[""] * (3 * (len(group) - 1))]
            board = Board(headings, panel=size, columns=3, caption=group[0].words, titled=True)
        for i in range(group[0].fresh, panels[0][0].shape[1]):
            drawn = [picture(part[:, i], cell) for parts in panels for part in parts]
            yield board.draw(drawn, [f"{vision.key}   {float(vision.seconds[i]):.2f} s" for vision in group]), group[0].gap


def rounds(seconds: float, at_least: float) -> int:
    """How often a clip of so many seconds must play to last ``at_least`` seconds."""
    return max(1, math.ceil(at_least / seconds - 1e-6))
