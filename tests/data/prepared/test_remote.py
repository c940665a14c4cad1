"""Prepared sets behind URLs: shards are fetched once, kept within the limit, continued after a kill, by any number of processes."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from tubelet.data.audio import read_audio
from tubelet.data.check import Check, check_table
from tubelet.data.files import TimedOut
from tubelet.data.loader import VideoFeed
from tubelet.data.prepared import index, store
from tubelet.data.prepared.handles import Handles
from tubelet.data.prepared.reader import PreparedReader
from tubelet.data.prepared.store import Store
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.errors import DataError, DecodeError

LOG = "TUBELET_TEST_LOG"


class Noted(LocalFileSystem):
    """Local files as ``noted://``: every opening and read is written down, and can be slow, broken or endless."""

    protocol = "noted"

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **more):
        return _NotedFile(path)

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("noted://"))

    def unstrip_protocol(self, name: str) -> str:
        return "noted://" + name


class _NotedFile:
    pause, fail = 0.0, [0]  # seconds for each read; reads that fail

    def __init__(self, path: str) -> None:
        self.path, self.file = path, open(path, "rb")  # noqa: SIM115 - closed by close()

    def read(self, size: int = -1) -> bytes:
        if Path(self.path).suffix == ".tar":
            with open(os.environ[LOG], "a") as log:
                log.write(f"{Path(self.path).name} {self.file.tell()}\n")
            time.sleep(float(os.environ.get("TUBELET_TEST_PAUSE", self.pause)))
            if self.fail[0] > 0:
                self.fail[0] -= 1
                raise OSError("connection reset")
        return self.file.read(size)

    def seek(self, at: int, whence: int = 0) -> int:
        return self.file.seek(at, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


fsspec.register_implementation("noted", Noted, clobber=True)


@pytest.fixture(scope="module")
def out(make_video: Callable[..., Path], prepare: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six origins, each in a shard of its own, all shards of about the same size."""
    root = tmp_path_factory.mktemp("remote")
    for i in range(6):
        make_video(root / f"v/{i}.mp4", 24, sound=True)
    return prepare(root / "v", root / "out", shards=6)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was read of shards since it was asked the last time; processes of this one start with nothing open."""
    file = tmp_path / "log"
    monkeypatch.setenv(LOG, str(file))
    monkeypatch.setattr(index, "shards", Handles())
    index._open.clear()

    def read() -> list[str]:
        lines = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return lines

    return read


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 4096)


def shard_bytes(out: Path) -> list[int]:
    return [p.stat().st_size for p in sorted((out / "shards").glob("*.tar"))]


def index_bytes(out: Path) -> int:
    return sum(p.stat().st_size for p in (out / "index").iterdir())


def used(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def read_origin(url: str, origin: int, keep: Store, timeout: float = 20.0) -> int:
    with PreparedReader(f"{url}#{origin}", store=keep, timeout=timeout) as reader:
        return len(list(reader.frames(next(reader.timelines()), range(24))))


def settings(folder: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {"frames": 4, "stride": 2, "size": 32, "workers": 0, "decoder": "pyav", "cache_dir": str(folder), **changes}
    )


def test_training_behind_a_url_is_training_on_the_folder(out: Path, tmp_path: Path, log) -> None:
    here, there = open_table(out), open_table(f"noted://{out}")
    assert there.fingerprint() == here.fingerprint()
    assert there.item(2).path == f"noted://{out}#2"
    lists = [range(4), range(4, 10)]
    kept = settings(tmp_path / "kept", shuffle="items")
    for a, b in zip(VideoFeed(here, kept, seed=1).batches(lists), VideoFeed(there, kept, seed=1).batches(lists), strict=True):
        assert a.key == b.key
        assert torch.equal(a.stream("video").data, b.stream("video").data)
    assert len({line.split()[0] for line in log()}) == 6
    assert len(list(VideoFeed(there, kept, seed=1).batches([range(6)]))) == 1
    assert log() == [], "what was fetched is not fetched again"


def test_spawned_workers_share_what_is_fetched(out: Path, tmp_path: Path) -> None:
    table = open_table(f"file://{out}")
    lists = [range(i, i + 3) for i in range(0, 12, 3)]
    kept = settings(tmp_path / "kept")
    here = list(VideoFeed(table, kept, seed=1).batches(lists))
    shutil.rmtree(tmp_path / "kept")
    there = list(VideoFeed(table, settings(tmp_path / "kept", workers=1), seed=1).batches(lists))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.stream("video").data, b.stream("video").data)
    assert not list((tmp_path / "kept").rglob("*.part"))


def test_sound_and_check_behind_a_url(out: Path, tmp_path: Path, log) -> None:
    keep = Store(tmp_path / "kept")
    assert len(read_audio(f"noted://{out}#1", 0.5, 2.0, store=keep)) == 24000
    found = check_table(open_table(f"noted://{out}"), Check(store=keep), workers=0)
    assert [(c.kind, c.problem, c.has_audio) for c in found] == [("prepared", None, True)] * 6


def test_the_folder_stays_within_its_limit_and_open_shards_stay_readable(out: Path, tmp_path: Path, log) -> None:
    sizes = shard_bytes(out)
    keep = Store(tmp_path / "kept", index_bytes(out) + 2 * max(sizes) + 100)
    first = PreparedReader(f"noted://{out}#0", store=keep)
    frames = first.frames(next(first.timelines()), range(24))
    next(frames)
    held = first.set.shard(0, 20)
    for _ in range(2):
        for i in range(6):
            assert read_origin(f"noted://{out}", i, keep) == 24
            assert used(tmp_path / "kept") <= keep.limit
    assert held.dropped
    assert held.bytes == len(held.read(0, held.bytes))
    assert len(list(frames)) == 23
    lines = log()
    assert sum(line.startswith("0006-00000.tar 0") for line in lines) == 2, "it was dropped in between"


def _read_all(url: str, keep: Store, failed) -> None:
    store.CHUNK = 4096
    try:
        assert [read_origin(url, i, keep) for i in (3, 1, 0, 5, 4, 2)] == [24] * 6
    except BaseException as error:  # noqa: BLE001 - told to the test
        failed.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("room", [6, 2])
def test_processes_at_once(out: Path, tmp_path: Path, log, room: int) -> None:
    keep = Store(tmp_path / "kept", index_bytes(out) + room * max(shard_bytes(out)) + 100)
    fork = multiprocessing.get_context("fork")
    failed = fork.Queue()
    processes = [fork.Process(target=_read_all, args=(f"noted://{out}", keep, failed)) for _ in range(3)]
    for p in processes:
        p.start()
    most = 0
    while any(p.is_alive() for p in processes):
        if (tmp_path / "kept").exists():
            with contextlib.suppress(FileNotFoundError):
                most = max(most, used(tmp_path / "kept"))
        time.sleep(0.002)
    assert failed.empty(), failed.get()
    assert most <= keep.limit
    if room == 6:
        starts = [line for line in log() if line.endswith(" 0")]
        assert sorted(starts) == [f"{i:04d}-00000.tar 0" for i in range(1, 7)], "each shard is fetched once, whoever needs it"


def _fetch_slowly(url: str, keep: Store) -> None:
    store.CHUNK = 2048
    read_origin(url, 4, keep)


def test_a_killed_fetch_is_continued(out: Path, tmp_path: Path, log, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Store(tmp_path / "kept")
    monkeypatch.setenv("TUBELET_TEST_PAUSE", "0.1")
    process = multiprocessing.get_context("fork").Process(target=_fetch_slowly, args=(f"noted://{out}", keep))
    process.start()
    begin = time.monotonic()
    while not any(p.stat().st_size >= 4096 for p in (tmp_path / "kept").rglob("*.tar.*.part")):
        assert time.monotonic() - begin < 60
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    monkeypatch.delenv("TUBELET_TEST_PAUSE")
    log()
    assert read_origin(f"noted://{out}", 4, keep) == 24
    assert int(log()[0].split()[1]) >= 4096
    (shard,) = (tmp_path / "kept").rglob("*.tar")
    assert shard.read_bytes() == (out / "shards/0005-00000.tar").read_bytes()
    assert not list((tmp_path / "kept").rglob("*.part"))


def test_a_part_that_nobody_fetches_makes_room(out: Path, tmp_path: Path, log) -> None:
    sizes = shard_bytes(out)
    keep = Store(tmp_path / "kept", index_bytes(out) + max(sizes) + 100)
    read_origin(f"noted://{out}", 0, keep)
    (shard,) = (tmp_path / "kept").rglob("*.tar")
    left = shard.rename(shard.with_name(f"0002-00000.tar.{sizes[1]}.part"))
    left.chmod(0o640)
    assert read_origin(f"noted://{out}", 2, keep) == 24
    assert not left.exists()


def test_a_network_that_fails_is_asked_again(out: Path, tmp_path: Path, log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda s: None)
    monkeypatch.setattr(_NotedFile, "fail", [2])
    assert read_origin(f"noted://{out}", 0, Store(tmp_path / "kept")) == 24
    monkeypatch.setattr(_NotedFile, "fail", [3])
    with pytest.raises(TimedOut, match=r"0002-00000\.tar: connection reset"):
        read_origin(f"noted://{out}", 1, Store(tmp_path / "kept"))
    assert read_origin(f"noted://{out}", 1, Store(tmp_path / "kept")) == 24, "later it may work"


def test_a_source_that_stalls_is_given_up(out: Path, tmp_path: Path, log, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Store(tmp_path / "kept")
    assert read_origin(f"noted://{out}", 0, keep) == 24
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    monkeypatch.setenv("TUBELET_TEST_PAUSE", "30")
    begin = time.monotonic()
    with pytest.raises(TimedOut, match=r"0004-00000\.tar: not done after 0\.5 s"):
        read_origin(f"noted://{out}", 3, keep, timeout=0.5)
    assert time.monotonic() - begin < 5


def test_what_cannot_work_is_said(out: Path, tmp_path: Path, log, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Store(tmp_path / "kept", index_bytes(out) + 100)
    table = open_table(f"noted://{out}")
    with pytest.raises(DataError, match=r"GiB cannot hold it; raise the limit, or prepare the set with smaller shards"):
        read_origin(f"noted://{out}", 0, small)
    tight = settings(tmp_path / "kept", cache_limit=small.limit / 2**30, shuffle="items")
    with pytest.raises(DataError, match=r"data\.cache_limit"):
        next(VideoFeed(table, tight, seed=0).batches([[0]]))
    full = OSError(errno.ENOSPC, "No space left on device")
    real = os.pwrite

    def no_room(fd: int, data: bytes, at: int) -> int:
        if at > 5000:
            raise full
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", no_room)
    with pytest.raises(
        DataError, match=r"kept: the disk is full while shards are fetched; free some of it, lower data\.cache_limit"
    ) as found:
        read_origin(f"noted://{out}", 0, Store(tmp_path / "kept"))
    assert not isinstance(found.value, DecodeError), "no item is to blame"
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"shards cannot be kept there: .*; set data\.cache_dir to a folder of yours"):
        Store(tmp_path / "file").open(f"file://{out}/prepared.json", tmp_path / "file/a/b/c", (out / "prepared.json").stat().st_size, 5)


def test_the_next_window_is_fetched_ahead(out: Path, tmp_path: Path, log) -> None:
    table = open_table(f"noted://{out}")
    feed = VideoFeed(table, settings(tmp_path / "kept", shuffle_shards=2), seed=3)
    batches = feed.batches([[0], [1], [2], [3], [4], [5]])
    next(batches)
    begin = time.monotonic()
    while len(list((tmp_path / "kept").rglob("*.tar"))) < 4:
        assert time.monotonic() - begin < 20
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(list((tmp_path / "kept").rglob("*.tar"))) == 4, "two windows of two shards"
    assert len(list(batches)) == 5
    tight = settings(tmp_path / "tight", shuffle_shards=2, cache_limit=(index_bytes(out) + 3 * max(shard_bytes(out))) / 2**30)
    with pytest.warns(UserWarning, match=r"does not hold two windows of data\.shuffle_shards = 2"):
        assert len(list(VideoFeed(table, tight, seed=3).batches([range(6)]))) == 1


def test_a_set_that_changed_is_fetched_anew(out: Path, tmp_path: Path, log) -> None:
    moved = Path(shutil.copytree(out, tmp_path / "moved"))
    keep = Store(tmp_path / "kept")
    assert read_origin(f"noted://{moved}", 0, keep) == 24
    head = moved / "prepared.json"
    head.write_text(head.read_text() + " ")
    open_table(f"noted://{moved}")
    log()
    assert read_origin(f"noted://{moved}", 0, keep) == 24
    assert log()
    assert len(list((tmp_path / "kept").glob("moved-*"))) == 2


def test_a_missing_or_short_shard_behind_a_url(out: Path, tmp_path: Path, log) -> None:
    moved = Path(shutil.copytree(out, tmp_path / "moved"))
    table = open_table(f"noted://{moved}")
    (moved / "shards/0003-00000.tar").write_bytes(b"x" * 1000)
    (moved / "shards/0004-00000.tar").unlink()
    keep = Store(tmp_path / "kept")
    with pytest.raises(DecodeError, match=r"0003-00000\.tar: 1,000 bytes long, shorter than the [\d,]+ that its index says"):
        read_origin(f"noted://{moved}", 2, keep)
    with pytest.raises(DecodeError, match=r"0004-00000\.tar: no such file"):
        read_origin(f"noted://{moved}", 3, keep)
    with pytest.raises(DataError, match="shards are missing"):
        open_table(f"noted://{moved}")
    assert len(table) == 6
