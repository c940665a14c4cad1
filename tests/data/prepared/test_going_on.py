"""A set that is continued, shared or begun at the same moment: never two writers, never frames of two versions of a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tubelet
from tubelet.data.guarded import Lost, run_guarded
from tubelet.data.prepared import make
from tubelet.data.prepared.encode import Answer, encode_task
from tubelet.data.prepared.journal import Shards
from tubelet.data.prepared.make import Job, Part
from tubelet.data.prepared.options import PrepareSettings
from tubelet.data.prepared.plan import origins_of
from tubelet.data.prepared.side import read_side
from tubelet.data.source import open_table
from tubelet.errors import DataError

SMALL = ["piece_seconds=1", "gop=4", "preset=ultrafast", "crf=10"]
HOLD = """
import sys
from pathlib import Path
from tubelet.data.prepared.alone import alone
with alone(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def contents(out: Path) -> set[tuple[str, str]]:
    return {(line["key"], line["sha256"]) for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    for i, name in enumerate("ab"):
        make_video(tmp_path / "videos" / f"{name}.mp4", 35, shade=100 * i)
    return tmp_path / "videos"


def test_a_set_has_one_writer(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out / "work/part-1.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match="another process is preparing it; wait for it, or end it and run the same command again"):
        tubelet.prepare(videos, out, settings=SMALL, workers=1)
    assert not (out / "shards").exists()
    holder.kill()
    holder.wait()
    found = tubelet.prepare(videos, out, settings=SMALL, workers=1).made
    assert found is not None
    assert found.pieces == 8


def test_parts_may_begin_at_the_same_moment(videos: Path, tmp_path: Path) -> None:
    table, settings = open_table(videos), PrepareSettings()
    context = multiprocessing.get_context("fork")
    rounds, together, wrong = 25, context.Barrier(4), context.Queue()

    def begin(part: int) -> None:
        for i in range(rounds):
            together.wait(30)
            try:
                Job(table, tmp_path / f"out-{i}", settings, Part(part, 4), 1, 30.0)._claim(2)
            except Exception as error:  # noqa: BLE001 - told to the test
                wrong.put(repr(error))
        wrong.put("done")

    processes = [context.Process(target=begin, args=(part,)) for part in range(1, 5)]
    for process in processes:
        process.start()
    told = [wrong.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert told == ["done"] * 4


def test_frames_of_two_versions_of_a_file_are_never_mixed(videos: Path, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    tubelet.prepare(videos, out, settings=SMALL, workers=1)
    before = contents(out)
    os.utime(videos / "a.mp4", (1, 1))
    tubelet.prepare(videos, out, settings=SMALL, workers=1)  # the same bytes at another time
    assert contents(out) == before
    shutil.copy(make_video(tmp_path / "other.mp4", 50), videos / "a.mp4")
    with pytest.raises(DataError, match=r"a\.mp4 changed after some of it was prepared; put the old file back, or name another folder"):
        tubelet.prepare(videos, out, settings=SMALL, workers=1)
    assert contents(out) == before


def test_the_same_keys_with_other_files_or_captions_are_another_set(videos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,caption\nvideos/a.mp4,one\nvideos/b.mp4,two\n")
    tubelet.prepare(manifest, tmp_path / "out", settings=SMALL, workers=1)
    manifest.write_text("path,caption\nvideos/a.mp4,one\nvideos/b.mp4,three\n")
    with pytest.raises(DataError, match=r"begun with another place or other columns of some videos, the first of them videos/b\.mp4"):
        tubelet.prepare(manifest, tmp_path / "out", settings=SMALL, workers=1)


def test_a_file_that_could_be_read_later_joins(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "b.mp4").read_bytes()
    (videos / "b.mp4").write_bytes(whole[:300])
    first = tubelet.prepare(videos, tmp_path / "out", settings=SMALL, workers=1).made
    (videos / "b.mp4").write_bytes(whole)
    second = tubelet.prepare(videos, tmp_path / "out", settings=SMALL, workers=1).made
    assert first is not None
    assert second is not None
    assert [key for key, _ in first.bad] == ["b.mp4"]
    assert (first.pieces, second.pieces, second.bad, second.partial) == (4, 8, (), ())


def test_a_task_whose_process_was_lost_is_tried_again(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(work, numbers, **how):
        for number, answer in run_guarded(work, numbers, **how):
            yield number, Lost(False, "memory ran out") if isinstance(answer, Answer) and number == 0 else answer

    monkeypatch.setattr(make, "run_guarded", losing)
    first = tubelet.prepare(videos, tmp_path / "out", settings=SMALL, workers=1).made
    assert first is not None
    assert first.bad == (("a.mp4", "memory ran out"),)
    monkeypatch.undo()
    second = tubelet.prepare(videos, tmp_path / "out", settings=SMALL, workers=1).made
    assert second is not None
    assert (second.pieces, second.bad, second.partial) == (8, (), ())


def test_what_a_task_had_to_tell_survives_a_kill(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first piece of a task: its guide map is not stored twice, its missing frames are not forgotten."""
    np.save(tmp_path / "a.npy", np.arange(3.0))
    (tmp_path / "m.csv").write_text(f"path,guide\nvideos/a.mp4,{tmp_path / 'a.npy'}\n")
    settings = [*SMALL, "maps=[guide]"]

    class Killed(BaseException):
        pass

    def killed(shards: Shards, piece, columns):
        if shards.pieces:
            raise Killed
        piece.about["problem"] = "frames 8 to 9 cannot be decoded"
        return add(shards, piece, columns)

    add = Shards.add
    monkeypatch.setattr(Shards, "add", killed)
    with pytest.raises(Killed):
        tubelet.prepare(tmp_path / "m.csv", tmp_path / "out", settings=settings, workers=1)
    monkeypatch.undo()
    made = tubelet.prepare(tmp_path / "m.csv", tmp_path / "out", settings=settings, workers=1).made
    assert made is not None
    assert made.partial == (("videos/a.mp4", "frames 8 to 9 cannot be decoded"),)
    sides = read_side(open_table(tmp_path / "out").paths[0], "guide")
    assert [side is not None for side in sides] == [True, False, False, False]


def test_every_shard_holds_pieces(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tubelet.prepare(videos, tmp_path / "one", settings=SMALL, workers=1)
    monkeypatch.setattr(make, "Shards", lambda out, prefix, limit: Shards(out, prefix, 1))
    made = tubelet.prepare(videos, tmp_path / "many", settings=SMALL, workers=1).made
    assert made is not None
    tars = sorted((tmp_path / "many/shards").glob("*.tar"))
    assert len(tars) == made.shards == made.pieces
    for tar in tars:
        with tarfile.open(tar) as archive:
            assert len(archive.getnames()) == 2
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_tasks_are_a_function_of_their_videos(videos: Path) -> None:
    """Encoded twice, from different places of the file, a piece has the same bytes: what a killed run and a machine beside it rely on."""
    (origin, _) = origins_of(open_table(videos))
    settings = PrepareSettings(piece_seconds=1, gop=4, preset="ultrafast")
    found = make.survey(origin, piece_seconds=1, timeout=30)
    (task,) = make.tasks_of(origin, found)
    whole = [p.video for p in encode_task(task, settings, 30).pieces]
    alone = [encode_task(make.replace(task, cuts=(cut,)), settings, 30).pieces[0].video for cut in task.cuts]
    assert whole == alone
    for wanted in (b"threads=1 ", b"mbtree=0 ", b"bframes=0 ", b"ref=1 ", b"keyint=4 ", b"scenecut=0 "):
        assert wanted in whole[0], "x264 writes its settings into the stream"
