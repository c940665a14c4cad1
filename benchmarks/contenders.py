"""Ways from a video file to clips: what benchmarks/data.py compares. Each makes the same thing, ready for a batch.

A visit of a file makes k clips: (k, 16, size, size, 3) uint8, contiguous. Which frames a clip shows is given; of each frame the largest
central square is scaled with antialiasing. What is not Tubelet takes the way that its documentation shows, with one thread, and the same
crop and resize in torch.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.data import transform
from tubelet.data.clip import Plan, make_clips, to_batch
from tubelet.data.decode import PyavReader
from tubelet.data.prepared.layout import KEY_BIT
from tubelet.data.prepared.reader import PreparedReader
from tubelet.data.reader import forget_files, open_item
from tubelet.data.table import Item

FRAMES, STRIDE = 16, 4


@dataclass(frozen=True)
class File:
    """A video. ``prepared``: by size of clip, the same video in a prepared set, ``OUT#3``. ``times`` (n,) seconds, ``keys``: numbers of its
    key frames."""

    path: str
    times: np.ndarray
    keys: np.ndarray
    prepared: dict[int, str]


def look(path: str, prepared: dict[int, str] | None = None) -> File:
    """What is known of a file before anything is timed."""
    with PyavReader(path) as reader:
        timeline = next(reader.timelines())
        assert timeline.pts is not None and timeline.keys is not None  # noqa: PT018
        keys = np.searchsorted(timeline.pts, timeline.keys)
        return File(path, timeline.times, keys, prepared or {})


def keys_of(reader: PreparedReader) -> np.ndarray:
    """Numbers of the key frames of an origin of a prepared set."""
    found, begin = [], 0
    for piece in reader.pieces:
        packets = reader.set.packets[piece.frame : piece.frame + piece.frames]
        found.append(begin + np.flatnonzero(packets["size"] & np.uint32(KEY_BIT)))
        begin += piece.frames
    return np.concatenate(found)


def windows(n: int, count: int, draw: np.random.Generator) -> list[np.ndarray]:
    """``count`` random windows of 16 frames at stride 4; videos that are too short repeat their last frame."""
    starts = draw.integers(0, max(1, n - FRAMES * STRIDE + 1), count)
    return [np.minimum(start + STRIDE * np.arange(FRAMES), n - 1) for start in starts]


def frames_to_decode(keys: np.ndarray, chosen: Sequence[np.ndarray]) -> int:
    """Frames that have to be decoded for some windows: from the key frame before each of them, each frame once."""
    need: set[int] = set()
    for window in chosen:
        first, last = int(window[0]), int(window[-1])
        need.update(range(int(keys[np.searchsorted(keys, first, side="right") - 1]), last + 1))
    return len(need)


class Contender(ABC):
    """``name``: in the tables. ``missing``: why it cannot take part, None = it can."""

    name: str
    missing: str | None = None

    @abstractmethod
    def clips(self, file: File, chosen: Sequence[np.ndarray], size: int) -> Tensor:
        """(k, 16, size, size, 3) uint8."""


class _ByHand(Contender):
    def clips(self, file: File, chosen: Sequence[np.ndarray], size: int) -> Tensor:
        return torch.stack([squares(frames, size) for frames in self.frames(file, chosen)])

    @abstractmethod
    def frames(self, file: File, chosen: Sequence[np.ndarray]) -> list[Tensor]:
        """For each window (16, h, w, 3) uint8."""


def squares(frames: Tensor, size: int) -> Tensor:
    """(T, h, w, 3) uint8 -> (T, size, size, 3): the largest central square, resized."""
    h, w = frames.shape[1:3]
    side = min(h, w)
    y, x = (h - side) // 2, (w - side) // 2
    part = frames[:, y : y + side, x : x + side].permute(0, 3, 1, 2)
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1).contiguous()


class PyavLoop(_ByHand):
    """Open, seek to each window, decode up to its end, keep what is wanted."""

    name = "PyAV loop"

    def frames(self, file: File, chosen: Sequence[np.ndarray]) -> list[Tensor]:
        found = []
        with av.open(file.path) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            assert stream.time_base is not None
            for window in chosen:
                wanted = file.times[window]
                container.seek(int(wanted[0] / stream.time_base) + (stream.start_time or 0), stream=stream)
                kept: list[np.ndarray] = []
                last = None
                for frame in container.decode(stream):
                    while len(kept) < FRAMES and frame.time is not None and frame.time >= wanted[len(kept)] - 1e-3:
                        last = frame.to_ndarray(format="rgb24") if not kept or wanted[len(kept)] > wanted[len(kept) - 1] else last
                        kept.append(last)  # type: ignore[arg-type]  # set by the first frame
                    if len(kept) == FRAMES:
                        break
                kept += [kept[-1]] * (FRAMES - len(kept))
                found.append(torch.from_numpy(np.stack(kept)))
        return found


class Decord(_ByHand):
    """As VideoMAE's own code reads videos; all frames of a visit in one call."""

    name = "decord"

    def __init__(self) -> None:
        self.missing = _missing("decord", "pip install decord (unmaintained since 2021; wheels for Linux x86-64)")

    def frames(self, file: File, chosen: Sequence[np.ndarray]) -> list[Tensor]:
        decord = importlib.import_module("decord")
        reader = decord.VideoReader(file.path, ctx=decord.cpu(0), num_threads=1)
        frames = torch.from_numpy(reader.get_batch(np.concatenate(chosen)).asnumpy())
        return list(frames.split(FRAMES))


