"""Items that are parts of one file, read in one pass: every frame is decoded once, however many of them show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from torch import Tensor

from tubelet.data.clip import Clips, Cuts, Plan
from tubelet.data.decode import Mismatch
from tubelet.data.picture import Picture
from tubelet.data.reader import Reader, segment
from tubelet.data.table import Item, Table
from tubelet.data.transform import Box
from tubelet.errors import DecodeError


@dataclass
class _Part:
    """An item of the file. ``rows``: its frames; ``left``: how many of the wanted ones are still to come; ``last``: the last of those."""

    rows: np.ndarray
    cuts: Cuts
    left: int
    last: int


def read_together(
    reader: Reader,
    items: Sequence[Item],
    plan: Plan,
    out: tuple[int, int],
    *,
    motion: bool = False,
    reading: Callable[[int], None],
    done: Callable[[int, Clips], None],
) -> None:
    """``done(i, clips)`` for items of one file, each as soon as its last frame came: what :func:`~tubelet.data.clip.make_clips` gives for
    it alone, bit for bit. ``reading(i)`` is told before that which item the pass works for.

    Only cut clips are held, never the file's frames. Raises DecodeError or Mismatch where the pass cannot go on, and leaves out items
    without a frame; whoever calls it reads by itself every item that was not done.
    """
    timeline = next(iter(reader.timelines()))
    parts: dict[int, _Part] = {}
    wanted: dict[int, list[int]] = {}  # frame -> items that show it
    for i, item in enumerate(items):
        try:
            rows = segment(timeline.times, item)
        except DecodeError:
            continue
        windows = plan.windows(timeline.times[rows])
        frames = rows[np.unique(np.concatenate(windows))]
        parts[i] = _Part(rows, Cuts(reader, windows, plan, out, motion=motion), len(frames), int(frames[-1]))
        for frame in frames.tolist():
            wanted.setdefault(frame, []).append(i)
    if not parts:
        return
    waiting = sorted(parts, key=lambda i: parts[i].last)
    reading(waiting[0])
    for index, picture in reader.frames(timeline, sorted(wanted)):
        if not picture.like_first:
            raise Mismatch("the frames change their size")
        cut = _once(picture, out)
        for i in wanted[index]:
            part = parts[i]
            part.cuts.take(index - int(part.rows[0]), picture, cut)
            part.left -= 1
            if not part.left:
                done(i, parts.pop(i).cuts.clips(timeline.times[part.rows]))
                waiting.remove(i)
                if waiting:
                    reading(waiting[0])


def _once(picture: Picture, out: tuple[int, int]) -> Callable[[Box], Tensor]:
    """Cuts boxes of a frame, each once, as :func:`~tubelet.data.clip.make_clips` does."""
    made: dict[Box, Tensor] = {}

    def cut(box: Box) -> Tensor:
        if box not in made:
            made[box] = picture.part(box, out)
        return made[box]

    return cut


def files(table: Table, rows: Sequence[int]) -> Iterator[list[int]]:
    """Rows that follow each other in one file, list by list."""
    for _, group in groupby(rows, key=lambda row: (table.paths[row], int(table.kinds[row]))):
        yield list(group)


def jobs(table: Table, *, batch: int, most: int) -> list[range]:
    """All rows in lists for one process at a time: ``batch`` of them, or up to ``most`` where they follow each other in one file."""
    found: list[range] = []
    begin = end = 0
    for group in files(table, range(len(table))):
        pieces = -(-len(group) // most)
        for k in range(pieces):
            upto = group[0] + (k + 1) * len(group) // pieces
            if end > begin and upto - begin > max(batch, most):
                found.append(range(begin, end))
                begin = end
            end = upto
            if end - begin >= batch:
                found.append(range(begin, end))
                begin = end
    return [*found, range(begin, end)] if end > begin else found
