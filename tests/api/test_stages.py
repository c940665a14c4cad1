"""A recipe of two stages, from one call to its end: what the second starts from, stops, resumes, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tubelet
from helpers import StopAfter
from tubelet import recipe
from tubelet.api import pretraining
from tubelet.errors import CheckpointError, ConfigError
from tubelet.train.checkpoint import read_meta, read_tensors, write_tensors
from tubelet.train.settings import WatchSettings

RECIPE = """
about: two stages of a very small model
stages:
  - name: pretrain
    method: &method {kind: videomae, dim: 32, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 16, depth: 1, heads: 2}}
    masking: {kind: tube, ratio: 0.5}
    data: &data {frames: 4, stride: 1, size: 16, workers: 0, cache: none}
    train: &train {steps: 6, batch: 4, device: cpu, lr: 0.01, lr_batch: null, log_every: 1}
  - name: again
    init: {encoder: pretrain.encoder}
    method: *method
    masking: {kind: random, ratio: 0.5}
    data: *data
    train: {<<: *train, seed: 1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """two.yaml and clips/, and straight/: the run of both stages, without a stop."""
    home = tmp_path_factory.mktemp("stages")
    (home / "two.yaml").write_text(RECIPE)
    tubelet.make_playground(home / "clips", clips=8, scene="easy", size=16, frames=4)
    go(home, home / "straight")
    return home


def go(place: Path, out: Path, *settings: str, resume: bool = False):
    name = None if resume else place / "two.yaml"
    return tubelet.pretrain(place / "clips", out=out, recipe=name, settings=settings, resume=resume, quiet=True)


def stop(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """SIGTERM once a stage has done a step."""

    fit = pretraining.fit

    def stopping(model, feed, train, folder, **more):
        more |= {"hooks": [StopAfter(step)] if folder.name == stage else [], "watch": WatchSettings(every_samples=1)}
        return fit(model, feed, train, folder, **more)

    monkeypatch.setattr(pretraining, "fit", stopping)


def test_the_second_stage_starts_from_the_first_ones_encoder(place, tmp_path):
    go(place, tmp_path / "run", "again.train.lr=0", "again.train.steps=1")
    first, second = (read_tensors(tmp_path / "run" / stage / "model.safetensors") for stage in ("pretrain", "again"))
    untrained = pretraining.build(recipe.load(place / "two.yaml").stages[1]).state_dict()
    encoder = [k for k in first if k.startswith("encoder.")]
    assert len(encoder) > 10
    assert all(torch.equal(first[k], second[k]) for k in encoder)
    assert not all(torch.equal(untrained[k], second[k]) for k in encoder), "the first stage trained nothing"
    others = [k for k in second if not k.startswith("encoder.")]
    assert all(torch.equal(untrained[k], second[k]) for k in others), "only what init names comes from the first stage"


def test_stopped_in_both_stages_and_resumed_without_a_recipe(place, tmp_path):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, "pretrain", 2)
        assert go(place, out).stopped_by == "SIGTERM"
    assert not (out / "again").exists()
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, "again", 3)
        result = go(place, out, resume=True)
    assert (result.stopped_by, result.step) == ("SIGTERM", 3)
    assert (out / "pretrain" / "model.safetensors").exists()
    assert go(place, out, resume=True).stopped_by is None
    for stage in ("pretrain", "again"):
        for name in ("model.safetensors", "checkpoints/step-00000006.safetensors"):
            straight, pieces = read_tensors(place / "straight" / stage / name), read_tensors(out / stage / name)
            assert straight.keys() == pieces.keys()
            assert [k for k in straight if not torch.equal(straight[k], pieces[k])] == []
    with pytest.raises(CheckpointError, match=r"all stages in .* are complete already"):
        go(place, out, resume=True)


def test_a_stop_at_the_first_stages_last_step_does_not_start_the_second(place, tmp_path):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, "pretrain", 6)
        assert go(place, out).stopped_by == "SIGTERM"
    assert (out / "pretrain" / "model.safetensors").exists()
    assert not (out / "again").exists()
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, "again", 6)
        assert go(place, out, resume=True).stopped_by is None


def test_a_run_goes_on_that_is_older_than_a_setting(place, tmp_path):
    """At the setting's default; at other values of it the run is another one."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, "pretrain", 2)
        go(place, out)
    (file,) = (out / "pretrain" / "checkpoints").glob("*.safetensors")
    meta = read_meta(file)
    for section, name in (("method", "class_token"), ("data", "frames"), ("train", "betas")):
        del meta["config"][section][name]
    write_tensors(file, read_tensors(file), meta)
    with pytest.raises(CheckpointError, match=r"data\.frames: the checkpoint has nothing, this call 4") as caught:
        go(place, out, resume=True)
    assert "class_token" not in str(caught.value)
    assert "betas" not in str(caught.value)
    meta["config"]["data"]["frames"] = 4
    write_tensors(file, read_tensors(file), meta)
    assert go(place, out, resume=True).stopped_by is None
    straight, pieces = (read_tensors(home / "again" / "model.safetensors") for home in (place / "straight", out))
    assert all(torch.equal(straight[name], pieces[name]) for name in straight)


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("{encoder: pretrian.encoder}", "encoder: pretrian.encoder must start with an earlier stage's name"),
        ("{encoder: again.encoder}", "must start with an earlier stage's name"),
        ("{encodr: pretrain.encoder}", r"no 'encodr' \(did you mean 'encoder'\?\); stage again has encoder, "),
        ("{encoder: pretrain.encode}", r"no 'pretrain.encode' \(did you mean 'encoder'\?\); stage pretrain has encoder, "),
        ("{encoder: pretrain.decoder}", "encoder and pretrain.decoder are built differently, first in "),
    ],
)
def test_a_wrong_init_is_refused_before_any_training(place, tmp_path, init, said):
    with pytest.raises(ConfigError, match=said):
        go(place, tmp_path / "run", f"again.init={init}")
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_another_width_is_refused_before_any_training(place, tmp_path):
    with pytest.raises(ConfigError, match=r"again.init: .* are built differently"):
        go(place, tmp_path / "run", "again.method.dim=48")
    assert not (tmp_path / "run").exists()


def test_settings_of_a_stage(place):
    changed = recipe.load(place / "two.yaml", ["again.masking.ratio=0.75", "pretrain.steps=9", "again.frames=8"])
    first, second = changed.stages
    assert (first.train.steps, second.train.steps) == (9, 6)
    assert (first.data.frames, second.data.frames) == (4, 8)
    assert [stage.masking.model_dump()["ratio"] for stage in changed.stages] == [0.5, 0.75]
    with pytest.raises(ConfigError) as caught:
        recipe.load(place / "two.yaml", ["agin.masking.ratio=0.75", "masking.ratio=0.75"])
    assert "did you mean 'again'?" in str(caught.value)
    assert len(caught.value.problems) == 2