class Torchcodec(_ByHand):
    """All frames of a visit in one call."""

    name = "torchcodec"

    def __init__(self) -> None:
        self.missing = _missing(
            "torchcodec.decoders", "pip install torchcodec, for this torch, and FFmpeg's libraries (apt install ffmpeg)"
        )

    def frames(self, file: File, chosen: Sequence[np.ndarray]) -> list[Tensor]:
        decoders = importlib.import_module("torchcodec.decoders")
        decoder = decoders.VideoDecoder(file.path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return list(decoder.get_frames_at(np.concatenate(chosen).tolist()).data.split(FRAMES))


class Tubelet(Contender):
    """A decoding process of Tubelet on the file itself, which it has not seen before."""

    name = "Tubelet, raw"

    def clips(self, file: File, chosen: Sequence[np.ndarray], size: int) -> Tensor:
        forget_files()
        return self._made(Item(file.path, "video", None, None, "", -1), chosen, size)

    @staticmethod
    def _made(item: Item, chosen: Sequence[np.ndarray], size: int) -> Tensor:
        plan = Plan(lambda times: list(chosen), lambda h, w: [[transform.centre(h, w, (size, size))]] * len(chosen))
        with open_item(item) as reader:
            clips = make_clips(reader, item, plan, (size, size))
        batch = to_batch([clips], sample=torch.arange(len(chosen)), key=[""] * len(chosen), labels={})
        return batch.stream("video").data.permute(0, 2, 3, 4, 1)


class Shards(Tubelet):
    """The same on a set that ``tubelet prepare`` made, at 1.15 times the size of the clips."""

    name = "Tubelet, shards"

    def clips(self, file: File, chosen: Sequence[np.ndarray], size: int) -> Tensor:
        return self._made(Item(file.prepared[size], "prepared", None, None, "", -1), chosen, size)


def contenders() -> list[Contender]:
    return [PyavLoop(), Torchcodec(), Decord(), Tubelet(), Shards()]


def _missing(module: str, how: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever a broken binary raises
        reason = str(error).strip().splitlines()
        return f"{type(error).__name__}: {reason[0] if reason else ''}; install it with: {how}"
    return None


@cache
def ffmpeg() -> str | None:
    """The program: in PATH, or of the package imageio-ffmpeg."""
    for path in os.environ.get("PATH", "").split(os.pathsep):
        if (Path(path) / "ffmpeg").is_file():
            return str(Path(path) / "ffmpeg")
    try:
        found: Any = importlib.import_module("imageio_ffmpeg")
    except ImportError:
        return None
    return str(found.get_ffmpeg_exe())


def ffmpeg_seconds(path: str, filters: str | None) -> float:
    """Seconds of the processor that ``ffmpeg -f null`` takes for a whole file with one thread, its start not counted."""
    program = ffmpeg()
    assert program is not None
    call = [program, "-hide_banner", "-benchmark", "-threads", "1", "-i", path, "-an", "-fps_mode", "passthrough"]
    call += ["-filter_threads", "1", "-vf", filters] if filters else []
    done = subprocess.run([*call, "-f", "null", "-"], capture_output=True, text=True, check=True)
    found = re.search(r"bench: utime=([\d.]+)s stime=([\d.]+)s", done.stderr)
    assert found is not None, done.stderr[-500:]
    return float(found[1]) + float(found[2])
