"""Which reader opens an item, and the one way to read frames from it that a damaged file cannot confuse."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from tubelet.data.decode import Mismatch, PyavReader, forget_timelines
from tubelet.data.picture import Picture
from tubelet.data.stills import StillReader
from tubelet.data.table import Item
from tubelet.data.timeline import Timeline
from tubelet.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from tubelet.data.prepared.reader import PreparedReader
    from tubelet.data.prepared.store import Store

Decoder = Literal["pyav", "torchcodec"]


class Reader(Protocol):
    """An opened video, picture or folder of frames; a context manager."""

    def timelines(self) -> Iterator[Timeline]: ...

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Picture]]: ...


def choose_decoder(wanted: Literal["auto", "pyav", "torchcodec"]) -> Decoder:
    """The decoder to use on this machine. Raises ConfigError where torchcodec was demanded and cannot be used; ``auto`` warns only
    where it is installed and fails."""
    if wanted == "pyav":
        return "pyav"
    from tubelet.data.torchcodec_reader import unusable

    reason = unusable()
    if reason is None:
        return "torchcodec"
    if wanted == "torchcodec":
        raise ConfigError(f"data.decoder = torchcodec cannot be used: {reason}; decoder = pyav always works")
    if "not installed" not in reason:
        warnings.warn(f"torchcodec is installed but not used: {reason}; decoding with PyAV", stacklevel=2)
    return "pyav"


def open_item(
    item: Item,
    *,
    decoder: Decoder = "pyav",
    timeout: float = 30.0,
    folder_fps: float = 25.0,
    store: Store | None = None,
    vectors: bool = False,
) -> PyavReader | StillReader | PreparedReader:
    """The reader for an item. ``store``: where fetched shards are kept. ``vectors``: its pictures know their motion
    where the codec's decoder (never torchcodec) tells it. Raises DecodeError, DataError for a prepared set that cannot be
    used."""
    if item.kind == "prepared":
        from tubelet.data.prepared.reader import PreparedReader

        return PreparedReader(item.path, key=item.key, timeout=timeout, store=store, vectors=vectors)
    if item.kind != "video":
        return StillReader(item.path, folder=item.kind == "frames", fps=folder_fps, timeout=timeout)
    kind = PyavReader
    if decoder == "torchcodec":
        from tubelet.data.torchcodec_reader import TorchcodecReader

        kind = TorchcodecReader
    return _open_readers.take(item.path, kind, timeout, vectors)


class OpenReaders:
    """Long videos left open between visits, the least recently used closed first: opening one of an hour takes longer than decoding a clip
    of it (20 against 16 ms), one of a minute 1 ms. A file that was changed since is opened anew, and so is one opened before a fork.
    Videos of fewer than ``frames`` frames or more than ``pixels`` pixels (their decoders hold much memory) are closed."""

    def __init__(self, *, most: int = 4, frames: int = 10_000, pixels: int = 1920 * 1088) -> None:
        self._most, self._frames, self._pixels = most, frames, pixels
        self._idle: OrderedDict[tuple[object, ...], PyavReader] = OrderedDict()

    def take(self, path: str, kind: type[PyavReader], timeout: float, vectors: bool = False) -> PyavReader:
        """A reader that comes back here when its visit ended well. Raises DecodeError."""
        key = self._identity(path, kind, vectors)
        reader = self._idle.pop(key, None) if key is not None else None
        if reader is None:
            reader = kind(path, timeout=timeout, vectors=vectors)
            if key is not None:
                reader.leave = lambda reader: self._keep(key, reader)
        else:
            reader.renew(timeout)
        return reader

    def clear(self) -> None:
        """Close all of them."""
        while self._idle:
            self._idle.popitem()[1].close()

    @staticmethod
    def _identity(path: str, kind: type[PyavReader], vectors: bool) -> tuple[object, ...] | None:
        """None: not a local file, or none that can be opened."""
        if "://" in path:
            return None
        try:
            info = os.stat(path)
        except OSError:
            return None
        return path, info.st_ino, info.st_size, info.st_mtime_ns, kind, vectors, os.getpid()

    def _keep(self, key: tuple[object, ...], reader: PyavReader) -> bool:
        stream = reader.stream
        if not reader.can_seek or stream.frames < self._frames or stream.width * stream.height > self._pixels or key in self._idle:
            return False
        self._idle[key] = reader
        if len(self._idle) > self._most:
            self._idle.popitem(last=False)[1].close()
        return True


_open_readers = OpenReaders()


def forget_files() -> None:
    """As in a process that has opened no file yet, or in one that has opened too many to remember them: for measuring."""
    forget_timelines()
    _open_readers.clear()


def source_size(reader: Reader, shape: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the source's frames, of a reader whose frames are of ``shape`` (h, w): boxes are chosen on it, so that a prepared set is
    cut where its source is."""
    return getattr(reader, "source", shape)


Visit = tuple[list[np.ndarray], np.ndarray, np.ndarray]


def read_chosen(
    reader: Reader,
    item: Item,
    choose: Callable[[np.ndarray], list[np.ndarray]],
    take: Callable[[int, Picture], None],
) -> Visit:
    """Decode once for several windows.

    ``choose``: seconds of the item's frames (n,) -> index arrays into them. ``take(i, picture)`` gets every wanted frame once, in
    increasing order. Should the file turn out to hold fewer frames than its packets promise, ``choose`` is asked again with what there
    really is, and frames are taken again. Returns (windows as chosen, seconds of the item's frames, frame numbers in the file).
    """
    for timeline in reader.timelines():
        rows = segment(timeline.times, item)
        windows = choose(timeline.times[rows])
        wanted = np.unique(np.concatenate(windows))
        try:
            for i, picture in reader.frames(timeline, rows[wanted]):
                take(i - int(rows[0]), picture)
        except Mismatch:
            continue
        return windows, timeline.times[rows], rows
    raise DecodeError(f"{item.path}: its frames cannot be found again after listing them")


def segment(times: np.ndarray, item: Item) -> np.ndarray:
    """Numbers of the frames of an item: all, or those with start <= time < end. Raises DecodeError where there are none."""
    inside = np.ones(len(times), bool)
    if item.start is not None:
        inside &= times >= item.start - 1e-6
    if item.end is not None:
        inside &= times < item.end - 1e-6
    rows = np.flatnonzero(inside)
    if not len(rows):
        end = "its end" if item.end is None else f"{item.end:g} s"
        raise DecodeError(
            f"{item.path}: no frame between {item.start or 0:g} s and {end}; the video's frames are at {times[0]:.2f} to {times[-1]:.2f} s"
        )
    return rows
