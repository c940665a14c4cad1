"""Broken, stalled and lying files: each gives frames or one DecodeError, never a hang, a crash or noise on the terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tubelet.data.audio import read_audio
from tubelet.data.decode import probe, read_frames
from tubelet.data.evaluation import EvalFeed
from tubelet.data.files import open_container
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.errors import DecodeError

TINY = [
    "tiny_h264_flac.mkv",
    "tiny_hevc_opus.mkv",
    "tiny_av1_aac.mp4",
    "tiny_mpeg4_mp3.avi",
    "unordered_pts.mov",
    "one_pixel.mp4",
    "robot_three_frames.mp4",
]
SMALL = [
    "counter_hevc.mp4",
    "keyboard_rot90.mov",
    "park_nonzero_start.mp4",
    "bear_vp9_odd_161x121.webm",
    "bunny_mpegts.ts",
    "qcif_mpeg4_amr.3gp",
]


def attempt(path: Path, timeout: float = 20.0) -> int:
    """Frames that come out, 0 for a DecodeError that names the file in one line."""
    start = time.monotonic()
    reason = None
    frames, times = np.zeros(0), np.zeros(0)
    try:
        frames, times = read_frames(str(path), timeout=timeout)
    except DecodeError as error:
        reason = str(error)
    assert time.monotonic() - start < timeout + 5
    assert len(frames) == len(times)
    assert (reason is None) == (len(frames) > 0)
    assert reason is None or (reason.startswith(str(path)) and "\n" not in reason)
    return len(frames)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"I am a text file, not a film.\n" * 20, "holds text, not a video"),
        ("Übergröße\n".encode() * 100, "holds text"),
        (bytes(5000), "."),
        (b"\0\0\0\x18ftypmp42" + bytes(16), "the index .moov. is missing: the file was cut off or never finished"),
        (b"RIFF\x10\0\0\0AVI ", "."),
        (b"\x1aE\xdf\xa3" + os.urandom(100), "."),
    ],
    ids=["empty", "text", "utf8", "zeros", "cut", "riff", "matroska"],
)
def test_files_that_are_no_video(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    for read in (read_frames, probe, read_audio):
        with pytest.raises(DecodeError, match=rf"x\.mp4: .*{reason}"):
            read(str(path))


def test_missing_unreadable_and_special_files(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        read_frames(str(tmp_path / "none.mp4"))
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), tmp_path):
        start = time.monotonic()
        with pytest.raises(DecodeError, match="not a regular file"):
            read_frames(str(path))
        assert time.monotonic() - start < 1


class StalledFileSystem(MemoryFileSystem):
    """Serves a film up to a place; a read from there on never comes back."""

    protocol = "stalled"
    film = b""
    place = 0

    def _open(self, path: str, *args: object, **kwargs: object) -> object:  # type: ignore[override]  # a file-like object is enough
        film, place, wait = self.film, self.place, threading.Event()

        class File(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= place:
                    wait.wait(60)
                return super().read(min(4096, size or 0))

            def close(self) -> None:
                wait.set()

        return File(film)


@pytest.mark.parametrize("place", [0, 4096, 60000])
def test_a_stalled_storage_gives_up_at_the_time_limit(tmp_path: Path, place: int) -> None:
    fsspec.register_implementation("stalled", StalledFileSystem, clobber=True)
    StalledFileSystem.film, StalledFileSystem.place = noise_video(tmp_path / "v.mkv", 60).read_bytes(), place
    assert len(StalledFileSystem.film) > 80000
    for read in (read_frames, probe):
        start = time.monotonic()
        if read is probe and place == 60000:
            assert read("stalled://films/v.mkv", timeout=0.5).width == 64, "what is needed came before the stall"
            continue
        with pytest.raises(DecodeError, match=r"stalled://films/v\.mkv: not done after 0\.5 s; the file is broken or its storage stalls"):
            read("stalled://films/v.mkv", timeout=0.5)
        assert 0.4 < time.monotonic() - start < 2


def test_a_decode_that_takes_too_long_gives_up(tmp_path: Path) -> None:
    path = noise_video(tmp_path / "v.mp4", 200)
    with pytest.raises(DecodeError, match=r"not done after 0\.02 s"):
        read_frames(str(path), timeout=0.02)
    assert len(read_frames(str(path), timeout=20)[0]) == 200


def noise_video(path: Path, n: int, codec: str = "libx264") -> Path:
    """Frames of noise: as many bytes as a small file can have, so that damage hits pictures."""
    import av

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options={"g": "10", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(n):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("codec", "ext"), [("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "avi"), ("mpeg2video", "ts")])
def test_truncated_files_give_their_first_frames_or_an_error(tmp_path: Path, codec: str, ext: str) -> None:
    whole = noise_video(tmp_path / f"whole.{ext}", 30, codec).read_bytes()
    counts = []
    for cut in np.linspace(0.05, 0.98, 8):
        path = tmp_path / f"cut.{ext}"
        path.write_bytes(whole[: int(len(whole) * cut)])
        counts.append(attempt(path))
    assert max(counts) <= 30
    if ext == "mp4":
        assert counts == [0] * 8, "the index is at the end"
    else:
        assert counts == sorted(counts)
        assert counts[-1] >= 20


@pytest.mark.parametrize(("codec", "ext"), [("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "avi"), ("mpeg2video", "ts")])
def test_flipped_bits_give_frames_or_an_error(tmp_path: Path, codec: str, ext: str) -> None:
    whole = np.frombuffer(noise_video(tmp_path / f"whole.{ext}", 30, codec).read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    for round_ in range(12):
        damaged = whole.copy()
        at = rng.integers(0, len(whole), 1 + 20 * round_)
        damaged[at] ^= (1 << rng.integers(0, 8, len(at))).astype(np.uint8)
        path = tmp_path / f"flip.{ext}"
        path.write_bytes(damaged.tobytes())
        attempt(path)


def damage(source: Path, folder: Path, rounds: int) -> None:
    whole = np.frombuffer(source.read_bytes(), np.uint8)
    rng = np.random.default_rng(len(whole))
    for round_ in range(rounds):
        damaged = whole.copy()
        if round_ % 2:
            damaged = damaged[: int(rng.integers(1, len(whole)))]
        else:
            at = rng.integers(0, len(whole), int(rng.integers(1, 40)))
            damaged[at] ^= (1 << rng.integers(0, 8, len(at))).astype(np.uint8)
        path = folder / f"{round_}{source.suffix}"
        path.write_bytes(damaged.tobytes())
        attempt(path)


@pytest.mark.parametrize("name", TINY)
def test_damaged_real_clips(shared, tmp_path: Path, name: str) -> None:
    damage(shared("data") / "clips" / name, tmp_path, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY + SMALL)
def test_damaged_real_clips_at_length(shared, tmp_path: Path, name: str) -> None:
    damage(shared("data") / "clips" / name, tmp_path, 100)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("not_a_video.mp4", "the index .moov. is missing"),
        ("broken_header.mp4", "the index .moov. is missing"),
        ("audio_only.mp4", "has no video stream, only audio"),
    ],
)
def test_real_files_without_frames_say_why(shared, name: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=rf"{name}: {reason}"):
        read_frames(str(shared("data") / "clips" / name))


@pytest.mark.parametrize(("name", "frames"), [("corrupt_midfile.mp4", 28), ("invalid_nalu.mp4", 26)])
def test_real_corrupt_files_give_what_comes_before_the_damage(shared, name: str, frames: int) -> None:
    path = shared("data") / "clips" / name
    assert attempt(path) == frames
    with pytest.raises(DecodeError, match=f"has {frames} frames, asked for {frames}"):
        read_frames(str(path), [frames])


def test_a_file_that_ends_long_before_its_header_says(shared) -> None:
    path = shared("data") / "clips" / "howto_truncated.mp4"
    info = probe(str(path))
    assert info.frames == 12633
    assert info.duration == pytest.approx(421, abs=1)
    frames, times = read_frames(str(path), [0, 900, 1751])
    assert times == pytest.approx([0, 30, 58.4], abs=0.1)
    assert frames.std() > 1


def test_evaluation_of_a_folder_with_broken_files_scores_the_rest(shared) -> None:
    names = ["not_a_video.mp4", "broken_header.mp4", "audio_only.mp4", "corrupt_midfile.mp4", "carphone_qcif.mp4", "one_pixel.mp4"]
    table = open_table([shared("data") / "clips" / name for name in names])
    feed = EvalFeed(table, DataSettings(frames=4, size=32, workers=0, decoder="pyav"), batch=4)
    assert sum(len(b) for b in feed) == feed.n_scored == 3
    assert sorted(key for key, _ in feed.failures) == ["audio_only.mp4", "broken_header.mp4", "not_a_video.mp4"]


NOISY = """
import sys
from tubelet.data.decode import read_frames
from tubelet.errors import DecodeError
for path in sys.argv[1:]:
    try:
        read_frames(path)
    except DecodeError:
        pass
