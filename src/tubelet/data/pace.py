"""What making training clips costs, file by file: measured as a decoding process does it, with what the time goes into."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.core import CounterDraw
from tubelet.data.clip import Clips, TrainDraws, make_clips, to_batch
from tubelet.data.picture import Picture
from tubelet.data.reader import Decoder, choose_decoder, forget_files, open_item
from tubelet.data.settings import DataSettings
from tubelet.data.table import Table
from tubelet.data.timeline import Timeline
from tubelet.errors import DecodeError

PARTS = ("opening", "decoding")  # what is timed; the rest of the time is cutting
ROUNDS = 5  # that the visits are divided into, for a spread


@dataclass(frozen=True)
class Visit:
    """One file opened, and ``clips`` clips of it made. ``seconds`` of the processor, ``wall`` seconds, ``parts``: seconds by what they went
    into. ``bytes``: read from files, None = the system does not tell."""

    row: int
    clips: int
    seconds: float
    wall: float
    parts: dict[str, float]
    bytes: int | None


@dataclass(frozen=True)
class Rate:
    """Clips of one core: ``clips`` from each opened file. ``rate``, ``low``, ``high``: clips a second, the median and the range of up to
    :data:`ROUNDS` rounds. ``shares``: of the time: ``opening``, ``decoding``, ``cutting`` (colour, crop, size, putting together).
    ``bytes``: read for a clip. ``waited``: share of the wall's time in which the processor did something else or nothing."""

    clips: int
    files: int
    rate: float
    low: float
    high: float
    shares: dict[str, float]
    bytes: float | None
    waited: float

    @staticmethod
    def of(visits: Sequence[Visit]) -> Rate:
        """Of some visits with the same number of clips each."""
        rounds = [part for part in np.array_split(np.arange(len(visits)), min(ROUNDS, len(visits))) if len(part)]
        rates = [sum(visits[i].clips for i in part) / sum(visits[i].seconds for i in part) for part in rounds]
        total, clips = sum(v.seconds for v in visits), sum(v.clips for v in visits)
        shares = {name: sum(v.parts[name] for v in visits) / total for name in PARTS}
        read = [v.bytes for v in visits if v.bytes is not None]
        return Rate(
            clips=visits[0].clips,
            files=len({v.row for v in visits}),
            rate=float(np.median(rates)),
            low=min(rates),
            high=max(rates),
            shares={**shares, "cutting": max(0.0, 1 - sum(shares.values()))},
            bytes=sum(read) / clips if len(read) == len(visits) else None,
            waited=max(0.0, 1 - total / max(sum(v.wall for v in visits), 1e-9)),
        )


class Pacer:
    """Visits files of a table. Crops and windows are those of training: functions of ``seed`` and the number of the visit.

    What is remembered of a file is forgotten before each visit, as in a set with more files than a process remembers.
    """

    def __init__(self, table: Table, settings: DataSettings, *, seed: int = 0) -> None:
        self.table, self.settings, self.seed = table, settings, seed
        self.decoder: Decoder = choose_decoder(settings.decoder)
        self.failures: dict[int, str] = {}

    def visit(self, number: int, row: int, clips: int) -> Visit | None:
        """Make ``clips`` clips of a row; None where it cannot be read, and ``failures`` says why. Raises DataError for a set that cannot be
        used."""
        if row in self.failures:
            return None
        forget_files()
        clock = _Clock()
        sample = number * clips + torch.arange(clips)
        plan = TrainDraws(self.settings, CounterDraw(self.seed, sample)).plan(range(clips))
        began, wall, read = time.process_time(), time.perf_counter(), bytes_read()
        try:
            self._make(row, plan, sample, clock)
        except DecodeError as error:
            self.failures[row] = str(error)
            return None
        seconds, wall, now = time.process_time() - began, time.perf_counter() - wall, bytes_read()
        return Visit(row, clips, max(seconds, 1e-6), wall, clock.parts, None if read is None or now is None else now - read)

    def _make(self, row: int, plan: Any, sample: Tensor, clock: _Clock) -> None:
        s, item = self.settings, self.table.item(row)
        with clock("opening"):
            reader = open_item(item, decoder=self.decoder, timeout=s.decode_timeout, folder_fps=s.folder_fps, store=s.store)
        with reader:
            clips: Clips = make_clips(_TimedReader(reader, clock), item, plan, s.hw)
        to_batch([clips], sample=sample, key=[item.key] * len(sample), labels={})


class _Clock:
    """Seconds of the processor by part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def __call__(self, part: str) -> _Running:
        return _Running(self.parts, part)


class _Running:
    def __init__(self, parts: dict[str, float], part: str) -> None:
        self.parts, self.part = parts, part

    def __enter__(self) -> None:
        self.began = time.process_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.parts[self.part] += time.process_time() - self.began


class _TimedReader:
    """A reader whose work is timed."""

    def __init__(self, reader: Any, clock: _Clock) -> None:
        self.reader, self.clock = reader, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def timelines(self) -> Iterator[Timeline]:
        return self._timed("opening", self.reader.timelines())

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Picture]]:
        return self._timed("decoding", self.reader.frames(timeline, index))

    def _timed(self, part: str, values: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while True:
            with self.clock(part):
                value = next(values, end)
            if value is end:
                return
            yield value


def interleaved(
    pacers: Sequence[Pacer], clips: Sequence[int], rows: Sequence[int], *, seconds: float, tick: Callable[[], None]
) -> list[list[Rate | None]]:
    """Rates, pacer by pacer and for each number of clips, from visits in turn: all to the first row, all to the second one, ...

    Rows are visited until all took about ``seconds`` of wall time, each once at least in the first round; rows that some pacer cannot read
    count for none. ``tick()`` is called after each row. None where no row can be read.
    """
    kept: dict[tuple[int, int], list[Visit]] = {(p, k): [] for p in range(len(pacers)) for k in clips}
    began = time.monotonic()
    for number in count():
        late, some = time.monotonic() - began > seconds, any(kept.values())
        if (late and some) or (number > len(rows) and not some):
            break
        row = rows[number % len(rows)]
        found = {(p, k): pacer.visit(number, row, k) for p, pacer in enumerate(pacers) for k in clips}
        tick()
        for key, visit in found.items():
            if number and visit is not None and None not in found.values():  # the first one warms up
                kept[key].append(visit)
    return [[Rate.of(kept[p, k]) if kept[p, k] else None for k in clips] for p in range(len(pacers))]


def bytes_read() -> int | None:
    """What this process has asked of files so far, cached or not."""
    try:
        return int(Path("/proc/self/io").read_text(encoding="ascii").split("rchar:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return None
