"""A step of a run again: the same batch, weights and losses, and where it stops being finite."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import tubelet
from tubelet.api import _replay
from tubelet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from tubelet.train.checkpoint import read_tensors
from tubelet.train.step import Stepper
from tubelet.train.trace import Trace

SMALL = [
    "method.dim=32", "method.depth=2", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 2}",
    "method.drop_path=0.2", "data.size=16", "data.frames=4", "data.stride=1", "data.workers=0", "data.cache=none", "train.device=cpu",
    "epochs=null", "steps=9", "batch=4", "warmup_epochs=0", "log_every=1", "watch.pictures=0", "watch.probe=0", "watch.tensorboard=false",
    "train.checkpoint_every=3", "train.keep=2", "train.ema=0.9",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/ and run/: nine steps with checkpoints of steps 6 and 9."""
    home = tmp_path_factory.mktemp("replay")
    tubelet.make_playground(home / "clips", clips=12, seed=3, scene="easy", size=16, frames=8)
    go(home / "clips", home / "run")
    return home


def go(source: Path, out: Path, *settings: str, **more):
    return tubelet.pretrain(source, out=out, recipe="tiny-cpu", settings=[*SMALL, *settings], quiet=True, **more)


def row(out: Path, step: int) -> dict:
    """The figures of a step by the number that messages use: its line counts the steps done after it."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return next(r for r in found if r["step"] == step + 1 and "loss" in r)


@pytest.mark.parametrize(("step", "start", "trained"), [(6, "step-00000006", 0), (8, "step-00000006", 2), (2, None, 2)])
def test_a_step_gives_the_runs_own_figures(home, tmp_path, step, start, trained):
    said = []
    before = {p: p.stat().st_mtime_ns for p in (home / "run").rglob("*")}
    result = tubelet.replay(home / "run", step, out=tmp_path, say=said.append)
    assert (Path(result.start).stem if result.start else None, result.trained, result.notes) == (start, trained, [])
    assert len(said) == (1 if trained else 0)
    logged = row(home / "run", step)
    assert result.terms["pixels"] == pytest.approx(logged["loss"], rel=1e-7)
    assert result.log["grad_norm"] == pytest.approx(logged["grad_norm"], rel=1e-7)
    assert result.grad_norm == pytest.approx(logged["grad_norm"], rel=1e-5)
    assert result.finite
    assert (result.module, result.parameter, result.weights) == (None, None, [])
    assert sorted(c.sample for c in result.clips) == list(range(4 * step, 4 * step + 4))
    assert {p: p.stat().st_mtime_ns for p in (home / "run").rglob("*")} == before, "the run's folder was changed"
    assert "everything in this step is finite" in str(result)


def test_steps_trained_again_end_in_the_same_bits(home, tmp_path, monkeypatch):
    """The last step's weights are in the run's last checkpoint."""
    kept = {}
    examine = _replay.examine

    def keeping(model, stepper, *rest):
        result = examine(model, stepper, *rest)
        kept.update(stepper.snapshot().tensors)
        return result

    monkeypatch.setattr("tubelet.api.replaying.examine", keeping)
    tubelet.replay(home / "run", 8, out=tmp_path)
    last = read_tensors(home / "run" / "checkpoints" / "step-00000009.safetensors")
    last.pop("figures/window")
    assert last.keys() == kept.keys()
    assert [k for k in last if not torch.equal(last[k], kept[k])] == []


def test_files_and_what_they_say(home, tmp_path):
    result = tubelet.replay(home / "run", 7, out=tmp_path, pictures=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000007.json", "step_00000007.png"]
    told = json.loads((tmp_path / "step_00000007.json").read_text())
    assert told["clips"] == [{**c, "seconds": list(c["seconds"])} for c in result.as_dict()["clips"]]
    losses = [c["loss"] for c in told["clips"]]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 4 == pytest.approx(told["terms"]["pixels"], rel=0.2), "alone, each clip is scored under its own mask"
    for clip in told["clips"]:
        assert (home / "clips" / clip["key"]).is_file()
        assert 0 <= clip["seconds"][0] < clip["seconds"][1] < 2
        assert len(clip["crop"]) == 2
    assert told["inputs"]["video"]["shape"] == "4x3x4x16x16"
    assert 0 <= told["inputs"]["video"]["min"] < told["inputs"]["video"]["max"] <= 255
    assert math.hypot(*told["gradients"].values()) == pytest.approx(told["grad_norm"])
    assert Image.open(tmp_path / "step_00000007.png").size[0] > 300
    default = tubelet.replay(home / "run", 7, pictures=0)
    assert default.picture is None
    assert Path(default.file) == home / "run" / "replay" / "step_00000007.json"
    shutil.rmtree(home / "run" / "replay")


def test_a_checkpoints_weights_as_they_are(home, tmp_path, monkeypatch):
    steps = []
    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, micro, at, shares: steps.append(at.index) or step(self, micro, at, shares))
    later = tubelet.replay(home / "run", 8, out=tmp_path, train=False)
    assert (Path(later.start).stem, later.trained, steps) == ("step-00000006", 0, [8])
    assert later.notes == ["the weights are those of step 6, not of step 8: no step was trained again"]
    assert later.terms["pixels"] != row(home / "run", 8)["loss"]
    early = tubelet.replay(home / "run", 1, out=tmp_path, train=False)
    assert (Path(early.start).stem, steps) == ("step-00000006", [8, 1]), "the oldest there is"
    assert "those of step 6, not of step 1" in early.notes[0]


def test_a_run_that_diverged_is_explained(home, tmp_path):
    """A learning rate of 1e30: the second step's weights are finite and too large for anything."""
    with pytest.raises(NonFiniteError, match=r"\n  tubelet replay .* 1$"):
        go(home / "clips", tmp_path / "run", "train.lr=1e30")
    result = tubelet.replay(tmp_path / "run", 1)
    assert not result.finite
    assert (result.start, result.trained, result.weights) == (None, 1, [])
    assert result.module is not None
    assert result.module.name.startswith("encoder.trunk.blocks.0.")
    assert result.module.input_finite
    assert result.module.input_largest > 1e20
    assert result.parameter is not None
    assert math.isnan(result.terms["pixels"])
    assert json.loads(Path(result.file).read_text())["terms"] == {"pixels": "nan"}
    text = str(result)
    assert f"first not finite in {result.module.name}" in text
    assert "alone: loss nan" in text


