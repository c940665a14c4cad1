"""Runs that choose their decoding processes: what is said and recorded, and that nothing else changes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import tubelet
from tubelet.api import _supply
from tubelet.api._common import build
from tubelet.data.loader import VideoFeed
from tubelet.data.supply import Pace
from tubelet.recipe import load
from tubelet.train.checkpoint import read_tensors
from tubelet.train.distributed import Ranks

SMALL = [
    "method.dim=32", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 2}",
    "data.size=16", "data.frames=4", "data.stride=1", "data.cache=none", "train.device=cpu", "epochs=null", "steps=6", "batch=4",
    "warmup_epochs=0", "log_every=1", "watch.every_samples=null", "watch.pictures=0", "watch.tensorboard=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tubelet.make_playground(tmp_path_factory.mktemp("supply") / "clips", clips=12, seed=3, scene="easy", size=16, frames=8)


def go(source: Path, out: Path, *settings: str, resume: bool = False, quiet: bool = True) -> dict:
    tubelet.pretrain(source, out=out, recipe="tiny-cpu", settings=[*SMALL, *settings], resume=resume, quiet=quiet)
    return json.loads((out / "run.json").read_text())


def test_a_run_measures_says_and_records_and_computes_the_same(clips, tmp_path, monkeypatch, capsys):
    plain = go(clips, tmp_path / "plain", "data.workers=0", "data.prefetch=1")
    assert plain["supply"] is None
    monkeypatch.setattr(_supply, "SHORT_RUN", 6)
    monkeypatch.setattr(_supply, "spare_cores", lambda: 2)
    monkeypatch.setattr(_supply, "DECODE_SECONDS", 0.1)
    capsys.readouterr()
    run = go(clips, tmp_path / "auto", quiet=False)
    found = run["supply"]
    assert found["decode"] > 0
    assert found["need"] > 0
    assert f"  supply  {found['why']}\n" in capsys.readouterr().err
    assert (run["report"]["workers"], run["report"]["prefetch"]) == (found["workers"], found["prefetch"])
    one, other = (read_tensors(tmp_path / name / "model.safetensors") for name in ("plain", "auto"))
    assert all(torch.equal(one[k], other[k]) for k in one), "timed passes and other processes change nothing"
    assert found["why"] in (tmp_path / "auto" / "report.html").read_text(encoding="utf-8")


def test_a_run_may_go_on_with_other_processes(clips, tmp_path, monkeypatch):
    go(clips, tmp_path / "whole", "data.workers=0")
    monkeypatch.setattr("tubelet.train.plan.Plan.done", lambda plan, at: at.step >= 3)
    go(clips, tmp_path / "run", "data.workers=0", "data.prefetch=3", "train.checkpoint_every=3")
    monkeypatch.undo()
    monkeypatch.setattr(_supply, "SHORT_RUN", 6)
    monkeypatch.setattr(_supply, "spare_cores", lambda: 1)
    (tmp_path / "run" / "model.safetensors").unlink()
    assert go(clips, tmp_path / "run", "train.checkpoint_every=3", resume=True)["supply"]["need"] > 0
    one, other = (read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("settings", [["data.workers=1"], ["data.cache=device"], []])
def test_nothing_is_measured_where_nothing_is_to_be_chosen(clips, tmp_path, monkeypatch, settings):
    """A number that was given, a cache on the device, a short run."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(VideoFeed, "pace", never)
    monkeypatch.setattr(_supply, "clip_seconds", never)
    if settings:
        monkeypatch.setattr(_supply, "SHORT_RUN", 1)
    assert go(clips, tmp_path / "run", *settings)["supply"] is None


def test_fine_tuning_chooses_too(clips, tmp_path, monkeypatch):
    go(clips, tmp_path / "run", "data.workers=0")
    monkeypatch.setattr(_supply, "SHORT_RUN", 1)
    monkeypatch.setattr(_supply, "DECODE_SECONDS", 0.1)
    monkeypatch.setattr(VideoFeed, "pace", lambda feed, **_: Pace(1, torch.tensor([0.001]).numpy()))
    sets = ["frames=4", "stride=1", "size=16", "epochs=null", "steps=2", "batch=4", "warmup_epochs=0", "watch.tensorboard=false"]
    tubelet.finetune(tmp_path / "run", clips, out=tmp_path / "tuned", recipe="finetune-tiny-cpu", settings=sets, test=None, quiet=True)
    assert json.loads((tmp_path / "tuned" / "run.json").read_text())["supply"]["decode"] == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_timed_passes_leave_the_model_alone_and_end_in_time(precision):
    s = load("tiny-cpu", SMALL).stages[0]
    s = s.model_copy(update={"train": s.train.model_copy(update={"precision": precision})})
    model = build(s).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, began = torch.get_rng_state(), time.monotonic()
    seconds = _supply.clip_seconds(model, s.data, s.train, torch.device("cpu"), 4, Ranks())
    assert seconds is not None
    assert 0 < seconds <= time.monotonic() - began
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_passes_stop_when_they_take_long_for_any_process():
    class Other(Ranks):
        def agree(self, flags: list[int]) -> list[int]:
            return [max(flags[0], 600_000)]

    assert [again(0.01) for again in [_supply._thrice(Ranks())] for _ in range(3)] == [True, True, False]
    assert not _supply._thrice(Other())(0.01), "microseconds of the slowest"
    assert not _supply._thrice(Ranks())(0.6)