"""


def test_nothing_is_written_to_the_terminal(tmp_path: Path) -> None:
    whole = bytearray(noise_video(tmp_path / "v.mkv", 30).read_bytes())
    for i in range(len(whole) // 3, len(whole), 500):
        whole[i] ^= 255
    (tmp_path / "v.mkv").write_bytes(whole)
    (tmp_path / "w.mp4").write_bytes(bytes(1000))
    command = [sys.executable, "-c", NOISY, str(tmp_path / "v.mkv"), str(tmp_path / "w.mp4")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout + run.stderr == ""


def test_no_thread_or_file_is_left_open(tmp_path: Path) -> None:
    noise_video(tmp_path / "v.mp4", 5)
    (tmp_path / "bad.mp4").write_bytes(bytes(100))
    fsspec.filesystem("memory").pipe_file("/left/v.mp4", (tmp_path / "v.mp4").read_bytes())
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("counts open files in /proc")

    def use() -> None:
        for path in (str(tmp_path / "v.mp4"), str(tmp_path / "bad.mp4"), "memory://left/v.mp4"):
            try:
                read_frames(path)
            except DecodeError:
                continue

    use()
    before = len(list(descriptors.iterdir())), threading.active_count()
    for _ in range(20):
        use()
    end = time.monotonic() + 5
    while threading.active_count() > before[1] and time.monotonic() < end:
        time.sleep(0.01)
    assert len(list(descriptors.iterdir())) <= before[0]
    assert threading.active_count() <= before[1]


def test_a_header_with_absurd_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noise_video(tmp_path / "v.mp4", 3)
    monkeypatch.setattr("tubelet.data.decode.MAX_PIXELS", 1000)
    with pytest.raises(DecodeError, match="frames of 64x48 pixels are not believable"):
        read_frames(str(path))


def test_opening_reports_the_size(tmp_path: Path) -> None:
    from tubelet.data.files import Deadline

    path = noise_video(tmp_path / "v.mp4", 3)
    container, size, watched = open_container(str(path), Deadline(str(path), 5))
    container.close()
    assert size == path.stat().st_size
    assert watched is None
