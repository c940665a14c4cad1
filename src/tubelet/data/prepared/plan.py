"""What there is to encode: sources looked at once, cut into pieces, and pieces put together into tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tubelet.data.check import count, size_of
from tubelet.data.cutoff import missing_bytes
from tubelet.data.decode import Mismatch, PyavReader
from tubelet.data.picture import orientation
from tubelet.data.reader import segment
from tubelet.data.sampling import frame_gap
from tubelet.data.table import Item, Table
from tubelet.data.timeline import Timeline
from tubelet.errors import DataError, DecodeError

Span = tuple[float | None, float | None]
PIECES = 4  # of a file that is searchable, in one task: long files spread over the cores, and little is lost to a crash
FROM_START = 256  # of one that is not: each task decodes all that lies before it, so an hour stays together
SLOWEST = 2e6  # bytes a second: a file that is looked at more slowly counts as stuck
FRAMES = 3000  # of one piece, whatever its seconds


@dataclass(frozen=True)
class Origin:
    """A source file and its items. ``number``: its place among all files of the table. ``rows``: of the table."""

    number: int
    path: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Survey:
    """What was found in a source. ``cuts``: (first frame, behind the last frame) of each piece. ``kind``: of its timeline. ``height``,
    ``width``: as displayed. ``searchable``: decoding can begin at any key frame. ``damage``: what is missing behind ``end`` seconds.
    ``problem``: why nothing of it can be used; the rest is empty then."""

    kind: str = ""
    cuts: tuple[tuple[int, int], ...] = ()
    height: int = 0
    width: int = 0
    seconds: float = 0.0
    searchable: bool = False
    damage: str | None = None
    end: float = 0.0
    problem: str | None = None

    @property
    def frames(self) -> int:
        return sum(b - a for a, b in self.cuts)


@dataclass(frozen=True)
class Task:
    """Pieces of one source that are encoded together, each exactly these frames. ``begun``: others of them are there already, with the
    ``maps``."""

    origin: Origin
    kind: str
    cuts: tuple[tuple[int, int], ...]
    maps: tuple[tuple[str, str], ...] = ()
    begun: bool = False

    @property
    def frames(self) -> int:
        return sum(b - a for a, b in self.cuts)


def origins_of(table: Table) -> list[Origin]:
    """The files of a table, sorted by path, so that machines that share the work agree on the numbers. Raises DataError for what is no
    video file."""
    rows: dict[str, list[int]] = {}
    other = []
    for row in range(len(table)):
        item = table.item(row)
        if item.kind != "video":
            other.append(f"{item.key} ({'is prepared already' if item.kind == 'prepared' else item.kind})")
        rows.setdefault(item.path, []).append(row)
    if other:
        raise DataError(
            f"only video files can be prepared; {len(other)} items are none, leave them out with exclude: {', '.join(other[:3])}"
        )
    found = []
    for number, path in enumerate(sorted(rows)):
        items = [table.item(row) for row in rows[path]]
        whole = any(i.start is None and i.end is None for i in items)
        spans = ((None, None),) if whole else tuple((i.start, i.end) for i in items)
        found.append(Origin(number, path, tuple(rows[path]), spans))
    return found


def patience(timeout: float, size: int) -> float:
    """Seconds for looking at a file of ``size`` bytes, which may have to be read, or decoded, to its end."""
    return timeout + size / SLOWEST


def survey(origin: Origin, *, piece_seconds: float, timeout: float) -> Survey:
    """Look at a source: which frames it has by the reader that training uses, and where to cut. Never raises for a bad file."""
    try:
        with PyavReader(origin.path, timeout=timeout) as reader:
            reader.renew(patience(timeout, reader.size_bytes))
            timeline, promised, (height, width) = _trusted(reader)
            ranges = _ranges(origin, timeline.times, piece_seconds)
            searchable, claimed = timeline.kind == "packets" and reader.can_seek, reader.stream.frames
        damage = _damage(origin.path, timeline, promised, claimed)
    except DecodeError as error:
        return Survey(problem=str(error).removeprefix(f"{origin.path}: "))
    cuts = [cut for a, b in ranges for cut in cut_pieces(timeline.times, a, b, piece_seconds)]
    gap = frame_gap(timeline.times)
    seconds = sum(float(timeline.times[b - 1] - timeline.times[a]) + gap for a, b in ranges)
    return Survey(timeline.kind, tuple(cuts), height, width, seconds, searchable, damage, float(timeline.times[-1]) + gap)


def timeline_of(reader: PyavReader, kind: str) -> Timeline:
    """The timeline that a survey found. Raises DecodeError where the file has changed since."""
    for timeline in reader.timelines():
        if timeline.kind == kind:
            return timeline
    raise DecodeError(f"{reader.path}: has changed while it was prepared")


def _trusted(reader: PyavReader) -> tuple[Timeline, Timeline, tuple[int, int]]:
    """The first exact timeline whose first and last frame come, as in training; what the file promised; (h, w) as displayed."""
    promised = None
    for timeline in reader.timelines():
        if timeline.kind == "estimate":
            continue
        promised = promised or timeline
        shape = (0, 0)
        try:
            for _, frame in reader.decoded(timeline, sorted({0, len(timeline) - 1})):
                if not any(shape):
                    swap = orientation(frame)[0]
                    shape = (frame.width, frame.height) if swap else (frame.height, frame.width)
        except Mismatch:
            continue
        return timeline, promised, shape
    raise DecodeError(f"{reader.path}: its frames cannot be found again after listing them")


def _damage(path: str, found: Timeline, promised: Timeline, claimed: int) -> str | None:
    """What is missing at the end of a file. ``claimed``: frames that its header counts, 0 = it does not."""
    try:
        missing = 0 if "://" in path else missing_bytes(path)
    except OSError:
        missing = 0
    cut_off = f"; the file is cut off: {size_of(missing)} are missing at its end" if missing else ""
    if promised.times[-1] > found.times[-1] + frame_gap(found.times) / 2:
        return f"decoding stops after {len(found):,} of {count(len(promised), 'frame')}{cut_off}"
    if cut_off:
        return f"{count(len(found), 'frame')} can be read{cut_off}"
    if found.kind == "decoded" and claimed > 1.05 * len(found) + 2:
        return f"{len(found):,} of the {claimed:,} frames that its header counts can be decoded"
    return None


def _ranges(origin: Origin, times: np.ndarray, near: float) -> list[tuple[int, int]]:
    """Frames of the union of the items' segments; segments that lie closer than ``near`` seconds become one range. Segments without a
    frame are left out; raises DecodeError where all are."""
    found: list[tuple[int, int]] = []
    empty: DecodeError | None = None
    for start, end in sorted(origin.spans, key=lambda s: s[0] or 0.0):
        try:
            rows = segment(times, Item(origin.path, "video", start, end, "", -1))
        except DecodeError as error:
            empty = error
            continue
        a, b = int(rows[0]), int(rows[-1]) + 1
        if found and (a <= found[-1][1] or times[a] - times[found[-1][1] - 1] < near):
            found[-1] = (found[-1][0], max(b, found[-1][1]))
        else:
            found.append((a, b))
    if not found and empty is not None:
        raise empty
    return found


def cut_pieces(times: np.ndarray, a: int, b: int, seconds: float) -> list[tuple[int, int]]:
    """Frames a .. b - 1 in pieces of equal duration, none longer than ``seconds`` (by a frame), and none without frames."""
    length = float(times[b - 1] - times[a]) + frame_gap(times)
    count = max(1, math.ceil(length / seconds - 1e-6), math.ceil((b - a) / FRAMES))
    inner = a + np.searchsorted(times[a:b], times[a] + length * np.arange(1, count) / count - 1e-9)
    edges = np.unique([a, *inner.tolist(), b])
    edges = np.unique([e for x, y in pairwise(edges.tolist()) for e in (*range(x, y, FRAMES), y)])
    return list(pairwise(edges.tolist()))


def tasks_of(origin: Origin, found: Survey, maps: Sequence[tuple[str, str]] = ()) -> list[Task]:
    """The tasks of a source: few pieces of one that is searchable, many of one that is not."""
    step = PIECES if found.searchable else FROM_START
    groups = [found.cuts[i : i + step] for i in range(0, len(found.cuts), step)]
    return [Task(origin, found.kind, cuts, tuple(maps) if i == 0 else ()) for i, cuts in enumerate(groups)]