def test_the_first_module_and_parameter():
    """A bias of NaN in the middle: the modules before it are sound, and so are the gradients of those after it."""

    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.third(torch.nan_to_num(self.second(self.first(x))))

    model = Middle()
    with torch.no_grad():
        model.second.bias[1] = torch.nan
    with Trace(model) as trace:
        loss = model(torch.ones(2, 3)).square().sum()
        (loss + model.second.weight.sum() * torch.inf).backward()
    assert trace.module is not None
    assert (trace.module.name, trace.module.kind, trace.module.bad, trace.module.total) == ("second", "Linear", 2, 6)
    assert trace.module.input_finite
    assert trace.parameter == "second.weight"
    assert math.isfinite(trace.norms["third.weight"])
    assert not model._forward_hooks


def test_what_may_differ_from_the_run_is_noted(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    told["machine"]["processes"] = 2
    told["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    notes = tubelet.replay(tmp_path / "run", 6, pictures=0).notes
    assert notes == [
        "the run had 2 processes, this is one: the same clips and masks, sums in another order",
        f"the run used torch 1.0, this is {torch.__version__}",
    ]


def test_videos_that_moved(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    told["sources"], told["folder"] = ["gone"], str(tmp_path)
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="gone: no such file or folder"):
        tubelet.replay(tmp_path / "run", 6)
    shutil.move(shutil.copytree(home / "clips", tmp_path / "new"), tmp_path / "moved")
    assert tubelet.replay(tmp_path / "run", 6, sources=tmp_path / "moved", pictures=0).finite
    next((tmp_path / "moved").rglob("*.mp4")).unlink()
    (tmp_path / "moved" / "manifest.csv").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"not the videos that the run was trained on:\n  - data.items: the checkpoint has 12"):
        tubelet.replay(tmp_path / "run", 6, sources=tmp_path / "moved")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"does not say where its videos are .*--sources"):
        tubelet.replay(tmp_path / "run", 6)


def test_mistakes(home, tmp_path):
    with pytest.raises(ConfigError, match="step 9: the run has 9 steps, 0 to 8"):
        tubelet.replay(home / "run", 9)
    with pytest.raises(ConfigError, match="step -1"):
        tubelet.replay(home / "run", -1)
    with pytest.raises(CheckpointError, match="no such run folder"):
        tubelet.replay(tmp_path / "nothing", 1)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        tubelet.replay(tmp_path, 1)
    two = tmp_path / "two"
    two.mkdir()
    stage = {"method": "videomae", "train": {"steps": 1}}
    (two / "config.yaml").write_text(json.dumps({"about": "", "stages": [stage | {"name": "a"}, stage | {"name": "b"}]}))
    with pytest.raises(CheckpointError, match=r"several stages: give one of .*two/a, .*two/b"):
        tubelet.replay(two, 0)
