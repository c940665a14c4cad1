"""The sound of pieces, one after the other, is the sound of the source: noise, in which a sample lost, doubled or moved shows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import tubelet
from tubelet.data.audio import read_audio, read_sound
from tubelet.data.source import open_table

SECONDS = 8


def write(path: Path, codec: str, rate: int) -> None:
    """A video whose two channels are different band-limited noise."""
    noise = np.random.default_rng(0).standard_normal((2, SECONDS * rate))
    soft = np.stack([np.convolve(c, np.hanning(41), "same") for c in noise])
    wave = (0.3 * soft / np.abs(soft).max()).astype(np.float32)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        voice = out.add_stream(codec, rate=rate, layout="stereo")
        if codec != "flac":
            voice.bit_rate = 256_000
        form = "s16" if codec in ("flac", "libopus") else "fltp"
        resampler = av.AudioResampler(format=form, layout="stereo", rate=rate)
        for t in range(SECONDS * 25):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), t, np.uint8), format="rgb24")))
        out.mux(video.encode(None))
        for at in range(0, wave.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, at : at + 960]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for ready in resampler.resample(frame):
                out.mux(voice.encode(ready))
        out.mux(voice.encode(None))


def best(part: np.ndarray, whole: np.ndarray, at: int) -> int:
    """By how many samples a part of the source lies later in ``whole``."""
    return max(range(-60, 61), key=lambda lag: float(np.dot(part, whole[at + lag : at + lag + len(part)])))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "most"),
    [("v.mp4", "aac", 48000, 0), ("v.mkv", "flac", 44100, 1), ("v.mkv", "libopus", 48000, 24), ("v.ts", "aac", 44100, 0)],
)
def test_no_sample_is_lost_doubled_or_moved(tmp_path: Path, name: str, codec: str, rate: int, most: int) -> None:
    """``most``: samples by which all of it may be off: Matroska says when Opus begins to the millisecond only."""
    write(tmp_path / name, codec, rate)
    tubelet.prepare(tmp_path / name, tmp_path / "out", settings=["piece_seconds=1", "preset=ultrafast"], size=32, workers=1)
    source = read_audio(str(tmp_path / name), 0.0, SECONDS - 0.1, rate)
    ours = read_audio(open_table(tmp_path / "out").paths[0], 0.0, SECONDS - 0.1, rate)
    lags = []
    for middle in np.arange(0.5, SECONDS - 0.5, 0.5):  # every other one lies on a cut
        at, n = int(middle * rate) - 4000, 8000
        part = source[at : at + n]
        lags.append(best(part, ours, at))
    assert len(set(lags)) == 1, lags
    assert abs(lags[0]) <= most
    moved = ours[2000 + lags[0] : 2000 + lags[0] + rate * (SECONDS - 1)]
    error = (moved - source[2000 : 2000 + len(moved)]).reshape(-1, rate // 100)
    assert np.sqrt((error**2).mean(1)).max() < 0.7 * source.std(), "no click at a cut: a sample lost there gives as much as the sound"
    assert np.sqrt((error**2).mean()) < 0.1 * source.std()


def test_channels_stay_apart(tmp_path: Path) -> None:
    rate = 44100
    write(tmp_path / "v.mkv", "flac", rate)
    found = read_sound(str(tmp_path / "v.mkv"), 2.0, 3.0)
    assert found is not None
    assert (found.rate, found.layout, found.samples.shape) == (rate, "stereo", (2, rate))
    assert abs(np.corrcoef(found.samples)[0, 1]) < 0.1
