"""A plan says what a run then does; the papers' figures; what fits; what limits; the lines that start it."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import tubelet
from tubelet import recipe as book
from tubelet.api import _trial, planning
from tubelet.api._common import build
from tubelet.api._run_plan import GIB, SPARE, Machine, Memory, RunPlan
from tubelet.core import Method
from tubelet.data.source import open_table
from tubelet.errors import ConfigError, DataError
from tubelet.train.peaks import GPUS

RECIPE = """
about: a few steps of a very small model
table: our own
method: {kind: videomae, dim: 96, depth: 2, heads: 3, patch: [2, 8, 8], decoder: {dim: 48, depth: 1, heads: 3}}
masking: {kind: tube, ratio: 0.75}
data: {frames: 4, stride: 1, size: 16, workers: 0, clips_per_video: 2}
train: {epochs: 3, batch: 8, micro: 4, lr: 0.001, lr_batch: 4, min_lr: 0.0001, warmup_epochs: 1, ema: 0.99, keep: 1}
watch: {pictures: 0, probe: 0, tensorboard: false}
"""

# Table of the VideoMAE page: encoder parameters in M, and G multiply-adds of a classifier's view of 16x224x224, which reads all tokens.
PAPER = {"small": (22, 57), "base": (87, 180), "large": (305, 597), "huge": (633, 1192)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.yaml, clips/ with 12 videos, and run/: the recipe trained on them."""
    home = tmp_path_factory.mktemp("planning")
    (home / "small.yaml").write_text(RECIPE)
    tubelet.make_playground(home / "clips", clips=12, scene="easy", size=16, frames=8)
    tubelet.pretrain(home / "clips", out=home / "run", recipe=home / "small.yaml", settings=["device=cpu", "log_every=1"], quiet=True)
    return home


@pytest.fixture(scope="module")
def planned(place: Path) -> RunPlan:
    return tubelet.plan(place / "clips", recipe=place / "small.yaml", settings=["device=cpu"], measure=True)


# The papers' figures


@pytest.mark.parametrize(
    ("recipe", "size"),
    [(name, None) for name in book.names() if name.startswith("videomae")] + [("videomae", size) for size in ("small", "large", "huge")],
)
def test_paper_scale_recipes_have_the_papers_size(recipe: str, size: str | None):
    """Parameters within 1.5 % (the page rounds to whole millions and counts a classifier's head), multiply-adds within 0.5 %."""
    stage = book.load(recipe, size=size).stages[0]
    parameters, macs = PAPER[size or "base"]
    with torch.device("meta"):
        model = build(stage)
    assert isinstance(model, Method)
    encoder = sum(p.numel() for n, p in model.named_parameters() if n.startswith("encoder"))
    assert encoder / 1e6 == pytest.approx(parameters, rel=0.015)
    view = planning.view_macs(model, _trial.blank(stage))
    assert view is not None
    assert view / 1e9 == pytest.approx(macs, rel=0.005)


# A plan against a run


def test_length_and_rate_are_those_of_the_run(place: Path, planned: RunPlan):
    stage = planned.stages[0]
    rows = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert stage.items == 12
    assert stage.epoch == 24
    assert stage.steps == rows[-1]["step"] == 9
    assert stage.samples == rows[-1]["samples"]
    assert stage.lr == pytest.approx(max(row["lr"] for row in rows)) == 0.002
    assert stage.min_lr == 0.0002
    assert stage.warmup_steps == 3


def test_disk_is_what_the_run_left_there(place: Path, planned: RunPlan):
    stage = planned.stages[0]
    (checkpoint,) = (place / "run/checkpoints").glob("*.safetensors")
    models = sum((place / "run" / name).stat().st_size for name in ("model.safetensors", "model_ema.safetensors"))
    assert stage.checkpoint_bytes == pytest.approx(checkpoint.stat().st_size, rel=0.03)  # besides headers
    assert stage.model_bytes == pytest.approx(models, rel=0.03)
    assert stage.disk_bytes == 2 * stage.checkpoint_bytes + stage.model_bytes


def test_memory_is_weights_gradients_two_moments_and_an_average(planned: RunPlan):
    memory, parameters = planned.stages[0].memory, planned.stages[0].parameters
    assert memory.gradients == memory.average == 4 * parameters
    assert memory.optimizer == 8 * parameters
    assert memory.weights >= 4 * parameters
    assert memory.buckets == 0
    assert memory.clips == 8 * 3 * 4 * 16 * 16
    assert memory.total(5) - memory.total(3) == 2 * memory.per_clip
    assert memory.per_clip >= planned.stages[0].kept_bytes > 0


def test_decoding_and_a_step_are_measured(planned: RunPlan):
    stage = planned.stages[0]
    assert stage.decoding is not None
    assert stage.decoding.rate > 1
    assert stage.decoding.videos == 12
    assert stage.decoding.bad == 0
    assert "measured here" in stage.time.basis
    assert stage.time.mfu is not None
    assert 0 < stage.time.mfu < 1
    assert stage.time.compute is not None
    assert stage.time.decode is not None
    assert stage.time.step == stage.time.compute + stage.time.decode  # workers: 0, so one waits for the other
    assert stage.time.step is not None
    assert stage.time.total == pytest.approx(9 * stage.time.step)


