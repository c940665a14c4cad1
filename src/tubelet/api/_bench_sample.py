"""Some seconds of a few videos, prepared in a temporary folder: what preparing all of them would bring."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.api.preparing import prepare
from tubelet.data.reader import open_item
from tubelet.data.sampling import frame_gap
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.errors import DataError, DecodeError

VIDEOS, SECONDS = 6, 10.0  # of each, from its middle


@dataclass(frozen=True)
class Made:
    """``raw`` and ``prepared``: tables of the same segments. ``seconds``: of video. ``size``: short side in pixels. ``hour``: bytes of an
    hour of prepared video. ``encoding``: core seconds for an hour."""

    raw: Table
    prepared: Table
    seconds: float
    size: int
    hour: float
    encoding: float


def sample_of(table: Table, rows: Sequence[int], settings: DataSettings, folder: Path, progress: Callable[[int, int], None]) -> Made:
    """Prepare segments of rows from all over the list. Raises DataError where none can be."""
    manifest, size = folder / "sample.csv", settings.short_side
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end"])
        n = min(VIDEOS, len(rows))
        for i in range(n):
            writer.writerows(_segment(table, rows[i * len(rows) // n], settings))
    before = _children()
    options = {"size": size, "settings": ["audio=false"], "workers": 1}
    made = prepare(manifest, folder / "set", **options, progress=lambda _, done, total: progress(done, total))
    if made.made is None or not made.made.items:
        raise DataError("none of the sample could be prepared")
    spent = _children() - before
    prepared = open_table(folder / "set")
    raw = open_table(manifest)
    keys = set(prepared.keys)
    raw = raw.select([i for i, key in enumerate(raw.keys) if key in keys])
    seconds = made.made.seconds
    return Made(raw, prepared, seconds, size, made.made.bytes / seconds * 3600, spent / seconds * 3600)


def _segment(table: Table, row: int, s: DataSettings) -> list[list[str]]:
    """The manifest's line for the middle of an item; none for one that cannot be read."""
    item = table.item(row)
    try:
        with open_item(item, timeout=s.decode_timeout, folder_fps=s.folder_fps) as reader:
            times = next(iter(reader.timelines())).times
    except DecodeError:
        return []
    begin = max(float(times[0]), item.start or 0.0)
    end = min(float(times[-1]) + frame_gap(times), float("inf") if item.end is None else item.end)
    start = max(begin, (begin + end - SECONDS) / 2)
    path = item.path if "://" in item.path else str(Path(item.path).absolute())
    return [[path, f"{start:.3f}", f"{min(end, start + SECONDS):.3f}"]]


def _children() -> float:
    """Seconds of the processor that ended child processes took."""
    used = os.times()
    return used.children_user + used.children_system
