"""A few frames of every item as pictures, read in processes that may hang or crash on an item without harm to the others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from tubelet.data.guarded import Lost, run_guarded
from tubelet.data.picture import Picture
from tubelet.data.reader import Decoder, choose_decoder, open_item, read_chosen
from tubelet.data.sampling import tsn
from tubelet.data.table import KINDS, Table
from tubelet.data.transform import Box
from tubelet.errors import DataError

SHORT_SIDE = 768  # pixels; larger frames are shrunk where they are decoded: twice what captioners look at
FETCHING = 3600.0  # seconds for an item of a prepared set behind a URL, whose shard is fetched as a whole


def key_frames(n: int, count: int) -> np.ndarray:
    """The middles of ``count`` equal parts of n frames (k,) int64; k < ``count`` where n is smaller."""
    return np.unique(tsn(n, count))


@dataclass(frozen=True)
class Look:
    """What a process does with an item: its key frames, or why there are none."""

    table: Table
    count: int
    decoder: Decoder
    timeout: float

    def __call__(self, row: int) -> list[np.ndarray] | str:
        """Pictures (h, w, 3) uint8 RGB of a table row, or what is wrong with it."""
        item = self.table.item(row)
        found: list[np.ndarray] = []

        def choose(times: np.ndarray) -> list[np.ndarray]:
            found.clear()
            return [key_frames(len(times), self.count)]

        try:
            with open_item(item, decoder=self.decoder, timeout=self.timeout) as reader:
                read_chosen(reader, item, choose, lambda _, picture: found.append(_pixels(picture)))
        except DataError as error:
            return str(error)
        return found


def _pixels(picture: Picture) -> np.ndarray:
    """(h, w, 3) uint8, in memory of its own; shrunk to a short side of SHORT_SIDE where it is larger."""
    h, w = picture.shape
    if min(h, w) <= SHORT_SIDE:
        return np.array(picture.rgb(), order="C")
    scale = SHORT_SIDE / min(h, w)
    return picture.cut(Box(0, 0, h, w), (round(h * scale), round(w * scale))).contiguous().numpy()


class _Alone:
    """The same in a process of its own, with one thread: the threads of the process that it was forked from are not there."""

    def __init__(self, look: Look) -> None:
        self.look = look

    def __call__(self, row: int) -> list[np.ndarray] | str:
        torch.set_num_threads(1)
        return self.look(row)


def read_key_frames(
    table: Table, rows: Sequence[int], *, count: int, workers: int, timeout: float = 30.0
) -> Generator[tuple[int, list[np.ndarray] | str], None, None]:
    """(row, pictures or why it cannot be read) for the rows of a table, in the order in which they are done.

    ``count`` frames of each, as :func:`key_frames` has them, fewer of shorter items; pictures (h, w, 3) uint8 RGB, whole and upright.
    ``workers``: processes, 0 = none, without a guard against files that hang the decoder itself. ``timeout``: seconds for an item. Closing
    the iterator ends the processes. Raises DataError where they cannot start.
    """
    look = Look(table, count, choose_decoder("auto"), timeout)
    remote = any("://" in path for path in table.paths)
    limit = FETCHING if remote and KINDS.index("prepared") in table.kinds else 2 * timeout + 1
    with closing(run_guarded(_Alone(look) if workers else look, rows, workers=workers, limit=limit, remote=remote)) as answers:
        for row, answer in answers:
            yield row, answer.reason if isinstance(answer, Lost) else answer
