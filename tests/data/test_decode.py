"""Frame-exact decoding: the same pixels however a frame is reached, on made and on real files."""

from __future__ import annotations

import contextlib
import csv
import sys
import types
from collections.abc import Callable
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from PIL import Image

from tubelet.data import decode, reader, torchcodec_reader
from tubelet.data.audio import read_audio
from tubelet.data.decode import PyavReader, at_seconds, probe, read_frames
from tubelet.data.reader import choose_decoder, open_item, segment
from tubelet.data.table import Item
from tubelet.errors import ConfigError, DecodeError

CODECS = [
    ("libx264", "mp4", {"bf": "3", "crf": "12"}),
    ("libx264", "mkv", {"x264-params": "open-gop=1:bframes=3:b-adapt=0", "crf": "12"}),
    ("libx265", "mp4", {"x265-params": "open-gop=1:bframes=3:log-level=none", "crf": "12"}),
    ("libx265", "mkv", {"x265-params": "temporal-layers=3:bframes=7:b-adapt=0:log-level=none", "crf": "12"}),
    ("mpeg4", "avi", {"bf": "2", "qscale": "2"}),
    ("mpeg4", "mp4", {"bf": "2", "qscale": "2"}),
    ("mpeg2video", "ts", {"bf": "2", "qscale": "2"}),
    ("libvpx-vp9", "webm", {"lag-in-frames": "10", "crf": "12", "b": "0"}),
]


def plain(path: Path) -> np.ndarray:
    """All frames by PyAV's own loop, without any of our code; damaged files up to the first error."""
    frames = []
    with av.open(str(path)) as container, contextlib.suppress(av.error.FFmpegError):
        frames.extend(f.to_ndarray(format="rgb24", threads=1) for f in container.decode(video=0))
    return np.stack(frames)


@pytest.mark.parametrize(("codec", "ext", "options"), CODECS, ids=[f"{c}-{e}" for c, e, _ in CODECS])
def test_every_frame_is_the_same_by_seeking_and_by_decoding_on(make_video, number, tmp_path: Path, codec, ext, options) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = make_video(tmp_path / f"v.{ext}", 60, codec=codec, gop=12, options=options)
    everything = plain(path)
    assert [number(f) for f in everything] == list(range(60))
    for i in (0, 1, 11, 12, 13, 25, 35, 36, 47, 59):
        frames, times = read_frames(str(path), [i])
        assert np.array_equal(frames[0], everything[i]), i
        assert times[0] == pytest.approx(i / 10, abs=2e-3)
    frames, _ = read_frames(str(path), [50, 3, 3, 37])
    assert np.array_equal(frames, everything[[50, 3, 3, 37]])
    for start in range(4):
        assert np.array_equal(read_frames(str(path), range(start, 60, 4))[0], everything[start::4]), start


