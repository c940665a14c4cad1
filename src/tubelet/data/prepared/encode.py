"""Pieces: frames of a source, re-encoded so that a random clip is cheap to decode, and their sound. A function of task and settings."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from tubelet.data.audio import Sound, read_sound
from tubelet.data.decode import Mismatch, PyavReader
from tubelet.data.picture import orientation
from tubelet.data.prepared.layout import KEY_BIT
from tubelet.data.prepared.motion import Vectors
from tubelet.data.prepared.options import PrepareSettings
from tubelet.data.prepared.plan import Task, timeline_of
from tubelet.data.sampling import frame_gap
from tubelet.data.timeline import Timeline
from tubelet.errors import DecodeError

CLOCK = 90000  # ticks a second of a piece's time stamps
_CHUNK = 1024  # samples that the encoder takes at once
_TAGS = ("colorspace", "color_range", "color_primaries", "color_trc")


@dataclass(frozen=True)
class Encoded:
    """A piece. ``about``: what the journal says of it. ``video``: the mp4. ``side``: name ("motion.npz") -> content."""

    about: dict[str, Any]
    video: bytes
    side: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of a task. ``problem``: why frames are missing."""

    pieces: list[Encoded]
    problem: str | None = None


def encode_task(task: Task, settings: PrepareSettings, timeout: float) -> Answer:
    """Encode the pieces of a task, each read back to its last frame. Frames that cannot be decoded are left out and told."""
    pieces: list[Encoded] = []
    lost: list[str] = []
    try:
        with PyavReader(task.origin.path, timeout=timeout, vectors=settings.motion) as reader:
            for shots in _Pass(reader, timeline_of(reader, task.kind), task.cuts):
                piece = _encode(task, shots, settings, timeout)
                if shots.problem:
                    lost.append(shots.problem)
                if piece is not None:
                    pieces.append(piece)
    except DecodeError as error:
        lost.append(str(error).removeprefix(f"{task.origin.path}: "))
    except Exception as error:  # noqa: BLE001 - whatever a file does to the libraries, the others go on and it is named
        lost.append(f"unexpected {type(error).__name__} while it is encoded{': ' if str(error) else ''}{error}")
    side, wrong = _maps(task)
    if pieces and not task.begun:
        pieces[0].side.update(side)
    return Answer(pieces, "; ".join(dict.fromkeys([*lost, *wrong])) or None)


class _Pass:
    """The cuts of a task, whose frames are decoded in one pass; after a frame that does not come a new one begins at the next cut."""

    def __init__(self, reader: PyavReader, timeline: Timeline, cuts: Sequence[tuple[int, int]]) -> None:
        self.reader, self.timeline, self.cuts = reader, timeline, cuts
        self._frames: Iterator[tuple[int, VideoFrame]] | None = None

    def __iter__(self) -> Iterator[_Shots]:
        for i, (a, b) in enumerate(self.cuts):
            yield _Shots(self, i, a, b)

    def frames(self, i: int) -> Iterator[tuple[int, VideoFrame]]:
        """(number, frame) of cut ``i``, which must follow the cut before."""
        if self._frames is None:
            self._frames = iter(self.reader.decoded(self.timeline, np.concatenate([np.arange(a, b) for a, b in self.cuts[i:]])))
        going, self._frames = self._frames, None
        yield from islice(going, self.cuts[i][1] - self.cuts[i][0])
        self._frames = going


