"""The loop's own promises: accumulation, non-finite steps, messages on resume, signals."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "fit"))
from harness import ToyFeed, stop_after, train  # the toys' harness serves these tests too

from tubelet.core import Batch, CounterDraw, Losses, Step, Stream, Trainable
from tubelet.errors import CheckpointError, ConfigError, NonFiniteError
from tubelet.objectives.losses import reduce
from tubelet.train.checkpoint import read_tensors
from tubelet.train.distributed import Ranks
from tubelet.train.hooks import Watch
from tubelet.train.loop import BadStep, fit
from tubelet.train.monitor import Yardstick
from tubelet.train.plan import Position
from tubelet.train.runfile import read_run
from tubelet.train.settings import TrainSettings, WatchSettings
from tubelet.train.sinks import Sinks, check
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
        return [{k: v for k, v in row.items() if k not in ("clips_per_s", "wait", "memory_gib")} for row in found]

    every = [row["loss"] for row in rows(tmp_path / "every")]
    straight = rows(tmp_path / "straight", log_every=4)
    assert [row["step"] for row in straight] == lines
    for start, row in zip([0, *lines], straight, strict=False):
        window = every[start : row["step"]]
        assert row["loss"] == pytest.approx(sum(window) / len(window), rel=1e-5)
    assert rows(tmp_path / "pieces", log_every=4, stops=(3, 4, 6)) == straight


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Looker:
    """Notes where it looked; ``do`` is what else it does there."""

    def __init__(self, do=lambda trainable, at: None, name="looker"):
        self.name, self.do, self.seen = name, do, []

    def look(self, trainable, at, ranks):
        self.seen.append(at.index)
        self.do(trainable, at)
        return {"look/weight": trainable.model.weight[0, 0].item(), "look/noise": at.draw.uniform("looker")[0]}


def watched(out, hook, stops=(), watch=None, feed=None, build=Line, **settings):
    """Twelve steps of eight samples with a hook; stopped and resumed where asked. Returns the final checkpoint's tensors."""
    config = {"steps": 12, "batch": 8, "lr": 1e-2, "min_lr": 0.0, "lr_batch": None, "device": "cpu", "log_every": 1} | settings
    for i, stop in enumerate([*stops, -1]):
        torch.manual_seed(0)
        fit(
            build(), feed or ToyFeed(vectors), TrainSettings(**config), out, prepare=stop_after(stop), hooks=[hook] if hook else [],
            watch=WatchSettings(**{"every_samples": 32, "every_minutes": None, **(watch or {})}), resume=i > 0, quiet=True,
        )  # fmt: skip
    return read_tensors(max((out / "checkpoints").glob("step-*.safetensors")))


def test_hooks_look_before_the_first_step_when_due_and_after_the_last(tmp_path):
    """Every 32 samples are 4 steps of 8."""
    hook = Looker()
    tensors = watched(tmp_path, hook, log_every=5)
    assert hook.seen == [0, 4, 8, 12]
    rows = rows_of(tmp_path)
    assert [(r["step"], "loss" in r) for r in rows] == [
        (0, False), (4, False), (5, True), (8, False), (10, True), (12, True), (12, False)
    ]  # fmt: skip
    found = [r for r in rows if "loss" not in r]
    assert [r["samples"] for r in found] == [0, 32, 64, 96]
    assert found[-1]["look/weight"] == pytest.approx(tensors["model/model.weight"][0, 0].item(), rel=1e-6)
    assert found[0]["look/weight"] != found[-1]["look/weight"]
    assert len({r["look/noise"] for r in found}) == 4


def test_hooks_by_the_clock_leave_most_of_the_time_to_the_run(monkeypatch):
    """One look takes 3 s: with looks every half minute it would be 10 % of the run, so the next one comes after a minute."""
    clock = [0.0]
    monkeypatch.setattr("tubelet.train.hooks.time.monotonic", lambda: clock[0])
    model = Line()

    class Slow(Looker):
        def look(self, trainable, at, ranks):
            clock[0] += 3
            return {}

    watch = Watch(
        [Slow()], WatchSettings(every_minutes=0.5), TrainSettings(steps=1), model,
        ranks=Ranks(), device=torch.device("cpu"), say=print, doing=lambda what: None,
    )  # fmt: skip
    here = Position(5, 40)
    assert [(clock.__setitem__(0, t), watch.due(here, here))[1] for t in (29.0, 30.0)] == [False, True]
    watch.look(Step(5, 40, 0.0, 0.0, CounterDraw(0, torch.zeros(1, dtype=torch.int64))))
    assert [(clock.__setitem__(0, 33 + t), watch.due(here, here))[1] for t in (30.0, 59.0, 60.0)] == [False, False, True]
    assert watch.seconds == 3


