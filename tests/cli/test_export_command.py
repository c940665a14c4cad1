"""`tubelet export`: its options, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import tubelet
from helpers import shaken
from tubelet.api.classifiers import build_classifier, start_of
from tubelet.cli import run as command
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.videomae import from_official
from tubelet.masking import adamae
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config
from tubelet.train.checkpoint import write_tensors
from tubelet.weights import sha256_of

METHOD: dict[str, Any] = {"kind": "videomae", "dim": 16, "depth": 2, "heads": 2, "patch": [2, 8, 8],
                          "decoder": {"dim": 8, "depth": 1, "heads": 2}}  # fmt: skip
DATA = {"frames": 4, "size": 16, "stride": 2, "workers": 0}


def trained(path: Path, masking: Any = None, **changes: Any) -> tuple[Path, Any]:
    """A run folder's weights as training leaves them, with numbers far from their start."""
    method = METHOD | changes
    model = shaken(Config.model_validate(method).build(masking=None, frames=4, size=(16, 16)))
    write_tensors(path / "model.safetensors", model.state_dict(), {"format": 1, "config": {"method": method, "masking": masking,
                  "data": DATA, "train": {"steps": 1}}})  # fmt: skip
    return path, model


def tuned(path: Path, **changes: Any) -> tuple[Path, Any]:
    """A fine-tuned run's."""
    settings = ClassifierConfig.model_validate(changes)
    model = shaken(settings.build(encoder=Config.model_validate(METHOD).build_encoder(frames=4, size=(16, 16)), classes=3))
    config = {"method": METHOD, "data": DATA, "classifier": settings.model_dump(mode="json"), "classes": ["hop", "run", "sit"], "views": {},
              "train": {"steps": 1}}  # fmt: skip
    write_tensors(path / "model.safetensors", model.state_dict(), {"format": 1, "config": config})
    return path, model


def clip() -> Tensor:
    return torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(7))


