"""`tubelet convert`: official files <-> folders of transformers, bit for bit, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tubelet
from helpers import shaken
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.videomae import from_official, to_official
from tubelet.masking import adamae
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config
from tubelet.train.checkpoint import write_tensors

METHOD: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "patch": [2, 8, 8], "decoder": {"dim": 8, "depth": 1, "heads": 2}}
SAID = ["method.heads=4", "method.decoder.heads=2", "frames=4", "size=16"]
LAYOUTS = ("pretrain", "classifier", "encoder")


def ours(layout: str, **changes: Any) -> Any:
    torch.manual_seed(1)
    config = Config.model_validate(METHOD | changes)
    if layout == "pretrain":
        return shaken(config.build(masking=None, frames=4, size=(16, 16)))
    encoder = config.build_encoder(frames=4, size=(16, 16))
    if layout == "classifier":
        return shaken(ClassifierConfig().build(encoder=encoder, classes=3))
    return shaken(nn.ModuleDict({"encoder": encoder}))


def official(path: Path, layout: str, **changes: Any) -> dict[str, Tensor]:
    """Writes such a file; its tensors."""
    state = to_official(ours(layout, **changes).state_dict(), "classifier" if layout == "classifier" else "pretrain")
    state = {name: value.clone() for name, value in state.items()}
    if path.suffix == ".pth":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    return state


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return bool(one) and one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def clip() -> Tensor:
    return torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(7))


def pixels(folder: Path) -> Tensor:
    """As the folder's own preprocessor says: (B, T, C, H, W)."""
    said = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(said[f"image_{name}"]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
    return ((clip() - mean) / std).transpose(1, 2)


def test_options_reach_the_function(cli, public):
    convert = public("convert", gives="what was written")
    got = cli("convert", "a.pth", "out", "--to", "hf", "--set", "method.heads=2", "--overwrite")
    assert (got.code, got.out, got.err) == (0, "what was written\n", "")
    assert convert.calls == [
        (("a.pth", "out"), {"to": "hf", "overwrite": True, "settings": ["method.heads=2"], "download": False, "sha256": None})
    ]
    got = cli("convert", "a.pth", "out", "--to", "onnx", "--overwirte")
    assert got.code == 2
    assert "onnx" in got.err
    assert "did you mean '--overwrite'?" in got.err


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_official_to_transformers_and_back_is_bitwise(tmp_path: Path, layout: str, ending: str) -> None:
    state = official(tmp_path / f"in.{ending}", layout)
    assert sum(name.endswith(("q_bias", "v_bias")) and bool(value.all()) for name, value in state.items()) >= 4
    there = tubelet.convert(tmp_path / f"in.{ending}", tmp_path / "hf", settings=SAID)
    back = tubelet.convert(tmp_path / "hf", tmp_path / "back.safetensors")
    assert (there.to, back.to, there.dropped, back.dropped) == ("hf", "official", (), ())
    assert same(state, load_file(tmp_path / "back.safetensors"))
    again = tubelet.convert(tmp_path / "back.safetensors", tmp_path / "again", settings=SAID)
    assert again.what == there.what
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def theirs(folder: Path, layout: str, **changes: Any) -> Any:
    """Saves a model of transformers with random numbers everywhere."""
    transformers = pytest.importorskip("transformers")
    plain = {"image_size": 16, "patch_size": 8, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 40, "decoder_num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
             "decoder_intermediate_size": 24, "use_mean_pooling": layout == "classifier", "num_labels": 3,
             "layer_norm_eps": 1e-6}  # fmt: skip
    name = {"pretrain": "ForPreTraining", "classifier": "ForVideoClassification", "encoder": "Model"}[layout]
    model = shaken(getattr(transformers, f"VideoMAE{name}")(transformers.VideoMAEConfig(**plain | changes)))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("layout", "pooled"), [("pretrain", False), ("classifier", True), ("classifier", False), ("encoder", True), ("encoder", False)]
)
def test_transformers_to_official_and_back_is_bitwise(tmp_path: Path, layout: str, pooled: bool) -> None:
    theirs(tmp_path / "in", layout, use_mean_pooling=pooled)
    tubelet.convert(tmp_path / "in", tmp_path / "x.pth")
    back = tubelet.convert(tmp_path / "x.pth", tmp_path / "back", settings=SAID)
    assert same(load_file(tmp_path / "in" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors"))
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("in", "back"))
    both = {name for name in two.keys() & one.keys() if layout == "pretrain" or not name.startswith("decoder_")}
    assert {name: one[name] for name in both} == {name: two[name] for name in both}
    assert two["architectures"] == [back.what]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_computes_what_the_official_file_does(tmp_path: Path, layout: str) -> None:
    transformers = pytest.importorskip("transformers")
    official(tmp_path / "in.pth", layout)
    found = tubelet.convert(tmp_path / "in.pth", tmp_path / "hf", settings=SAID)
    read, info = getattr(transformers, found.what).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert read.config.layer_norm_eps == 1e-6
    source, loaded = ours(layout), tubelet.load(tmp_path / "in.pth", device="cpu", settings=SAID[:1] + SAID[2:])
    with torch.no_grad():
        inner = read if layout == "encoder" else read.videomae
        assert (inner(pixels(tmp_path / "hf")).last_hidden_state - loaded.encode(clip()).x).abs().max() <= 2e-5
        if layout == "classifier":
            read.fc_norm.eps = 1e-6
            assert (read(pixels(tmp_path / "hf")).logits - source(clip())).abs().max() <= 1e-5
            assert any("set model.fc_norm.eps = 1e-06" in note for note in found.notes)
    if layout == "pretrain":
        assert same(dict(read.decoder.norm.state_dict()), dict(source.decoder.norm.state_dict()))
        assert torch.equal(read.decoder.head.weight, source.head.weight)


@pytest.mark.parametrize("part", ["weight/", "ft_weight/"])
def test_the_recorded_answers_of_the_original_code_come_out_of_transformers(
    shared: Callable[[str], Path], tmp_path: Path, cli: Any, part: str
) -> None:
    transformers = pytest.importorskip("transformers")
    with safe_open(shared("goldens/videomae_a.safetensors"), "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    torch.save({"model": {name.removeprefix(part): value for name, value in held.items() if name.startswith(part)}}, tmp_path / "in.pth")
    said = ["method.heads=3", *(["method.decoder.heads=2"] if part == "weight/" else []), "frames=16", "size=[16,24]"]
    got = cli("convert", str(tmp_path / "in.pth"), str(tmp_path / "hf"), *(word for text in said for word in ("--set", text)))
    assert got.code == 0, got.err
    assert "note: clips of" not in got.out
    video = held["input/video"].transpose(1, 2)
    with torch.no_grad():
        if part == "weight/":
            model = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "hf")
            for eps, name in ((1e-5, "hf_output/pred"), (1e-6, "output/pred")):  # of which the first rows were recorded
                model.decoder.norm.eps = eps
                rows = model(video, held["input/mask"].bool()).logits
                assert torch.allclose(rows[:, : held[name].shape[1]], held[name], atol=1e-5)
        else:
            tuned = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf")
            assert torch.allclose(tuned(video).logits, held["hf_output/ft_logits"], atol=1e-5)
            tuned.fc_norm.eps = 1e-6
            assert torch.allclose(tuned(video).logits, held["ft_output/logits"], atol=1e-5)


def test_a_folder_of_videomae_v2_says_the_rest(tmp_path: Path) -> None:
    encoder = Config.model_validate(METHOD | {"eps": 1e-5}).build_encoder(frames=4, size=(16, 16)).variant(norm=False)
    state = to_official({f"encoder.{name}": value for name, value in shaken(encoder).state_dict().items()}, "classifier")
    state |= {"fc_norm.weight": torch.ones(16), "fc_norm.bias": torch.zeros(16)}
    (tmp_path / "v2").mkdir()
    save_file({f"model.{name}": value.clone() for name, value in state.items()}, tmp_path / "v2" / "model.safetensors")
    said = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "layer_norm_eps": 1e-5, "num_frames": 4}
    (tmp_path / "v2" / "config.json").write_text(json.dumps({"model_config": said}))
    found = tubelet.convert(tmp_path / "v2", tmp_path / "hf")
    assert (found.what, set(found.dropped)) == ("VideoMAEModel", {"fc_norm.weight", "fc_norm.bias"})
    assert any("ImageNet's mean" in note for note in found.notes)
    assert not any("heads" in note or "clips of" in note for note in found.notes)
    one, two = (tubelet.load(tmp_path / name, device="cpu").encode(clip()).x for name in ("v2", "hf"))
    assert torch.equal(one, two)
    tubelet.convert(tmp_path / "hf", tmp_path / "back.safetensors")  # an encoder without a norm, which is not taken for a damaged one
    said_again = ["method.heads=4", "method.eps=1e-5", "frames=4", "size=16"]
    assert torch.equal(tubelet.load(tmp_path / "back.safetensors", device="cpu", settings=said_again).encode(clip()).x, one)


