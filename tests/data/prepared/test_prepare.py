"""Preparing: the same frames at training size, whatever the source; killed, split or starved of disk, nothing is lost or done twice."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

import tubelet
from tubelet.data.audio import read_audio
from tubelet.data.decode import read_frames
from tubelet.data.loader import VideoFeed
from tubelet.data.prepared import make, on_ray
from tubelet.data.prepared.motion import BLOCK, UNIT
from tubelet.data.prepared.plan import cut_pieces
from tubelet.data.prepared.reader import PreparedReader
from tubelet.data.prepared.side import read_side
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.transform import Box, cut
from tubelet.errors import ConfigError, DataError

SMALL = ["piece_seconds=1", "gop=4", "preset=ultrafast", "crf=10"]


def contents(out: Path) -> set[tuple[str, str]]:
    return {(line["key"], line["sha256"]) for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def made(numbered_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "set"
    tubelet.prepare(numbered_set, out, settings=SMALL, workers=2)
    return out


def test_a_prepared_set_is_its_source_read_faster(numbered_set: Path, made: Path) -> None:
    """Same fingerprint, same samples at the same seconds, pixels close."""
    raw, prepared = open_table(numbered_set), open_table(made)
    assert raw.fingerprint() == prepared.fingerprint()
    settings = DataSettings(frames=4, stride=2, size=32, workers=0)
    lists = [range(8), range(8, 16)]
    for a, b in zip(VideoFeed(raw, settings, seed=3).batches(lists), VideoFeed(prepared, settings, seed=3).batches(lists), strict=True):
        assert a.key == b.key
        one, two = a.stream("video"), b.stream("video")
        assert one.time is not None
        assert two.time is not None
        assert one.time.equal(two.time)
        assert (one.data.float() - two.data.float()).abs().mean() < 6


def test_every_frame_is_there_with_its_very_time(numbered_set: Path, made: Path, number: Callable[[np.ndarray], int]) -> None:
    table, source = open_table(made), open_table(numbered_set)
    for row in range(len(table)):
        _, times = read_frames(source.paths[row])
        with PreparedReader(table.paths[row]) as reader:
            timeline = next(reader.timelines())
            assert timeline.times.tolist() == times.tolist()
            shown = [number(picture.rgb()) for _, picture in reader.frames(timeline, range(len(times)))]
        assert shown == list(range(len(times)))


def test_shards_are_webdataset_tars_and_pieces_are_videos(made: Path) -> None:
    (tar,) = (made / "shards").glob("*.tar")
    with tarfile.open(tar) as archive:
        names = archive.getnames()
        assert [n.split(".")[0] for n in names[::2]] == [n.split(".")[0] for n in names[1::2]], "the files of a piece follow each other"
        about = json.load(archive.extractfile(names[1]))  # type: ignore[arg-type]
        assert about["items"][0]["label"] in "ab"
        with av.open(io.BytesIO(archive.extractfile(names[0]).read())) as video:  # type: ignore[union-attr]
            frames = list(video.decode(video=0))
        assert len(frames) == about["frames"]
        assert [f.key_frame for f in frames] == [i % 4 == 0 for i in range(len(frames))]


def test_pieces_are_equal_and_short() -> None:
    times = np.arange(1000) / 25
    cuts = cut_pieces(times, 0, 1000, 15.0)
    assert [b - a for a, b in cuts] == [333, 333, 334] or max(b - a for a, b in cuts) - min(b - a for a, b in cuts) <= 2
    assert cut_pieces(times, 10, 60, 15.0) == [(10, 60)]
    gaps = np.concatenate([times[:10], times[:10] + 100])
    assert [b - a for a, b in cut_pieces(gaps, 0, 20, 15.0)] == [10, 10], "no piece without frames"
    assert max(b - a for a, b in cut_pieces(np.arange(9000) / 1000, 0, 9000, 15.0)) <= 3000


def test_segments_take_what_they_need(make_video: Callable[..., Path], tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 60)
    (tmp_path / "m.csv").write_text("path,start,end,label\nv.mp4,0.5,1.0,x\nv.mp4,0.8,1.4,y\nv.mp4,4.0,5.0,x\n")
    found = tubelet.prepare(tmp_path / "m.csv", tmp_path / "out", settings=SMALL, workers=1)
    assert found.made is not None
    assert (found.made.items, found.made.origins, found.made.frames) == (3, 1, 9 + 10)
    raw, table = open_table(tmp_path / "m.csv"), open_table(tmp_path / "out")
    assert raw.fingerprint() == table.fingerprint()
    settings = DataSettings(frames=3, stride=1, size=32, workers=0)
    a, b = (next(VideoFeed(t, settings, seed=0).batches([range(3)])) for t in (raw, table))
    assert a.stream("video").time.equal(b.stream("video").time)  # type: ignore[union-attr, arg-type]


def test_sound_survives_the_cuts(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", 40, sound=True)
    tubelet.prepare(video, tmp_path / "out", settings=SMALL, workers=1)
    path = open_table(tmp_path / "out").paths[0]
    with PreparedReader(path) as reader:
        assert len(reader.pieces) == 4
    source, ours = read_audio(str(video), 0.0, 4.0), read_audio(path, 0.0, 4.0)
    inside = slice(16000 * 2 + 800, 16000 * 4 - 1600)
    error = np.abs(source[inside] - ours[inside])
    assert np.sqrt((error**2).mean()) < 0.05 * np.sqrt((source[inside] ** 2).mean()) + 0.01, "no sample is lost or moved"
    assert np.abs(ours[1000:30000]).max() < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"pix_fmt": "yuv444p"},
        {"h": 49, "w": 67, "pix_fmt": "yuv444p"},
        {"pix_fmt": "yuvj420p"},
        {"pix_fmt": "yuv420p10le"},
        {"codec": "mpeg4", "options": {"b": "4M"}},
        {"codec": "rawvideo", "pix_fmt": "bgr24"},
    ],
)
def test_other_formats_keep_their_colours(make_video: Callable[..., Path], tmp_path: Path, options: dict) -> None:
    video = make_video(tmp_path / ("v.avi" if options.get("codec") == "rawvideo" else "v.mp4"), 12, shade=200, **options)
    tubelet.prepare(video, tmp_path / "out", settings=SMALL, workers=1)
    frames, _ = read_frames(str(video))
    with PreparedReader(open_table(tmp_path / "out").paths[0]) as reader:
        ours = np.stack([p.rgb() for _, p in reader.frames(next(reader.timelines()), range(12))]).astype(float)
    h, w = ours.shape[1:3]
    assert (h, w) == (frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2), "even, and never larger than the source"
    difference = ours - frames[:, :h, :w]
    assert np.abs(difference).mean() < 12
    assert np.abs(difference.mean((0, 1, 2))).max() < 3, "no shift of matrix or range"


@pytest.mark.parametrize("name", ["keyboard_rot90.mov", "keyboard_rot270.mov", "phone_portrait.mov"])
def test_rotated_videos_come_out_upright(shared: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    video = shared(f"data/clips/{name}")
    made = tubelet.prepare(video, tmp_path / "out", settings=["preset=ultrafast", "crf=10"], size=64, workers=1).made
    assert made is not None
    assert made.bad == made.partial == ()
    (line,) = map(json.loads, (tmp_path / "out/manifest.jsonl").read_text().splitlines())
    assert line["rotation"] in (90, -90, 180)
    frames, times = read_frames(str(video))
    with PreparedReader(open_table(tmp_path / "out").paths[0]) as reader:
        timeline = next(reader.timelines())
        assert timeline.times.tolist() == times.tolist()
        ours = np.stack([p.rgb() for _, p in reader.frames(timeline, [0, len(times) - 1])])
    assert (ours.shape[1] > ours.shape[2]) == (frames.shape[1] > frames.shape[2])
    h, w = ours.shape[1:3]
    small = cut(torch.from_numpy(np.ascontiguousarray(frames[[0, -1]])), Box(0, 0, *frames.shape[1:3]), (h, w)).numpy()
    assert np.abs(ours.astype(float) - small).mean() < 6
    assert np.abs(ours[:, ::-1].astype(float) - small).mean() > 12, "the test can tell up from down"


def test_motion_vectors_follow_what_moves(tmp_path: Path) -> None:
    """A texture that moves 4 pixels a frame to the right and 2 up."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    smooth = np.kron(noise[::8, ::8], np.ones((8, 8, 1), np.uint8))
    with av.open(str(tmp_path / "v.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"bf": "0", "refs": "1", "g": "50", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for t in range(8):
            y, x = 40 + 2 * t, 100 - 4 * t
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(smooth[y : y + 96, x : x + 128]), format="rgb24")))
        out.mux(stream.encode(None))
    tubelet.prepare(tmp_path / "v.mp4", tmp_path / "out", settings=["motion=true"], size=48, workers=1)
    with tarfile.open(next((tmp_path / "out/shards").glob("*.tar"))) as archive:
        name = next(n for n in archive.getnames() if n.endswith(".motion.npz"))
        found = np.load(io.BytesIO(archive.extractfile(name).read()))  # type: ignore[union-attr]
    assert found["motion"].shape == (8, 48 // BLOCK, 64 // BLOCK, 2)
    assert found["ok"].tolist() == [False] + [True] * 7
    (read,) = read_side(open_table(tmp_path / "out").paths[0], "motion")
    assert read is not None
    assert (read["motion"] == found["motion"]).all()
    with pytest.raises(DataError, match="holds no side data 'depth'; it has motion"):
        read_side(open_table(tmp_path / "out").paths[0], "depth")
    middle = np.median(found["motion"][1:].astype(float) / UNIT, axis=(0, 1, 2))
    assert middle.tolist() == pytest.approx([2.0, -1.0], abs=0.2), "in pixels of the prepared picture, half the source's"


def test_maps_of_a_manifest_come_along(make_video: Callable[..., Path], tmp_path: Path) -> None:
    for name in "ab":
        make_video(tmp_path / f"{name}.mp4", 25)
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    (tmp_path / "m.csv").write_text("path,guide\na.mp4,a.npy\nb.mp4,nowhere.npy\n")
    made = tubelet.prepare(tmp_path / "m.csv", tmp_path / "out", settings=[*SMALL, "maps=[guide]"], workers=1).made
    assert made is not None
    assert made.partial[0][0] == "b.mp4"
    assert "guide: " in made.partial[0][1]
    first, *others = read_side(open_table(tmp_path / "out").paths[0], "guide")
    assert first is not None
    assert first["data"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert others
    assert not any(others)
    with pytest.raises(DataError, match="maps: the videos have no column 'depth'; there are guide"):
        tubelet.prepare(tmp_path / "m.csv", tmp_path / "other", settings=["maps=[depth]"], workers=1)


def test_parts_make_the_same_set_and_missing_ones_are_named(numbered_set: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    for part in ("1/3", "3/3"):
        assert tubelet.prepare(numbered_set, out, settings=SMALL, part=part, workers=1).made is None
    with pytest.raises(DataError, match="1 of 3 parts are not done: --part 2/3"):
        tubelet.merge_prepared(out)
    tubelet.prepare(numbered_set, out, settings=SMALL, part="2/3", workers=1)
    tubelet.merge_prepared(out)
    assert contents(out) == contents(made)
    assert open_table(out).fingerprint() == open_table(made).fingerprint()
    before = (made / "index/pieces.npy").read_bytes()
    tubelet.merge_prepared(made)
    assert (made / "index/pieces.npy").read_bytes() == before


def test_bad_files_are_listed_and_a_second_call_does_nothing_twice(
    numbered_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, path in enumerate(sorted(numbered_set.rglob("*.mp4"))[:3]):
        (data / f"{i}.mp4").write_bytes(path.read_bytes())
    (data / "text.mp4").write_text("hello")
    found = tubelet.prepare(data, tmp_path / "out", settings=SMALL, workers=1)
    assert found.made is not None
    assert found.made.bad == (("text.mp4", "holds text, not a video"),)
    assert "# holds text, not a video\ntext.mp4\n" in (tmp_path / "out/bad.txt").read_text()
    assert len(open_table(data, exclude=[f"@{tmp_path / 'out/bad.txt'}"])) == 3
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/shards").iterdir()}
    tubelet.prepare(data, tmp_path / "out", settings=SMALL, workers=1)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/shards").iterdir()} == before


def test_mistakes_are_told(numbered_set: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)begun with other settings.*settings\.gop: the set has 4, this call 8"):
        tubelet.prepare(numbered_set, made, settings=[*SMALL, "gop=8"])
    with pytest.raises(DataError, match=r"(?s)other settings or videos.*table\.items: the set has 8, this call 4"):
        tubelet.prepare(numbered_set / "a", made, settings=SMALL)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds other files \(mine\.txt \.\.\.\)"):
        tubelet.prepare(numbered_set, tmp_path, settings=SMALL)
    with pytest.raises(DataError, match=r"1 items are none.*is prepared already"):
        tubelet.prepare(made, tmp_path / "again", settings=SMALL, exclude=["a/*", "b/0*", "b/1*", "b/2*"])
    with pytest.raises(ConfigError) as found:
        tubelet.prepare(numbered_set, tmp_path / "x", settings=["gpo=3", "crf=99"], part="4/3", engine="rai", workers=0)  # type: ignore[arg-type]
    assert len(found.value.problems) == 5
    with pytest.raises(DataError, match="holds nothing that tubelet prepare has begun"):
        tubelet.merge_prepared(tmp_path / "nothing")


CALL = "import sys, tubelet; tubelet.prepare(sys.argv[1], sys.argv[2], settings={settings!r}, workers=1)"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on(numbered_set: Path, made: Path, tmp_path: Path, seed: int) -> None:
    """SIGKILL again and again, each time a little after a new piece or in the middle of one; then the set is that of one call."""
    out, draw = tmp_path / "set", random.Random(seed)
    command = [sys.executable, "-c", CALL.format(settings=SMALL), str(numbered_set), str(out)]
    kills = 0
    for _ in range(3):
        victim = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        journal, begun = out / "shards/00000.jsonl", time.monotonic()
        size = journal.stat().st_size if journal.exists() else 0
        while victim.poll() is None and time.monotonic() - begun < 60 and not (journal.exists() and journal.stat().st_size > size):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        victim.send_signal(signal.SIGKILL)
        kills += victim.wait() == -signal.SIGKILL
    assert kills
    if journal.exists() and not (out / "prepared.json").exists():  # as if killed between the tar and the journal, and inside a line
        with open(out / "shards/00000.tar", "ab") as tar:
            tar.write(b"half a piece")
        with open(journal, "a") as lines:
            lines.write('{"key": "half')
    subprocess.run(command, check=True)
    assert contents(out) == contents(made)
    with tarfile.open(out / "shards/00000.tar") as archive:
        assert len(archive.getnames()) == 2 * len(contents(out)), "nothing twice, nothing half"


def test_a_disk_that_fills_is_told_and_loses_nothing(
    numbered_set: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here (needs root)")
    try:
        monkeypatch.setattr(make.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))  # there was room when it began
        with pytest.raises(DataError, match="the disk is full; free some space and run the same command again, finished pieces are kept"):
            tubelet.prepare(numbered_set, small / "set", settings=SMALL, workers=1)
        monkeypatch.undo()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        tubelet.prepare(numbered_set, small / "set", settings=SMALL, workers=1)
        assert contents(small / "set") == contents(made)
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_ray_cluster_of_two_workers_makes_the_same(numbered_set: Path, made: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        tubelet.prepare(numbered_set, tmp_path / "set", settings=SMALL, engine="ray", workers=1)
    finally:
        ray.shutdown()
    assert contents(tmp_path / "set") == contents(made)


def test_ray_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'tubelet\[ray\]'"):
        next(on_ray.run_on_ray([], None, 1.0))  # type: ignore[arg-type]
