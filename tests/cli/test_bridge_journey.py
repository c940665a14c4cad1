"""Weights of others in, through embed, probe and finetune, and out again: by the command line alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tubelet
from helpers import shaken, stop_tuning_after
from tubelet.cli import run as command
from tubelet.interop.transformers_videomae import from_transformers
from tubelet.interop.videomae import from_official, to_official
from tubelet.methods.videomae import Config
from tubelet.tasks.embed import Embeddings
from tubelet.train.checkpoint import read_tensors

transformers = pytest.importorskip("transformers")

FINE = """
about: a few steps of a very small classifier
classifier: {layer_decay: 0.75, init_scale: 1.0}
data: {frames: 4, size: 16, stride: 1, workers: 0}
views: {clips: 2, crops: 1}
train: {steps: 3, batch: 8, device: cpu, lr: 0.01, lr_batch: null, ema: 0.5}
watch: {pictures: 0, probe: 0, every_minutes: null, tensorboard: false}
"""
HEADS = ["--set", "method.heads=4"]
CLIPS = ["--set", "frames=4", "--set", "size=16"]
DECODER = ["--set", "method.decoder.heads=2"]


@dataclass(frozen=True)
class Road:
    """``source``: weights of others. ``heads``, ``clips``: what they do not say. ``home``: what the commands wrote."""

    source: Path
    heads: list[str]
    clips: list[str]
    home: Path
    labelled: Path

    @property
    def run(self) -> Path:
        return self.home / "run"


def official(path: Path) -> Path:
    torch.manual_seed(1)
    config = Config.model_validate({"dim": 16, "depth": 2, "heads": 4, "patch": [2, 8, 8], "decoder": {"dim": 8, "depth": 1, "heads": 2}})
    state = to_official(shaken(config.build(masking=None, frames=4, size=(16, 16))).state_dict(), "pretrain")
    torch.save({"model": {name: value.clone() for name, value in state.items()}}, path)
    return path


def folder(path: Path) -> Path:
    torch.manual_seed(2)
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        decoder_num_attention_heads=2, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_intermediate_size=24,
        use_mean_pooling=False, layer_norm_eps=1e-6,
    )  # fmt: skip
    shaken(transformers.VideoMAEForPreTraining(config)).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["official", "transformers"])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """Such weights, clips, and a run that was fine-tuned from them by the command line."""
    home = tmp_path_factory.mktemp(request.param)
    (home / "fine.yaml").write_text(FINE)
    assert command(["playground", str(home / "clips"), "--clips", "40", "--scene", "easy", "--size", "16", "--frames", "6"]) == 0
    if request.param == "official":
        found = Road(official(home / "in.pth"), HEADS, CLIPS, home, home / "clips" / "manifest.csv")
    else:
        found = Road(folder(home / "in"), [], [], home, home / "clips" / "manifest.csv")
    assert command(finetune(found, found.run)) == 0
    return found


def finetune(road: Road, out: Path) -> list[str]:
    return ["finetune", str(road.source), str(road.labelled), "--out", str(out), "--recipe", str(road.home / "fine.yaml"), "--quiet",
            *road.heads]  # fmt: skip


def vectors(cli: Any, model: Path, road: Road, out: Path, *settings: str) -> np.ndarray:
    got = cli("embed", str(model), str(road.labelled), "--out", str(out), "--device", "cpu", *settings)
    assert got.code == 0, got.err
    return Embeddings.load(out).vectors


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return bool(one) and one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def pixels(folder: Path, video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [0, 1] as the folder's own preprocessor says: (B, T, C, H, W)."""
    said = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(said[f"image_{name}"]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
    return ((video - mean) / std).transpose(1, 2)


def clip() -> Tensor:
    return torch.rand(3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(7))


def test_features_before_and_after_a_conversion_are_the_same(road: Road, tmp_path: Path, cli: Any) -> None:
    before = vectors(cli, road.source, road, tmp_path / "a.npz", *road.heads, *road.clips)
    assert len(before) == 40
    assert np.ptp(before, axis=0).max() > 0
    got = cli("convert", str(road.source), str(tmp_path / "hf"), *road.heads, *(DECODER if road.heads else []), *road.clips)
    assert got.code == 0, got.err
    assert "VideoMAEForPreTraining, " in got.out
    assert (before == vectors(cli, tmp_path / "hf", road, tmp_path / "b.npz")).all()
    assert cli("convert", str(tmp_path / "hf"), str(tmp_path / "x.pth")).code == 0
    assert (before == vectors(cli, tmp_path / "x.pth", road, tmp_path / "c.npz", *HEADS, *CLIPS)).all()


def test_the_weights_and_what_was_exported_of_them_probe_alike(road: Road, tmp_path: Path, cli: Any) -> None:
    assert cli("export", str(road.source), str(tmp_path / "hf"), "--encoder", *road.heads, *road.clips).code == 0
    scores = []
    for model, settings in ((road.source, [*road.heads, *road.clips]), (tmp_path / "hf", [])):
        got = cli("probe", str(model), str(road.labelled), "--device", "cpu", "--json", str(tmp_path / "score.json"), *settings)
        assert got.code == 0, got.err
        scores.append(json.loads((tmp_path / "score.json").read_text())["predictions"])
    assert scores[0] == scores[1]


def test_the_encoder_of_the_run_is_the_one_that_was_exported(road: Road, tmp_path: Path, cli: Any) -> None:
    before = vectors(cli, road.run, road, tmp_path / "a.npz")
    assert not (before == vectors(cli, road.source, road, tmp_path / "s.npz", *road.heads, *road.clips)).all(), "it has learned"
    assert cli("export", str(road.run), str(tmp_path / "hf")).code == 0
    assert cli("export", str(road.run), str(tmp_path / "x.safetensors"), "--to", "official").code == 0
    assert (before == vectors(cli, tmp_path / "hf", road, tmp_path / "b.npz")).all()
    assert (before == vectors(cli, tmp_path / "x.safetensors", road, tmp_path / "c.npz", *HEADS, *CLIPS, "--set", "stride=1")).all()


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_the_classifier_answers_alike_in_transformers(road: Road, tmp_path: Path, cli: Any, weights: str) -> None:
    got = cli("export", str(road.run), str(tmp_path / "hf"), "--weights", weights)
    assert got.code == 0
    assert "VideoMAEForVideoClassification, " in got.out
    ours = tubelet.load_classifier(road.run, weights=weights, device="cpu")
    read = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
    read.fc_norm.eps = 1e-6
    with torch.no_grad():
        logits = read(pixels(tmp_path / "hf", clip())).logits
        assert (logits - ours.model(clip())).abs().max() <= 1e-5
    assert logits.std() > 0.1
    assert tuple(read.config.id2label.values()) == ours.classes
    other = tubelet.load_classifier(road.run, weights={"auto": "ema", "ema": "auto"}[weights], device="cpu")
    with torch.no_grad():
        assert (logits - other.model(clip())).abs().max() > 1e-3, "the average is another model"


def test_the_test_of_the_run_is_what_transformers_answers(road: Road, tmp_path: Path, cli: Any) -> None:
    """On the clips that evaluate reads: its predictions are those of the exported model."""
    assert cli("export", str(road.run), str(tmp_path / "hf"), "--weights", "ema").code == 0
    kept, seen = tmp_path / "score.json", list[Tensor]()
    ready = tubelet.load_classifier(road.run, weights="ema", device="cpu")
    ready.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tubelet.evaluate(ready, road.labelled, settings=["views.clips=1"], json_out=kept)
    read = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
    read.fc_norm.eps = 1e-6
    video = torch.cat(seen)
    with torch.no_grad():
        answers = read(pixels(tmp_path / "hf", video / 255 if video.dtype == torch.uint8 else video)).logits.argmax(1)
    said = [item["predicted"] for item in json.loads(kept.read_text())["predictions"]]
    assert said == [read.config.id2label[int(i)] for i in answers]


def test_official_and_back_to_transformers_is_bitwise(road: Road, tmp_path: Path, cli: Any) -> None:
    assert cli("export", str(road.run), str(tmp_path / "hf")).code == 0
    assert cli("export", str(road.run), str(tmp_path / "x.pth"), "--to", "official").code == 0
    got = cli("convert", str(tmp_path / "x.pth"), str(tmp_path / "again"), *HEADS, *CLIPS)
    assert got.code == 0, got.err
    assert same(load_file(tmp_path / "hf" / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors"))
    assert cli("convert", str(tmp_path / "hf"), str(tmp_path / "y.safetensors")).code == 0
    assert same(torch.load(tmp_path / "x.pth")["model"], load_file(tmp_path / "y.safetensors"))
    assert same(from_official(load_file(tmp_path / "y.safetensors"), "classifier"), read_tensors(road.run / "model.safetensors"))


def test_a_stopped_run_leaves_with_its_head(road: Road, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_tuning_after(patch, 2)
        assert cli(*finetune(road, out)).code == 143
    assert not (out / "model.safetensors").exists()
    got = cli("export", str(out), str(tmp_path / "hf"))
    assert got.code == 0, got.err
    assert "is not complete: using" in got.err
    assert "VideoMAEForVideoClassification, " in got.out
    assert got.err.count("is not complete") == 1
    (newest,) = (path for path in sorted((out / "checkpoints").rglob("*.safetensors"))[-1:])
    held = {name.removeprefix("model/"): v for name, v in read_tensors(newest).items() if name.startswith("model/")}
    assert same(from_transformers(load_file(tmp_path / "hf" / "model.safetensors"), "classifier"), held)
    assert cli("export", str(out), str(tmp_path / "x.pth"), "--to", "official").code == 0
    assert same(from_official(torch.load(tmp_path / "x.pth")["model"], "classifier"), held)
    got = cli("export", str(out), str(tmp_path / "e"), "--weights", "ema")
    assert got.code == 1
    assert "the run is not complete" in got.err
    assert cli(*finetune(road, out), "--resume").code == 0
    assert cli("export", str(out), str(tmp_path / "done"), "--weights", "ema").code == 0
    theirs = from_transformers(load_file(tmp_path / "done" / "model.safetensors"), "classifier")
    assert same(theirs, read_tensors(out / "model_ema.safetensors"))
    assert same(read_tensors(out / "model_ema.safetensors"), read_tensors(road.run / "model_ema.safetensors")), "as without a stop"