def test_what_was_taken_for_granted_is_said(tmp_path: Path, cli: Any) -> None:
    save_file({n: v.clone() for n, v in to_official(_base().state_dict(), "classifier").items()}, tmp_path / "in.safetensors")
    got = cli("convert", str(tmp_path / "in.safetensors"), str(tmp_path / "hf"))
    assert got.code == 0
    assert "VideoMAEForVideoClassification, " in got.out
    assert "attention heads by the width, which the file does not say: 12" in got.out
    assert "clips of 16 frames of 224x224 pixels, which the file does not say" in got.out
    assert "the classes are named LABEL_0 to LABEL_4" in got.out
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (said["num_attention_heads"], said["num_frames"], said["image_size"]) == (12, 16, 224)
    assert said["id2label"] == {str(i): f"LABEL_{i}" for i in range(5)}


def _base() -> nn.Module:
    encoder = Config(size="base", depth=1).build_encoder(frames=16, size=(224, 224))
    return ClassifierConfig().build(encoder=encoder, classes=5)


def test_what_an_official_file_does_not_say_is_noted(tmp_path: Path) -> None:
    theirs(tmp_path / "in", "classifier", layer_norm_eps=1e-12, id2label={0: "hop", 1: "run", 2: "sit"}, label2id={})
    (tmp_path / "in" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    found = tubelet.convert(tmp_path / "in", tmp_path / "x.safetensors")
    text = str(found)
    for wanted in ("4 attention heads", "eps 1e-12", "mean [0.5, 0.5, 0.5]", "the names of the classes (hop, run, sit)"):
        assert f"an official file does not say {wanted}" in text
    again = tubelet.convert(tmp_path / "in", tmp_path / "again")
    assert not any("classes" in note for note in again.notes)
    said = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (said["id2label"], said["layer_norm_eps"]) == ({"0": "hop", "1": "run", "2": "sit"}, 1e-12)
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())["image_mean"] == [0.5] * 3


