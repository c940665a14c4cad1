"""Captions: which frames are asked, the manifest that comes out, and going on after a stop."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

import tubelet
from tubelet.data.source import open_table
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.playground import write


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("videos")
    write(home / "world", clips=6, scene="easy", size=32)
    folders = home / "folders"
    for i in range(6):
        place = folders / ("train" if i < 4 else "test") / ("left" if i % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.mp4").write_bytes((home / "world" / "clips" / f"{i:06d}.mp4").read_bytes())
    return home


def grey(pictures: Sequence[np.ndarray]) -> list[str]:
    return [f"grey {picture.mean():.3f}" for picture in pictures]


@pytest.mark.parametrize("what", ["world/manifest.csv", "folders"])
def test_the_manifest_takes_the_place_of_its_sources(videos: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "captioned.csv"
    result = tubelet.caption(videos / what, model=grey, out=out)
    assert re.match(r"6 / 6 videos captioned; [\d.]+ captions a second\n  \S+: \"grey", str(result))
    assert (result.new, result.n_asked, result.n_total, result.failures, str(result).count("\n")) == (6, 18, 6, (), 3)
    before, after = open_table(videos / what), open_table(out)
    assert before.fingerprint() == after.fingerprint()
    said = [json.loads(text) for text in after.extra["caption"]]
    assert all(1 <= len(texts) <= 3 for texts in said)
    assert len({text for texts in said for text in texts}) > 6
    if what == "folders":
        assert len(open_table(out, split="test")) == 2 == len(open_table(videos / what, split="test"))
    assert not list(tmp_path.glob(".*"))


def test_a_stopped_call_goes_on(videos: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "c.csv", []

    def breaks(pictures: Sequence[np.ndarray]) -> list[str]:
        asked.append(len(pictures))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return grey(pictures)

    with pytest.raises(KeyboardInterrupt):
        tubelet.caption(videos / "folders", model=breaks, out=out, batch=3)
    journal = tmp_path / ".c.csv.part.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"key": "cut off')
    assert not out.exists()
    with pytest.raises(ConfigError, match=r"was stopped, with frames = 3: say the same to go on \(3 videos are done\), --overwrite"):
        tubelet.caption(videos / "folders", model=grey, out=out, frames=2)
    result = tubelet.caption(videos / "folders", model=grey, out=out)
    assert (result.new, len(result.captions)) == (3, 6)
    whole = tubelet.caption(videos / "folders", model=grey, out=tmp_path / "d.csv")
    assert whole.captions == result.captions
    with pytest.raises(ConfigError, match="exists; give another name, or --overwrite"):
        tubelet.caption(videos / "folders", model=grey, out=out)
    assert tubelet.caption(videos / "folders", model=grey, out=out, overwrite=True).new == 6


def test_what_cannot_be_read_is_listed_and_stays_in_the_manifest(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.mp4").write_bytes((videos / "world" / "clips" / "000000.mp4").read_bytes())
    (folder / "text.mp4").write_text("no video")
    result = tubelet.caption(folder, model=grey, out=tmp_path / "c.csv")
    assert [key for key, _ in result.failures] == ["text.mp4"]
    assert open_table(tmp_path / "c.csv").extra["caption"][1] == ""
    (folder / "good.mp4").unlink()
    with pytest.raises(DataError, match="none of the 1 videos can be read"):
        tubelet.caption(folder, model=grey, out=tmp_path / "d.csv")


def test_empty_and_repeated_sentences_are_dropped(videos: Path, tmp_path: Path) -> None:
    said = iter([["a dog", " ", "a dog "], *[[""] * 3] * 5])
    result = tubelet.caption(videos / "folders", model=lambda pictures: next(said), out=tmp_path / "c.csv", batch=3)
    assert sorted(map(len, result.captions.values())) == [0, 0, 0, 0, 0, 1]
    assert "5 of them without words" in str(result)


@pytest.mark.parametrize(("settings", "said"), [({"frames": 0}, "frames must be at least 1"), ({"out": "c.json"}, "as a manifest, a .csv")])
def test_mistakes_are_said(videos: Path, tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tubelet.caption(videos, **({"model": grey, "out": tmp_path / "c.csv"} | settings))  # type: ignore[arg-type]


def test_the_sentences_are_of_frames_at_equal_distances(tmp_path: Path) -> None:
    staircase(tmp_path / "videos" / "a.mp4", frames=30)
    staircase(tmp_path / "videos" / "b.mp4", frames=2)
    result = tubelet.caption(tmp_path / "videos", model=step_of, out=tmp_path / "c.csv", batch=4)
    assert result.captions == {"a.mp4": ("frame 5", "frame 15", "frame 25"), "b.mp4": ("frame 0", "frame 1")}
    (tmp_path / "m.csv").write_text("path,start,end\nvideos/a.mp4,1,2\nvideos/a.mp4,2,\n")
    parts = tubelet.caption(tmp_path / "m.csv", model=step_of, out=tmp_path / "d.csv", frames=2, workers=0)
    assert list(parts.captions.values()) == [("frame 12", "frame 17"), ("frame 22", "frame 27")]
    assert open_table(tmp_path / "d.csv").fingerprint() == open_table(tmp_path / "m.csv").fingerprint()


def staircase(path: Path, *, frames: int) -> None:
    """A video, 10 frames a second, whose frame i has the grey 8 i everywhere."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p"
        for i in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), 8 * i, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))


