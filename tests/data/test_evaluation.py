"""Evaluation: every item once, nothing replaced, views where the papers put them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.data import sampling
from tubelet.data.evaluation import EvalFeed, windows
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table
from tubelet.data.table import Row, Table
from tubelet.errors import DataError

BASE = DataSettings(frames=4, stride=2, size=48, workers=0, decoder="pyav", max_bad_rate=0.0)


def test_items_come_once_in_order_and_what_fails_is_named(numbered_set: Path, tmp_path: Path, number) -> None:
    rows = [Row(str(p), f"{p.parent.name}/{p.name}", label=p.parent.name) for p in sorted(numbered_set.rglob("*.mp4"))]
    (tmp_path / "bad.mp4").write_bytes(b"text")
    table = Table([rows[0], Row(str(tmp_path / "bad.mp4"), "bad", label="b"), *rows[1:]], ("a", "b"))
    for n in (0, 2):
        feed = EvalFeed(table, BASE.model_copy(update={"workers": n}), views=Views(clips=2, crops=3), batch=2)
        batches = list(feed)
        assert (feed.n_total, feed.n_scored, len(feed)) == (9, 8, 5)
        assert [key for key, _ in feed.failures] == ["bad"]
        assert "holds text" in feed.failures[0][1]
        assert [len(b) for b in batches] == [6, 12, 12, 12, 6], "the bad item's batch is smaller"
        item = torch.cat([b.labels["item"] for b in batches])  # type: ignore[arg-type]  # tensors in these batches
        view = torch.cat([b.labels["view"] for b in batches])  # type: ignore[arg-type]  # tensors in these batches
        label = torch.cat([b.labels["class"] for b in batches])  # type: ignore[arg-type]  # tensors in these batches
        assert item.tolist() == [i for i in (0, 2, 3, 4, 5, 6, 7, 8) for _ in range(6)]
        assert view.tolist() == [*range(6)] * 8
        assert label.tolist() == [int(table.labels[i]) for i in item.tolist()]
        assert torch.cat([b.sample for b in batches]).tolist() == (item * 6 + view).tolist()
    first = batches[0].stream("video")
    shown = [[number(f.permute(1, 2, 0).numpy()) for f in clip.transpose(0, 1)] for clip in first.data]
    assert first.time is not None
    assert np.allclose(first.time[[0, 3], 0], [0.0, 0.2]), "two windows from the first start to the last"
    assert len({tuple(s) for s in shown}) >= 2
    assert len(list(feed)) == 5, "it can be iterated again"
    assert len(feed.failures) == 1


def test_views_are_the_samplers(numbered_set: Path) -> None:
    table = open_table(numbered_set)
    for kind, rule in (
        ("dense", sampling.views_dense(22, 4, 2, 3)),
        ("tsn", sampling.views_tsn(22, 4, 3)),
        ("window", sampling.views_window(22, 4, 2, 3)),
    ):
        feed = EvalFeed(table.select([3]), BASE, views=Views.model_validate({"sampling": kind, "clips": 3}))
        (batch,) = feed
        time = batch.stream("video").time
        assert time is not None
        assert np.allclose(time, np.stack(rule) / 10), kind


def test_three_crops_move_along_the_long_side(numbered_set: Path) -> None:
    (batch, *_) = EvalFeed(open_table(numbered_set), BASE, views=Views(crops=3), batch=1)
    crop = batch.stream("video").crop
    assert crop is not None
    assert crop[:, 0, 2].tolist() == [0, -8, -16]
    assert crop[:, 1, 2].tolist() == [0, 0, 0]


def test_windows_cover_every_video(make_video, tmp_path: Path) -> None:
    make_video(tmp_path / "long.mp4", 47)
    make_video(tmp_path / "short.mp4", 8)
    (tmp_path / "bad.mp4").write_bytes(b"text")
    table = windows(open_table(tmp_path), seconds=1.0, settings=BASE)
    spans = [(table.item(i).key.split("#")[0], table.item(i).start, table.item(i).end) for i in range(len(table))]
    long = [(a, b) for name, a, b in spans if name == "long.mp4"]
    assert np.allclose(long, [(0, 1), (1, 2), (2, 3), (3, 4), (3.7, 4.7)])
    assert [s for s in spans if s[0] != "long.mp4"] == [("bad.mp4", None, None), ("short.mp4", None, None)]
    assert len(set(table.keys)) == len(table)
    feed = EvalFeed(table, BASE)
    assert sum(len(b) for b in feed) == 6
    assert [key for key, _ in feed.failures] == ["bad.mp4"]
    assert len(windows(open_table(tmp_path / "long.mp4"), seconds=1.0, hop=0.5, settings=BASE)) == 9
    with pytest.raises(DataError, match="seconds > 0"):
        windows(table, seconds=0, settings=BASE)


def test_mistakes(numbered_set: Path) -> None:
    table = open_table(numbered_set)
    with pytest.raises(DataError, match="empty"):
        EvalFeed(table.select([]), BASE)
    with pytest.raises(DataError, match="at least 1 item"):
        EvalFeed(table, BASE, batch=0)


def test_the_seconds_that_were_seen(make_video, tmp_path):
    """Of a whole video: from the first to the last frame that its views show."""
    make_video(tmp_path / "a.mp4", 40)
    feed = EvalFeed(open_table(tmp_path / "a.mp4"), DataSettings(frames=4, stride=2, size=32, workers=0), views=Views(clips=2))
    assert len(list(feed)) == 1
    assert feed.seen == {0: pytest.approx((0.0, 3.8))}
