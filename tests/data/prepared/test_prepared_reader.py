"""A prepared set as a source: the same items, order and frames as its sources; any frame by its packets alone; damage is named."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from copy import copy as copy_of
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tubelet.data.audio import read_audio
from tubelet.data.check import Check, check_table
from tubelet.data.decode import PyavReader
from tubelet.data.evaluation import EvalFeed, windows
from tubelet.data.loader import VideoFeed
from tubelet.data.prepared.grouping import Grouping
from tubelet.data.prepared.handles import Handles
from tubelet.data.prepared.index import open_prepared
from tubelet.data.prepared.reader import PreparedReader
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table
from tubelet.errors import DataError, DecodeError

BASE = DataSettings(frames=4, stride=2, size=32, workers=0, decoder="pyav")


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate({**BASE.model_dump(), **changes})


@pytest.fixture(scope="module")
def pair(numbered_set: Path, prepare: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a folder of videos, the prepared set of it)."""
    return numbered_set, prepare(numbered_set, tmp_path_factory.mktemp("prepared") / "out")


@pytest.fixture
def copy(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """The prepared set, to be damaged."""
    return Path(shutil.copytree(pair[1], tmp_path / "copy"))


def test_a_prepared_set_has_the_items_of_its_source(pair: tuple[Path, Path]) -> None:
    raw, out = (open_table(p) for p in pair)
    assert out.fingerprint() == raw.fingerprint()
    assert (list(out.keys), out.classes, out.labels.tolist()) == (list(raw.keys), raw.classes, raw.labels.tolist())
    assert {out.item(i).kind for i in range(len(out))} == {"prepared"}
    assert out.item(3).path == f"{pair[1]}#3"
    assert out.notes == ()
    assert open_table(pair[1], labels="none").classes == ()
    assert open_table(pair[1], labels="folder").fingerprint() == raw.fingerprint()
    assert list(open_table(f"{pair[1]}#5").keys) == ["b/1.mp4"]
    assert open_table(f"{pair[1]}#5").classes == raw.classes
    with pytest.raises(DataError, match=r"#8: the set has no such origin"):
        open_table(f"{pair[1]}#8")
    assert open_table(pair[1], exclude=["a/*"]).fingerprint() == open_table(pair[0], exclude=["a/*"]).fingerprint()


@pytest.mark.parametrize("changes", [{}, {"clips_per_video": 3, "repeats": 2}, {"sampling": "tsn"}, {"fps": 7.0, "crop": "random_resized"}])
def test_training_sees_the_same_frames_at_the_same_places(pair: tuple[Path, Path], changes: dict[str, object]) -> None:
    feeds = [VideoFeed(open_table(p), settings(**changes), seed=5) for p in pair]
    assert feeds[0].fingerprint() == feeds[1].fingerprint()
    lists = [list(range(4)), [9, 1, 30]]
    for raw, out in zip(*(feed.batches(lists) for feed in feeds), strict=True):
        assert (raw.key, raw.sample.tolist()) == (out.key, out.sample.tolist())
        a, b = raw.stream("video"), out.stream("video")
        assert torch.equal(a.time, b.time)  # type: ignore[arg-type]  # there
        assert torch.equal(a.crop, b.crop)  # type: ignore[arg-type]
        assert (a.data.float() - b.data.float()).abs().mean() < 3


def test_smaller_frames_are_cut_where_the_source_is(
    make_video: Callable[..., Path], prepare: Callable[..., Path], tmp_path: Path, number
) -> None:
    make_video(tmp_path / "v/a.mp4", 24, h=96, w=160)
    prepare(tmp_path / "v", tmp_path / "out", size=48)
    plain = settings(crop="multiscale", size=24)
    (raw,), (out,) = (VideoFeed(open_table(tmp_path / name), plain, seed=1).batches([range(8)]) for name in ("v", "out"))
    a, b = raw.stream("video"), out.stream("video")
    assert torch.equal(a.time, b.time)  # type: ignore[arg-type]
    assert a.crop is not None
    assert b.crop is not None
    assert (a.crop - b.crop).abs().max() < 1, "from pixels of the source to those of the clip, to a pixel"
    assert (a.data.float() - b.data.float()).abs().mean() < 12
    (whole,) = VideoFeed(open_table(tmp_path / "out"), settings(crop="centre", size=(24, 40)), seed=1).batches([[0]])
    assert [number(f.permute(1, 2, 0).numpy()) for f in whole.stream("video").data[0].transpose(0, 1)] == [
        round(t * 10)
        for t in whole.stream("video").time[0].tolist()  # type: ignore[index]
    ]


def test_the_cache_holds_the_same(pair: tuple[Path, Path]) -> None:
    kept = settings(cache="memory", crop="random_resized")
    (raw,), (out,) = (VideoFeed(open_table(p), kept, seed=5).batches([range(4)]) for p in pair)
    assert torch.equal(raw.stream("video").time, out.stream("video").time)  # type: ignore[arg-type]
    assert torch.equal(raw.stream("video").crop, out.stream("video").crop)  # type: ignore[arg-type]


def _whole(out: Path, origin: int) -> list[np.ndarray]:
    """All frames of an origin, by decoding its pieces as files."""
    opened = open_prepared(str(out))
    frames = []
    first = int(opened.origins[origin]["first"])
    for piece in opened.pieces[first : first + int(opened.origins[origin]["count"])]:
        with tarfile.open(out / "shards" / opened.shards[int(piece["shard"])].name) as tar:
            member = next(m for m in tar if m.offset_data == int(piece["offset"]))
            data = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file
        with av.open(io.BytesIO(data), "r") as file:
            frames += [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    return frames


def test_any_frames_in_any_windows_are_those_of_the_pieces(pair: tuple[Path, Path]) -> None:
    whole = _whole(pair[1], 3)  # 22 frames in pieces of 11, a key frame every 4
    assert len(whole) == 22
    for index in ([0], [21], [10, 11], [9, 10, 11, 12, 13], [3, 4], [0, 7, 8, 21], [5, 6, 19], list(range(22)), list(range(1, 22, 5))):
        with PreparedReader(f"{pair[1]}#3") as reader:
            timeline = next(reader.timelines())
            got = list(reader.frames(timeline, index))
        assert [i for i, _ in got] == index
        assert all(np.array_equal(picture.rgb(), whole[i]) for i, picture in got)
    with PyavReader(str(pair[0] / "a/3.mp4")) as raw:
        assert np.array_equal(next(raw.timelines()).times, timeline.times), "the very numbers"


def test_two_readers_do_not_disturb_each_other(pair: tuple[Path, Path]) -> None:
    whole = _whole(pair[1], 3), _whole(pair[1], 7)
    one, other = PreparedReader(f"{pair[1]}#3"), PreparedReader(f"{pair[1]}#7")
    index = list(range(1, 20, 3))
    both = zip(one.frames(next(one.timelines()), index), other.frames(next(other.timelines()), index), strict=True)
    for i, (a, b) in zip(index, both, strict=True):
        assert np.array_equal(a[1].rgb(), whole[0][i])
        assert np.array_equal(b[1].rgb(), whole[1][i])


def test_only_the_needed_bytes_are_read(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: asked.append(n) or real(fd, n, at))
    with PreparedReader(f"{pair[1]}#3") as reader:
        list(reader.frames(next(reader.timelines()), [5, 6]))
        rows = reader.set.packets[reader.pieces[0].frame :][4:7]
        assert asked == [int(rows["at"][-1] - rows["at"][0] + rows["size"][-1])], "from the key frame before to the last one, in one go"


def test_forked_workers_give_the_same_batches(pair: tuple[Path, Path]) -> None:
    table = open_table(pair[1])
    lists = [range(i, i + 4) for i in range(0, 16, 4)]
    here = list(VideoFeed(table, settings(), seed=2).batches(lists))
    there = list(VideoFeed(table, settings(workers=2), seed=2).batches(lists))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.stream("video").data, b.stream("video").data)


@pytest.fixture(scope="module")
def segments(make_video: Callable[..., Path], prepare: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest with segments, splits, captions, one broken file; the prepared set of it."""
    root = tmp_path_factory.mktemp("segments")
    make_video(root / "a.mp4", 40, shade=50)
    make_video(root / "b.mp4", 30, times=[i / 10 + (i % 3) / 50 for i in range(30)], shade=90)
    (root / "bad.mp4").write_bytes(b"\0" * 3000)
    rows = [
        "a.mp4,0,1.5,run,train,one",
        "a.mp4,1.1,3.1,sit,test,two",
        "b.mp4,,2.0,run,train,three",
        "bad.mp4,,,jump,train,",
        "b.mp4,2,,sit,test,",
    ]
    (root / "m.csv").write_text("path,start,end,label,subset,caption\n" + "\n".join(rows) + "\n")
    return root / "m.csv", prepare(root / "m.csv", root / "out", seconds=1.0)


def test_segments_splits_columns_and_what_is_absent(segments: tuple[Path, Path]) -> None:
    for more in ({}, {"split": "train"}, {"split": "test"}, {"labels": "caption", "split": "train"}, {"labels": "none"}):
        if more.get("labels") == "caption":
            continue
        raw, out = open_table(segments[0], exclude=["bad.mp4"], **more), open_table(segments[1], **more)
        assert out.fingerprint() == raw.fingerprint(), more
        assert {k: list(v) for k, v in out.extra.items()} == {k: list(v) for k, v in raw.extra.items()}
    assert open_table(segments[1]).classes == ("jump", "run", "sit"), "classes are those of the whole source"
    assert any("1 items are absent because they could not be prepared" in note for note in open_table(segments[1]).notes)
    with pytest.raises(DataError, match=r"no row has split = 'tset' \(did you mean 'test'\?\)"):
        open_table(segments[1], split="tset")
    with pytest.raises(DataError, match=r"its items have no column 'captoin' for the labels \(did you mean 'caption'\?\)"):
        open_table(segments[1], labels="captoin")
    with pytest.raises(DataError, match="rows have no label"):
        open_table(segments[1], labels="caption")


def test_segments_are_read_alike(segments: tuple[Path, Path]) -> None:
    raw, out = open_table(segments[0], exclude=["bad.mp4"]), open_table(segments[1])
    for views in (Views(clips=3), Views(sampling="whole")):
        for a, b in zip(EvalFeed(raw, settings(), views=views), EvalFeed(out, settings(), views=views), strict=True):
            assert a.key == b.key
            assert torch.equal(a.stream("video").time, b.stream("video").time)  # type: ignore[arg-type]
    cut = [windows(t, seconds=0.5, settings=settings()) for t in (raw, out)]
    assert list(cut[0].keys) == list(cut[1].keys)
    assert np.array_equal(cut[0].spans, cut[1].spans)


def test_splits_of_a_folder(make_video: Callable[..., Path], prepare: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("train/run/1.mp4", "train/sit/2.mp4", "test/run/3.mp4"):
        make_video(tmp_path / "v" / name, 8)
    out = prepare(tmp_path / "v", tmp_path / "out")
    for more in ({}, {"split": "train"}, {"split": "test"}, {"split": "test", "labels": "folder"}):
        assert open_table(out, **more).fingerprint() == open_table(tmp_path / "v", **more).fingerprint(), more


def test_sound_goes_on_across_cuts(make_video: Callable[..., Path], prepare: Callable[..., Path], tmp_path: Path) -> None:
    raw = make_video(tmp_path / "v/a.mp4", 40, sound=True)
    make_video(tmp_path / "v/b.mp4", 10)
    out = prepare(tmp_path / "v", tmp_path / "out")
    for start, end in ((0.0, None), (1.0, 3.5), (2.1, 2.2), (3.9, 6.0)):
        a, b = read_audio(str(raw), start, end), read_audio(f"{out}#0", start, end)
        assert abs(len(a) - len(b)) < 2100, "aac pads the end to whole frames"
        n = min(len(a), len(b))
        loud = [np.sqrt(np.convolve(x[:n] ** 2, np.ones(400) / 400, "valid")) for x in (a, b)]
        assert np.abs(loud[0] - loud[1]).mean() < 0.02
    with pytest.raises(DecodeError, match="#1: has no audio stream"):
        read_audio(f"{out}#1")


def test_a_set_that_is_not_whole_is_refused(copy: Path) -> None:
    shard = copy / "shards/0002-00000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-700])
    with pytest.raises(DataError, match=r"0002-00000\.tar: has [\d,]+ of the [\d,]+ bytes .* cut off: copy it again"):
        open_table(copy)
    shard.write_bytes(data + b"\0" * 512)
    with pytest.raises(DataError, match="it was written to since; write the index with: tubelet prepare"):
        open_table(copy)
    shard.unlink()
    with pytest.raises(DataError, match=r"1 of its 2 shards are missing, e\.g\. shards/0002-00000\.tar"):
        open_table(copy)
    shard.write_bytes(data)
    head = json.loads((copy / "prepared.json").read_text())
    for version, text in ((2, "a newer version of Tubelet wrote it: update"), ("x", "format 'x' of prepared sets")):
        (copy / "prepared.json").write_text(json.dumps({**head, "format": version}))
        with pytest.raises(DataError, match=text):
            open_table(copy)
    (copy / "prepared.json").write_text("{")
    with pytest.raises(DataError, match="not the head of a prepared set"):
        open_table(copy)
    (copy / "prepared.json").unlink()
    with pytest.raises(DataError, match=r"a prepared set that is not finished: run the same tubelet prepare again or, .* --merge"):
        open_table(copy)
    (copy / "prepared.json").write_text(json.dumps(head))
    (copy / "index/packets.npy").unlink()
    with pytest.raises(DataError, match=r"its index lacks packets\.npy; write the index with: tubelet prepare .*copy --merge"):
        open_table(copy)


def test_an_index_that_does_not_fit_is_refused(copy: Path) -> None:
    np.save(copy / "index/times.npy", np.zeros(5))
    with pytest.raises(DataError, match=r"pieces\.npy points behind the end of times\.npy; write the index"):
        PreparedReader(f"{copy}#0")
    np.save(copy / "index/times.npy", np.zeros(500, np.float32))
    with pytest.raises(DataError, match=r"times\.npy: holds float32 \(500,\), not what this version"):
        PreparedReader(f"{copy}#0")
    (copy / "index/times.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"times\.npy: cannot be read"):
        PreparedReader(f"{copy}#0")


def _read(out: Path, origin: int) -> None:
    with PreparedReader(f"{out}#{origin}", key="a/3.mp4") as reader:
        list(reader.frames(next(reader.timelines()), range(22)))


def test_damage_is_one_clear_error(copy: Path) -> None:
    reader = PreparedReader(f"{copy}#3")
    piece = reader.pieces[1]
    row = reader.set.packets[piece.frame + 2]
    name = copy / "shards" / reader.set.shards[piece.shard].name
    data = bytearray(name.read_bytes())
    at = piece.offset + int(row["at"]) + 4
    good = bytes(data)
    data[at : at + 12] = os.urandom(12)
    name.write_bytes(data)
    where = rf"copy#3 \(a/3\.mp4\): piece 1 of 2 \(shards/{name.name} at [\d,]+\)"
    with pytest.raises(DecodeError, match=where + ": cannot be decoded"):
        _read(copy, 3)
    with PreparedReader(f"{copy}#3") as again:
        assert len(list(again.frames(next(again.timelines()), range(13)))) == 13, "what lies before the damage is there"
    os.truncate(name, piece.offset + 100)
    with pytest.raises(DecodeError, match=where + ": the shard ends after"):
        _read(copy, 3)
    name.write_bytes(good)
    pieces = np.load(copy / "index/pieces.npy")
    pieces["offset"] += 64
    np.save(copy / "index/pieces.npy", pieces)
    os.utime(copy / "prepared.json", (1, 1))
    with pytest.raises(DecodeError, match="cannot be decoded"):
        _read(copy, 3)
    with pytest.raises(DecodeError, match="the set has 8 origins"):
        PreparedReader(f"{copy}#8")


def test_check_verifies_the_pieces(copy: Path, segments: tuple[Path, Path]) -> None:
    good = check_table(open_table(copy), Check(), workers=0)
    assert [(c.kind, c.problem, c.codec, c.container, c.has_audio) for c in good] == [("prepared", None, "h264", "prepared", False)] * 8
    assert sum(c.file_bytes or 0 for c in good) == int(open_prepared(str(copy)).pieces["bytes"].sum())
    reader = PreparedReader(f"{copy}#3")
    name = copy / "shards" / reader.set.shards[reader.pieces[0].shard].name
    data = bytearray(name.read_bytes())
    data[reader.pieces[0].offset + reader.pieces[0].bytes - 3] ^= 255
    name.write_bytes(data)
    found = check_table(open_table(copy), Check(), workers=2)
    assert [c.key for c in found if c.bad] == ["a/3.mp4"]
    assert found[3].problem is not None
    assert "its bytes are not those that were written; copy the shard again" in found[3].problem.text
    segment = check_table(open_table(segments[1]), Check(), workers=0)[0]
    assert segment.frames == 15
    assert not segment.bad


def test_few_files_are_open_at_once(
    prepare: Callable[..., Path], numbered_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = prepare(numbered_set, tmp_path / "out", shards=8)
    few = Handles(most=3)
    monkeypatch.setattr("tubelet.data.prepared.index.shards", few)
    readers = [PreparedReader(f"{out}#{i}") for i in range(8)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for reader in readers * 2:
        assert len(list(reader.frames(next(reader.timelines()), range(10)))) == 10
    assert len(few) == 3
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_the_webdataset_package_reads_the_shards(pair: tuple[Path, Path]) -> None:
    wds = pytest.importorskip("webdataset")
    opened = open_prepared(str(pair[1]))
    samples = [s for shard in opened.shards for s in wds.WebDataset(str(pair[1] / "shards" / shard.name), shardshuffle=False)]
    assert len(samples) == len(opened.pieces)
    for sample in samples:
        assert json.loads(sample["json"])["key"] == sample["__key__"]
        with av.open(io.BytesIO(sample["mp4"]), "r") as file:
            assert next(iter(file.decode(video=0))).width == 64


def test_shuffle_by_shards(pair: tuple[Path, Path], segments: tuple[Path, Path]) -> None:
    raw, out = (open_table(p) for p in pair)
    of = Grouping.of(out, store=settings().store, timeout=5).shards
    assert of.tolist() == [0, 1] * 4
    feed = VideoFeed(out, settings(shuffle="shards", shuffle_shards=1), seed=3)
    batches = list(feed.batches([range(4), range(4, 8), range(8, 12)]))
    for batch in batches:
        assert len({int(of[int(i)]) for i in batch.labels["item"]}) == 1  # type: ignore[union-attr]  # a tensor
    assert sorted(k for b in batches[:2] for k in b.key) == list(out.keys)
    (again,) = VideoFeed(out, settings(shuffle="shards", shuffle_shards=1), seed=3).batches([range(8, 12)])
    assert torch.equal(again.stream("video").data, batches[2].stream("video").data), "from any sample on"
    assert feed.fingerprint() != VideoFeed(out, settings(), seed=3).fingerprint()
    assert VideoFeed(out, settings(), seed=3).fingerprint() == VideoFeed(out, settings(shuffle="items"), seed=3).fingerprint()
    behind = open_table(f"file://{pair[1]}")
    auto, asked = (VideoFeed(behind, settings(shuffle=s, cache_dir=str(pair[1] / "kept")), seed=3) for s in ("auto", "shards"))
    assert auto.fingerprint() == asked.fingerprint() == VideoFeed(out, settings(shuffle="shards"), seed=3).fingerprint()
    with pytest.raises(DataError, match=r"8 of 8 items are not of prepared sets, e\.g\. a/0\.mp4; set data\.shuffle = items"):
        VideoFeed(raw, settings(shuffle="shards"), seed=3)
    both = open_table([pair[1], segments[1]], labels="none")
    assert sorted(Grouping.of(both, store=settings().store, timeout=5).shards.tolist()) == [0] * 2 + [1] * 2 + [2] * 4 + [3] * 4


def test_a_segment_lies_in_the_shard_of_its_first_frame(pair: tuple[Path, Path]) -> None:
    opened = open_prepared(str(pair[1]))
    pieces = opened.pieces.copy()
    pieces["shard"] = np.arange(len(pieces))
    opened = copy_of(opened)
    opened.pieces = pieces
    first = int(opened.origins[3]["first"])  # its second piece begins at 1.1 s
    found = opened.first_shards(np.array([3, 3, 3, 3, 0]), np.array([np.nan, 1.0, 1.1, 9.0, 0.0]))
    assert found.tolist() == [first, first, first + 1, first + 1, 0]


def test_the_frames_of_an_origin_may_lie_anywhere_in_the_index(copy: Path, pair: tuple[Path, Path]) -> None:
    pieces, packets, times = (np.load(copy / f"index/{name}.npy") for name in ("pieces", "packets", "times"))
    order = np.arange(len(pieces))[::-1]
    blocks = [np.arange(int(p["frame"]), int(p["frame"]) + int(p["frames"])) for p in pieces]
    moved = np.concatenate([blocks[i] for i in order])
    pieces["frame"][order] = np.cumsum([0, *(len(blocks[i]) for i in order)])[:-1]
    for name, array in (("pieces", pieces), ("packets", packets[moved]), ("times", times[moved])):
        np.save(copy / f"index/{name}.npy", array)
    for origin in (3, 7):
        with PreparedReader(f"{copy}#{origin}") as there, PreparedReader(f"{pair[1]}#{origin}") as here:
            timeline = next(there.timelines())
            assert np.array_equal(timeline.times, next(here.timelines()).times)
            for (i, a), (j, b) in zip(there.frames(timeline, [10, 13, 20]), here.frames(timeline, [10, 13, 20]), strict=True):
                assert i == j
                assert np.array_equal(a.rgb(), b.rgb())
