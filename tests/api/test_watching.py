"""A run that watches itself: pictures, probe and rank of its own training items, and the same weights as without."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tubelet
from tubelet.api import watching
from tubelet.api.watching import Clips, Probe, make_hooks, training_rows
from tubelet.core import CounterDraw, Step
from tubelet.data.augment import Augment
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.table import Row, Table
from tubelet.errors import CheckpointError
from tubelet.recipe import load
from tubelet.tasks.embed import Embeddings
from tubelet.tasks.online import choose, online_scores, rank_me
from tubelet.train.checkpoint import read_meta, read_tensors
from tubelet.train.distributed import Ranks

SMALL = [
    "method.dim=32", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 2}",
    "method.drop_path=0.2", "data.size=16", "data.frames=4", "data.stride=1", "data.workers=0", "data.cache=none", "train.device=cpu",
    "epochs=null", "steps=8", "batch=4", "warmup_epochs=0", "log_every=1", "watch.every_samples=16", "watch.pictures=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 labelled clips, a fifth of them test clips."""
    return tubelet.make_playground(tmp_path_factory.mktemp("watching") / "clips", clips=48, seed=3, scene="easy", size=16, frames=8)


def go(source: Path, out: Path, *settings: str, resume: bool = False):
    return tubelet.pretrain(source, out=out, recipe="tiny-cpu", settings=[*SMALL, *settings], resume=resume, quiet=True)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("watched") / "run"
    go(labelled, out)
    return out


def test_figures_and_pictures_of_a_labelled_run(labelled, watched):
    """16 samples are 4 steps: looks at 0, 4 and 8."""
    found = [r for r in rows(watched) if "loss" not in r]
    assert [r["step"] for r in found] == [0, 4, 8]
    names = {"probe/mean", "probe/slots", "probe/n", "probe/fit", "probe/chance", "knn/mean", "knn/slots", "rank/mean", "rank/n"}
    table = open_table(labelled)
    train = sum(split == "train" for split in table.extra["split"])
    assert 0 < train < len(table)
    for row in found:
        assert row.keys() == {"step", "samples", "epoch", "picture"} | names
        assert row["probe/n"] + row["probe/fit"] == row["rank/n"] == train
        assert all(0 <= row[name] <= 1 for name in ("probe/mean", "probe/slots", "knn/mean", "knn/slots"))
        assert 1 <= row["rank/mean"] <= 32
        assert Image.open(watched / row["picture"]).size[0] > 500
    assert found[0]["rank/mean"] != found[-1]["rank/mean"]
    assert len({(watched / r["picture"]).read_bytes() for r in found}) == 3
    assert (watched / "report.html").exists()
    told = json.loads((watched / "run.json").read_text())
    assert told["watch_seconds"] > 0
    assert told["forward_flops"] > 0
    assert told["origins"]["watch.pictures"] == "--set"
    assert told["sources"] == [str(labelled)]


def test_the_run_is_the_same_unwatched_and_killed_and_resumed(labelled, watched, tmp_path, monkeypatch):
    go(labelled, tmp_path / "blind", "watch.pictures=0", "watch.probe=0", "watch.tensorboard=false")
    assert not (tmp_path / "blind" / "pictures").exists()
    assert not (tmp_path / "blind" / "tensorboard").exists()
    augment = Augment.__call__
    with monkeypatch.context() as patch:

        def stopping(self, batch, draw, stream="video"):
            if 3 in batch.sample // 4:  # the fourth step
                os.kill(os.getpid(), signal.SIGTERM)
            return augment(self, batch, draw, stream)

        patch.setattr(Augment, "__call__", stopping)
        assert go(labelled, tmp_path / "pieces").step == 4
    go(labelled, tmp_path / "pieces", "watch.pictures=1", resume=True)
    straight = read_tensors(watched / "checkpoints" / "step-00000008.safetensors")
    for name in ("blind", "pieces"):
        other = read_tensors(tmp_path / name / "checkpoints" / "step-00000008.safetensors")
        assert straight.keys() == other.keys()
        assert [k for k in straight if not torch.equal(straight[k], other[k])] == []
    figures = [[{k: v for k, v in r.items() if "/" in k} for r in rows(out) if "loss" not in r] for out in (watched, tmp_path / "pieces")]
    assert figures[0][0] == figures[1][0]
    assert figures[0][-1] == figures[1][-1]


def test_a_run_from_before_there_was_watching_goes_on(labelled, tmp_path, monkeypatch):
    """Its checkpoint and config.yaml say nothing of it."""
    from tubelet.api import pretraining

    fit = pretraining.fit

    def old(*args, identity, **more):
        return fit(*args, identity={k: v for k, v in identity.items() if k != "watch"}, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "fit", old)
        go(labelled, tmp_path / "run", "watch.pictures=0", "watch.probe=0")
    last = tmp_path / "run" / "checkpoints" / "step-00000008.safetensors"
    assert "watch" not in read_meta(last)["config"]
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text[: text.index("  watch:")])
    (tmp_path / "run" / "run.json").unlink()
    result = tubelet.pretrain(labelled, out=tmp_path / "run", resume=True, quiet=True)
    assert result.step == 8
    with pytest.raises(CheckpointError, match=r"train.lr"):
        tubelet.pretrain(labelled, out=tmp_path / "run", settings=["train.lr=1"], resume=True, quiet=True)


