"""Frames of a prepared set: only the packets that are needed are read, and given to the decoder without a container around them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Any, cast

import av
import av.error
import av.logging
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from tubelet.data.files import Deadline
from tubelet.data.picture import Converter, Picture, PlanePicture
from tubelet.data.prepared.index import Prepared, open_prepared
from tubelet.data.prepared.layout import KEY_BIT, SHARDS
from tubelet.data.prepared.paths import split_path
from tubelet.data.prepared.store import Store
from tubelet.data.timeline import Timeline
from tubelet.errors import DecodeError

SLACK = 2**16  # bytes between two wanted runs of packets that are read along instead of asking twice
_CONTEXTS = 32  # decoders that a thread keeps


@dataclass(frozen=True)
class Piece:
    """A row of pieces.npy. ``number``: its place among the pieces of its origin."""

    number: int
    shard: int
    offset: int
    bytes: int
    frame: int
    frames: int
    setup: int


class PreparedReader:
    """One origin of a prepared set, as :class:`~tubelet.data.reader.Reader`. Use as a context manager; a reader belongs to one thread.

    ``path``: ``OUT#17``, of a folder or URL. ``key``: its name for messages. Pixels: uint8 RGB, upright, at the size they were prepared at;
    ``source``: (h, w) of the source as displayed. ``vectors``: pictures know the motion that the pieces were encoded with. Raises
    DecodeError for what is wrong with the origin, DataError for what is wrong with the set.
    """

    def __init__(self, path: str, *, key: str = "", timeout: float = 30.0, store: Store | None = None, vectors: bool = False) -> None:
        place = split_path(path)
        assert place is not None, "the path of an item of a prepared set ends in #NUMBER"
        self.path, self._key, self.deadline, self.vectors = path, key, Deadline(path, timeout), vectors
        self.set: Prepared = open_prepared(place[0], store=store, timeout=timeout)
        if place[1] >= len(self.set.origins):
            raise DecodeError(f"{path}: the set has {len(self.set.origins)} origins, numbered from 0")
        origin = self.set.origins[place[1]]
        self.source = (int(origin["height"]), int(origin["width"]))
        self._rows = self.set.pieces[int(origin["first"]) : int(origin["first"]) + int(origin["count"])]
        if not len(self._rows):
            raise DecodeError(f"{path}: nothing of it was prepared")
        self._begin = np.concatenate([[0], np.cumsum(self._rows["frames"], dtype=np.int64)])

    def close(self) -> None:
        """Nothing to close: shards and decoders are the process's."""

    def __enter__(self) -> PreparedReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def timelines(self) -> Iterator[Timeline]:
        """One: the times of the source's frames."""
        first = self._rows["frame"].astype(np.int64)
        if (first - first[0] == self._begin[:-1]).all():  # hours of frames are not copied for a clip
            times = self.set.times[first[0] : first[0] + self._begin[-1]]
        else:
            times = np.concatenate([self.set.times[p.frame : p.frame + p.frames] for p in self.pieces])
        yield Timeline(times, "packets")

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Picture]]:
        """(index, frame) for each of the increasing indices."""
        converter = None
        for i, frame in self.decoded(index):
            converter = converter or Converter(frame, self._unusable)
            yield i, PlanePicture(frame, converter)

    def decoded(self, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        """(index, frame as the decoder gives it) for each of the increasing indices."""
        wanted = np.asarray(index, np.int64)
        assert (np.diff(wanted) > 0).all(), "indices must increase"
        edges = np.searchsorted(wanted, self._begin)
        if edges[-1] < len(wanted) or edges[0] > 0:
            raise DecodeError(f"{self.path}: has {int(self._begin[-1])} frames, asked for {int(wanted[0])} to {int(wanted[-1])}")
        for number in np.flatnonzero(np.diff(edges)).tolist():
            begin = int(self._begin[number])
            here = wanted[edges[number] : edges[number + 1]] - begin
            for i, frame in self._of_piece(self._piece(number), here.tolist()):
                yield begin + i, frame

    @cached_property
    def pieces(self) -> list[Piece]:
        """All pieces in the order of time."""
        return [self._piece(i) for i in range(len(self._rows))]

    def _piece(self, number: int) -> Piece:
        row = self._rows[number]
        return Piece(number, *(int(row[name]) for name in ("shard", "offset", "bytes", "frame", "frames", "setup")))

    def begins_at(self, piece: Piece) -> float:
        """Seconds of a piece's first frame on the clock of the source."""
        return float(self.set.times[piece.frame])

    def read(self, piece: Piece) -> bytes:
        """A piece's whole mp4. Raises DecodeError."""
        return self._bytes(piece, 0, piece.bytes)

    def where(self, piece: Piece) -> str:
        """The set, the origin and the piece, for messages."""
        shard = self.set.shards[piece.shard].name
        name = f"{self.path} ({self._key})" if self._key else self.path
        return f"{name}: piece {piece.number} of {len(self._rows)} ({SHARDS}/{shard} at {piece.offset:,})"

    def _unusable(self, error: Exception) -> DecodeError:
        return DecodeError(f"{self.path}: its frames cannot be converted: {error}")

    def _of_piece(self, piece: Piece, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        packets = self.set.packets[piece.frame : piece.frame + piece.frames]
        at, size = packets["at"].astype(np.int64), (packets["size"] & ~np.uint32(KEY_BIT)).astype(np.int64)
        keys = np.flatnonzero(packets["size"] & np.uint32(KEY_BIT))
        if not len(keys) or keys[0] > wanted[0] or (at + size > piece.bytes).any():
            raise DecodeError(f"{self.where(piece)}: its index is damaged")
        with _borrowed(self.set, piece.setup, self.vectors) as decoder:
            try:
                for runs in _spans(_runs(keys, wanted), at, size):
                    start, end = int(at[runs[0].first]), int(at[runs[-1].last] + size[runs[-1].last])
                    data = self._bytes(piece, start, end - start)
                    for run in runs:
                        yield from self._decode(decoder, run, data, (at - start).tolist(), size.tolist())
            except (av.error.FFmpegError, _Damaged) as error:
                reason = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
                raise DecodeError(f"{self.where(piece)}: cannot be decoded: {reason}; the shard is damaged, copy it again") from None

    def _decode(self, decoder: _Decoder, run: Run, data: bytes, at: list[int], size: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The wanted frames of a run, which begins with a key frame."""
        self.deadline.left()
        decoder.flush()
        coming = chain.from_iterable(decoder.give(data[at[i] : at[i] + size[i]], i) for i in range(run.first, run.last + 1))
        for want in run.wanted:
            frame = next((f for f in coming if f.pts == want), None)
            if frame is None:  # still inside; what comes out now ends the run
                coming = decoder.rest()
                frame = next((f for f in coming if f.pts == want), None)
            if frame is None:
                raise _Damaged(f"frame {want} does not come out")
            yield want, frame

    def _bytes(self, piece: Piece, at: int, count: int) -> bytes:
        return self.stored(piece, piece.offset + at, count)

    def stored(self, piece: Piece, at: int, count: int) -> bytes:
        """Bytes of the shard that a piece is in. Raises DecodeError."""
        handle = self.set.shard(piece.shard, self.deadline.seconds)
        self.deadline.renew()  # fetching a shard has limits of its own
        try:
            data = handle.read(at, count)
        except OSError as error:
            raise DecodeError(f"{self.where(piece)}: cannot be read: {error.strerror}") from None
        if len(data) < count:
            raise DecodeError(f"{self.where(piece)}: the shard ends after {handle.bytes:,} bytes; it was cut off: copy it again")
        return data


class _Damaged(Exception):
    """What is wrong with a piece's packets."""


@dataclass(frozen=True)
class Run:
    """Packets ``first`` (a key frame) to ``last`` of a piece, and the frames of them that are wanted."""

    first: int
    last: int
    wanted: tuple[int, ...]


def _runs(keys: np.ndarray, wanted: list[int]) -> list[Run]:
    """What to decode for increasing frame numbers: each from the key frame before it, or on from the frame before where that is no
    farther."""
    before = keys[np.searchsorted(keys, wanted, side="right") - 1].tolist()
    runs: list[Run] = []
    for want, key in zip(wanted, before, strict=True):
        if runs and key <= runs[-1].last + 1:
            runs[-1] = Run(runs[-1].first, want, (*runs[-1].wanted, want))
        else:
            runs.append(Run(key, want, (want,)))
    return runs


def _spans(runs: list[Run], at: np.ndarray, size: np.ndarray) -> Iterator[list[Run]]:
    """Runs that are read at once: those with little between them."""
    together: list[Run] = []
    for run in runs:
        if together and at[run.first] - (at[together[-1].last] + size[together[-1].last]) > SLACK:
            yield together
            together = []
        together.append(run)
    yield together


class _Decoder:
    """A decoder of one set-up, with or without motion vectors. It must tell of damage instead of painting over it."""

    def __init__(self, setup: bytes, vectors: bool) -> None:
        av.logging.set_level(av.logging.PANIC)
        context = cast(VideoCodecContext, av.CodecContext.create("h264", "r"))
        context.extradata = setup
        context.thread_count = 1  # workers are processes
        context.options = {"err_detect": "explode+aggressive", "flags": "+low_delay"} | ({"flags2": "+export_mvs"} if vectors else {})
        context.open()
        self._context, self._used = context, False

    def give(self, data: bytes, number: int) -> Iterator[VideoFrame]:
        """Frames that come out after a packet, each with its packet's number as pts. Raises FFmpegError, _Damaged."""
        self._used = True
        packet = av.Packet(data)
        packet.pts = packet.dts = number
        return self._sound(self._context.decode(packet))

    def rest(self) -> Iterator[VideoFrame]:
        """Frames that are still inside."""
        return self._sound(self._context.decode(None))

    def flush(self) -> None:
        """Forget what came before."""
        if self._used:
            self._context.flush_buffers()

    @staticmethod
    def _sound(frames: list[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            if frame.is_corrupt:
                raise _Damaged(f"frame {frame.pts} is damaged")
            yield frame


class _Borrowed(threading.local):
    """The decoders of a thread that nobody uses at the moment."""

    def __init__(self) -> None:
        self.process, self.free = os.getpid(), OrderedDict[tuple[Any, ...], _Decoder]()


_idle = _Borrowed()


class _borrowed:
    """A decoder for the time of a ``with``: kept for the next one unless an error came; never one of the parent process's."""

    def __init__(self, owner: Prepared, setup: int, vectors: bool) -> None:
        self._key = owner.setups[setup], vectors

    def __enter__(self) -> _Decoder:
        if _idle.process != os.getpid():
            _idle.__init__()
        self._decoder = _idle.free.pop(self._key, None) or _Decoder(*self._key)
        return self._decoder

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            _idle.free[self._key] = self._decoder
            while len(_idle.free) > _CONTEXTS:
                _idle.free.popitem(last=False)
