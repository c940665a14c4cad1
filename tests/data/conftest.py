"""Small videos made on the spot. Every frame carries its number in its pixels, so a test knows which frame it got."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

BITS = 8


def frame_with_number(number: int, h: int, w: int, shade: int = 0) -> np.ndarray:
    """(h, w, 3) uint8: eight vertical bars, white for a 1 bit of the number; a shade of red tells videos apart."""
    bars = (number >> (np.arange(w) * BITS // w)) & 1
    out = np.zeros((h, w, 3), np.uint8)
    out[:] = (40 + bars * 180)[None, :, None]
    out[: max(1, h // 8), :, 0] = shade
    return out


def number_of(pixels: np.ndarray) -> int:
    """The number in a frame of any size."""
    w = pixels.shape[1]
    columns = pixels[pixels.shape[0] // 2, :, 1]
    return sum(int(columns[(2 * b + 1) * w // (2 * BITS)] > 130) << b for b in range(BITS))


@pytest.fixture(scope="session")
def number() -> Callable[[np.ndarray], int]:
    """(h, w, 3) pixels -> the frame number they show."""
    return number_of


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """``make_video(path, n, ...)`` writes a video of numbered frames; ``times`` in seconds make its frame rate variable."""

    def make(
        path: Path,
        n: int = 20,
        *,
        h: int = 48,
        w: int = 64,
        fps: int = 10,
        codec: str = "libx264",
        gop: int = 12,
        options: dict[str, str] | None = None,
        times: list[float] | None = None,
        sound: bool = False,
        shade: int = 0,
        pix_fmt: str = "yuv420p",
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as out:
            base = Fraction(1, 1000) if times else Fraction(1, fps)
            stream = out.add_stream(
                codec, rate=fps, options={"g": str(gop), **(options or {"crf": "10"} if codec == "libx264" else options or {})}
            )
            stream.width, stream.height, stream.pix_fmt = w, h, pix_fmt
            stream.codec_context.time_base = base
            voice = out.add_stream("aac", rate=16000, layout="mono") if sound else None
            for i in range(n):
                frame = av.VideoFrame.from_ndarray(frame_with_number(i, h, w, shade), format="rgb24")
                frame.pts = round(times[i] * 1000) if times else i
                frame.time_base = base
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            if voice is not None:
                _tone(out, voice, n / fps)
        return path

    return make


def _tone(out: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    """Silence in the first half, 440 Hz in the second."""
    t = np.arange(int(seconds * 16000)) / 16000
    wave = (0.5 * np.sin(2 * np.pi * 440 * t) * (t >= seconds / 2)).astype(np.float32)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


@pytest.fixture(scope="session")
def numbered_set(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes: a/0.mp4 .. a/3.mp4 and b/0.mp4 .. b/3.mp4 with 10, 14, 18, 22 frames."""
    root = tmp_path_factory.mktemp("set")
    for c, name in enumerate("ab"):
        for i in range(4):
            make_video(root / name / f"{i}.mp4", 10 + 4 * i, shade=60 * i + 20 * c)
    return root