def test_videos_without_labels_have_a_rank_and_no_probe(labelled, tmp_path):
    go(labelled, tmp_path / "run", "data.labels=none", "steps=1", "watch.pictures=0")
    found = [r for r in rows(tmp_path / "run") if "loss" not in r]
    assert [set(r) - {"step", "samples", "epoch"} for r in found] == [{"rank/mean", "rank/n"}] * 2


def test_only_training_items_are_asked(labelled):
    """By a manifest's column, by folders, or all of them."""
    table = open_table(labelled)
    asked = training_rows(table)
    assert {table.extra["split"][int(r)] for r in asked} == {"train"}
    folders = Table([Row("x", key) for key in ("a/b.mp4", "test/c.mp4", "train/x/d.mp4", "Val/y/e.mp4", "test.mp4")])
    assert [folders.keys[int(r)] for r in training_rows(folders)] == ["a/b.mp4", "train/x/d.mp4", "test.mp4"]
    said = []
    stage = load("tiny-cpu", SMALL).stages[0]
    other = Table([Row("x", f"{i}.mp4", extra={"subset": "fold1"}) for i in range(4)])
    hooks = make_hooks(stage, watching_model(), other, Path("run"), said.append)
    assert [h.name for h in hooks] == ["pictures"]
    assert said == ["no online probe: none of the items is marked as one of the training set (split = train)"]


def watching_model():
    from tubelet.api._common import build

    return build(load("tiny-cpu", SMALL).stages[0])


def test_clips_are_decoded_once_where_they_are_small_and_never_replaced(labelled, tmp_path, monkeypatch):
    table = open_table(labelled)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    table = Table([*table.rows()[:10], Row(str(broken), "broken.mp4", label=table.classes[0])], table.classes)
    data = DataSettings(frames=4, stride=1, size=16, workers=0)
    opened = []
    decode = Clips._decode
    monkeypatch.setattr(Clips, "_decode", lambda self: opened.append(1) or decode(self))
    clips = Clips(table, data, np.arange(11))
    for _ in range(2):
        batches = list(clips)
        assert [len(b) for b in batches] == [8, 2]
        assert [k for k, _ in clips.failures] == ["broken.mp4"]
    assert len(opened) == 1
    monkeypatch.setattr(watching, "KEEP", 100)
    again = Clips(table, data, np.arange(11))
    assert all(torch.equal(a.stream("video").data, b.stream("video").data) for _ in range(2) for a, b in zip(batches, again, strict=True))
    assert len(opened) == 3
    with torch.no_grad():
        at = Step(0, 0, 0.0, 0.0, CounterDraw(0, torch.zeros(1).long()))
        found = Probe(clips, seed=0).look(watching_model().eval(), at, Ranks())
    assert found["rank/n"] == 10


def test_items_are_chosen_evenly_and_by_the_seed():
    labels = np.repeat(np.arange(5), [100, 50, 20, 5, 1])
    chosen = choose(labels, 40, 0)
    assert len(chosen) == len(set(chosen.tolist())) == 40
    counts = np.bincount(labels[chosen], minlength=5).tolist()
    assert (sorted(counts[:3]), counts[3:]) == ([11, 11, 12], [5, 1])
    assert (choose(labels, 40, 0) == chosen).all()
    assert not np.array_equal(choose(labels, 40, 1), chosen)
    many = np.arange(1000) % 200
    assert len(set(many[choose(many, 40, 0)].tolist())) == 5, "8 items of each of 5 classes say more than one of 40"
    assert len(choose(np.full(7, -1), 100, 0)) == 7


def test_rank_counts_directions():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(64, 8)))[0]
    assert rank_me(orthogonal) == pytest.approx(8, rel=1e-3)
    assert rank_me(orthogonal @ np.diag([1, 1, 0, 0, 0, 0, 0, 0])) == pytest.approx(2, rel=1e-3)
    assert rank_me(np.ones((10, 5))) == pytest.approx(1, rel=1e-3)
    values = np.array([0.5, 0.25, 0.25])
    assert rank_me(np.diag(values)) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-3)


def test_online_scores_know_good_features_from_bad_ones():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    nothing = np.full(60, np.nan)

    def items(vectors, labels=labels, classes=("a", "b", "c")):
        return Embeddings(tuple(map(str, range(60))), nothing, nothing, vectors.astype(np.float32), labels, classes, (), 60)

    good = np.eye(3)[labels] + 0.01 * rng.normal(size=(60, 3))
    found = online_scores({"mean": items(rng.normal(size=(60, 3))), "slots": items(good)}, seed=0)
    assert found["probe/slots"] == found["knn/slots"] == 1.0
    assert found["probe/mean"] < 0.7
    assert (found["probe/n"], found["probe/fit"], found["probe/chance"]) == (30, 30, pytest.approx(1 / 3))
    for unfit in (items(good, np.full(60, -1)), items(good, np.arange(60), tuple(map(str, range(60)))), items(good, labels * 0)):
        assert online_scores({"mean": unfit}, seed=0).keys() == {"rank/mean", "rank/n"}