class _Shots:
    """Frames ``a`` .. ``b`` - 1 of a source, up to the first that does not come. ``numbers``: those that came. ``problem``: why not all."""

    def __init__(self, of: _Pass, i: int, a: int, b: int) -> None:
        self.reader, self.timeline, self.a, self.b = of.reader, of.timeline, a, b
        self._frames = of.frames(i)
        self.numbers: list[int] = []
        self.problem: str | None = None

    def __iter__(self) -> Iterator[VideoFrame]:
        try:
            for number, frame in self._frames:
                self.numbers.append(number)
                yield frame
        except Mismatch as error:
            self.problem = f"frames {self.a + len(self.numbers)} to {self.b - 1} cannot be decoded{error}"
        except DecodeError as error:
            if not self.numbers:
                raise
            self.problem = str(error).removeprefix(f"{self.reader.path}: ")

    @property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames that came."""
        return self.timeline.times[self.numbers]

    @property
    def end(self) -> float:
        """Seconds at which the piece ends: where the next one begins, or its last frame does."""
        times, gap = self.timeline.times, frame_gap(self.timeline.times)
        follows = self.b < len(times) and times[self.b] - times[self.b - 1] < 10 * max(gap, 0.1)
        return float(times[self.b]) if follows else float(times[self.b - 1]) + gap


def stamps(times: np.ndarray) -> np.ndarray:
    """(n,) int64: when the frames of a piece are shown, in ticks from its first; strictly increasing."""
    ticks = np.round((times - times[0]) * CLOCK).astype(np.int64)
    return np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))


def _encode(task: Task, shots: _Shots, settings: PrepareSettings, timeout: float) -> Encoded | None:
    planned = stamps(shots.timeline.times[shots.a : shots.b])
    sound = read_sound(task.origin.path, float(shots.timeline.times[shots.a]), shots.end, timeout=timeout) if settings.audio else None
    maker = _Maker(settings, sound)
    vectors = Vectors() if settings.motion else None
    for frame, stamp in zip(shots, planned.tolist(), strict=False):
        maker.add(frame, stamp)
        if vectors is not None:
            vectors.add(frame, maker.turn, maker.shape)
    if not shots.numbers:
        return None
    video = maker.finish()
    times, (height, width) = shots.times, maker.shape
    packets, setup = _read_back(video, len(times), (height, width))
    about = {
        "key": f"{task.origin.number:07d}-{shots.a:07d}",
        "origin": task.origin.number,
        "number": shots.a,
        "frames": len(times),
        "start": float(times[0]),
        "end": shots.end,
        "fps": round((len(times) - 1) / float(times[-1] - times[0]), 6) if len(times) > 1 else None,
        "height": height,
        "width": width,
        "source": list(maker.source),
        "rotation": maker.rotation,
        "sound": sound is not None,
        "problem": shots.problem,
        "sha256": hashlib.sha256(video).hexdigest(),
        "bytes": len(video),
        "times": times.tolist(),
        "packets": packets,
        "setup": setup,
    }
    return Encoded(about, video, {} if vectors is None else {"motion.npz": vectors.pack()})


class _Maker:
    """An mp4 in memory. ``shape``: (h, w) of the piece, ``source``: of the source, both as displayed."""

    def __init__(self, settings: PrepareSettings, sound: Sound | None) -> None:
        self.settings, self.sound = settings, sound
        self.shape = self.source = (0, 0)
        self.turn, self.rotation = (False, False, False), 0
        self._out, self._first, self._reformat = io.BytesIO(), VideoReformatter(), VideoReformatter()
        self._file = av.open(self._out, "w", format="mp4")
        self._stream = cast(Any, None)

    def add(self, frame: VideoFrame, stamp: int) -> None:
        """Scale a frame (one conversion between planes) and encode it."""
        if not any(self.shape):
            self._begin(frame)
        h, w = self.shape[::-1] if self.turn[0] else self.shape
        shown = frame
        if frame.format.is_rgb and (frame.height, frame.width) == (h, w):  # FFmpeg's short cut for it is off by four levels
            shown = self._first.reformat(frame, w, h, "yuv444p", threads=1)
        small = self._reformat.reformat(shown, w, h, "yuv420p", interpolation="AREA", threads=1)
        if any(self.turn):
            small = _turned(small, self.turn)
        if stamp == 0:
            self._tag(small)
        before = frame.pts, frame.time_base
        small.pts, small.time_base, small.pict_type = stamp, Fraction(1, CLOCK), 0
        self._file.mux(self._stream.encode(small))
        if small is frame:  # the decoder's own, where there was nothing to scale
            frame.pts, frame.time_base = before

    def _begin(self, frame: VideoFrame) -> None:
        self.turn, self.rotation = orientation(frame), int(frame.rotation)
        self.source = (frame.width, frame.height) if self.turn[0] else (frame.height, frame.width)
        scale = min(1.0, self.settings.size / min(self.source))
        h, w = (max(2, min(2 * round(side * scale / 2), side - side % 2)) for side in self.source)  # even, and never larger
        self.shape = (h, w)
        g = self.settings.gop
        # mbtree: the code for AVX-512 in x264 (core 165) gives other bytes now and then at small sizes (21 of 110 encodings)
        params = f"keyint={g}:min-keyint={g}:scenecut=0:bframes=0:ref=1:open-gop=0:mbtree=0:threads=1:lookahead-threads=1:log-level=none"
        options = {"preset": self.settings.preset, "crf": f"{self.settings.crf:g}", "tune": "fastdecode", "x264-params": params}
        self._stream = self._file.add_stream("libx264", rate=25, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = w, h, "yuv420p"
        self._stream.codec_context.time_base = self._stream.time_base = Fraction(1, CLOCK)
        self._voice = cast(Any, None)
        if self.sound is not None:
            self._voice = self._file.add_stream("aac", rate=self.sound.rate, layout=self.sound.layout)

    def _tag(self, frame: VideoFrame) -> None:
        """Label the colours as the source does, so that a decoder converts them the same way."""
        for name in _TAGS:
            setattr(self._stream.codec_context, name, int(getattr(frame, name)))

    def finish(self) -> bytes:
        self._file.mux(self._stream.encode(None))
        if self.sound is not None:
            for at in range(0, self.sound.samples.shape[1], _CHUNK):
                samples = np.ascontiguousarray(self.sound.samples[:, at : at + _CHUNK])
                wave = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self.sound.layout)
                wave.sample_rate, wave.pts, wave.time_base = self.sound.rate, at, Fraction(1, self.sound.rate)
                self._file.mux(self._voice.encode(wave))
            self._file.mux(self._voice.encode(None))
        self._file.close()
        return self._out.getvalue()


def _turned(frame: VideoFrame, turn: tuple[bool, bool, bool]) -> VideoFrame:
    """A yuv420p frame, upright. ``turn``: see :func:`tubelet.data.picture.orientation`."""
    swap, up, left = turn
    planes = []
    for plane, (h, w) in zip(frame.planes, ((frame.height, frame.width), *[(frame.height // 2, frame.width // 2)] * 2), strict=True):
        pixels = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[:h, :w]
        pixels = pixels.T if swap else pixels
        planes.append(np.ascontiguousarray(pixels[:: -1 if up else 1, :: -1 if left else 1]))
    h, w = planes[0].shape
    packed = np.concatenate([p.reshape(-1) for p in planes]).reshape(h * 3 // 2, w)
    out = VideoFrame.from_ndarray(packed, format="yuv420p")
    for name in _TAGS:
        setattr(out, name, int(getattr(frame, name)))
    return out


def _read_back(video: bytes, frames: int, shape: tuple[int, int]) -> tuple[list[list[int]], str]:
    """([[offset, size | KEY_BIT], ...] of the packets, the decoder's set-up in base64), after every frame was decoded from them as a reader
    does. Raises DecodeError where the piece is not what was asked for."""
    with av.open(io.BytesIO(video), "r") as file:
        stream = file.streams.video[0]
        found = [(p.pos or 0, p.size, p.is_keyframe) for p in file.demux(stream) if p.size]
        setup = bytes(stream.codec_context.extradata or b"")
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.extradata, decoder.thread_count = setup, 1
    shapes = []
    try:
        for i, (at, size, _) in enumerate(found):
            packet = av.Packet(video[at : at + size])
            packet.pts = packet.dts = i
            shapes += [(f.pts, f.height, f.width) for f in decoder.decode(packet)]
        shapes += [(f.pts, f.height, f.width) for f in decoder.decode(None)]
    except av.error.FFmpegError as error:
        raise DecodeError(f"an encoded piece cannot be decoded: {error.strerror}") from None
    if shapes != [(i, *shape) for i in range(frames)] or not found[0][2]:
        raise DecodeError(f"an encoded piece gives {len(shapes)} frames for {frames}; this build of FFmpeg's x264 cannot be used")
    return [[at, size | (KEY_BIT if key else 0)] for at, size, key in found], base64.b64encode(setup).decode()


def _maps(task: Task) -> tuple[dict[str, bytes], list[str]]:
    """The files that manifest columns name for a source, and those that cannot be used."""
    found, wrong = {}, []
    for name, file in task.maps:
        path = Path(file) if Path(file).is_absolute() else Path(task.origin.path).parent / file
        try:
            data = path.read_bytes()
            np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            wrong.append(f"{name}: {path} is no .npy or .npz file that can be read ({getattr(error, 'strerror', None) or error})")
            continue
        found[f"{name}{path.suffix.lower()}"] = data
    return found, wrong
