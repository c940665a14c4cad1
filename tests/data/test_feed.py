"""The training feed: a pure function of sample numbers for any number of workers, batches, restarts; bad videos; caches."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from tubelet.core import Batch
from tubelet.data import cache, loader, workers
from tubelet.data.cache import estimate_bytes, kept_size
from tubelet.data.decode import read_frames
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.errors import DataError, DecodeError

BASE = DataSettings(frames=4, stride=2, size=32, workers=0, decoder="pyav")


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate({**BASE.model_dump(), **changes})


def take(feed: VideoFeed, *lists: Sequence[int]) -> list[Batch]:
    return list(feed.batches(lists))


def clips(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]]:
    out = {}
    for b in batches:
        video = b.stream("video")
        assert video.time is not None
        assert video.crop is not None
        for i, k in enumerate(b.sample.tolist()):
            out[k] = (video.data[i].clone(), video.time[i], video.crop[i], b.key[i])
    return out


def same(a: list[Batch], b: list[Batch]) -> bool:
    one, other = clips(a), clips(b)
    return one.keys() == other.keys() and all(
        all(torch.equal(x, y) for x, y in zip(one[k][:3], other[k][:3], strict=True)) and one[k][3] == other[k][3] for k in one
    )


def test_a_batch_has_the_promised_parts(numbered_set: Path, number) -> None:
    table = open_table(numbered_set)
    with VideoFeed(table, settings(crop="centre", size=(24, 32)), seed=3) as feed:
        assert len(feed) == 8
        (batch,) = take(feed, [0, 9, 4])
    video = batch.stream("video")
    assert (tuple(video.data.shape), video.data.dtype) == ((3, 3, 4, 24, 32), torch.uint8)
    assert batch.sample.tolist() == [0, 9, 4]
    items = batch.labels["item"]
    assert isinstance(items, torch.Tensor)
    assert [table.keys[int(i)] for i in items] == list(batch.key)
    assert batch.labels["class"].tolist() == table.labels[items].tolist()  # type: ignore[union-attr]  # a tensor in this batch
    assert video.time is not None
    assert video.crop is not None
    for clip, seconds, crop in zip(video.data, video.time, video.crop, strict=True):
        shown = [number(f.permute(1, 2, 0).numpy()) for f in clip.transpose(0, 1)]
        assert seconds.tolist() == pytest.approx([n / 10 for n in shown]), "the time of a frame is the time of the frame that is shown"
        assert np.diff(shown).tolist() == [2, 2, 2]
        assert crop.tolist() == [[0.5, 0, 0], [0, 0.5, 0]]


def test_same_batches_for_any_workers_split_and_restart(numbered_set: Path) -> None:
    table = open_table(numbered_set)
    reference = take(VideoFeed(table, settings(clips_per_video=2), seed=5), range(32))
    for n in (0, 2):
        with VideoFeed(table, settings(clips_per_video=2, workers=n), seed=5) as feed:
            assert same(take(feed, *(range(i, i + 4) for i in range(0, 32, 4))), reference), f"{n} workers"
            assert same(take(feed, range(7), range(7, 8), range(8, 32)), reference), "a visit cut by a batch's end"
    with VideoFeed(table, settings(clips_per_video=2), seed=5) as restarted:
        assert same(take(restarted, range(20, 32)), take(VideoFeed(table, settings(clips_per_video=2), seed=5), range(20, 32)))
        late = clips(take(restarted, range(20, 32)))
    assert all(torch.equal(late[k][0], clips(reference)[k][0]) for k in late)
    assert not same(take(VideoFeed(table, settings(clips_per_video=2), seed=6), range(32)), reference)


def test_workers_started_by_spawn_give_the_same(numbered_set: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in numbered_set.rglob("*.mp4"):
        fs.pipe_file(f"/spawned/{path.parent.name}/{path.name}", path.read_bytes())
    local, remote = open_table(numbered_set), open_table("memory://spawned")
    assert local.fingerprint() == remote.fingerprint()
    assert same(take(VideoFeed(local, BASE, seed=5), range(16)), take(VideoFeed(remote, BASE, seed=5), range(16)))
    feed = VideoFeed(local, settings(workers=1), seed=5)
    feed._remote = True  # the memory file system is not shared with spawned processes, so spawn on local files
    assert same(take(feed, range(8)), take(VideoFeed(local, BASE, seed=5), range(8)))


def test_a_visit_decodes_each_frame_once(numbered_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = loader.open_item
    monkeypatch.setattr(loader, "open_item", lambda item, **kw: opened.append(item.key) or original(item, **kw))
    with VideoFeed(open_table(numbered_set), settings(clips_per_video=4), seed=1) as feed:
        (batch,) = take(feed, range(8))
    assert len(opened) == 2
    assert len(set(batch.key[:4])) == len(set(batch.key[4:])) == 1
    assert len({c.data_ptr() for c in batch.stream("video").data}) == 8
    assert not torch.equal(batch.stream("video").data[0], batch.stream("video").data[1]), "the clips of a visit are drawn apart"


@pytest.mark.parametrize("sampling", ["dense", "tsn", "whole"])
@pytest.mark.parametrize("crop", ["random_resized", "multiscale"])
def test_all_kinds_of_sampling_and_crop(numbered_set: Path, sampling: str, crop: str) -> None:
    feed = VideoFeed(open_table(numbered_set), settings(sampling=sampling, crop=crop, frames=6), seed=1)
    (batch,) = take(feed, range(8))
    assert batch.stream("video").data.shape == (8, 3, 6, 32, 32)
    time_ = batch.stream("video").time
    assert time_ is not None
    assert (time_.diff(dim=1) >= 0).all()


def test_target_rate_takes_the_same_seconds_from_any_source(make_video, tmp_path: Path) -> None:
    for fps in (10, 20, 40):
        make_video(tmp_path / f"{fps}.mp4", 4 * fps, fps=fps)
    with VideoFeed(open_table(tmp_path), settings(fps=5.0, frames=8), seed=1) as feed:
        (batch,) = take(feed, range(3))
    assert batch.stream("video").time is not None
    assert np.allclose(batch.stream("video").time.diff(dim=1), 0.2, atol=0.051)  # type: ignore[union-attr]  # checked above


def with_broken(numbered_set: Path, folder: Path, broken: int) -> Table:
    for path in numbered_set.rglob("*.mp4"):
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for i in range(broken):
        (folder / "a" / f"bad{i}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    return open_table(folder)


def test_bad_videos_are_replaced_the_same_for_any_workers_and_written_once(numbered_set: Path, tmp_path: Path) -> None:
    table = with_broken(numbered_set, tmp_path / "data", 2)
    lenient = settings(max_bad_rate=0.5, clips_per_video=2)
    reference = take(VideoFeed(table, lenient, seed=2, run_dir=tmp_path / "run"), *(range(i, i + 5) for i in range(0, 40, 5)))
    keys = [key for batch in reference for key in batch.key]
    assert len(keys) == 40
    assert not any("bad" in key for key in keys)
    asked = [VideoFeed(table, lenient, seed=2)._maker.order[k] for k in range(40)]
    for place, key in zip(asked, keys, strict=True):
        if "bad" not in table.keys[place.row]:
            assert key == table.keys[place.row], "readable videos keep their place"
    for n in (0, 2):
        with VideoFeed(table, settings(max_bad_rate=0.5, clips_per_video=2, workers=n), seed=2, run_dir=tmp_path / "run") as feed:
            assert same(take(feed, *(range(i, i + 4) for i in range(20, 40, 4))), [b for b in reference if int(b.sample[0]) >= 20])
    lines = [json.loads(line) for line in (tmp_path / "run/bad_videos.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["a/bad0.mp4", "a/bad1.mp4"], "once for each item, also over restarts"
    assert set(lines[0]) == {"path", "key", "reason", "sample"}


def test_report_counts_replaced_samples(numbered_set: Path, tmp_path: Path) -> None:
    feed = VideoFeed(with_broken(numbered_set, tmp_path, 2), settings(max_bad_rate=0.5), seed=2)
    take(feed, range(10), range(10, 20))
    report = feed.report()
    assert (report["samples_seen"], report["samples_replaced"], report["bad_videos"]) == (20, 4, 2)
    assert list(report["reasons"].values()) == [2]


def test_too_many_bad_videos_stop_the_run(numbered_set: Path, tmp_path: Path) -> None:
    feed = VideoFeed(with_broken(numbered_set, tmp_path, 6), BASE, seed=2, run_dir=tmp_path / "run")
    with pytest.raises(
        DataError,
        match=r"\d+ of \d+ samples came from videos that cannot be read, more than max_bad_rate = 0\.1 allows: .*bad_videos\.jsonl",
    ):
        take(feed, *(range(i, i + 5) for i in range(0, 60, 5)))
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    (only_bad / "x.mp4").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"11 videos in a row cannot be read, the last: .*x\.mp4: holds text"):
        take(VideoFeed(open_table(only_bad), BASE, seed=0), range(2))


def test_memory_cache_keeps_order_and_content(numbered_set: Path, number, tmp_path: Path) -> None:
    table = with_broken(numbered_set, tmp_path, 1)
    told = []
    kept = settings(cache="memory", cache_size=40, max_bad_rate=0.5, crop="centre")
    feed = VideoFeed(table, kept, seed=5, progress=lambda *now: told.append(now))
    plain = take(VideoFeed(table, settings(max_bad_rate=0.5, crop="centre"), seed=5), range(18))
    cached = take(feed, range(18))
    assert told[0][0] == 0
    assert "caching 9 videos at 40 px: about" in told[0][2]
    assert [t[0] for t in told] == list(range(10))
    for k, (data, seconds, crop, key) in clips(plain).items():
        data_c, seconds_c, crop_c, key_c = clips(cached)[k]
        assert key_c == key
        assert torch.equal(seconds_c, seconds)
        assert torch.allclose(crop_c, crop, atol=1.2), "the box moves by at most a cached pixel"
        assert [number(f.permute(1, 2, 0).numpy()) for f in data_c.transpose(0, 1)] == [
            number(f.permute(1, 2, 0).numpy()) for f in data.transpose(0, 1)
        ]
    with VideoFeed(table, settings(cache="memory", cache_size=40, max_bad_rate=0.5, crop="centre", workers=2), seed=5) as other:
        assert same(take(other, range(9), range(9, 18)), cached)
    full = VideoFeed(table, settings(cache="memory", cache_size=48, max_bad_rate=0.5, crop="centre"), seed=5)
    whole = clips(take(full, range(18)))
    for k, (data, seconds, crop, key) in clips(plain).items():
        data_w, seconds_w, crop_w, key_w = whole[k]
        assert (key_w, seconds_w.tolist(), crop_w.tolist()) == (key, seconds.tolist(), crop.tolist())
        assert (data_w.double() - data).abs().mean() < 1, "a cache at full size changes nothing but rounding"


def test_device_cache_gives_batches_on_the_device(numbered_set: Path) -> None:
    table = open_table(numbered_set)
    memory = take(VideoFeed(table, settings(cache="memory"), seed=5), range(8))
    with VideoFeed(table, settings(cache="device", workers="auto"), seed=5, device="cpu") as feed:
        device = take(feed, range(5), range(5, 8))
        assert feed.report()["workers"] == 0
    one, other = clips(memory), clips(device)
    assert list(one) == list(other)
    for k in one:
        assert torch.equal(one[k][1], other[k][1])
        assert torch.equal(one[k][2], other[k][2])
        assert one[k][3] == other[k][3]
        assert (one[k][0].int() - other[k][0].int()).abs().max() <= 1
    assert device[0].stream("video").data.stride() == memory[0].stream("video").data.stride()


def test_a_broken_video_in_the_device_cache_is_replaced_as_without(numbered_set: Path, tmp_path: Path) -> None:
    table = with_broken(numbered_set, tmp_path, 2)
    plain = VideoFeed(table, settings(max_bad_rate=0.9), seed=5)
    with VideoFeed(table, settings(max_bad_rate=0.9, cache="device"), seed=5) as feed:
        cached = take(feed, range(20))
        assert [b.key for b in cached] == [b.key for b in take(plain, range(20))]
        assert feed.report()["samples_replaced"] == plain.report()["samples_replaced"] > 0


def test_a_cache_that_does_not_fit_is_refused_before_decoding(numbered_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table(numbered_set)
    need = 2 * (10 + 14 + 18 + 22) * 37 * 49 * 3
    assert estimate_bytes(table, settings(cache="memory")) == need
    monkeypatch.setattr(cache, "free_bytes", lambda device: int(need / 0.8) - 1000)
    with pytest.raises(DataError, match=r"data\.cache = memory: 0\.00 GiB of frames do not fit .* lower data\.cache_size \(now 37\)"):
        VideoFeed(table, settings(cache="memory"), seed=0)


def test_kept_size_never_enlarges() -> None:
    assert kept_size(240, 320, 120) == (120, 160)
    assert kept_size(48, 64, 120) == (48, 64)


def test_fingerprint_names_what_must_stay(numbered_set: Path) -> None:
    table = open_table(numbered_set)
    one = VideoFeed(table, BASE, seed=1).fingerprint()
    assert json.loads(json.dumps(one)) == one
    assert one == VideoFeed(table, settings(workers=2, prefetch=5, decode_timeout=3, max_bad_rate=0.5), seed=1).fingerprint()
    for changes in ({"frames": 8}, {"size": 48}, {"stride": 3}, {"crop": "centre"}, {"clips_per_video": 2}, {"cache": "memory"}):
        other = VideoFeed(table, settings(**changes), seed=1).fingerprint()
        assert set(changes) <= {name for name in one if one[name] != other[name]}
    assert VideoFeed(table.select([0, 1]), BASE, seed=1).fingerprint()["hash"] != one["hash"]


def children() -> set[int]:
    return {int(p) for p in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


def wait_for_no_children(before: set[int]) -> bool:
    end = time.monotonic() + 10
    while children() - before and time.monotonic() < end:
        time.sleep(0.05)
    return not children() - before


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_stopping_half_way_leaves_no_process(numbered_set: Path) -> None:
    before = children()
    feed = VideoFeed(open_table(numbered_set), settings(workers=2), seed=5)
    endless = feed.batches(range(i * 4, i * 4 + 4) for i in range(10**9))
    next(endless)
    assert len(children() - before) == 2
    feed.close()
    assert wait_for_no_children(before)
    assert next(endless, None) is None
    left = feed.batches(range(i * 4, i * 4 + 4) for i in range(10**9))
    next(left)
    del left
    gc.collect()
    assert wait_for_no_children(before)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_worker_is_an_error_not_a_hang(numbered_set: Path) -> None:
    before = children()
    feed = VideoFeed(open_table(numbered_set), settings(workers=1), seed=5)
    endless = feed.batches(range(i * 4, i * 4 + 4) for i in range(10**9))
    next(endless)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match="a decoding process died; the likely causes: memory ran out"):
        list(islice(endless, 100))
    assert wait_for_no_children(before)
    assert workers.worker_failure(RuntimeError("CUDA error")) is None
    assert "shm-size" in str(workers.worker_failure(RuntimeError("DataLoader worker (pid 1) ... out of shared memory")))


@pytest.mark.parametrize(
    ("deed", "reason"), [("block", "it blocked the decoder"), pytest.param("crash", "the decoder crashed on it", marks=pytest.mark.slow)]
)
def test_an_item_that_kills_its_process_is_replaced_like_any_bad_one(
    numbered_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str, reason: str
) -> None:
    """The same samples as where the item merely cannot be read; it is named, and the run goes on."""
    table, schedule = open_table(numbered_set), [range(i, i + 3) for i in range(0, 30, 3)]
    evil, real = table.paths[VideoFeed(table, BASE, seed=5)._maker.order[4].row], loader.make_clips

    def refuse(reader: Any, *rest: Any) -> Any:
        if reader.path == evil:
            raise DecodeError("cannot be read")
        return real(reader, *rest)

    def kill(reader: Any, *rest: Any) -> Any:
        if reader.path == evil and deed == "crash":
            faulthandler.disable()
            os.abort()
        if reader.path == evil:
            time.sleep(1000)
        return real(reader, *rest)

    monkeypatch.setattr(loader, "make_clips", refuse)
    wanted = take(VideoFeed(table, settings(max_bad_rate=0.5), seed=5), *schedule)
    monkeypatch.setattr(loader, "make_clips", kill)
    with VideoFeed(table, settings(workers=2, decode_timeout=0.3, max_bad_rate=0.5), seed=5, run_dir=tmp_path) as feed:
        assert same(take(feed, *schedule), wanted)
    (line,) = (json.loads(line) for line in (tmp_path / "bad_videos.jsonl").read_text().splitlines())
    assert line["path"] == evil
    assert reason in line["reason"]


def test_a_bug_in_a_worker_comes_back_with_its_traceback(numbered_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(loader, "make_clips", broken)
    with VideoFeed(open_table(numbered_set), settings(workers=1), seed=5) as feed, pytest.raises(KeyError, match="a bug"):
        take(feed, range(4))


INTERRUPTED = """
import sys
from tubelet.data.source import open_table
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings
feed = VideoFeed(open_table(sys.argv[1]), DataSettings(frames=4, stride=2, size=32, workers=2, decoder="pyav"), seed=1)
try:
    for i, batch in enumerate(feed.batches(range(k * 4, k * 4 + 4) for k in range(10**9))):
        if i == 3:
            print("going", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_ctrl_c_is_silent_in_the_workers(numbered_set: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(numbered_set)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "going\n"
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    out, err = run.communicate(timeout=30)
    assert out == "stopped\n"
    assert err == ""
    assert run.returncode == 0


def test_forking_after_decoding_in_the_same_process_works(numbered_set: Path) -> None:
    """Threads of swscale in the parent would leave its forked children waiting for them."""
    before = threading.active_count()
    read_frames(str(numbered_set / "a/0.mp4"))
    table = open_table(numbered_set)
    assert same(take(VideoFeed(table, BASE, seed=5), range(8)), take(VideoFeed(table, settings(workers=1), seed=5), range(8)))
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)  # a queue's thread may still be on its way out
    assert threading.active_count() <= before


def test_empty_table_is_refused(numbered_set: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        VideoFeed(open_table(numbered_set).select([]), BASE, seed=0)