def pixels(folder: Path) -> Tensor:
    """As the folder's own preprocessor says: (B, T, C, H, W)."""
    said = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(said[f"image_{name}"]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
    return ((clip() - mean) / std).transpose(1, 2)


def test_options_reach_the_function(cli, public):
    export = public("export", gives="what was written")
    got = cli("export", "runs/a", "out")
    assert (got.code, got.out, got.err) == (0, "what was written\n", "")
    cli("export", "runs/a", "out.pth", "--to", "official", "--weights", "ema", "--encoder", "--set", "method.heads=2", "--overwrite")
    assert [args for args, _ in export.calls] == [("runs/a", "out"), ("runs/a", "out.pth")]
    none: dict[str, Any] = {
        "to": "hf",
        "weights": "auto",
        "encoder": False,
        "pool": None,
        "overwrite": False,
        "imports": [],
        "settings": [],
        "download": False,
        "sha256": None,
    }
    assert export.calls[0][1] == none
    wanted = {
        "to": "official",
        "weights": "ema",
        "encoder": True,
        "pool": None,
        "overwrite": True,
        "imports": [],
        "settings": ["method.heads=2"],
        "download": False,
        "sha256": None,
    }
    assert export.calls[1][1] == wanted
    cli("export", "runs/a", "a.onnx", "--to", "onnx", "--pool", "slots")
    assert (export.calls[2][1]["to"], export.calls[2][1]["pool"]) == ("onnx", "slots")
    got = cli("export", "runs/a", "out", "--to", "onxn", "--overwirte")
    assert got.code == 2
    assert "did you mean 'onnx'?" in got.err
    assert "did you mean '--overwrite'?" in got.err


def test_transformers_gives_the_features_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    run, model = trained(tmp_path / "run")
    assert command(["export", str(run), str(tmp_path / "hf")]) == 0
    said = capsys.readouterr().out
    assert "VideoMAEForPreTraining, " in said
    assert "decoder.norm with eps 1e-05, this model with 1e-06" in said
    read, info = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert (read.videomae(pixels(tmp_path / "hf")).last_hidden_state - model.encoder(clip()).x).abs().max() <= 1e-5
    assert read.videomae.encoder.layer[0].attention.attention.value.bias.abs().min() > 0
    assert not list(tmp_path.glob(".*"))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert type(processor).__name__.startswith("VideoMAEImageProcessor")


def test_transformers_gives_the_logits_of_a_fine_tuned_run(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run, model = tuned(tmp_path / "run", eps=1e-5)
    found = tubelet.export(run, tmp_path / "hf")
    assert (found.what, found.notes) == ("VideoMAEForVideoClassification", ())
    read = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        assert (read(pixels(tmp_path / "hf")).logits - model(clip())).abs().max() <= 1e-5
    assert read.config.id2label == {0: "hop", 1: "run", 2: "sit"}
    alone = tubelet.export(run, tmp_path / "encoder", encoder=True)
    assert alone.what == "VideoMAEModel"
    encoder = transformers.VideoMAEModel.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        assert torch.allclose(encoder(pixels(tmp_path / "encoder")).last_hidden_state, model.encoder(clip()).x, atol=2e-5)


def test_the_eps_that_transformers_fixes_is_said_and_can_be_set_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run, model = tuned(tmp_path / "run")
    found = tubelet.export(run, tmp_path / "hf")
    assert len(found.notes) == 1
    assert "after from_pretrained set model.fc_norm.eps = 1e-06" in found.notes[0]
    read = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
    assert read.fc_norm.eps == 1e-5
    with torch.no_grad():
        off = (read(pixels(tmp_path / "hf")).logits - model(clip())).abs().max()
        read.fc_norm.eps = 1e-6
        back = (read(pixels(tmp_path / "hf")).logits - model(clip())).abs().max()
    assert back <= 1e-5
    assert back < off < 1e-3


@pytest.mark.parametrize(
    ("to", "name"), [("hf", "out"), ("official", "out.pth"), ("official", "out.safetensors"), ("safetensors", "o.safetensors")]
)
@pytest.mark.parametrize("make", [trained, tuned])
def test_what_was_exported_loads_and_embeds_as_the_run(tmp_path: Path, to: Any, name: str, make: Any) -> None:
    run, _ = make(tmp_path / "run")
    tubelet.export(run, tmp_path / name, to=to)
    settings = ["method.heads=2", "frames=4", "size=16", "stride=2"] if to == "official" else []
    ours, back = tubelet.load(run, device="cpu"), tubelet.load(tmp_path / name, device="cpu", settings=settings)
    assert torch.equal(ours.encode(clip()).x, back.encode(clip()).x)
    assert (back.data.frames, back.data.hw, back.data.stride) == (4, (16, 16), 2)
    state, other = (m.get_submodule("encoder").state_dict() for m in (ours.model, back.model))
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in state.items())


def test_embed_writes_the_same_vectors(tmp_path: Path) -> None:
    clips = tubelet.make_playground(tmp_path / "clips", clips=3, scene="easy", size=16, frames=8)
    run, _ = trained(tmp_path / "run")
    tubelet.export(run, tmp_path / "hf")
    one, two = (tubelet.embed(path, clips, device="cpu").vectors for path in (run, tmp_path / "hf"))
    assert len(one) == 3
    assert (one == two).all()


def test_what_the_target_cannot_express_is_named_at_once(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run", position="learned", init_values=0.1)
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*position learned.*no LayerScale"):
        tubelet.export(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    run, _ = trained(tmp_path / "cubes", patch=[2, 8, 4])
    with pytest.raises(ConfigError, match=r"transformers cannot express patch \[2, 8, 4\]"):
        tubelet.export(run, tmp_path / "hf")
    run, _ = trained(tmp_path / "places", position="separable")
    with pytest.raises(ConfigError, match=r"official file cannot express position separable: it has sinusoid and learned"):
        tubelet.export(run, tmp_path / "x.pth", to="official")
    run, _ = tuned(tmp_path / "tuned", pool="slots", norm="tokens")
    with pytest.raises(ConfigError, match=r"(?s)classifier\.pool slots.*classifier\.norm tokens"):
        tubelet.export(run, tmp_path / "hf")


def test_extras_of_a_run_are_named_and_left_out_of_the_encoder_alone(tmp_path: Path) -> None:
    run, model = trained(tmp_path / "run")
    with safe_open(run / "model.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["tubelet"])
    meta["config"]["masking"] = {"kind": "of-another-file"}
    write_tensors(run / "model.safetensors", {**model.state_dict(), "masking.net.weight": torch.ones(2)}, meta)
    with pytest.raises(ConfigError, match=r"its masking's own weights \(the encoder alone has none of it: .*--encoder\)"):
        tubelet.export(run, tmp_path / "hf")
    assert tubelet.export(run, tmp_path / "hf", encoder=True).what == "VideoMAEModel"
    back = tubelet.load(tmp_path / "hf", device="cpu")
    assert torch.equal(back.encode(clip()).x, tubelet.load(run, device="cpu").encode(clip()).x)


def test_a_learned_masking_goes_into_an_official_file(tmp_path: Path) -> None:
    config = Config.model_validate(METHOD)
    masking = adamae.Config.model_validate({"heads": 2}).build(grid=config.grid(4, (16, 16)), dim=16)
    model = shaken(config.build(masking=masking, frames=4, size=(16, 16)))
    settings = {"method": METHOD, "masking": {"kind": "adamae", "heads": 2}, "data": DATA, "train": {"steps": 1}}
    write_tensors(tmp_path / "run" / "model.safetensors", model.state_dict(), {"format": 1, "config": settings})
    with pytest.raises(ConfigError, match="its masking's own weights"):
        tubelet.export(tmp_path / "run", tmp_path / "hf")
    tubelet.export(tmp_path / "run", tmp_path / "x.safetensors", to="official")
    back = from_official(load_file(tmp_path / "x.safetensors"), "pretrain")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(value, back[name]) for name, value in model.state_dict().items())


def test_weights_of_others_go_on_to_others(tmp_path: Path) -> None:
    """A folder of transformers -> official file -> folder of transformers: the same encoder, bit for bit."""
    run, _ = trained(tmp_path / "run")
    tubelet.export(run, tmp_path / "hf")
    tubelet.export(tmp_path / "hf", tmp_path / "x.pth", to="official")
    tubelet.export(tmp_path / "x.pth", tmp_path / "again", settings=["method.heads=2", "frames=4", "size=16"])
    wanted = load_file(tmp_path / "hf" / "model.safetensors")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found
    assert all(torch.equal(value, wanted[f"videomae.{name}"]) for name, value in found.items())
    with pytest.raises(ConfigError, match="keeps a run of Tubelet whole"):
        tubelet.export(tmp_path / "hf", tmp_path / "x.safetensors", to="safetensors")


def test_a_folder_of_transformers_is_a_start_for_fine_tuning(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run")
    tubelet.export(run, tmp_path / "hf")
    starts = [start_of(run), start_of(tmp_path / "hf"), start_of(start_of(tmp_path / "hf").about["path"])]
    models = [build_classifier(ClassifierConfig.model_validate({}), start, start.data, classes=3, seed=0).eval() for start in starts]
    with torch.no_grad():
        answers = [model(clip()) for model in models]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_nothing_is_replaced_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trained(tmp_path / "run")
    tubelet.export(run, tmp_path / "hf")
    tubelet.export(run, tmp_path / "x.pth", to="official")
    for out, to in ((tmp_path / "hf", "hf"), (tmp_path / "x.pth", "official")):
        with pytest.raises(ConfigError, match="--overwrite"):
            tubelet.export(run, out, to=to)  # type: ignore[arg-type]  # one of them
        tubelet.export(run, out, to=to, overwrite=True)  # type: ignore[arg-type]  # as above
    with pytest.raises(ConfigError, match=r"must end in \.pth or \.safetensors"):
        tubelet.export(run, tmp_path / "x.bin", to="official")
    (tmp_path / "d.pth").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        tubelet.export(run, tmp_path / "d.pth", to="official")
    with pytest.raises(ConfigError, match="to='tflite': there are hf, official, safetensors, onnx, torch-export"):
        tubelet.export(run, tmp_path / "y", to="tflite")  # type: ignore[arg-type]  # on purpose
    (tmp_path / "hf" / "holiday.mp4").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds holiday\.mp4, which is no part of an exported model"):
        tubelet.export(run, tmp_path / "hf", overwrite=True)
    (tmp_path / "hf" / "holiday.mp4").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(CheckpointError, match="No space left"):
        tubelet.export(run, tmp_path / "hf", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.pth", "hf", "run", "x.pth"]


def test_an_encoder_without_norm_leaves_and_comes_back(tmp_path: Path) -> None:
    run, model = tuned(tmp_path / "run")
    tubelet.export(run, tmp_path / "a.pth", to="official", encoder=True)
    back = tubelet.load(tmp_path / "a.pth", settings=["frames=4", "size=16", "method.heads=2"], device="cpu")
    with torch.no_grad():
        assert torch.equal(back.encode(clip()).x, model.encoder(clip()).x)


def test_other_weights_than_asked_for_are_not_exported(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run")
    right = sha256_of(run / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"was not read: its sha256 is {right}"):
        tubelet.export(run, tmp_path / "a.pth", to="official", sha256="0" * 64)
    assert not (tmp_path / "a.pth").exists()
    tubelet.export(run, tmp_path / "a.pth", to="official", sha256=right)
    with pytest.raises(CheckpointError, match="was not read"):
        tubelet.convert(tmp_path / "a.pth", tmp_path / "hf", sha256=right, settings=["method.heads=2", "method.decoder.heads=2"])
