"""Windows of long videos: one pass over a file gives what reading each window by itself gives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import tubelet
from tubelet.core import Batch
from tubelet.data import evaluation
from tubelet.data.decode import PyavReader
from tubelet.data.evaluation import EvalFeed, windows
from tubelet.data.loader import ItemReader
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table
from tubelet.data.table import Row, Table
from tubelet.data.together import jobs

BASE = DataSettings(frames=4, stride=2, size=32, workers=0, decoder="pyav")
B_FRAMES = {"bf": "3", "crf": "28", "refs": "3", "sc_threshold": "0"}


def read(table: Table, settings: DataSettings = BASE, views: Views | None = None, batch: int = 3) -> tuple[list[Batch], EvalFeed]:
    feed = EvalFeed(table, settings, views=views, batch=batch)
    return list(feed), feed


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    assert [b.key for b in one] == [b.key for b in other]
    for a, b in zip(one, other, strict=True):
        x, y = a.stream("video"), b.stream("video")
        assert torch.equal(x.data, y.data)
        assert x.time is not None and y.time is not None and x.crop is not None and y.crop is not None  # noqa: PT018
        assert torch.equal(x.time, y.time)
        assert torch.equal(x.crop, y.crop)
        assert torch.equal(a.sample, b.sample)
        assert a.labels.keys() == b.labels.keys()
        assert all(torch.equal(a.labels[k], b.labels[k]) for k in a.labels)  # type: ignore[arg-type]  # tensors in these batches


def one_by_one(monkeypatch: pytest.MonkeyPatch, *args: object, **kwargs: object) -> tuple[list[Batch], EvalFeed]:
    with monkeypatch.context() as patch:
        patch.setattr(ItemReader, "together", lambda *_: {})
        return read(*args, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the videos that were opened."""
    seen: list[str] = []
    plain = PyavReader.__init__

    def noted(self: PyavReader, path: str, **more: object) -> None:
        seen.append(Path(path).name)
        plain(self, path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(PyavReader, "__init__", noted)
    return seen


@pytest.fixture
def footage(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    make_video(tmp_path / "a.mp4", 83, gop=250, options=B_FRAMES)
    make_video(tmp_path / "b.mkv", 60, gop=7, options=B_FRAMES, shade=99, h=64, w=48)
    make_video(tmp_path / "c.mp4", 9)
    whole = make_video(tmp_path / "whole.ts", 70, options=B_FRAMES).read_bytes()
    (tmp_path / "d.ts").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "whole.ts").unlink()
    (tmp_path / "e.mp4").write_bytes(b"text")
    return tmp_path


@pytest.mark.parametrize("views", [Views(), Views(clips=2, crops=3), Views(sampling="whole")], ids=["one", "six", "whole"])
@pytest.mark.parametrize("hop", [0.7, 1.5, 3.0])
def test_a_pass_gives_the_same_as_window_by_window(footage: Path, opened: list[str], monkeypatch, hop: float, views: Views):
    table = windows(open_table(footage), seconds=1.5, hop=hop, settings=BASE)
    want, by_itself = one_by_one(monkeypatch, table, views=views)
    opened.clear()
    got, feed = read(table, views=views)
    assert_same(got, want)
    assert feed.failures == by_itself.failures
    assert [key for key, _ in feed.failures] == ["e.mp4"]
    assert (feed.n_scored, feed.n_total) == (by_itself.n_scored, len(table))
    assert all(opened.count(name) <= 3 for name in ("a.mp4", "b.mkv")), opened
    assert_same(read(table, BASE.model_copy(update={"workers": 2}), views=views)[0], want)


def test_chunks_bound_what_is_held(footage: Path, opened: list[str], monkeypatch):
    table = windows(open_table(footage / "a.mp4"), seconds=1, hop=0.25, settings=BASE)
    want, _ = one_by_one(monkeypatch, table)
    opened.clear()
    monkeypatch.setattr(evaluation, "CHUNK", 10 * 4 * 32 * 32 * 3)
    got, _ = read(table)
    assert_same(got, want)
    assert len(opened) == -(-len(table) // 10)


def test_every_frame_is_decoded_once(make_video, tmp_path: Path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 100, gop=250, options=B_FRAMES)
    table = windows(open_table(path), seconds=1, hop=0.5, settings=BASE)
    decoded = 0
    plain = PyavReader._decode

    def counted(self, *args):
        nonlocal decoded
        for frame in plain(self, *args):
            decoded += 1
            yield frame

    monkeypatch.setattr(PyavReader, "_decode", counted)
    read(table)
    assert decoded <= 100
    decoded = 0
    one_by_one(monkeypatch, table)
    assert decoded > 500


def test_segments_in_any_order_with_gaps_and_faults(make_video, tmp_path: Path, monkeypatch):
    path = str(make_video(tmp_path / "a.mp4", 90, gop=20, options=B_FRAMES))
    spans = [(6.0, 8.0), (0.0, 1.0), (20.0, 21.0), (0.5, 7.0), (None, 0.4), (8.9, None)]
    table = Table([Row(path, f"{i}", start=a, end=b) for i, (a, b) in enumerate(spans)])
    want, by_itself = one_by_one(monkeypatch, table, batch=4)
    got, feed = read(table, batch=4)
    assert_same(got, want)
    assert feed.failures == by_itself.failures
    assert "no frame between 20 s and 21 s" in feed.failures[0][1]


def test_frames_that_change_their_size(make_video, tmp_path: Path, monkeypatch):
    parts = [make_video(tmp_path / f"{i}.ts", 25, h=h, w=w).read_bytes() for i, (h, w) in enumerate([(48, 64), (64, 96)])]
    path = tmp_path / "both" / "a.ts"
    path.parent.mkdir()
    path.write_bytes(parts[0] + parts[1])
    table = windows(open_table(path), seconds=0.8, hop=0.4, settings=BASE)
    want, by_itself = one_by_one(monkeypatch, table)
    got, feed = read(table)
    assert_same(got, want)
    assert feed.failures == by_itself.failures


def test_other_sources(make_video, tmp_path: Path, monkeypatch):
    make_video(tmp_path / "in" / "a.mp4", 60, options=B_FRAMES)
    tubelet.prepare(tmp_path / "in", tmp_path / "out", size=40, workers=1)
    folder = tmp_path / "stills"
    folder.mkdir()
    with av.open(str(tmp_path / "in" / "a.mp4")) as video:
        for i, frame in enumerate(video.decode(video=0)):
            frame.to_image().save(folder / f"{i:03d}.png")
    for table in (open_table(tmp_path / "out"), open_table(folder, images="frames")):
        parts = windows(table, seconds=1, hop=0.4, settings=BASE)
        assert len(parts) >= 5
        assert_same(read(parts)[0], one_by_one(monkeypatch, parts)[0])


class Deadly(PyavReader):
    """Crashes its process at frame 33."""

    def frames(self, timeline, index):
        for i, picture in super().frames(timeline, index):
            if i == 33:
                os.kill(os.getpid(), signal.SIGSEGV)
            yield i, picture


def test_a_window_that_kills_its_process_is_the_only_one_lost(make_video, tmp_path: Path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 60)
    table = windows(open_table(path), seconds=1, settings=BASE.model_copy(update={"stride": 3}))
    settings = BASE.model_copy(update={"workers": 1, "stride": 3})
    want, _ = one_by_one(monkeypatch, table, settings)
    monkeypatch.setattr("tubelet.data.reader.PyavReader", Deadly)
    got, feed = read(table, settings)
    (failure,) = feed.failures
    assert "#000003.000" in failure[0]
    assert "SIGSEGV" in failure[1]
    assert_same(got[:1], want[:1])
    assert got[1].labels["item"].tolist() == [4, 5]  # type: ignore[union-attr]  # a tensor
    assert torch.equal(got[1].stream("video").data, want[1].stream("video").data[1:])


def test_each_item_has_its_own_time(make_video, tmp_path: Path, monkeypatch):
    """The limit of a file does not shrink because many items are read in one pass: it begins anew with each of them."""
    path = make_video(tmp_path / "a.mp4", 60)
    table = windows(open_table(path), seconds=1, settings=BASE)
    renewed = 0
    plain = evaluation.ViewMaker.__getitems__

    def count(self, numbers):
        nonlocal renewed
        from tubelet.data.files import Deadline

        original = Deadline.renew

        def renew(deadline):
            nonlocal renewed
            renewed += 1
            original(deadline)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Deadline, "renew", renew)
            return plain(self, numbers)

    monkeypatch.setattr(evaluation.ViewMaker, "__getitems__", count)
    read(table)
    assert renewed == len(table)


def test_jobs():
    def table(*counts: int) -> Table:
        return Table([Row(f"{f}.mp4", f"{f}-{i:03d}") for f, n in enumerate(counts) for i in range(n)])

    assert jobs(table(*[1] * 10), batch=4, most=50) == [range(4), range(4, 8), range(8, 10)]
    assert jobs(table(100), batch=4, most=50) == [range(50), range(50, 100)]
    assert jobs(table(1, 1, 100, 1), batch=4, most=50)[0] == range(2)
    assert max(map(len, jobs(table(9), batch=8, most=2))) <= 8
    for counts in ((3, 70, 1, 1, 9), (1,), (41, 41)):
        found = jobs(table(*counts), batch=8, most=20)
        assert [row for job in found for row in job] == list(range(sum(counts)))
        assert max(map(len, found)) <= 20


def test_vectors_are_the_same_bits(footage: Path, monkeypatch):
    from tubelet.methods.videomae import Config
    from tubelet.tasks.embed import embed

    torch.manual_seed(0)
    model = Config(size="tiny", patch=(2, 16, 16)).build(masking=None, frames=4, size=(32, 32))
    table = windows(open_table(footage), seconds=1, hop=0.5, settings=BASE)
    got = embed(model, EvalFeed(table, BASE, batch=5), table)
    with monkeypatch.context() as patch:
        patch.setattr(ItemReader, "together", lambda *_: {})
        want = embed(model, EvalFeed(table, BASE, batch=5), table)
    assert np.array_equal(got.vectors, want.vectors)
    assert got.keys == want.keys
    assert got.failures == want.failures
