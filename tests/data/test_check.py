"""Items are looked at as training reads them: what is bad, what is odd, and nothing that a file does ends the check."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.core import CounterDraw
from tubelet.data import check as checking
from tubelet.data.check import Check, Checked, check_table, count, duplicates, size_of
from tubelet.data.clip import TrainDraws
from tubelet.data.cutoff import missing_bytes
from tubelet.data.guarded import Lost, run_guarded
from tubelet.data.loader import ItemReader
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.errors import DataError

PATIENT = 600.0  # seconds: these tests are about what is found, and the machine may be busy


def look(source: Path | str, frames: int | None = None, **more: str) -> dict[str, Checked]:
    """Key -> what was found, in this process."""
    table = open_table(source, labels="none", missing="keep", **more)  # type: ignore[arg-type]  # images= only
    return {item.key: item for item in check_table(table, Check(frames, PATIENT), workers=0)}


def codes(item: Checked) -> list[str]:
    return [warning.code for warning in item.warnings]


def problem(item: Checked) -> str:
    return item.problem.code if item.problem is not None else ""


def faststart(source: Path, target: Path) -> Path:
    """The same packets with the index in front, so that a file cut off at its end can still be opened."""
    with av.open(str(source)) as a, av.open(str(target), "w", options={"movflags": "faststart"}) as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(a.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                b.mux(packet)
    return target


def test_real_clips_agree_with_their_marks(shared) -> None:
    folder = shared("data/clips")
    with (folder / "clips.csv").open(newline="") as file:
        marked = {row["file"] for row in csv.DictReader(file) if row["corrupt"]}
    table = open_table(folder, labels="none")
    found = {item.key: item for item in check_table(table, Check(timeout=PATIENT), workers=2)}
    assert list(found) == list(table.keys)
    assert {key for key, item in found.items() if item.bad} == marked | {"audio_only.mp4"}
    assert problem(found["audio_only.mp4"]) == "sound_only"
    assert found["audio_only.mp4"].problem.text == "has no video stream, only audio"  # type: ignore[union-attr]
    assert "decoding stops after 28 of 50 frames" in found["corrupt_midfile.mp4"].problem.text  # type: ignore[union-attr]
    assert "the file is cut off: 23 MB are missing" in found["howto_truncated.mp4"].problem.text  # type: ignore[union-attr]
    having = {code: {key for key, item in found.items() if code in codes(item)} for code in checking.WARNINGS}
    assert having["rotated"] == {"nasa_rotated.mp4", "keyboard_rot90.mov", "keyboard_rot270.mov", "phone_portrait.mov"}
    assert having["variable_rate"] == {"name with spaces vfr.mov", "newtons_cradle.gif"}
    assert having["one_frame"] == {"tiny_av1_aac.mp4", "tiny_h264_flac.mkv", "tiny_hevc_opus.mkv", "tiny_mpeg4_mp3.avi"}
    assert having["odd_size"] >= {"pattern_odd_321x241_yuv444.mp4", "bear_vp9_odd_161x121.webm", "one_pixel.mp4"}
    assert "rectangular_pixels.mp4" in having["pixel_aspect"]
    assert having["duration"] == having["lost_frames"] == having["segment"] == set()
    phone = found["phone_portrait.mov"]
    assert (phone.frames, phone.codec, phone.rotation, phone.height > phone.width) == (62, "h264", -90, True)  # type: ignore[operator]
    assert found["pattern_av1.mkv"].codec == "av1", "the codec's name, not the decoder's"


@pytest.mark.slow
def test_what_passes_training_reads_and_the_manifest_says_the_same(shared) -> None:
    root = shared("data")
    with (root / "manifest.csv").open(newline="") as file:
        said = {row["file"]: row for row in csv.DictReader(file)}
    table = open_table(root, labels="none")
    items = check_table(table, Check(timeout=PATIENT), workers=2)
    assert len(items) > 1900
    assert {item.key for item in items if item.bad} == {key for key, row in said.items() if row["corrupt"]} | {"clips/audio_only.mp4"}
    settings = DataSettings(frames=3, stride=5, size=16, workers=0, decode_timeout=PATIENT)
    reader, draws = ItemReader(table, settings, "pyav"), TrainDraws(settings, CounterDraw(0, torch.arange(1)))
    for row, item in enumerate(items):
        if item.frames is not None:
            assert item.frames == int(said[item.key]["frames"]), item
        if not item.bad:
            assert sorted((item.width, item.height)) == sorted((int(said[item.key]["width"]), int(said[item.key]["height"]))), item  # type: ignore[type-var]
            assert item.has_audio == bool(said[item.key]["audio_codec"]), item
            assert reader.clips(row, draws.plan([0])).data.shape == (1, 3, 16, 16, 3), item


def test_what_is_odd(make_video: Callable[..., Path], tmp_path: Path) -> None:
    make_video(tmp_path / "plain.mp4", 20, sound=True)
    make_video(tmp_path / "short.mp4", 9)
    make_video(tmp_path / "one.mp4", 1)
    make_video(tmp_path / "variable.mkv", 8, times=[0.0, 0.1, 0.15, 0.9, 1.0, 2.5, 2.6, 2.7])
    make_video(tmp_path / "dropped.mkv", 30, times=[i / 10 for i in range(31) if i != 12])
    make_video(tmp_path / "odd.mp4", 12, h=47, w=63, codec="mpeg4", pix_fmt="yuv420p")
    make_video(tmp_path / "rare.mp4", 320, h=16, w=16, gop=1000, options={"crf": "20", "sc_threshold": "0"})
    found = look(tmp_path, frames=10)
    assert [key for key, item in found.items() if item.bad] == []
    assert {key: codes(item) for key, item in found.items()} == {
        "plain.mp4": [],
        "short.mp4": ["few_frames"],
        "one.mp4": ["one_frame"],
        "variable.mkv": ["few_frames", "variable_rate"],
        "dropped.mkv": [],
        "odd.mp4": ["odd_size"],
        "rare.mp4": ["slow"],
    }
    plain = found["plain.mp4"]
    assert (plain.frames, plain.fps, plain.seconds, plain.height, plain.width) == (20, 10.0, pytest.approx(2.0), 48, 64)
    assert (plain.codec, plain.has_audio, found["short.mp4"].has_audio) == ("h264", True, False)
    assert plain.file_bytes == (tmp_path / "plain.mp4").stat().st_size
    assert look(tmp_path)["short.mp4"].warnings == ()


def test_what_is_bad(make_video: Callable[..., Path], tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", 20)
    (tmp_path / "text.mp4").write_text("not a video\n")
    (tmp_path / "empty.mkv").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    (tmp_path / "m.csv").write_text(
        "path,start,end\ngood.mp4,,\ngood.mp4,1,9\ngood.mp4,5,6\ntext.mp4,,\nempty.mkv,,\nsound.mp4,,\nlost.mp4,,\n"
    )
    found = look(tmp_path / "m.csv")
    assert {key: problem(item) for key, item in found.items()} == {
        "good.mp4": "",
        "good.mp4#1-9": "",
        "good.mp4#5-6": "unreadable",
        "text.mp4": "unreadable",
        "empty.mkv": "unreadable",
        "sound.mp4": "sound_only",
        "lost.mp4": "unreadable",
    }
    reasons = {key: item.problem.text for key, item in found.items() if item.problem is not None}
    assert reasons["text.mp4"] == "holds text, not a video"
    assert reasons["lost.mp4"] == "no such file"
    assert reasons["good.mp4#5-6"].startswith("no frame between 5 s and 6 s")
    assert codes(found["good.mp4#1-9"]) == ["segment"]
    assert found["good.mp4#1-9"].frames == 10
    with pytest.raises(DataError, match=r"1 files do not exist: .*line 8: .*lost\.mp4"):
        open_table(tmp_path / "m.csv")
    assert good.exists()


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
def test_a_missing_tail_is_found(make_video: Callable[..., Path], tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    whole = make_video(tmp_path / "whole" / name, 60, codec=codec)
    if name.endswith("mp4"):
        whole = faststart(whole, tmp_path / "whole" / "fast.mp4")
    data = whole.read_bytes()
    (tmp_path / "cut").mkdir()
    for share in (0.6, 0.98):
        (tmp_path / "cut" / f"{share}{whole.suffix}").write_bytes(data[: int(share * len(data))])
    assert not any(item.bad for item in look(whole).values())
    for item in look(tmp_path / "cut").values():
        assert problem(item) == "damaged", item
        assert "the file is cut off: " in item.problem.text  # type: ignore[union-attr]
        assert item.frames is not None
        assert 0 < item.frames <= 60


def test_a_tail_of_zeros_is_found_and_segments_before_it_are_good(make_video: Callable[..., Path], tmp_path: Path) -> None:
    whole = faststart(make_video(tmp_path / "a.mp4", 60, gop=6), tmp_path / "b.mp4")
    data = bytearray(whole.read_bytes())
    data[-len(data) // 4 :] = bytes(len(data[-len(data) // 4 :]))
    (tmp_path / "c.mp4").write_bytes(data)
    (tmp_path / "m.csv").write_text("path,start,end\nc.mp4,,\nc.mp4,0,1\nc.mp4,2,\n")
    found = look(tmp_path / "m.csv")
    assert {key: problem(item) for key, item in found.items()} == {"c.mp4": "damaged", "c.mp4#0-1": "", "c.mp4#2-": "damaged"}
    assert "of 60 frames" in found["c.mp4"].problem.text  # type: ignore[union-attr]


def test_a_wrong_duration_is_odd_and_not_bad(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", 20)
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88")  # the Duration element, a float64 in milliseconds
    path.write_bytes(data[: at + 3] + struct.pack(">d", 9000.0) + data[at + 11 :])
    item = look(path)["v.mkv"]
    assert (problem(item), codes(item)) == ("", ["duration"])
    assert "the header says 9.00 s, the frames end at 2.00 s" in item.warnings[0].text


def test_a_recording_that_does_not_begin_with_a_key_frame_is_odd_and_not_bad(make_video: Callable[..., Path], tmp_path: Path) -> None:
    data = make_video(tmp_path / "whole.ts", 60, codec="mpeg2video", gop=15, options={"qscale": "2"}).read_bytes()
    packets = len(data) // 188
    (tmp_path / "late.ts").write_bytes(data[: 188 * 3] + data[188 * (packets // 3) :])
    item = look(tmp_path / "late.ts")["late.ts"]
    assert (problem(item), item.frames is not None and item.frames < 60) == ("", True)


def test_a_large_file_whose_header_counts_too_many_frames_is_not_bad(make_video: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tubelet.data.decode.SCAN_LIMIT", 0)
    path = make_video(tmp_path / "v.mkv", 40, times=[*(i / 20 for i in range(39)), 2.2])
    decoded = []
    monkeypatch.setattr("tubelet.data.decode.PyavReader._decode_all", lambda self: decoded.append(self))
    item = look(path)["v.mkv"]
    assert (problem(item), decoded) == ("", [])


def test_pictures_and_folders_of_frames(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    for i in range(5):
        Image.new("RGB", (20, 11), (i, 0, 0)).save(tmp_path / "s1" / f"{i}.png")
    (tmp_path / "s2").mkdir()
    (tmp_path / "s2" / "0.jpg").write_bytes(b"\xff\xd8 broken")
    found = look(tmp_path, images="frames", frames=8)
    assert (found["s1"].frames, found["s1"].height, found["s1"].width, found["s1"].codec) == (5, 11, 20, "pictures")
    assert codes(found["s1"]) == ["few_frames", "odd_size"]
    assert problem(found["s2"]) == "unreadable"
    found = look(tmp_path, images="items", frames=8)
    assert [problem(item) for item in found.values()] == [""] * 5 + ["unreadable"]
    assert (codes(found["s1/0.png"]), found["s1/0.png"].codec, found["s1/0.png"].seconds) == (["odd_size"], "png", None)


def test_urls_in_processes_of_their_own(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", 12)
    (tmp_path / "x.mp4").write_text("text")
    table = open_table([f"file://{path}", f"file://{tmp_path}/x.mp4"], labels="none")
    found = check_table(table, Check(timeout=PATIENT), workers=1)
    assert [(item.key, item.frames, problem(item)) for item in found] == [("v.mp4", 12, ""), ("x.mp4", None, "unreadable")]


def test_a_url_without_processes(make_video: Callable[..., Path], tmp_path: Path) -> None:
    data = make_video(tmp_path / "v.mp4", 12).read_bytes()
    fsspec.filesystem("memory").pipe_file("/check/v.mp4", data)
    assert look("memory://check")["v.mp4"].frames == 12


def test_whatever_an_item_does_to_its_process_the_others_are_checked(make_video: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "crash", "hang", "odd", "z"):
        make_video(tmp_path / f"{name}.mp4", 8, h=16, w=16)
    opened = checking.open_item

    def treacherous(item, **more):
        if item.key == "crash.mp4":
            os.kill(os.getpid(), signal.SIGKILL)
        if item.key == "hang.mp4":
            time.sleep(600)
        if item.key == "odd.mp4":
            raise RuntimeError("nobody thought of this")
        return opened(item, **more)

    monkeypatch.setattr(checking, "open_item", treacherous)
    monkeypatch.setattr(checking, "run_guarded", lambda *args, limit, **more: run_guarded(*args, limit=4.0, **more))
    seen = []
    table = open_table(tmp_path, labels="none")
    items = check_table(table, Check(timeout=PATIENT), workers=2, progress=lambda done, total: seen.append((done, total)))
    assert [problem(item) for item in items] == ["", "crash", "timeout", "crash", ""]
    assert "SIGKILL" in items[1].problem.text  # type: ignore[union-attr]
    assert items[3].problem.text == "unexpected RuntimeError while it is read: nobody thought of this"  # type: ignore[union-attr]
    assert seen == [(i, 5) for i in range(1, 6)]


def _answer(number: int) -> int:
    if number == 3:
        os._exit(7)
    return number * number


def test_guarded_answers_come_for_every_number() -> None:
    for workers in (1, 3):
        got = dict(run_guarded(_answer, range(8), workers=workers, limit=PATIENT))
        assert sorted(got) == list(range(8))
        assert got.pop(3) == Lost(False, "the process that read it died with exit code 7: the decoder crashed on it, or memory ran out")
        assert got == {n: n * n for n in got}
    assert list(run_guarded(_answer, [], workers=2, limit=1)) == []


def test_a_guarded_run_that_is_left_ends_its_processes() -> None:
    run = run_guarded(_pid, range(50), workers=2, limit=PATIENT)
    pids = {pid for _, pid in (next(run) for _ in range(6)) if isinstance(pid, int)}
    assert pids
    run.close()  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _pid(_: int) -> int:
    return os.getpid()


def test_duplicates_have_the_same_size_and_content(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
    (tmp_path / "a").write_bytes(data)
    shutil.copy(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "d").write_bytes(b"small")
    (tmp_path / "e").write_bytes(b"small")
    (tmp_path / "f").write_bytes(b"smale")
    items = [Checked(name, str(tmp_path / name), "video", file_bytes=(tmp_path / name).stat().st_size) for name in "abcdef"]
    items.append(Checked("a#0-1", str(tmp_path / "a"), "video", file_bytes=len(data)))
    assert duplicates(items) == [["a", "b"], ["d", "e"]]


def test_missing_bytes_are_counted_from_the_structure(tmp_path: Path) -> None:
    def box(name: bytes, size: int, kept: int | None = None) -> bytes:
        return struct.pack(">I4s", size, name) + bytes((size if kept is None else kept) - 8)

    ftyp, huge = box(b"ftyp", 24), struct.pack(">I4sQ", 1, b"mdat", 5000) + bytes(84)
    segment, void = b"\x18\x53\x80\x67\x10\x00\x03\xe8", b"\xec\x84" + bytes(4)
    ebml = b"\x1a\x45\xdf\xa3\x84" + bytes(4) + void
    unknown = b"\x18\x53\x80\x67\x01" + b"\xff" * 7
    cases: list[tuple[bytes, int]] = [
        (ftyp + box(b"mdat", 1000), 0),
        (ftyp + box(b"mdat", 1000, 400), 600),
        (ftyp + huge, 4900),
        (ftyp + struct.pack(">I4s", 0, b"mdat") + bytes(50), 0),
        (ftyp + box(b"moov", 80) + box(b"free", 1000, 400), 0),
        (ftyp + box(b"mdat", 80) + b"something else follows", 0),
        (ebml + segment + bytes(1000), 0),
        (ebml + segment + bytes(300), 700),
        (ebml + unknown + bytes(300), 0),
        (b"RIFF" + struct.pack("<I", 1004) + b"AVI " + bytes(1000), 0),
        (b"RIFF" + struct.pack("<I", 1004) + b"AVI " + bytes(200), 800),
        (b"RIFF" + struct.pack("<I", 0) + b"AVI " + bytes(200), 0),
        (b"RIFF" + struct.pack("<I", 104) + b"AVI " + bytes(100) + b"RIFF" + struct.pack("<I", 500) + b"AVIX" + bytes(96), 400),
        (b"\x00\x00\x01\xba anything", 0),
        (b"", 0),
    ]
    for i, (data, missing) in enumerate(cases):
        (tmp_path / "f").write_bytes(data)
        assert missing_bytes(str(tmp_path / "f")) == missing, i


def test_figures_in_words() -> None:
    assert [count(1, "frame"), count(2000, "frame")] == ["1 frame", "2,000 frames"]
    assert [size_of(n) for n in (0, 999, 9_410, 23_005_951, 1.2e12)] == ["0 bytes", "999 bytes", "9.4 kB", "23 MB", "1,200 GB"]
