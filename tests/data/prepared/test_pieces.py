"""What is found in sources before they are encoded: their frames, what is missing of them, and what it costs to read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tubelet
from tubelet.cli import run
from tubelet.data.decode import PyavReader, forget_timelines
from tubelet.data.prepared import make
from tubelet.data.prepared.encode import encode_task
from tubelet.data.prepared.options import PrepareSettings
from tubelet.data.prepared.plan import FROM_START, PIECES, Origin, Survey, origins_of, patience, survey, tasks_of
from tubelet.data.source import open_table
from tubelet.errors import DataError

SETTINGS = PrepareSettings(size=32, piece_seconds=1, gop=4, preset="ultrafast", crf=30)


@pytest.mark.parametrize(("name", "most"), [("v.mp4", 1.2), ("v.ts", 1.0), ("v.avi", 1.0)])
def test_every_frame_is_decoded_about_once(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: float
) -> None:
    """Also where no container leads to key frames: else an hour of AVI would be decoded more than a hundred times."""
    codec = {"codec": "mpeg4", "options": {"bf": "0"}} if name.endswith("avi") else {}
    (origin,) = origins_of(open_table(make_video(tmp_path / name, 100, gop=50, **codec)))
    found = survey(origin, piece_seconds=1, timeout=30)
    decoded, decode = 0, PyavReader._decode

    def counting(reader: PyavReader, *how: Any) -> Iterator[Any]:
        nonlocal decoded
        for frame in decode(reader, *how):
            decoded += 1
            yield frame

    with PyavReader(origin.path) as reader:
        assert [t.kind for t in reader.timelines()]  # listing an AVI decodes it, which is not counted here
    monkeypatch.setattr(PyavReader, "_decode", counting)
    answers = [encode_task(task, SETTINGS, 30) for task in tasks_of(origin, found)]
    monkeypatch.undo()
    forget_timelines()
    assert sum(p.about["frames"] for a in answers for p in a.pieces) == found.frames == 100
    assert len(found.cuts) == 10
    assert decoded <= most * 100


def test_long_files_are_parted_by_what_reading_them_costs() -> None:
    origin, cuts = Origin(0, "v", (0,), ((None, None),)), tuple((i, i + 1) for i in range(600))
    assert [len(t.cuts) for t in tasks_of(origin, Survey("packets", cuts, searchable=True))] == [PIECES] * 150
    assert [len(t.cuts) for t in tasks_of(origin, Survey("packets", cuts))] == [FROM_START, FROM_START, 600 - 2 * FROM_START]
    assert patience(120, 10 * 2**30) > 3600, "ten gigabytes are read to their end"


def test_damage_is_told_and_what_can_be_read_is_kept(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """The words of tubelet check."""
    (tmp_path / "v").mkdir()
    for name in ("corrupt_midfile.mp4", "invalid_nalu.mp4", "park_nonzero_start.mp4"):
        shutil.copy(shared(f"data/clips/{name}"), tmp_path / "v")
    made = tubelet.prepare(tmp_path / "v", tmp_path / "out", settings=["preset=ultrafast"], size=32, workers=1).made
    assert made is not None
    assert (made.items, made.bad) == (3, ())
    expected = {c.key: c.problem.text for c in tubelet.check(tmp_path / "v", workers=0).items if c.problem}
    assert dict(made.partial) == expected == {
        "corrupt_midfile.mp4": "decoding stops after 28 of 50 frames", "invalid_nalu.mp4": "decoding stops after 26 of 30 frames"
    }  # fmt: skip


def test_damage_concerns_only_the_segments_that_reach_it(shared: Callable[[str], Path], tmp_path: Path) -> None:
    video = shared("data/clips/corrupt_midfile.mp4")  # 2.8 of its 5 seconds can be read
    (tmp_path / "m.csv").write_text(f"path,start,end\n{video},0,2.5\n{video},2.6,4\n")
    made = tubelet.prepare(tmp_path / "m.csv", tmp_path / "out", settings=["preset=ultrafast"], size=32, workers=1).made
    assert made is not None
    assert [key.rpartition("#")[2] for key, _ in made.partial] == ["2.6-4"]


def test_a_segment_behind_the_end_does_not_spoil_the_others(make_video: Callable[..., Path], tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 30)
    (tmp_path / "m.csv").write_text("path,start,end\nv.mp4,0,1\nv.mp4,50,60\nv.mp4,1,2\n")
    made = tubelet.prepare(tmp_path / "m.csv", tmp_path / "out", settings=["piece_seconds=1", "preset=ultrafast"], workers=1).made
    assert made is not None
    assert (made.items, made.frames, made.partial) == (2, 20, ())
    assert made.bad == (("v.mp4#50-60", "no frame of the video lies between 50 s and 60 s"),)


def test_where_nothing_can_be_read_there_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "v" / name).write_text("no video")
    with pytest.raises(DataError, match=r"none of the 2 items could be prepared, a\.mp4 for example: holds text, not a video; .*bad\.txt"):
        tubelet.prepare(tmp_path / "v", tmp_path / "out", workers=1)
    assert len((tmp_path / "out/bad.txt").read_text().splitlines()) == 5
    assert not (tmp_path / "out/prepared.json").exists()


def test_exit_codes_tell_a_set_from_none(make_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_video(tmp_path / "good/a.mp4", 10)
    shutil.copytree(tmp_path / "good", tmp_path / "some")
    for folder in ("some", "none"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "text.mp4").write_text("no video")
    call = ["--set", "preset=ultrafast", "--workers", "1"]
    codes = [run(["prepare", str(tmp_path / v), str(tmp_path / f"{v}-out"), *call]) for v in ("good", "some", "none")]
    assert codes == [0, 1, 2]
    assert run(["prepare", str(tmp_path / "good"), str(tmp_path / "good-out"), *call, "--set", "gop=3"]) == 2, "begun with another gop"
    assert "settings.gop: the set has 16, this call 3" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_it_is_begun(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "v.mp4", 40, options={"crf": "0"})
    said: list[str] = []
    made = tubelet.prepare(video, tmp_path / "out", settings=["preset=ultrafast"], workers=1, say=said.append).made
    assert made is not None
    assert "40 frames of 1 videos in 1 pieces; 40 frames to encode, about" in said[0]
    about = float(said[0].partition("about ")[2].split()[0]) * 1e9
    assert made.bytes / 3 < about < 10 * made.bytes, "an estimate of the right order"
    monkeypatch.setattr(make.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        DataError, match=r"about .* GB are needed and 1e-06 GB are free; take a smaller size, a higher crf, or another disk"
    ):
        tubelet.prepare(video, tmp_path / "other", settings=["preset=ultrafast"], workers=1)
    assert not list((tmp_path / "other/shards").iterdir())
