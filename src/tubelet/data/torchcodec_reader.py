"""torchcodec as a second decoder: used for the pixels only, checked against the file's own time stamps and before that by a self-test."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from tubelet.data.decode import PyavReader
from tubelet.data.picture import Picture, PixelPicture
from tubelet.data.timeline import Timeline

TOLERANCE = 2.0  # mean difference in levels that two builds of FFmpeg may show after the conversion to RGB


class TorchcodecReader(PyavReader):
    """Lists frames with PyAV and decodes them with torchcodec where both see the same frames; with PyAV everywhere else."""

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Picture]]:
        """As :meth:`PyavReader.frames`."""
        found = self._try(timeline, [int(i) for i in index])
        if found is None:
            yield from super().frames(timeline, index)
        else:
            yield from zip((int(i) for i in index), map(PixelPicture, found), strict=True)

    def _try(self, timeline: Timeline, index: list[int]) -> np.ndarray | None:
        if timeline.kind != "packets" or "://" in self.path:
            return None
        self.deadline.left()
        try:
            decoder = _decoder(self.path, self.stream.index)
            if decoder.metadata.num_frames != len(timeline) or decoder.metadata.rotation:
                return None
            batch = decoder.get_frames_at(index)
        except (RuntimeError, ValueError, IndexError):
            return None
        if np.abs(batch.pts_seconds.numpy() - self._origin - timeline.times[index]).max() > 1e-3:
            return None
        return batch.data.numpy()


def _decoder(path: str, stream: int | None = None) -> Any:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")


@functools.cache
def unusable() -> str | None:
    """Why torchcodec cannot be used here, None if it can: a small clip is encoded and decoded with both."""
    try:
        import torchcodec.decoders  # noqa: F401 - only whether it loads
    except ImportError:
        return "it is not installed"
    except (RuntimeError, OSError) as error:
        return f"it does not load (often FFmpeg's shared libraries are missing): {str(error).strip().splitlines()[0]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "selftest.mp4"
        _encode(path)
        try:
            theirs = _decoder(str(path)).get_frames_at([0, 3, 7, 11]).data.numpy().astype(np.float32)
        except Exception as error:  # noqa: BLE001 - whatever it raises, the answer is to use PyAV
            return f"it fails on a test clip: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        with PyavReader(str(path)) as reader:
            ours = np.stack([p.rgb() for _, p in reader.frames(next(reader.timelines()), [0, 3, 7, 11])]).astype(np.float32)
    if theirs.shape != ours.shape:
        return f"it decodes a test clip to shape {theirs.shape}, PyAV to {ours.shape}"
    error = float(np.abs(theirs - ours).mean())
    return None if error <= TOLERANCE else f"its frames of a test clip differ from PyAV's by {error:.1f} levels"


def _encode(path: Path) -> None:
    """12 frames of 64x48 in which a gradient moves, with B-frames."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        y, x = np.mgrid[0:48, 0:64]
        for i in range(12):
            rgb = np.stack([x * 3 + i * 5, y * 4, (x + y) * 2], -1).clip(0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode(None))
