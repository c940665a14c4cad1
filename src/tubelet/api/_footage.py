"""Clips of named places in videos, for pictures: one from a given second, or all of them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from tubelet.data import transform
from tubelet.data.beside import Beside
from tubelet.data.clip import Clips, Plan, make_clips, view_plan
from tubelet.data.decode import at_seconds
from tubelet.data.reader import Decoder, open_item
from tubelet.data.sampling import frame_gap
from tubelet.data.settings import DataSettings, Views
from tubelet.data.table import Item, Table
from tubelet.errors import ConfigError, DataError

Windows = Callable[[np.ndarray], list[np.ndarray]]
CHUNK = 256 * 2**20  # bytes of clips that are decoded at once


@dataclass(frozen=True)
class Shot:
    """One clip of item ``row``. ``number`` of ``total`` clips of that item; ``fresh``: its first frame that no clip before it showed.
    ``text``: its caption, () where none are asked for."""

    row: int
    key: str
    clip: Clips
    number: int = 0
    total: int = 1
    fresh: int = 0
    text: tuple[str, ...] = ()


class Footage:
    """Shots of a table's items in order, cut as in evaluation (centre crop). Items that cannot be used end up in ``failures``.

    ``start``: seconds in the video, None = the centre as in evaluation. ``whole``: clip after clip from the start to the end; the last
    one ends with the video and may overlap the one before. ``needs``: as of VideoFeed, with the first of several
    captions. Raises ConfigError where the clips are spread over the video, so that they have no start.
    """

    def __init__(
        self, table: Table, settings: DataSettings, *, start: float | None = None, whole: bool = False, needs: Collection[str] = ("video",)
    ) -> None:
        spread = settings.sampling in ("tsn", "whole")
        for name, given in (("start", start is not None), ("whole", whole)):
            if given and spread:
                raise ConfigError(
                    f"{name}: a clip with sampling = {settings.sampling} is spread over the whole video; add --set data.sampling=window"
                )
        if start is not None and not 0 <= start < float("inf"):
            raise ConfigError(f"start must be seconds from the start of the video, 0 or more, got {start:g}")
        self.table, self.settings, self.start, self.whole = table, settings, start, whole
        self._beside = Beside.of(table, settings, needs)
        self.decoder: Decoder = self._beside.decoder
        self.failures: list[tuple[str, str]] = []
        self._plan = view_plan(settings, Views(sampling=settings.sampling))

    def __iter__(self) -> Iterator[Shot]:
        self.failures = []
        for row in range(len(self.table)):
            item = self.table.item(row)
            try:
                if self.whole:
                    yield from self._all(row, item)
                else:
                    yield Shot(row, item.key, self._read(row, item, self._one), text=self._beside.text([row]))
            except DataError as error:
                self.failures.append((item.key, str(error)))

    def _read(self, row: int, item: Item, windows: Windows, patience: int = 1) -> Clips:
        s = self.settings
        found: list[np.ndarray] = []

        def choose(times: np.ndarray) -> list[np.ndarray]:
            try:
                found[:] = windows(times)
            except _DoesNotFit as problem:
                raise DataError(f"{item.path}: {problem}") from None
            return found

        plan = Plan(choose, lambda h, w: [[transform.centre(h, w, s.hw)]] * len(found))
        limit, motion = s.decode_timeout * patience, self._beside.motion
        with open_item(item, decoder=self.decoder, timeout=limit, folder_fps=s.folder_fps, store=s.store, vectors=motion) as reader:
            clips = make_clips(reader, item, plan, s.hw, motion=motion)
        return self._beside.clips(row, clips, s.hw)

    def _one(self, times: np.ndarray) -> list[np.ndarray]:
        s = self.settings
        _check_length(times, s)
        if self.start is None:
            return self._plan.windows(times)
        index = track(times, s, self.start)
        if len(index) < s.frames or self.start > times[-1]:
            raise _DoesNotFit(
                f"no clip of {_length(s)} starts at {self.start:g} s; the last that fits starts at {_last_start(times, s):.2f} s"
            )
        return [index[: s.frames]]

    def _all(self, row: int, item: Item) -> Iterator[Shot]:
        s = self.settings
        chunk = max(1, CHUNK // (s.frames * s.hw[0] * s.hw[1] * 3))
        done, total, steps = 0, 1, 0

        def windows(times: np.ndarray) -> list[np.ndarray]:
            nonlocal total, steps
            _check_length(times, s)
            index = track(times, s, float(times[0]))
            steps, total = len(index), -(-len(index) // s.frames)
            starts = [min(k * s.frames, steps - s.frames) for k in range(done, min(done + chunk, total))]
            return [index[start : start + s.frames] for start in starts or [steps - s.frames]]

        while done < total:
            clips = self._read(row, item, windows, patience=done + chunk)
            for i in range(min(len(clips.data), total - done)):
                start = min((done + i) * s.frames, steps - s.frames)
                yield Shot(row, item.key, clips[i], done + i, total, (done + i) * s.frames - start, self._beside.text([row]))
            done += len(clips.data)


class _DoesNotFit(Exception):
    """Why a clip cannot be cut from a video."""


def track(times: np.ndarray, settings: DataSettings, start: float) -> np.ndarray:
    """Numbers of all frames at the clips' rate from the frame on screen at ``start`` seconds (or the first) to the end."""
    if settings.fps is None:
        first = at_seconds(times, np.array([start]))[0]
        return np.arange(first, len(times), settings.stride)
    start = max(start, float(times[0]))
    count = int((float(times[-1]) + frame_gap(times) - start) * settings.fps + 1e-6)
    return at_seconds(times, start + np.arange(max(count, 1)) / settings.fps)


def _check_length(times: np.ndarray, s: DataSettings) -> None:
    spread = s.sampling in ("tsn", "whole")
    have = len(times) if spread else len(track(times, s, float(times[0])))
    if have >= s.frames:
        return
    n = f"{len(times)} frame{'s' * (len(times) > 1)}"
    if spread or s.fps is None:
        fits = 0 if spread or s.frames == 1 else (len(times) - 1) // (s.frames - 1)
        raise _DoesNotFit(f"has {n}, too few for a clip of {_length(s)}" + (f"; stride = {fits} would fit" if fits else ""))
    lasts = float(times[-1] - times[0]) + frame_gap(times)
    raise _DoesNotFit(f"lasts {lasts:.2f} s ({n}), a clip of {_length(s)} {s.frames / s.fps:.2f} s")


def _length(s: DataSettings) -> str:
    """``16 frames, every 4th of the video's``, in words."""
    if s.sampling in ("tsn", "whole"):
        return f"{s.frames} frames"
    return f"{s.frames} frames " + (f"at {s.fps:g} a second" if s.fps is not None else f"at stride {s.stride}")


def _last_start(times: np.ndarray, s: DataSettings) -> float:
    if s.fps is None:
        return float(times[len(times) - 1 - (s.frames - 1) * s.stride])
    return float(times[-1]) + frame_gap(times) - s.frames / s.fps
