"""Sound of a video as samples on the same clock as its frames."""

from __future__ import annotations

from typing import cast

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame

from tubelet.data.files import Deadline, explain, open_container
from tubelet.errors import DecodeError


def read_audio(path: str, start: float = 0.0, end: float | None = None, rate: int = 16000, *, timeout: float = 30.0) -> np.ndarray:
    """(n,) float32 mono in [-1, 1] from ``start`` to ``end`` seconds (None = to the end of the sound), resampled to ``rate`` Hz.

    Times are on the clock of the frames, 0 = where players start; where there is no sound the samples are 0. Raises DecodeError where
    the file has no audio stream or none of it can be decoded.
    """
    if rate < 1 or start < 0 or (end is not None and end <= start):
        raise DecodeError(f"{path}: cannot read sound from {start:g} to {end} s at {rate} Hz")
    path = str(path)
    deadline = Deadline(path, timeout)
    container, _, watched = open_container(path, deadline)
    try:
        if not container.streams.audio:
            raise DecodeError(f"{path}: has no audio stream")
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        origin = (container.start_time or 0) / 1e6
        base = float(stream.time_base or 0)
        if start > 1 and base > 0:
            container.seek(int((start + origin - 0.5) / base), stream=stream, backward=True)  # half a second for decoders that warm up
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        pieces, first = [], None
        for packet in container.demux(stream):
            deadline.left()
            frames = [cast(AudioFrame, f) for f in packet.decode()]
            if frames and first is None:
                stamp = frames[0].pts
                first = stamp * float(frames[0].time_base or base) - origin if stamp is not None else 0.0
            pieces += [r.to_ndarray().reshape(-1) for f in frames for r in resampler.resample(f)]
            if first is not None and end is not None and first + sum(map(len, pieces)) / rate > end + 0.1:
                break
        if watched is not None:
            watched.check()
        if first is None:
            raise DecodeError(f"{path}: no sound can be decoded")
        pieces += [r.to_ndarray().reshape(-1) for r in resampler.resample(None)]
        return _cut(np.concatenate(pieces), round(first * rate), round(start * rate), None if end is None else round(end * rate))
    except av.error.FFmpegError as error:
        raise explain(path, error, b"", deadline) from None
    finally:
        container.close()
        if watched is not None:
            watched.close()


def _cut(sound: np.ndarray, first: int, start: int, end: int | None) -> np.ndarray:
    """Samples [start, end) of a signal whose first sample has number ``first``; zeros where it has none."""
    stop = max(first + len(sound), start) if end is None else end
    out = np.zeros(stop - start, np.float32)
    a, b = max(first, start), min(first + len(sound), stop)
    if b > a:
        out[a - start : b - start] = sound[a - first : b - first]
    return out