def test_a_broken_video_is_told_and_not_counted_as_a_clip(place: Path, tmp_path: Path):
    for path in sorted((place / "clips").rglob("*.mp4"))[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    stage = book.load(place / "small.yaml").stages[0]
    batch, decoding = _trial.decode_sample(stage, open_table(tmp_path))
    assert decoding.bad == 1
    assert len(batch) == 4
    assert batch.streams["video"].data.shape == (4, 3, 4, 16, 16)


def test_a_cache_is_filled_and_cut_from(place: Path):
    stage = book.load(place / "small.yaml", ["cache=memory"]).stages[0]
    _, decoding = _trial.decode_sample(stage, open_table(place / "clips"))
    assert decoding.fill is not None
    assert decoding.fill > 0
    assert decoding.cache_bytes == 12 * 8 * 16 * 16 * 3


# What fits


def memory(**changed: int | bool) -> Memory:
    fields = {"weights": 1, "gradients": 1, "optimizer": 2, "average": 0, "buckets": 0, "clips": 0, "working": 0, "per_clip": 1}
    fields |= {"working_checkpointed": 0, "per_clip_checkpointed": 0, "checkpointing": False}
    scaled = {k: int(v * GIB) if k != "checkpointing" else v for k, v in (fields | changed).items()}
    return Memory(**scaled)  # type: ignore[arg-type]


def gpu(gib: float | None) -> Machine:
    return Machine("G", 1, gib, None, 1, "")


@pytest.mark.parametrize("per_device", [1, 7, 64, 100])
@pytest.mark.parametrize("gib", [6, 10, 40, 80])
def test_the_largest_even_micro_batch_that_fits_is_suggested(per_device: int, gib: float):
    m = memory()
    fit = planning._fit(m, gpu(gib), per_device, None, "")
    limit = gib * GIB * (1 - SPARE)
    assert fit.micro is not None
    assert m.total(fit.micro) <= limit
    assert fit.micro * fit.passes >= per_device > fit.micro * (fit.passes - 1)
    if fit.passes > 1:
        fewer = -(-per_device // (fit.passes - 1))
        assert m.total(fewer) > limit, "a pass less would fit, too"
        assert fit.settings == (f"micro={fit.micro}",)
    else:
        assert fit.settings == ()


def test_the_recipes_own_micro_batch_stays_where_it_fits():
    assert planning._fit(memory(), gpu(80), 64, 16, "") == planning.Fit(16, 4, False)
    assert planning._fit(memory(), gpu(16), 64, 16, "") == planning.Fit(10, 7, False, ("micro=10",))
    assert planning._fit(memory(), gpu(None), 64, None, "") == planning.Fit(64, 1, False)


def test_checkpointing_is_the_last_resort():
    tight = memory(per_clip=100, per_clip_checkpointed=1)
    found = planning._fit(tight, gpu(40), 64, None, "again.train.")
    assert found == planning.Fit(32, 2, True, ("again.train.micro=32", "again.train.activation_checkpointing=true"))
    assert planning._fit(memory(weights=100), gpu(40), 64, None, "").micro is None


def test_a_run_on_a_cluster():
    found = tubelet.plan(recipe="videomae", size="base", gpus=16, gpu="h100", items=240_000, cores=12, hours=1)
    stage = found.stages[0]
    assert stage.parameters / 1e6 == pytest.approx(94.2, rel=0.01)
    assert stage.steps == 187_500
    assert stage.memory.buckets == stage.memory.gradients
    assert stage.fit.micro == stage.per_device == 64
    assert stage.memory.per_clip_checkpointed < stage.memory.per_clip / 2
    peak = GPUS["h100"].bf16
    assert peak is not None
    assert stage.time.compute == pytest.approx(1024 * stage.step_flops / (16 * peak * 1e12 * 0.35))
    assert stage.time.compute is not None
    assert stage.time.total is not None
    assert stage.time.total == pytest.approx(187_500 * stage.time.compute)
    text = str(found)
    assert "assuming 35% of H100 SXM bf16" in text
    assert "fits as it is, micro=64" in text
    script = found.sbatch
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    assert "#SBATCH --nodes=2" in script
    assert "#SBATCH --gpus-per-node=8" in script
    assert "--nnodes 2 --rdzv-backend c10d" in script
    assert "--resume" in script
    hours = stage.time.total / 3600 * 1.15 + 0.25
    assert f"#SBATCH --array=1-{math.ceil(hours)}%1" in script, "a run that is longer than a job is a chain of jobs"
    assert "#SBATCH --time=1:00:00" in script


# What limits


def test_few_cores_make_decoding_the_limit(place: Path):
    found = tubelet.plan(place / "clips", recipe=place / "small.yaml", gpu="h100", cores=1)
    time = found.stages[0].time
    assert time.limit == "decoding"
    assert time.step == time.decode
    assert time.cores_needed is not None
    assert time.cores_needed > 1
    assert "decoding is the limit" in str(found)


def test_a_slow_device_makes_computing_the_limit(place: Path):
    found = tubelet.plan(place / "clips", recipe=place / "small.yaml", settings=["device=cpu"], mfu=1e-6, cores=2)
    time = found.stages[0].time
    assert time.limit == "compute"
    assert time.step == time.compute


# Calls


def test_the_start_line_is_a_call_of_pretrain(place: Path):
    found = tubelet.plan([place / "clips"], recipe=place / "small.yaml", settings=["batch=16"], gpus=2, gpu="6GB", exclude=["*a b*"])
    words = shlex.split(found.command)
    assert words[:6] == ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "tubelet"]
    assert words[6:8] == ["pretrain", str(place / "clips")]
    for option, value in (("--recipe", str(place / "small.yaml")), ("--set", "batch=16"), ("--exclude", "*a b*")):
        assert words[words.index(option) + 1] == value
    assert "is not known, so no time can be given" in str(found)
    assert found.stages[0].time.total is None


def test_without_sources_and_items_the_length_is_open(place: Path):
    found = tubelet.plan(recipe=place / "small.yaml", settings=["device=cpu"])
    assert found.stages[0].steps is None
    assert found.seconds is None
    assert "--items N" in str(found)
    assert "VIDEOS" in found.command


def test_a_length_in_steps_needs_no_items(place: Path):
    found = tubelet.plan(recipe=place / "small.yaml", settings=["epochs=null", "steps=7", "warmup_steps=2", "device=cpu"])
    assert (found.stages[0].steps, found.stages[0].warmup_steps, found.stages[0].samples) == (7, 2, 56)
    assert found.seconds is not None
    assert "7 steps, warm-up 2 steps" in str(found)


def test_stages_are_planned_one_by_one(place: Path, tmp_path: Path):
    one = "\n".join(f"    {line}" for line in RECIPE.strip().splitlines()[2:])
    stages = "".join(f"  - name: {name}\n{one}\n" for name in ("first", "second"))
    (tmp_path / "two.yaml").write_text(f"about: two stages\ntable: our own\nstages:\n{stages}")
    found = tubelet.plan(recipe=tmp_path / "two.yaml", items=10, settings=["second.train.steps=5", "second.train.epochs=null"], gpu="h100")
    assert [s.name for s in found.stages] == ["first", "second"]
    assert found.seconds == sum(s.time.total or 0 for s in found.stages)
    assert "stage  second" in str(found)


def test_figures_and_script_are_written_once(place: Path, tmp_path: Path):
    script, written = tmp_path / "run.sh", tmp_path / "plan.json"
    found = tubelet.plan(recipe=place / "small.yaml", items=100, settings=["device=cpu"], sbatch=script, json_out=written)
    assert script.read_text() == found.sbatch
    figures = json.loads(written.read_text())
    assert figures["stages"][0]["parameters"] == found.stages[0].parameters
    assert figures["stages"][0]["memory"]["table"][0]["micro"] == 1
    assert figures["command"] == found.command
    with pytest.raises(ConfigError) as wrong:
        tubelet.plan(recipe=place / "small.yaml", items=100, sbatch=script, json_out=written)
    assert len(wrong.value.problems) == 2


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as wrong:
        tubelet.plan(recipe="vidoemae", gpus=0, gpu="g100", mfu=2, items=0, hours=0)
    said = "\n".join(wrong.value.problems)
    assert len(wrong.value.problems) == 6
    for part in ("did you mean 'videomae'", "gpus must be at least 1, got 0", "unknown gpu 'g100'", "mfu", "items", "hours"):
        assert part in said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"gpus": 12, "gpu": "h100"}, "multiple of 8"),
        ({"gpu": "a100"}, "did you mean 'a100-40' or 'a100-80'"),
        ({"gpu": "rtx409"}, "did you mean 'rtx4090'"),
        ({"sources": "x.csv", "items": 3}, "without sources"),
        ({"measure": True, "gpu": "h100"}, "leave out one"),
        ({"gpus": 64, "gpu": "h100", "recipe": "tiny-cpu"}, "32 clips for 64 devices"),
    ],
)
def test_what_cannot_be_planned_is_said(call: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        tubelet.plan(**call)


def test_sources_that_are_not_there_are_an_error_of_the_data(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        tubelet.plan(tmp_path / "nowhere", recipe="tiny-cpu")


@pytest.mark.parametrize(("need", "seconds"), [(2**60, 0.1), (1, 1000.0)])
def test_a_model_too_large_to_time_here_is_refused(need: int, seconds: float):
    stage = book.load("videomae", size="giant").stages[0]
    with pytest.raises(ConfigError, match="cannot be timed here"):
        _trial.timed_steps(stage, _trial.blank(stage), torch.device("cpu"), 8, need=need, clip_seconds=seconds)
