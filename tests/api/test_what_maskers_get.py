"""A masker that asks for more than pixels gets the same in training, its pictures, a replay and a reconstruction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tubelet
from tubelet.api._cost import black
from tubelet.core import Batch
from tubelet.data.settings import DataSettings
from tubelet.errors import ConfigError, DataError

LISTENS = """
import json
import os
from typing import Literal

import torch
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import Batch, Mask, Masker, Step, TokenGrid


class Config(Settings):
    kind: Literal["listens"] = "listens"

    def build(self):
        return Listens()


class Listens(Masker):
    needs = frozenset({"video", "motion", "text", "map"})

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        motion, score = batch.stream("motion"), batch.stream("map")
        assert (motion.kind, score.kind) == ("flow", "score")
        heard = {"key": batch.key, "text": batch.text, "moves": motion.data.abs().amax((1, 2, 3, 4)).tolist()}
        heard |= {"score": score.data.mean((1, 2, 3, 4)).tolist(), "valid": motion.valid.any(1).tolist()}
        with open(os.environ["HEARD"], "a") as file:
            file.write(json.dumps(heard) + "\\n")
        order = at.draw.permutation("mask", grid.n)
        return Mask(grid, order[:, :4].sort(1).values, order[:, 4:].sort(1).values)
"""
SMALL = [
    "method.dim=32", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 2}",
    "data.size=16", "data.frames=4", "data.stride=1", "data.workers=0", "data.cache=none", "train.device=cpu", "epochs=null", "steps=2",
    "batch=4", "warmup_epochs=0", "watch.every_samples=4", "watch.pictures=2", "watch.probe=0", "watch.tensorboard=false",
    "masking=listens",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/, manifest.csv with captions and maps, listens.py."""
    home = tmp_path_factory.mktemp("heard")
    tubelet.make_playground(home / "clips", clips=4, seed=3, scene="easy", size=16, frames=8)
    videos = sorted((home / "clips").rglob("*.mp4"))
    lines = ["path,caption,heat"]
    for i, video in enumerate(videos):
        np.save(home / f"{i}.npy", np.full((2, 4, 4), float(i)))
        lines.append(f'{video.relative_to(home)},"[""first of {i}"", ""second of {i}""]",{i}.npy')
    (home / "manifest.csv").write_text("\n".join(lines))
    (home / "listens.py").write_text(LISTENS)
    return home


def heard(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return [line for line in lines if line["key"]]  # without the black clips by which costs are measured


def test_everywhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    own, run = [home / "listens.py"], tmp_path / "run"
    settings = [*SMALL, "data.maps=heat"]
    tubelet.pretrain(home / "manifest.csv", out=run, recipe="tiny-cpu", settings=settings, imports=own, quiet=True)
    lines = heard(tmp_path / "heard")
    steps, looks = [x for x in lines if len(x["key"]) == 4], [x for x in lines if len(x["key"]) == 2]
    assert (len(steps), len(looks)) == (2, 3)
    keys = sorted(steps[0]["key"])
    for line in lines:
        for key, text, score in zip(line["key"], line["text"], line["score"], strict=True):
            assert keys.index(key) == score
            assert text in (f"first of {score:g}", f"second of {score:g}")
    assert all(text.startswith("first") for look in looks for text in look["text"])
    assert any(text.startswith("second") for step in steps for text in step["text"])
    assert max(max(line["moves"]) for line in lines) > 0
    tubelet.replay(run, 1, imports=own, out=tmp_path / "replay")
    again = heard(tmp_path / "heard")
    assert [x for x in again if len(x["key"]) == 4][-1] == steps[1]
    assert any(len(x["key"]) == 1 and x["text"] == steps[1]["text"][:1] for x in again), "clips are also looked at alone"
    tubelet.reconstruct(run, home / "manifest.csv", imports=own, device="cpu", limit=3)
    shown = heard(tmp_path / "heard")
    assert [x["text"][0] for x in shown] == ["first of 0", "first of 1", "first of 2"]
    by_key = {key: [look[name][i] for name in ("moves", "valid")] for look in looks for i, key in enumerate(look["key"])}
    for line in shown:
        if line["key"][0] in by_key:
            assert [line["moves"][0], line["valid"][0]] == by_key[line["key"][0]]
    tubelet.reconstruct(run, home / "manifest.csv", imports=own, device="cpu", limit=1, whole=True)
    assert [x["text"] for x in heard(tmp_path / "heard")] == [["first of 0"]] * 2
    other = tubelet.reconstruct(run, home / "clips", imports=own, device="cpu", limit=1, settings=["masking=tube", "masking.ratio=0.5"])
    assert len(other.errors) == 1, "another masking needs neither captions nor maps"
    with pytest.raises(DataError, match="needs captions"):
        tubelet.reconstruct(run, home / "clips", imports=own, device="cpu", limit=1)


def test_what_cannot_work_is_said_before_anything_is_written(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))

    def go(*settings: str) -> None:
        chosen, own = [*SMALL, *settings], [home / "listens.py"]
        tubelet.pretrain(home / "manifest.csv", out=tmp_path / "run", recipe="tiny-cpu", settings=chosen, imports=own, quiet=True)

    with pytest.raises(ConfigError, match=r"set data\.maps"):
        go()
    with pytest.raises(ConfigError, match=r"data\.cache = device does not keep motion vectors"):
        go("data.maps=heat", "data.cache=device")
    with pytest.raises(ConfigError, match=r"augment\.rand would tear the pixels from map and motion"):
        go("data.maps=heat", "data.augment.rand=rand-m7")
    assert not (tmp_path / "run/config.yaml").exists()


def test_notes_of_the_feed_are_said(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    lines = (home / "manifest.csv").read_text().splitlines()
    bare = lines[1].partition(",")[0] + ",,0.npy"
    (home / "holes.csv").write_text("\n".join([lines[0], bare, *lines[2:]]))
    tubelet.pretrain(
        home / "holes.csv", out=tmp_path / "run", recipe="tiny-cpu", settings=[*SMALL, "data.maps=heat"], imports=[home / "listens.py"]
    )
    assert "captions: 3 of 4 items have some, 6 in all; 1 have none" in capsys.readouterr().err


def test_black_clips_have_what_is_needed() -> None:
    batch = black(DataSettings(frames=4, size=(18, 32)), 2, {"video", "motion", "text", "map"})
    assert isinstance(batch, Batch)
    assert batch.text == ("", "")
    assert batch.stream("motion").data.shape == (2, 2, 4, 5, 8)
    assert batch.stream("map").data.shape == (2, 1, 4, 5, 8)
    assert not batch.stream("motion").valid.any()  # type: ignore[union-attr]
    assert set(black(DataSettings(frames=4, size=16), 1).streams) == {"video"}