def test_half_precision_stays(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in official(tmp_path / "x.pth", "pretrain").items()}
    save_file(state, tmp_path / "half.safetensors")
    tubelet.convert(tmp_path / "half.safetensors", tmp_path / "hf", settings=SAID)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float16"
    tubelet.convert(tmp_path / "hf", tmp_path / "back.safetensors")
    assert same(state, load_file(tmp_path / "back.safetensors"))


def test_what_is_no_part_is_dropped_and_said_and_unknown_parts_are_refused(tmp_path: Path) -> None:
    state = official(tmp_path / "x.pth", "pretrain")
    save_file({**state, "teacher.weight": torch.ones(2)}, tmp_path / "more.safetensors")
    found = tubelet.convert(tmp_path / "more.safetensors", tmp_path / "hf", settings=SAID)
    assert (found.dropped, "dropped: teacher.weight" in str(found)) == (("teacher.weight",), True)
    for name in ("encoder.blocks.0.attn.relative", "encoder.strange", "decoder.blocks.0.attn.relative", "encoder.blocks.2.norm1.weight"):
        save_file({**state, name: torch.ones(2)}, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.") if "2" not in name else "encoder.blocks.2"):
            tubelet.convert(tmp_path / "odd.safetensors", tmp_path / "odd", settings=SAID)
    theirs(tmp_path / "in", "classifier")
    held = load_file(tmp_path / "in" / "model.safetensors")
    save_file({**held, "ema.weight": torch.ones(2)}, tmp_path / "in" / "model.safetensors")
    assert tubelet.convert(tmp_path / "in", tmp_path / "c.pth").dropped == ("ema.weight",)
    save_file({**held, "videomae.encoder.layer.0.gate": torch.ones(2)}, tmp_path / "in" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown videomae\.encoder\.layer\.0\.gate"):
        tubelet.convert(tmp_path / "in", tmp_path / "d.pth")
    assert not (tmp_path / "odd").exists()
    assert not (tmp_path / "d.pth").exists()


@pytest.mark.parametrize("name", ["encoder.blocks.1.attn.v_bias", "encoder.norm.bias", "decoder.head.weight", "mask_token"])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    state = official(tmp_path / "x.pth", "pretrain")
    save_file({n: v for n, v in state.items() if n != name}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        tubelet.convert(tmp_path / "part.safetensors", tmp_path / "hf", settings=SAID)


@pytest.mark.parametrize(
    ("layout", "prefix", "gone"), [("pretrain", "encoder.norm.", "encoder.norm.weight"), ("classifier", "", "norm.weight")]
)
def test_a_file_without_any_norm_of_its_encoder_is_refused(tmp_path: Path, layout: Any, prefix: str, gone: str) -> None:
    state = official(tmp_path / "x.pth", layout)
    held = {n: v for n, v in state.items() if not n.startswith(("fc_norm.", "norm.", "head.") if layout == "classifier" else prefix)}
    save_file(held, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=rf"2 missing \({re.escape(gone)}"):
        tubelet.convert(tmp_path / "part.safetensors", tmp_path / "hf", settings=SAID)


def test_a_folder_whose_settings_say_otherwise_of_the_norm_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path / "hf", "encoder")
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(said | {"use_mean_pooling": not said["use_mean_pooling"]}))
    with pytest.raises(CheckpointError, match=r"layernorm\.weight"):
        tubelet.convert(tmp_path / "hf", tmp_path / "o.pth")


def test_a_decoder_on_an_encoder_without_norm_is_no_official_file(tmp_path: Path) -> None:
    theirs(tmp_path / "hf", "pretrain", use_mean_pooling=True)
    with pytest.raises(ConfigError, match=r"an official file cannot express a decoder .* without final norm"):
        tubelet.convert(tmp_path / "hf", tmp_path / "o.pth")
    assert not (tmp_path / "o.pth").exists()


def test_heads_that_nobody_says_are_asked_for(tmp_path: Path, cli: Any) -> None:
    official(tmp_path / "x.pth", "pretrain")
    for said, wanted in ((SAID[1:], "--set method.heads=N"), (SAID[:1] + SAID[2:], "--set method.decoder.heads=N")):
        got = cli("convert", str(tmp_path / "x.pth"), str(tmp_path / "hf"), *(word for text in said for word in ("--set", text)))
        assert got.code == 2
        assert wanted in got.err
    with pytest.raises(ConfigError, match="cannot be split into heads 3"):
        tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=["method.heads=3", *SAID[1:]])
    with pytest.raises(ConfigError, match="patch"):
        tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=[*SAID[:3], "size=15"])