def test_a_hook_that_meddles_does_not_change_the_run(tmp_path):
    """It draws from torch's generator, switches modes and flags, and leaves gradients behind; the model draws from that generator, too."""

    class Noisy(Line):
        def losses(self, phase, batch, at):
            assert self.training
            out = super().losses(phase, batch, at)
            return Losses({"error": (out.terms["error"][0] * torch.rand(()), 1.0)})

    def meddle(trainable, at):
        assert not trainable.training
        assert not torch.is_grad_enabled()
        torch.rand(7)
        trainable.train()
        trainable.model.weight.requires_grad_(False)
        with torch.enable_grad():
            trainable.model(torch.ones(1, 6)).sum().backward()

    plain = watched(tmp_path / "plain", None, build=Noisy)
    for name, stops in (("watched", ()), ("pieces", (3, 4, 9))):
        hook = Looker(meddle)
        same = watched(tmp_path / name, hook, stops=stops, build=Noisy)
        assert plain.keys() == same.keys()
        assert all(torch.equal(plain[k], same[k]) for k in plain)
        assert hook.seen == [0, 4, 8, 12] if not stops else hook.seen[0] == 0
    whole, pieces = (
        [{k: v for k, v in r.items() if k not in ("clips_per_s", "wait", "memory_gib")} for r in rows_of(tmp_path / name)]
        for name in ("watched", "pieces")
    )
    assert [r for r in whole if "loss" in r] == [r for r in pieces if "loss" in r]


def test_a_hook_that_fails_is_said_once_and_counted(tmp_path, capsys):
    def fail(trainable, at):
        raise OSError("no space")

    config = TrainSettings(steps=6, batch=8, device="cpu", log_every=1)
    hooks = [Looker(fail, "broken"), Looker(name="good")]
    result = fit(Line(), ToyFeed(vectors), config, tmp_path, hooks=hooks, watch=WatchSettings(every_samples=8))
    assert result.stopped_by is None
    assert result.report["hooks_failed"] == {"broken": 7}
    assert capsys.readouterr().err.count("broken failed at step 0, the run goes on (OSError: no space)") == 1
    assert len([r for r in rows_of(tmp_path) if "look/weight" in r]) == 7


def test_a_hook_that_fails_on_another_process_counts_here_too():
    """What was found is dropped on all of them, so that none goes on alone."""

    class Two:
        rank, world, first = 0, 2, True

        def agree(self, flags):
            return [1 for _ in flags]

    said = []
    watch = Watch(
        [Looker()], WatchSettings(), TrainSettings(steps=1), Line(),
        ranks=Two(), device=torch.device("cpu"), say=said.append, doing=lambda what: None,
    )  # fmt: skip
    assert watch.look(Step(3, 24, 0.0, 0.0, CounterDraw(0, torch.zeros(1, dtype=torch.int64)))) == {}
    assert watch.failed == {"looker": 1}
    assert said == ["watching: looker failed at step 3, the run goes on (it failed on another process)"]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars(tag)]


def test_tensorboard_has_every_step_once_also_after_a_kill(tmp_path):
    """A run that ends between two checkpoints has written steps that the resumed one writes again."""
    settings = {"checkpoint_every": 5, "log_every": 1}
    with pytest.raises(NonFiniteError):
        watched(tmp_path, Looker(), build=lambda: Line(bad_step=8), **settings)
    assert [step for step, _ in curve(tmp_path, "train/loss")][-1] == 8
    config = TrainSettings(steps=12, batch=8, lr=1e-2, min_lr=0.0, lr_batch=None, device="cpu", **settings)
    fit(Line(), ToyFeed(vectors), config, tmp_path, hooks=[Looker()], watch=WatchSettings(every_samples=32), resume=True, quiet=True)
    written = curve(tmp_path, "train/loss")
    assert [step for step, _ in written] == list(range(1, 13))
    rows = [r for r in rows_of(tmp_path) if "loss" in r]
    assert [value for _, value in written] == pytest.approx([r["loss"] for r in rows], rel=1e-6)
    assert [step for step, _ in curve(tmp_path, "look/weight")] == [0, 4, 8, 12]