def test_far_frames_are_reached_without_decoding_what_lies_between(make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", 200, gop=10)
    with PyavReader(str(path)) as video:
        timeline = next(video.timelines())
        decoded = []
        original = video._decode
        video._decode = lambda *a: (decoded.append(f) or f for f in original(*a))  # type: ignore[method-assign]  # counts frames
        assert [i for i, _ in video.frames(timeline, [5, 105, 195])] == [5, 105, 195]
    assert timeline.kind == "packets"
    assert len(decoded) <= 3 * 10


def test_frames_that_nothing_needs_are_not_decoded(make_video, number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "v.mp4", 60, gop=60, options={"x264-params": "bframes=3:b-adapt=0:b-pyramid=none", "crf": "12"})
    opened, decoded = [], []
    open_again, decode_packets = PyavReader._open, PyavReader._decode
    monkeypatch.setattr(PyavReader, "_open", lambda self: opened.append(self) or open_again(self))
    monkeypatch.setattr(PyavReader, "_decode", lambda self, *a: (decoded.append(f.pts) or f for f in decode_packets(self, *a)))
    everything = plain(path)
    with PyavReader(str(path)) as video:
        timeline = next(video.timelines())
        frames = {i: p.rgb() for i, p in video.frames(timeline, [10, 14, 18, 22])}
    assert list(frames) == [10, 14, 18, 22]
    for i, pixels in frames.items():
        assert np.array_equal(pixels, everything[i]), i
    assert len(opened) == 1, "listing the packets and decoding them is one opening"
    assert len(decoded) <= 12, "P-frames up to 24 and the wanted B-frames"


def test_long_videos_stay_open_between_visits(make_video, number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [make_video(tmp_path / f"{i}.mp4", 60, gop=12, shade=40 * i) for i in range(3)]
    everything = [plain(path) for path in paths]
    opened: list[str] = []
    open_again = PyavReader._open
    monkeypatch.setattr(PyavReader, "_open", lambda self: opened.append(Path(self.path).name) or open_again(self))

    def visit(i: int, index: list[int], timeout: float = 30.0) -> PyavReader:
        with open_item(Item(str(paths[i]), "video", None, None, "v", -1), timeout=timeout) as video:
            assert isinstance(video, PyavReader)
            assert video.deadline.seconds == timeout
            for k, shown in video.frames(next(video.timelines()), index):
                assert np.array_equal(shown.rgb(), everything[i][k]), (i, k)
        return video

    visit(0, [3])
    visit(0, [3])
    assert opened == ["0.mp4", "0.mp4"], "a short one is closed"
    monkeypatch.setattr(reader, "_open_readers", reader.OpenReaders(most=2, frames=60))
    opened.clear()
    for i, index in ((0, [50, 58]), (0, [1, 30]), (1, [0, 2, 59]), (0, [0, 59]), (1, [33])):
        visit(i, index, timeout=20 + i)
    assert opened == ["0.mp4", "1.mp4"]
    visit(2, [5])
    visit(1, [5])
    visit(0, [5])
    assert opened == ["0.mp4", "1.mp4", "2.mp4", "0.mp4"], "the least recently used was closed"
    with pytest.raises(RuntimeError), open_item(Item(str(paths[1]), "video", None, None, "v", -1)):
        raise RuntimeError
    visit(1, [5])
    assert opened[4:] == ["1.mp4"], "a visit that failed leaves nothing open"
    make_video(tmp_path / "new.mp4", 60, gop=12, shade=200).replace(paths[1])
    everything[1] = plain(paths[1])
    visit(1, [5])
    assert opened[5:] == ["1.mp4"], "a changed file is opened anew"


def test_variable_frame_rate_gives_true_times(make_video, number, tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 2.5, 2.6, 2.7]
    path = make_video(tmp_path / "v.mkv", 8, times=times, options={"bf": "2", "crf": "10"})
    frames, found = read_frames(str(path))
    assert found == pytest.approx(times, abs=2e-3)
    assert [number(f) for f in frames] == list(range(8))
    shown, _ = read_frames(str(path), seconds=[0.12, 0.5, 2.49, 9.0])
    assert [number(f) for f in shown] == [1, 2, 4, 7]


def test_at_seconds_is_the_frame_on_screen() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3])
    assert at_seconds(times, np.array([-1.0, 0.0, 0.0999, 0.1, 0.25, 5.0])).tolist() == [0, 0, 0, 1, 2, 3]


def test_large_files_use_the_header_until_it_proves_wrong(make_video, number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "v.mp4", 60, gop=10)
    monkeypatch.setattr(decode, "SCAN_LIMIT", 0)
    with PyavReader(str(path)) as video:
        timeline = next(video.timelines())
        assert (timeline.kind, len(timeline)) == ("estimate", 60)
    assert [number(f) for f in read_frames(str(path), [0, 7, 31, 32, 59])[0]] == [0, 7, 31, 32, 59]
    monkeypatch.setattr(PyavReader, "duration", property(lambda self: 8.0))
    assert len(read_frames(str(path))[0]) == 60, "a header that claims 80 frames is found out"