def step_of(pictures: Sequence[np.ndarray]) -> list[str]:
    assert all(p.shape == (32, 48, 3) and p.dtype == np.uint8 for p in pictures)
    return [f"frame {round(float(p.mean()) / 8)}" for p in pictures]


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_paths_are_relative_where_the_videos_lie_below_the_manifest(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(videos / "folders" / "test", folder / "clips")
    assert not tubelet.caption(folder, model=grey, out=folder / "c.csv").failures
    assert read(folder / "c.csv")[0]["path"] == "clips/left/5.mp4"
    tubelet.caption(folder, model=grey, out=tmp_path / "other" / "c.csv")
    assert read(tmp_path / "other" / "c.csv")[0]["path"] == str(folder / "clips/left/5.mp4")
    tubelet.caption(videos / "world" / "manifest.csv", model=grey, out=tmp_path / "far" / "c.csv")
    assert all(Path(row["truth"]).is_file() and Path(row["truth"]).is_absolute() for row in read(tmp_path / "far" / "c.csv"))
    moved = folder.rename(tmp_path / "moved")
    assert open_table(moved / "c.csv").fingerprint() == open_table(moved).fingerprint()


def test_one_split_is_captioned_and_then_the_other(videos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    first = tubelet.caption(videos / "folders", model=grey, out=one, split="train")
    assert (first.n_total, sum(bool(row["caption"]) for row in read(one))) == (4, 4)
    assert open_table(one, split="train").fingerprint() == open_table(videos / "folders", split="train").fingerprint()
    assert open_table(one).fingerprint() == open_table(videos / "folders").fingerprint()
    tubelet.caption(one, model=grey, out=two, split="test")
    both = tubelet.caption(videos / "folders", model=grey, out=tmp_path / "both.csv")
    assert {row["key"]: tuple(json.loads(row["caption"])) for row in read(two)} == both.captions


def test_other_columns_and_names_of_columns_are_kept(videos: Path, tmp_path: Path) -> None:
    clips = videos / "world" / "clips"
    (tmp_path / "m.csv").write_text(
        "video,action,subset,text,note,t_start,t_end\n"
        f'{clips}/000000.mp4,run,train,"a, dog",x,,0.5\n{clips}/000001.mp4,sit,val,,y,0.125,\n{clips}/000002.mp4,sit,test,,"z ""q""",,\n'
    )
    tubelet.caption(tmp_path / "m.csv", model=grey, out=tmp_path / "c.csv")
    before, after = open_table(tmp_path / "m.csv"), open_table(tmp_path / "c.csv")
    assert before.fingerprint() == after.fingerprint()
    assert list(after.extra["note"]) == ["x", "y", 'z "q"']
    assert list(after.extra["caption_before"]) == ["a, dog", "", ""]
    for split in ("train", "val", "test"):
        assert list(open_table(tmp_path / "c.csv", split=split).keys) == list(open_table(tmp_path / "m.csv", split=split).keys)


def test_labels_that_are_missing_are_no_obstacle(videos: Path, tmp_path: Path) -> None:
    clips = videos / "world" / "clips"
    (tmp_path / "m.csv").write_text(f"path,class\n{clips}/000000.mp4,run\n{clips}/000001.mp4,\n")
    result = tubelet.caption(tmp_path / "m.csv", model=grey, out=tmp_path / "c.csv")
    assert "1 of 2 rows have no label" in result.notes[-1]
    assert [row["class"] for row in read(tmp_path / "c.csv")] == ["run", ""]
    with pytest.raises(DataError, match="1 of 2 rows have no label"):
        open_table(tmp_path / "c.csv")


def test_several_sources_with_the_same_names(videos: Path, tmp_path: Path) -> None:
    sources = [videos / "folders" / "train", videos / "folders" / "test", videos / "world" / "manifest.csv"]
    shutil.copytree(sources[1], tmp_path / "more" / "test")
    sources.append(tmp_path / "more" / "test")
    tubelet.caption(sources, model=grey, out=tmp_path / "c.csv")
    before, after = open_table(sources), open_table(tmp_path / "c.csv")
    assert before.fingerprint() == after.fingerprint()
    assert before.keys[0].startswith("0-train/")


def test_a_prepared_set_stays_one(videos: Path, tmp_path: Path) -> None:
    tubelet.prepare(videos / "world" / "manifest.csv", out=tmp_path / "set", workers=1)
    tubelet.caption(tmp_path / "set", model=grey, out=tmp_path / "c.csv")
    before, after = open_table(tmp_path / "set"), open_table(tmp_path / "c.csv")
    assert before.fingerprint() == after.fingerprint()
    assert [before.item(i) for i in range(6)] == [after.item(i) for i in range(6)]
    assert read(tmp_path / "c.csv")[0]["path"] == "set#0"
    assert tubelet.check(tmp_path / "c.csv", workers=0).n_bad == 0


def test_preparing_takes_captions_along(videos: Path, tmp_path: Path) -> None:
    tubelet.caption(videos / "folders", model=grey, out=tmp_path / "c.csv")
    tubelet.prepare(tmp_path / "c.csv", out=tmp_path / "set", workers=1)
    before, after = open_table(tmp_path / "c.csv"), open_table(tmp_path / "set")
    assert before.fingerprint() == after.fingerprint() == open_table(videos / "folders").fingerprint()
    assert list(before.extra["caption"]) == list(after.extra["caption"])
    assert len(open_table(tmp_path / "set", split="test")) == 2


def test_names_that_no_manifest_can_hold_are_told_before_the_work(videos: Path, tmp_path: Path) -> None:
    def never(pictures: Sequence[np.ndarray]) -> list[str]:
        raise AssertionError("asked")

    clip = videos / "world" / "clips" / "000000.mp4"
    for i, (name, told) in enumerate({os.fsdecode(b"\xff.mp4"): "is not UTF-8 text", " blank.mp4": "blanks at its ends"}.items()):
        (tmp_path / str(i)).mkdir()
        shutil.copy(clip, tmp_path / str(i) / name)
        with pytest.raises(DataError, match=told):
            tubelet.caption(tmp_path / str(i), model=never, out=tmp_path / "c.csv")
    assert not list(tmp_path.glob("*.csv*"))
    (tmp_path / "ok").mkdir()
    for name in ("a,b.mp4", 'c"d".mp4', "e\nf.mp4", "g#1-2.mp4", "größe.mp4"):
        shutil.copy(clip, tmp_path / "ok" / name)
    result = tubelet.caption(tmp_path / "ok", model=grey, out=tmp_path / "c.csv")
    assert open_table(tmp_path / "c.csv").fingerprint() == open_table(tmp_path / "ok").fingerprint()
    assert "\\nf.mp4" in str(result) or len(result.captions) == 5


def test_a_full_disk_is_one_error_and_what_was_done_stays(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, left = tmp_path / "c.csv", os.fsync, [3]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(CheckpointError, match=r"cannot write .*part\.jsonl: the disk is full \(.* MiB free\); 2 videos are done: run the"):
        tubelet.caption(videos / "folders", model=grey, out=out, batch=3)
    left[0] = 3  # enough for the other videos, not for the manifest
    with pytest.raises(CheckpointError, match=r"cannot write .*c\.csv: the disk is full"):
        tubelet.caption(videos / "folders", model=grey, out=out, batch=3)
    assert not out.exists()
    monkeypatch.undo()
    result = tubelet.caption(videos / "folders", model=lambda pictures: ["other"] * len(pictures), out=out)
    assert (result.new, len(result.captions)) == (0, 6)
    assert not any("other" in texts for texts in result.captions.values())


def test_a_journal_of_another_model_is_refused_or_begun_anew(videos: Path, tmp_path: Path) -> None:
    class Model:
        def __init__(self, sha256: str) -> None:
            self.sha256 = sha256

        def __call__(self, pictures: Sequence[np.ndarray]) -> list[str]:
            if self.sha256 == "stops":
                raise KeyboardInterrupt
            return [f"of {self.sha256}"] * len(pictures)

    out = tmp_path / "c.csv"
    with pytest.raises(KeyboardInterrupt):
        tubelet.caption(videos / "folders", model=Model("stops"), out=out)
    with pytest.raises(ConfigError, match="was stopped, with another model: say the same"):
        tubelet.caption(videos / "folders", model=Model("b"), out=out)
    with pytest.raises(ConfigError, match="was stopped, with other sources: say the same"):
        tubelet.caption(videos / "folders" / "test", model=Model("stops"), out=out)
    assert tubelet.caption(videos / "folders", model=Model("b"), out=out, overwrite=True).new == 6
    journal = tmp_path / ".d.csv.part.jsonl"
    journal.write_text("[1]\n{}\n")
    with pytest.raises(CheckpointError, match="is damaged; remove it"):
        tubelet.caption(videos / "folders", model=Model("b"), out=tmp_path / "d.csv")
    assert tubelet.caption(videos / "folders", model=Model("b"), out=tmp_path / "d.csv", overwrite=True).new == 6


def test_a_model_that_says_too_little_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="said 1 sentences of 8 pictures"):
        tubelet.caption(videos / "folders", model=lambda pictures: ["one"], out=tmp_path / "c.csv")
    with pytest.raises(ConfigError, match="a function gets the pictures alone"):
        tubelet.caption(videos / "folders", model=grey, out=tmp_path / "c.csv", prompt="a")