def test_a_place_for_figures_that_breaks_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    from tubelet.train.sinks import TensorBoard

    def fail(self, row):
        raise OSError("no space")

    monkeypatch.setattr(TensorBoard, "write", fail)
    fit(Line(), ToyFeed(vectors), TrainSettings(steps=3, batch=8, device="cpu", log_every=1), tmp_path)
    assert len(rows_of(tmp_path)) == 3
    assert capsys.readouterr().err.count("TensorBoard is left out from here on, the run goes on (OSError: no space)") == 1


def test_wandb_that_is_not_installed_is_said_before_anything_else(monkeypatch):
    monkeypatch.setattr("tubelet.train.sinks.importlib.util.find_spec", lambda name: None)
    check(WatchSettings())
    with pytest.raises(ConfigError, match=r"watch.wandb=clips: the package wandb is not installed; .*pip install wandb"):
        check(WatchSettings(wandb="clips"))


def test_wandb_gets_rows_pictures_and_one_identity(tmp_path, monkeypatch):
    """A stand-in for the package: a run that goes on has the same id and is not finished twice."""
    calls = []

    class Run:
        def log(self, row, step):
            calls.append((step, row))

        def finish(self):
            calls.append("finish")

    def init(**options):
        calls.append(options)
        return Run()

    module = types.SimpleNamespace(init=init, Image=lambda path: ("image", path), Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for resume in (None, 3):
        sinks = Sinks(tmp_path, WatchSettings(wandb="clips", tensorboard=False), resume_step=resume, config={"a": 1}, say=print)
        sinks.write({"step": 3, "loss": 1.0, "picture": tmp_path / "pictures" / "x.png"})
        sinks.close()
    first, second = calls[0], calls[3]
    assert (first["project"], first["config"], first["resume"]) == ("clips", {"a": 1}, "allow")
    assert first["id"] == second["id"]
    assert calls[1] == (3, {"loss": 1.0, "picture": ("image", str(tmp_path / "pictures" / "x.png"))})
    assert calls[2] == calls[5] == "finish"
    assert rows_of(tmp_path)[0]["picture"] == "pictures/x.png"


def test_run_json_tells_what_the_run_was(tmp_path):
    stick = Yardstick(1e9, ("a device", 1e12))
    config = TrainSettings(steps=6, batch=8, device="cpu", log_every=2)
    for stop in (2, -1):
        fit(
            Line(), ToyFeed(vectors), config, tmp_path, prepare=stop_after(stop), yardstick=stick, about={"sources": ["x"], "items": 40},
            resume=stop < 0, quiet=True,
        )  # fmt: skip
        told = read_run(tmp_path)
        assert told["stopped_by"] == ("SIGTERM" if stop > 0 else None)
        assert (told["steps"], told["sessions"]) == ((2, 1) if stop > 0 else (6, 2))
    assert told["parameters"] == 7
    assert (told["sources"], told["items"], told["samples"], told["total_steps"]) == (["x"], 40, 48, 6)
    assert (told["forward_flops"], told["peak"]) == (1e9, {"name": "a device", "flops": 1e12})
    assert told["machine"]["device"] == "cpu"
    assert told["torch"] == torch.__version__
    assert told["started"] <= told["ended"]
    assert 0 < told["seconds"] < 600
    last = rows_of(tmp_path)[-1]
    assert last["mfu"] == pytest.approx(3 * 1e9 * last["clips_per_s"] / 1e12, rel=1e-6)
    assert last["tflops"] == pytest.approx(last["mfu"], rel=1e-6)


def test_a_non_finite_step_changes_nothing_and_is_named(tmp_path):
    with pytest.raises(BadStep, match=r"gradient of step 8 .*newest checkpoint is .*step-00000005") as caught:
        train(lambda: Line(bad_step=8), ToyFeed(vectors), tmp_path, checkpoint_every=5)
    assert caught.value.step == 8
    told = read_run(tmp_path)
    assert told["stopped_by"] == "NonFiniteError"
    assert told["error"] == str(caught.value)
    assert told["steps"] == 5
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