def turned(path: Path, out: Path, degrees: int) -> Path:
    """The same packets with a display rotation."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        old = source.streams.video[0]
        new = target.add_stream_from_template(old)
        new.set_display_rotation(degrees)
        for packet in source.demux(old):
            if packet.size:
                packet.stream = new
                target.mux(packet)
    return out


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_display_rotation_is_applied(make_video, tmp_path: Path, degrees: int) -> None:
    path = make_video(tmp_path / "v.mp4", 3)
    frames, _ = read_frames(str(turned(path, tmp_path / "r.mp4", degrees)))
    assert np.array_equal(frames, np.rot90(plain(path), degrees // 90, axes=(1, 2)))
    info = probe(str(tmp_path / "r.mp4"))
    assert (info.height, info.width) == frames.shape[1:3]


@pytest.mark.parametrize(("h", "w", "pix_fmt"), [(33, 47, "yuv444p"), (2, 2, "yuv420p"), (48, 64, "yuv420p10le"), (16, 500, "yuv422p")])
def test_odd_sizes_and_deep_pixels(make_video, tmp_path: Path, h: int, w: int, pix_fmt: str) -> None:
    path = make_video(tmp_path / "v.mkv", 4, h=h, w=w, pix_fmt=pix_fmt)
    frames, _ = read_frames(str(path), [3, 1])
    assert frames.shape == (2, h, w, 3)
    assert np.array_equal(frames, plain(path)[[3, 1]])


def test_probe_says_what_the_header_says(make_video, tmp_path: Path) -> None:
    info = probe(str(make_video(tmp_path / "v.mp4", 20, sound=True)))
    assert (info.fps, info.height, info.width, info.frames, info.codec, info.has_audio, info.rotation) == (10, 48, 64, 20, "h264", True, 0)
    assert info.duration == pytest.approx(2)


def test_cover_art_is_no_video(make_video, tmp_path: Path) -> None:
    def with_cover(name: str, film: bool) -> str:
        with av.open(str(tmp_path / name), "w") as out:
            cover = out.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            voice = out.add_stream("aac", rate=16000, layout="mono")
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24").reformat(format="yuvj420p")
            video = out.add_stream("libx264", rate=10) if film else None
            if video is not None:
                video.width, video.height = 64, 48
            out.mux(cover.encode(frame))
            out.mux(cover.encode(None))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 16000
            out.mux(voice.encode(sound))
            out.mux(voice.encode(None))
            if video is not None:
                for _ in range(3):
                    out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
                out.mux(video.encode(None))
        return str(tmp_path / name)

    assert read_frames(with_cover("both.mp4", True))[0].shape == (3, 48, 64, 3)
    with pytest.raises(DecodeError, match="has no video stream, only a cover picture"):
        read_frames(with_cover("cover.mp4", False))


def test_sound_is_on_the_clock_of_the_frames(make_video, tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "v.mp4", 40, sound=True))
    everything = read_audio(path)
    assert everything.dtype == np.float32
    assert len(everything) == pytest.approx(4 * 16000, abs=1100)
    assert np.abs(everything[: 16000 * 19 // 10]).max() < 0.05
    assert 0.4 < np.abs(everything[16000 * 21 // 10 :]).max() < 0.6
    part = read_audio(path, 3.0, 3.5, rate=8000)
    assert len(part) == 4000
    spectrum = np.abs(np.fft.rfft(part))
    assert spectrum.argmax() * 8000 / 4000 == pytest.approx(440, abs=3)
    assert np.array_equal(read_audio(path, 10.0, 10.5), np.zeros(8000, np.float32)), "after the end there is silence"
    silent = make_video(tmp_path / "s.mp4", 3)
    with pytest.raises(DecodeError, match=r"s\.mp4: has no audio stream"):
        read_audio(str(silent))
    with pytest.raises(DecodeError, match="cannot read sound from 2 to 1"):
        read_audio(path, 2, 1)


def test_urls_are_read_through_fsspec(make_video, number, tmp_path: Path) -> None:
    data = make_video(tmp_path / "v.mp4", 30, sound=True).read_bytes()
    fsspec.filesystem("memory").pipe_file("/films/v.mp4", data)
    assert [number(f) for f in read_frames("memory://films/v.mp4", [2, 29])[0]] == [2, 29]
    assert len(read_audio("memory://films/v.mp4", 0, 1)) == 16000
    assert [number(f) for f in read_frames(f"file://{tmp_path}/v.mp4", [7])[0]] == [7]
    with pytest.raises(DecodeError, match=r"memory://films/w\.mp4: no such file"):
        read_frames("memory://films/w.mp4")


def test_pictures_and_folders_of_frames(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in (1, 2, 10):
        Image.fromarray(np.full((20, 30 if i < 10 else 60, 3), 10 * i, np.uint8)).save(folder / f"f{i}.png")
    item = Item(str(folder), "frames", None, None, "frames", -1)
    with open_item(item, folder_fps=5) as video:
        timeline = next(iter(video.timelines()))
        frames = dict(video.frames(timeline, [0, 1, 2]))
    assert timeline.times.tolist() == [0.0, 0.2, 0.4]
    assert [int(frames[i].rgb().mean()) for i in range(3)] == [10, 20, 100], "2 comes before 10"
    assert frames[2].rgb().shape == (20, 30, 3), "all frames take the size of the first"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 6), (255, 0, 0, 0)).save(tmp_path / "alpha.png")
    Image.new("P", (4, 6)).save(tmp_path / "palette.gif")
    for name, shape in (("deep.png", (20, 30, 3)), ("alpha.png", (6, 4, 3))):
        with open_item(Item(str(tmp_path / name), "image", None, None, name, -1)) as picture:
            assert dict(picture.frames(next(iter(picture.timelines())), [0]))[0].rgb().shape == shape
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    with (
        open_item(Item(str(tmp_path / "bad.jpg"), "image", None, None, "", -1)) as picture,
        pytest.raises(DecodeError, match=r"bad\.jpg: not a readable"),
    ):
        list(picture.frames(next(iter(picture.timelines())), [0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DecodeError, match="holds no pictures"):
        open_item(Item(str(tmp_path / "empty"), "frames", None, None, "", -1))


def test_segments_choose_frames_by_time() -> None:
    times = np.arange(20) / 10
    assert segment(times, Item("v", "video", 0.5, 0.8, "v", -1)).tolist() == [5, 6, 7]
    assert segment(times, Item("v", "video", None, 0.2, "v", -1)).tolist() == [0, 1]
    assert segment(times, Item("v", "video", 1.85, None, "v", -1)).tolist() == [19]
    with pytest.raises(DecodeError, match=r"no frame between 5 s and its end; the video's frames are at 0\.00 to 1\.90 s"):
        segment(times, Item("v", "video", 5.0, None, "v", -1))


def test_torchcodec_that_does_not_load_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("Could not load libtorchcodec. libavutil.so.59: cannot open shared object file\nmore")

    torchcodec_reader.unusable.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert choose_decoder("auto") == "pyav"
    torchcodec_reader.unusable.cache_clear()
    fake = types.ModuleType("torchcodec")
    fake.__path__ = []  # type: ignore[attr-defined]  # makes it a package
    decoders = Broken("torchcodec.decoders")
    monkeypatch.setitem(sys.modules, "torchcodec", fake)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    with pytest.warns(
        UserWarning, match=r"installed but not used: .*libavutil\.so\.59: cannot open shared object file; decoding with PyAV"
    ):
        assert choose_decoder("auto") == "pyav"
    with pytest.raises(ConfigError, match="torchcodec cannot be used"):
        choose_decoder("torchcodec")
    assert choose_decoder("pyav") == "pyav"
    torchcodec_reader.unusable.cache_clear()


def test_torchcodec_with_other_pixels_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Wrong:
        def get_frames_at(self, index: list[int]) -> object:
            return types.SimpleNamespace(data=torch.zeros(len(index), 48, 64, 3, dtype=torch.uint8))

    torchcodec_reader.unusable.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.ModuleType("torchcodec.decoders"))
    monkeypatch.setattr(torchcodec_reader, "_decoder", lambda *_: Wrong())
    assert "differ from PyAV's" in str(torchcodec_reader.unusable())
    torchcodec_reader.unusable.cache_clear()


def test_real_torchcodec_agrees_with_pyav(make_video, number, tmp_path: Path) -> None:
    torchcodec_reader.unusable.cache_clear()
    reason = torchcodec_reader.unusable()
    if reason is not None:
        pytest.skip(f"torchcodec: {reason}")
    path = make_video(tmp_path / "v.mp4", 60, gop=12, options={"bf": "3", "crf": "12"})
    item = Item(str(path), "video", None, None, "v", -1)
    with reader.open_item(item, decoder="torchcodec") as theirs, open_item(item) as ours:
        timeline = next(theirs.timelines())
        index = [0, 5, 11, 12, 40, 59]
        a, b = (np.stack([f.rgb() for _, f in video.frames(timeline, index)]) for video in (theirs, ours))
        assert theirs._try(timeline, index) is not None  # type: ignore[union-attr]  # it was not PyAV that answered
    assert [number(f) for f in a] == index
    assert np.abs(a.astype(int) - b).mean() <= torchcodec_reader.TOLERANCE


# A subset that has every kind of trouble; the whole corpus is a slow test.
REPRESENTATIVE = [
    "annexb_176x144.h264", "av1_10bit_480x270.mp4", "bear_vp9_odd_161x121.webm", "bunny_mpegts.ts", "corrupt_midfile.mp4",
    "counter_hevc.mp4", "invalid_nalu.mp4", "keyboard_rot90.mov", "makeup_xvid_mp3.avi",
    "newtons_cradle.gif", "one_pixel.mp4", "park_nonzero_start.mp4",
    "pattern_odd_321x241_yuv444.mp4", "qcif_mpeg4_amr.3gp", "shop_mpeg4_192x144.avi", "tiny_h264_flac.mkv",
    "unordered_pts.mov", "weird_aspect_mpeg1.mpg",
]  # fmt: skip


def check_clip(path: Path, frames: int) -> None:
    if frames == 0:
        with pytest.raises(DecodeError, match=str(path.name)):
            read_frames(str(path))
        return
    everything, times = read_frames(str(path))
    assert len(everything) == len(times) == frames
    assert (np.diff(times) > 0).all()
    turn = probe(str(path)).rotation // 90
    linear = plain(path)
    assert np.array_equal(everything, np.rot90(linear, turn, axes=(1, 2)) if turn else linear)
    rng = np.random.default_rng(0)
    for _ in range(3):
        index = sorted({int(i) for i in rng.integers(frames, size=3)} | {frames - 1})
        assert np.array_equal(read_frames(str(path), index)[0], everything[index]), index
    for start in {0, min(frames - 1, 3)}:  # frames that nothing needs are left out between them
        assert np.array_equal(read_frames(str(path), range(start, frames, 4))[0], everything[start::4]), start


def manifest_rows(shared: Callable[[str], Path], prefix: str) -> dict[str, int]:
    with (shared("data") / "manifest.csv").open(encoding="utf-8") as file:
        return {r["file"]: int(r["frames"]) for r in csv.DictReader(file) if r["file"].startswith(prefix)}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_real_clips(shared, name: str) -> None:
    check_clip(shared("data") / "clips" / name, manifest_rows(shared, "clips/")["clips/" + name])


@pytest.mark.slow
def test_all_real_clips(shared) -> None:
    for name, frames in manifest_rows(shared, "clips/").items():
        check_clip(shared("data") / name, frames)


@pytest.mark.slow
def test_all_real_action_clips_have_the_counted_frames(shared) -> None:
    for name, frames in manifest_rows(shared, "actions/").items():
        with PyavReader(str(shared("data") / name)) as video:
            assert len(next(video.timelines())) == frames, name