def test_what_transformers_cannot_express_is_named_in_one_message(tmp_path: Path) -> None:
    official(tmp_path / "x.pth", "pretrain", position="learned", init_values=0.1, attention="cosine")
    with pytest.raises(ConfigError, match=r"(?s)position learned.*attention cosine.*decoder\.position learned.*no LayerScale"):
        tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=SAID)
    assert not (tmp_path / "hf").exists()
    state = official(tmp_path / "y.pth", "pretrain", position="learned", attention="cosine")
    tubelet.convert(tmp_path / "y.pth", tmp_path / "y.safetensors", settings=SAID[1:])
    assert same(state, load_file(tmp_path / "y.safetensors")), "official files hold it"


def test_a_learned_masking_stays_in_official_files_alone(tmp_path: Path) -> None:
    config = Config.model_validate(METHOD)
    masking = adamae.Config.model_validate({"heads": 2}).build(grid=config.grid(4, (16, 16)), dim=16)
    state = to_official(shaken(config.build(masking=masking, frames=4, size=(16, 16))).state_dict(), "pretrain")
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "ada.safetensors")
    with pytest.raises(ConfigError, match="transformers cannot express its masking's own weights"):
        tubelet.convert(tmp_path / "ada.safetensors", tmp_path / "hf", settings=SAID)
    tubelet.convert(tmp_path / "ada.safetensors", tmp_path / "back.pth", settings=SAID)
    assert same(from_official(state, "pretrain"), from_official(torch.load(tmp_path / "back.pth")["model"], "pretrain"))


