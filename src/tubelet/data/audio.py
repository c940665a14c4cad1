"""Sound of a video as samples on the same clock as its frames."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer

from tubelet.data.files import Deadline, explain, open_container
from tubelet.data.prepared.paths import is_prepared
from tubelet.errors import DecodeError

if TYPE_CHECKING:
    from tubelet.data.prepared.store import Store

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_MORE = 4.0  # seconds of sound that are read before and behind a piece where a container's clock is coarser than samples
_EDGE = 0.25  # seconds by which the sound of a piece may begin before its first frame or end after its last


def read_audio(
    path: str, start: float = 0.0, end: float | None = None, rate: int = 16000, *, timeout: float = 30.0, store: Store | None = None
) -> np.ndarray:
    """(n,) float32 mono in [-1, 1] from ``start`` to ``end`` seconds (None = to the end of the sound), resampled to ``rate`` Hz.

    ``path``: a video, or an item of a prepared set (``OUT#17``), whose shards are fetched into ``store`` where they are behind a URL.
    Times are on the clock of the frames, 0 = where players start; where there is no sound the samples are 0. Raises DecodeError where
    the file has no audio stream or none of it can be decoded.
    """
    if rate < 1 or start < 0 or (end is not None and end <= start):
        raise DecodeError(f"{path}: cannot read sound from {start:g} to {end} s at {rate} Hz")
    path = str(path)
    deadline = Deadline(path, timeout)
    first, sound = (
        _of_prepared(path, start, end, rate, deadline, store) if is_prepared(path) else _of_file(path, start, end, rate, deadline)
    )
    return _cut(sound, first, round(start * rate), None if end is None else round(end * rate))


@dataclass(frozen=True)
class Sound:
    """``samples`` (channels, n) float32 in [-1, 1] at ``rate`` Hz; ``layout``: mono or stereo."""

    samples: np.ndarray
    rate: int
    layout: str


def read_sound(path: str, start: float, end: float, *, timeout: float = 30.0) -> Sound | None:
    """The sound of a video file from ``start`` to ``end`` seconds at its own rate (at most 48 kHz) and with its own channels (at most two);
    0 where there is none. None for a file without an audio stream, or one whose sound cannot be decoded."""
    deadline = Deadline(path, timeout)
    container, _, watched = open_container(path, deadline)
    try:
        if not container.streams.audio:
            return None
        context = container.streams.audio[0].codec_context
        rate = context.sample_rate or 0
        rate = rate if rate in AAC_RATES else max((r for r in AAC_RATES if r < rate), default=16000)
        layout = "mono" if (context.channels or 1) == 1 else "stereo"
        more = _MORE if float(container.streams.audio[0].time_base or 0) * rate > 2 else 0.0  # stamps to tell rounding from time by
        first, sound = _channels(container, max(start - more, 0.0), end + more, rate, layout, deadline, steady=True)
        if watched is not None:
            watched.check()
    except av.error.FFmpegError:
        return None
    finally:
        container.close()
        if watched is not None:
            watched.close()
    if not sound.shape[1]:
        return None
    return Sound(np.stack([_cut(channel, first, round(start * rate), round(end * rate)) for channel in sound]), rate, layout)


def _of_file(path: str, start: float, end: float | None, rate: int, deadline: Deadline) -> tuple[int, np.ndarray]:
    """(number of the first sample, samples) of a file, at least from ``start`` to ``end`` as far as there are."""
    container, _, watched = open_container(path, deadline)
    try:
        if not container.streams.audio:
            raise DecodeError(f"{path}: has no audio stream")
        first, sound = _decode(container, start, end, rate, deadline)
        if watched is not None:
            watched.check()
        if not len(sound):
            raise DecodeError(f"{path}: no sound can be decoded")
        return first, sound
    except av.error.FFmpegError as error:
        raise explain(path, error, b"", deadline) from None
    finally:
        container.close()
        if watched is not None:
            watched.close()


def _of_prepared(path: str, start: float, end: float | None, rate: int, deadline: Deadline, store: Store | None) -> tuple[int, np.ndarray]:
    """The same of an origin of a prepared set: the sound of its pieces, each where its first frame is on the origin's clock."""
    from tubelet.data.prepared.reader import PreparedReader

    parts: list[tuple[int, np.ndarray]] = []
    silent = True
    with PreparedReader(path, timeout=deadline.seconds, store=store) as reader:
        begins = [reader.begins_at(piece) for piece in reader.pieces]
        for piece, begin, following in zip(reader.pieces, begins, [*begins[1:], np.inf], strict=True):
            if following + _EDGE < start or (end is not None and begin - _EDGE > end):
                continue
            try:
                with av.open(io.BytesIO(reader.read(piece)), "r") as container:
                    if not container.streams.audio:
                        continue
                    silent = False
                    video = container.streams.video[0]
                    shift = begin - (float((video.start_time or 0) * (video.time_base or 0)) - (container.start_time or 0) / 1e6)
                    stop = None if end is None else end - shift
                    first, sound = _decode(container, max(0.0, start - shift), stop, rate, deadline)
            except av.error.FFmpegError as error:
                raise DecodeError(f"{reader.where(piece)}: its sound cannot be decoded: {error.strerror}") from None
            parts.append((first + round(shift * rate), sound))
    if silent:
        raise DecodeError(f"{path}: has no audio stream")
    return _joined(parts)


def _joined(parts: list[tuple[int, np.ndarray]]) -> tuple[int, np.ndarray]:
    """Signals that follow each other as one; where two overlap the later one counts."""
    parts = [p for p in parts if len(p[1])]
    if not parts:
        return 0, np.zeros(0, np.float32)
    begin = min(first for first, _ in parts)
    out = np.zeros(max(first + len(sound) for first, sound in parts) - begin, np.float32)
    for first, sound in parts:
        out[first - begin : first - begin + len(sound)] = sound
    return begin, out


def _decode(container: InputContainer, start: float, end: float | None, rate: int, deadline: Deadline) -> tuple[int, np.ndarray]:
    """:func:`_channels` of one channel, (n,)."""
    first, sound = _channels(container, start, end, rate, "mono", deadline)
    return first, sound[0]


def _channels(
    container: InputContainer, start: float, end: float | None, rate: int, layout: str, deadline: Deadline, *, steady: bool = False
) -> tuple[int, np.ndarray]:
    """(number of the first sample, samples (channels, n)) on the container's clock, at least from ``start`` to ``end`` as far as there are;
    no samples where nothing is decoded. ``steady``: see :func:`_steady`. Raises FFmpegError."""
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    origin = (container.start_time or 0) / 1e6
    base = float(stream.time_base or 0)
    if start > 1 and base > 0:
        container.seek(int((start + origin - 0.5) / base), stream=stream, backward=True)  # half a second for decoders that warm up
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    pieces, first, stamps, come = [], None, [], 0.0
    for packet in container.demux(stream):
        deadline.left()
        frames = [cast(AudioFrame, f) for f in packet.decode()]
        if frames and first is None:
            stamp = frames[0].pts
            first = stamp * float(frames[0].time_base or base) - origin if stamp is not None else 0.0
        for frame in frames:
            if frame.pts is not None:
                stamps.append(frame.pts * float(frame.time_base or base) - origin - come)
            come += frame.samples / frame.sample_rate
        pieces += [r.to_ndarray() for f in frames for r in resampler.resample(f)]
        if first is not None and end is not None and first + sum(p.shape[1] for p in pieces) / rate > end + 0.1:
            break
    if first is None:
        return 0, np.zeros((2 if layout == "stereo" else 1, 0), np.float32)
    pieces += [r.to_ndarray() for r in resampler.resample(None)]
    return round((_steady(stamps, base) if steady and stamps else first) * rate), np.concatenate(pieces, axis=1)


def _steady(stamps: list[float], tick: float) -> float:
    """Seconds of a sound's first sample, by the stamps of all its frames less what came before each: Matroska rounds them to milliseconds,
    so sounds that are read from different places would be laid up to one apart. Frames count as long as they agree within a ``tick``;
    the first does not, for after a search decoders cut it."""
    low, high = -np.inf, np.inf
    for stamp in stamps[1:] or stamps:
        a, b = max(low, stamp - tick / 2), min(high, stamp + tick / 2)
        if b - a < -1e-5:
            break  # a gap in the sound
        low, high = min(a, b), max(a, b)
    return (low + high) / 2


def _cut(sound: np.ndarray, first: int, start: int, end: int | None) -> np.ndarray:
    """Samples [start, end) of a signal whose first sample has number ``first``; zeros where it has none."""
    stop = max(first + len(sound), start) if end is None else end
    out = np.zeros(stop - start, np.float32)
    a, b = max(first, start), min(first + len(sound), stop)
    if b > a:
        out[a - start : b - start] = sound[a - first : b - first]
    return out
