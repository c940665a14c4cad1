"""The loop's own promises: accumulation, non-finite steps, messages on resume, signals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "fit"))
from harness import ToyFeed, train  # the toys' harness serves these tests too

from tubelet.core import Batch, CounterDraw, Losses, Step, Stream, Trainable
from tubelet.errors import CheckpointError, NonFiniteError
from tubelet.objectives.losses import reduce
from tubelet.train.checkpoint import read_tensors
from tubelet.train.loop import fit
from tubelet.train.settings import TrainSettings
from tubelet.train.step import Stepper


def vectors(draw, n):
    return {"video": Stream(draw.normal("x", 6))}, {}


class Line(Trainable):
    def __init__(self, bad_step=-1):
        super().__init__()
        self.model, self.bad_step = nn.Linear(6, 1), bad_step

    def losses(self, phase, batch, at):
        error = (self.model(batch.stream("video").data)[:, 0] - batch.stream("video").data.sum(1)).square()
        if at.index == self.bad_step:
            error = error / 0.0
        return Losses({"error": (reduce(error), 1.0)}, {"half": error.detach().mean() / 2})


def test_it_learns_and_logs_every_step(tmp_path):
    train(Line, ToyFeed(vectors), tmp_path, steps=60, lr=0.3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.05 * rows[0]["loss"]
    assert rows[0].keys() >= {"loss", "error", "half", "lr", "grad_norm", "clips_per_s", "wait", "samples", "epoch"}
    assert (tmp_path / "model.safetensors").exists()


def test_accumulation_changes_nothing(tmp_path):
    _, whole = train(Line, ToyFeed(vectors), tmp_path / "a", batch=12)
    _, parts = train(Line, ToyFeed(vectors), tmp_path / "b", batch=12, micro=5)
    for k in whole:
        torch.testing.assert_close(whole[k], parts[k], rtol=1e-5, atol=1e-7)


def test_resumed_metrics_hold_each_step_once(tmp_path):
    train(Line, ToyFeed(vectors), tmp_path, stops=(3, 7))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 13))


@pytest.mark.parametrize(("steps", "lines"), [(12, [4, 8, 12]), (10, [4, 8, 10])])
def test_figures_are_means_over_their_window_also_when_a_stop_cuts_it(tmp_path, steps, lines):
    """log_every=4, stopped after 3, 4 and 6 steps: the same lines as in a straight run, each the mean of its steps."""

    def rows(out, **more):
        train(Line, ToyFeed(vectors), out, steps=steps, **more)
        found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("clips_per_s", "wait")} for row in found]

    every = [row["loss"] for row in rows(tmp_path / "every")]
    straight = rows(tmp_path / "straight", log_every=4)
    assert [row["step"] for row in straight] == lines
    for start, row in zip([0, *lines], straight, strict=False):
        window = every[start : row["step"]]
        assert row["loss"] == pytest.approx(sum(window) / len(window), rel=1e-5)
    assert rows(tmp_path / "pieces", log_every=4, stops=(3, 4, 6)) == straight


def test_figures_of_hooks_are_logged(tmp_path):
    class Looker:
        def after_step(self, trainable, at, ranks):
            return {"weight": trainable.model.weight[0, 0].item(), "done": float(at.index)}

    _, tensors = train(Line, ToyFeed(vectors), tmp_path, hooks=[Looker()], log_every=6)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["done"] for row in rows] == [6, 12]
    assert rows[-1]["weight"] == pytest.approx(tensors["model/model.weight"][0, 0].item(), rel=1e-6)


def test_a_non_finite_step_changes_nothing_and_is_named(tmp_path):
    with pytest.raises(NonFiniteError, match=r"gradient of step 8 .*newest checkpoint is .*step-00000005"):
        train(lambda: Line(bad_step=8), ToyFeed(vectors), tmp_path, checkpoint_every=5)
    _, healed = train(Line, ToyFeed(vectors), tmp_path / "healed")
    torch.manual_seed(0)
    model = Line(bad_step=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stepper = Stepper(model, TrainSettings(steps=1, weight_decay=0.5), lambda at, schedule: 0.1)
    sample = torch.arange(4)
    batch = Batch({"video": Stream(torch.randn(4, 6))}, {}, sample)
    out = stepper.step([batch], Step(0, 0, 0.0, 0.0, CounterDraw(0, sample)))
    assert out.log["finite"].item() == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert healed


def test_resume_explains_settings_and_data(tmp_path):
    train(Line, ToyFeed(vectors), tmp_path, steps=4)
    config = TrainSettings(steps=4, batch=8, lr=2e-2, min_lr=0.0, lr_batch=None, device="cpu", log_every=5)
    with pytest.raises(CheckpointError) as caught:
        fit(Line(), ToyFeed(vectors, size=41), config, tmp_path, resume=True, quiet=True)
    message = str(caught.value)
    assert "train.lr: the checkpoint has 0.01, this call 0.02" in message
    assert "data.toy: the checkpoint has 40, this call 41" in message
    assert "items new since: 1 (item 40)" in message
    assert "log_every" not in message


def test_an_existing_run_is_not_overwritten(tmp_path):
    train(Line, ToyFeed(vectors), tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="already holds a run; add --resume"):
        train(Line, ToyFeed(vectors), tmp_path, steps=2)


def test_weight_average_follows_the_weights(tmp_path):
    train(Line, ToyFeed(vectors), tmp_path, steps=40, lr=0.1, ema=0.5)
    mean, last = read_tensors(tmp_path / "model_ema.safetensors"), read_tensors(tmp_path / "model.safetensors")
    assert mean.keys() == last.keys()
    assert not torch.equal(mean["model.weight"], last["model.weight"])
    torch.testing.assert_close(mean["model.weight"], last["model.weight"], rtol=0.1, atol=0.1)


def test_clipping_bounds_the_gradient():
    torch.manual_seed(0)
    model = Line()
    settings = TrainSettings(steps=1, optimizer="sgd", betas=(0.0, 0.9), weight_decay=0.0, clip=0.25)
    stepper = Stepper(model, settings, lambda at, schedule: 1.0)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    sample = torch.arange(4)
    out = stepper.step([Batch({"video": Stream(10 * torch.randn(4, 6))}, {}, sample)], Step(0, 0, 0.0, 0.0, CounterDraw(0, sample)))
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert out.log["grad_norm"] > 0.25, "the logged norm is the one before clipping"
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)