def test_bad_input_is_one_error_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="no such"):
        tubelet.convert(tmp_path / "none.pth", out)
    official(tmp_path / "x.safetensors", "pretrain")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-9])
    official(tmp_path / "x.pth", "pretrain")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:900])
    for name in ("cut.safetensors", "cut.pth"):
        with pytest.raises(CheckpointError, match=r"cut\."):
            tubelet.convert(tmp_path / name, out, settings=SAID)
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="convolutional network"):
        tubelet.convert(tmp_path / "net.pth", out)
    write_tensors(tmp_path / "run" / "model.safetensors", ours("pretrain").state_dict(), {"format": 1, "config": {"method": {}}})
    with pytest.raises(ConfigError, match="tubelet export"):
        tubelet.convert(tmp_path / "run", out)
    theirs(tmp_path / "hf", "encoder")
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    for change, error in (
        ({"model_type": "vit"}, "'vit'"),
        ({"hidden_size": 32}, "does not fit its settings"),
        ({"num_hidden_layers": 3}, "missing"),
    ):
        (tmp_path / "hf" / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(CheckpointError, match=error):
            tubelet.convert(tmp_path / "hf", tmp_path / "o.pth")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((tmp_path / "hf" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="give that folder"):
        tubelet.convert(alone, tmp_path / "o.pth")
    assert not out.exists()
    assert not (tmp_path / "o.pth").exists()
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_replaced_unasked_and_the_source_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path / "x.pth", "classifier")
    tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=SAID)
    with pytest.raises(ConfigError, match="--overwrite"):
        tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=SAID)
    tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=SAID, overwrite=True)
    (tmp_path / "link.pth").symlink_to(tmp_path / "x.pth")
    weights = tmp_path / "hf" / "model.safetensors"
    wrong = [
        ("x.pth", "x.pth"),
        ("link.pth", "x.pth"),
        ("x.pth", "link.pth"),
        ("hf", "hf"),
        ("hf", "hf/model.safetensors"),
        (weights, "hf"),
    ]
    for source, out in wrong:
        with pytest.raises(ConfigError, match="which is read"):
            tubelet.convert(tmp_path / source, tmp_path / out, overwrite=True, settings=SAID)
    for out, to, said in (("o.pth", "hf", "writes a folder"), ("o", "official", "must end in"), ("o.bin", None, "must end in")):
        with pytest.raises(ConfigError, match=said):
            tubelet.convert(tmp_path / "x.pth", tmp_path / out, to=to)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigError, match="there are hf, official"):
        tubelet.convert(tmp_path / "x.pth", tmp_path / "o", to="onnx")  # type: ignore[arg-type]  # on purpose
    before = weights.read_bytes()

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(CheckpointError, match="No space left"):
        tubelet.convert(tmp_path / "x.pth", tmp_path / "hf", settings=SAID, overwrite=True)
    assert weights.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "link.pth", "x.pth"]


def test_clips_are_not_for_an_official_file(tmp_path: Path) -> None:
    official(tmp_path / "a.pth", "pretrain")
    tubelet.convert(tmp_path / "a.pth", tmp_path / "hf", settings=SAID)
    with pytest.raises(ConfigError, match="frames=8: an official file says nothing of clips"):
        tubelet.convert(tmp_path / "hf", tmp_path / "b.pth", settings=["frames=8"])
