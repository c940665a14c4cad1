"""VideoMAE of transformers and ours: the same numbers in both directions, no bias lost, and folders that load."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tubelet
from helpers import shaken
from tubelet.core import Batch, CounterDraw, Mask, Step, Stream, TokenGrid
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.transformers_settings import from_config, to_config, to_preprocessor
from tubelet.interop.transformers_videomae import LAYOUTS, Layout, from_transformers, like_transformers, to_transformers
from tubelet.interop.videomae import from_official, to_official
from tubelet.methods.classifier import Classifier
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.nn.video import VideoEncoder

transformers = pytest.importorskip("transformers")

EPS = 1e-6
HF: dict[str, Any] = {
    "image_size": [16, 24], "patch_size": 8, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "decoder_num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 24, "use_mean_pooling": False, "layer_norm_eps": EPS, "num_labels": 3,
}  # fmt: skip
FRAMES, SIZE = 4, (16, 24)
OURS: dict[str, Any] = {
    "dim": 16, "depth": 2, "heads": 4, "mlp_ratio": 2.5, "patch": (2, 8, 8),
    "decoder": {"dim": 8, "depth": 1, "heads": 2, "mlp_ratio": 3.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


def theirs(layout: Layout, **changes: Any) -> Any:
    """A tiny model of transformers with random numbers everywhere."""
    pooled = {"use_mean_pooling": True} if layout == "classifier" else {}
    return shaken(getattr(transformers, LAYOUTS[layout])(transformers.VideoMAEConfig(**HF | pooled | changes)))


def ours(layout: Layout, config: Config, *, norm: bool = True, shake: bool = True) -> nn.Module:
    """Our model of the same class: a VideoMAE, a classifier, or a bare encoder in a module of that name."""
    torch.manual_seed(1)
    encoder = config.build_encoder(frames=FRAMES, size=SIZE)
    if layout == "pretrain":
        model: nn.Module = config.build(masking=None, frames=FRAMES, size=SIZE)
    elif layout == "classifier":
        model = ClassifierConfig.model_validate({"eps": config.eps}).build(encoder=encoder, classes=3)
    else:
        model = nn.ModuleDict({"encoder": encoder.variant(norm=norm)})
    return shaken(model) if shake else model.eval()


def clip() -> Tensor:
    return torch.rand(2, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(7))


def hidden() -> Tensor:
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, [1, 2, 5, 7, 8]] = True
    mask[1, [0, 3, 4, 9, 11]] = True
    return mask


@torch.no_grad()
def answers_of_theirs(layout: Layout, model: Any, config: Config) -> Tensor:
    """Predicted pixels, logits, or tokens."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in (config.mean, config.std))
    pixels = ((clip() - mean) / std).transpose(1, 2).to(next(model.parameters()).dtype)
    if layout == "pretrain":
        return model(pixels, bool_masked_pos=hidden()).logits
    return model(pixels).logits if layout == "classifier" else model(pixels).last_hidden_state


@torch.no_grad()
def answers_of_ours(layout: Layout, model: nn.Module) -> Tensor:
    if isinstance(model, VideoMAE):
        mask = Mask.of_hidden(TokenGrid.of((FRAMES, *SIZE), (2, 8, 8), ("t", "h", "w")), hidden())
        return model.predict(clip(), mask, Step(0, 0, 0.0, 0.0, CounterDraw(0, torch.arange(2))))
    if isinstance(model, Classifier):
        return model(clip())
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, VideoEncoder)
    return encoder(clip()).x


@torch.no_grad()
def their_twin(layout: Layout, model: nn.Module, config: Config, norm: bool) -> Any:
    """A model of transformers with our weights."""
    said = to_config(config, architecture=LAYOUTS[layout], frames=FRAMES, size=SIZE, norm=norm, classes=["a", "b", "c"])
    twin = getattr(transformers, LAYOUTS[layout])(transformers.VideoMAEConfig.from_dict(said)).eval()
    twin.load_state_dict(to_transformers(model.state_dict(), layout))
    return twin


LAYOUT = pytest.mark.parametrize("layout", list(LAYOUTS))


@LAYOUT
def test_our_model_with_their_weights_answers_as_theirs(layout: Layout) -> None:
    model = theirs(layout)
    described = from_config(model.config.to_dict())
    config = described.method()
    twin = ours(layout, config, norm=described.norm, shake=False)
    if isinstance(twin, VideoMAE | Classifier):
        like_transformers(twin)
    twin.load_state_dict(from_transformers(model.state_dict(), layout))
    assert (answers_of_ours(layout, twin) - answers_of_theirs(layout, model, config)).abs().max() <= 1e-5
    assert (described.frames, described.size) == (FRAMES, SIZE)


@LAYOUT
def test_their_model_with_our_weights_answers_as_ours(layout: Layout) -> None:
    config = Config.model_validate(OURS)
    model = ours(layout, config)
    if isinstance(model, VideoMAE | Classifier):
        like_transformers(model)
    twin = their_twin(layout, model, config, norm=layout != "classifier")
    assert (answers_of_ours(layout, model) - answers_of_theirs(layout, twin, config)).abs().max() <= 1e-5


@LAYOUT
@pytest.mark.parametrize("bias", ["q_bias", "v_bias"])
def test_a_zeroed_bias_would_be_seen(layout: Layout, bias: str) -> None:
    """The comparison above means something: without the biases of one kind the answers differ a thousandfold of its tolerance."""
    config = Config.model_validate(OURS)
    model = ours(layout, config)
    before = answers_of_ours(layout, model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            assert not name.endswith(bias) or value.abs().min() > 0
            value.mul_(0.0 if name.endswith(bias) else 1.0)
    assert (answers_of_ours(layout, model) - before).abs().max() > 1e-2


@LAYOUT
def test_from_pretrained_keeps_the_biases_of_a_stored_file(layout: Layout, tmp_path: Path) -> None:
    """By transformers' own road: what it reads from a file with our stored names is what we wrote, biases too."""
    config = Config.model_validate(OURS)
    model = ours(layout, config)
    said = to_config(config, architecture=LAYOUTS[layout], frames=FRAMES, size=SIZE, norm=layout != "classifier", classes=["a", "b", "c"])
    (tmp_path / "config.json").write_text(json.dumps(said))
    save_file(to_transformers(model.state_dict(), layout, stored=True), tmp_path / "model.safetensors", {"format": "pt"})
    read, info = getattr(transformers, LAYOUTS[layout]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = to_transformers(model.state_dict(), layout)
    assert wanted.keys() == read.state_dict().keys()
    assert all(torch.equal(value, wanted[name]) for name, value in read.state_dict().items())
    assert any(name.endswith("query.bias") and value.abs().min() > 0 for name, value in read.state_dict().items())


@LAYOUT
@pytest.mark.parametrize("stored", [True, False])
def test_round_trips_are_bitwise(layout: Layout, stored: bool) -> None:
    state = ours(layout, Config.model_validate(OURS)).state_dict()
    there = to_transformers(state, layout, stored=stored)
    back = from_transformers(there, layout)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    wrapped = from_transformers({f"_orig_mod.module.{name}": value for name, value in there.items()}, layout)
    assert all(torch.equal(wrapped[name], value) for name, value in state.items())
    if layout != "encoder":
        again = from_official(to_official(state, layout), layout)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name], value) for name, value in state.items())
    model = theirs(layout)
    again = to_transformers(from_transformers(model.state_dict(), layout), layout)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_settings_round_trip() -> None:
    said = transformers.VideoMAEConfig(**HF).to_dict()
    described = from_config(said)
    back = to_config(described.method(), architecture="VideoMAEForPreTraining", frames=FRAMES, size=SIZE, norm=described.norm)
    assert {name: back[name] for name in HF if name != "num_labels"} == {name: value for name, value in HF.items() if name != "num_labels"}
    config = Config.model_validate(OURS | {"mean": (0.5,), "std": (0.25,), "attention": "no_bias", "target": {"normalise": "none"}})
    plain = to_config(config, architecture="VideoMAEForPreTraining", frames=FRAMES, size=SIZE, norm=True)
    again = from_config(plain, to_preprocessor(config, SIZE)).method()
    assert (again.width, again.depth, again.head_count, again.decoder_shape) == (16, 2, 4, (8, 1, 2))
    assert (again.mlp_ratio, again.decoder.mlp_ratio, again.patch, again.eps) == (2.5, 3.0, (2, 8, 8), EPS)
    assert (again.attention, again.target.normalise, again.mean, again.std) == ("no_bias", "none", (0.5,) * 3, (0.25,) * 3)
    assert from_config({"model_type": "videomae", "qv_bias": False}).method().attention == "no_bias"
    assert from_config({"model_type": "videomae", "qkv_bias": False}).method().attention == "no_bias"
    raw = from_config({}, {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}).method()
    assert (raw.mean, raw.std) == ((0.5,) * 3, (0.2,) * 3)


def test_what_is_wrong_with_a_configuration_is_said_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"hidden_act 'relu'.*patch_size must be.*hidden_size must be a whole number, got 'wide'"):
        from_config({"hidden_act": "relu", "patch_size": [8], "hidden_size": "wide"})
    with pytest.raises(CheckpointError, match=r"image_mean \[0\.5, 0\.5\]"):
        from_config({}, {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]})
    for wrong in ({"image_std": [0.5, float("nan"), 0.5]}, {"image_mean": [0.5, float("inf"), 0.5]}, {"image_mean": [10**400] * 3}):
        with pytest.raises(CheckpointError, match="its preprocessor has image_mean"):
            from_config({}, wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch": (2, 8, 4)}, r"patch \[2, 8, 4\]"),
        ({"position": "learned"}, "position learned"),
        ({"decoder": {**OURS["decoder"], "position": "separable"}}, r"decoder\.position separable"),
        ({"attention": "cosine"}, "attention cosine"),
        ({"attention": "bias"}, "attention bias"),
        ({"decoder": {**OURS["decoder"], "attention": "no_bias"}}, r"decoder\.attention no_bias"),
        ({"init_values": 0.1}, "no LayerScale"),
        ({"target": {"order": "cthw"}}, r"target\.order cthw"),
    ],
)
def test_what_transformers_cannot_express_is_named(changes: dict[str, Any], said: str) -> None:
    config = Config.model_validate(OURS | changes)
    with pytest.raises(ConfigError, match=said) as caught:
        to_config(config, architecture="VideoMAEForPreTraining", frames=FRAMES, size=SIZE, norm=True)
    assert len(caught.value.problems) == 1


def test_keys_that_do_not_belong_are_named() -> None:
    state = to_transformers(ours("pretrain", Config.model_validate(OURS)).state_dict(), "pretrain")
    layer = "videomae.encoder.layer.0.attention.attention."
    for strange in (f"{layer}key.bias", "videomae.embeddings.cls_token", "videomae.encoder.layer.0.output.dense.scale", "pooler.weight"):
        with pytest.raises(CheckpointError, match=f"unknown {strange}".replace(".", r"\.")):
            from_transformers({**state, strange: torch.zeros(16)}, "pretrain")
    with pytest.raises(CheckpointError, match=r"query\.bias without its twin v_bias"):
        from_transformers({name: value for name, value in state.items() if name != f"{layer}value.bias"}, "pretrain")
    with pytest.raises(CheckpointError, match=r"missing .*layer\.0\.attention\.attention\.key\.weight"):
        from_transformers({name: value for name, value in state.items() if name != f"{layer}key.weight"}, "pretrain")
    with pytest.raises(CheckpointError, match="the same parameter"):
        from_transformers({**state, f"{layer}q_bias": torch.zeros(16)}, "pretrain")
    with pytest.raises(CheckpointError, match=r"differ in shape or type"):
        from_transformers({**state, f"{layer}key.weight": torch.zeros(16, 8)}, "pretrain")
    with pytest.raises(CheckpointError, match=r"'align\.scale' has no counterpart"):
        to_transformers({"align.scale": torch.zeros(1)}, "pretrain")


DEEP = "[" * 200_000  # deeper than a reader of JSON follows


def folder(path: Path, layout: Layout, how: str = "safetensors", **changes: Any) -> tuple[Path, Any]:
    """As transformers saves it, or in parts, or pickled."""
    model = theirs(layout, **changes)
    model.save_pretrained(path)
    state = load_file(path / "model.safetensors")
    if how != "safetensors":
        (path / "model.safetensors").unlink()
    if how == "bin":
        torch.save(state, path / "pytorch_model.bin")
    if how == "parts":
        halves = {f"part-{i}.safetensors": {n: v for j, (n, v) in enumerate(state.items()) if j % 2 == i} for i in range(2)}
        for name, half in halves.items():
            save_file(half, path / name)
        index = {"weight_map": {n: name for name, half in halves.items() for n in half}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "do_normalize": True}
    (path / "preprocessor_config.json").write_text(json.dumps(said))
    return path, model


@pytest.mark.parametrize(("layout", "how"), [("pretrain", "safetensors"), ("classifier", "bin"), ("encoder", "parts")])
def test_a_folder_of_theirs_loads_and_gives_their_tokens(layout: Layout, how: str, tmp_path: Path) -> None:
    path, model = folder(tmp_path, layout, how)
    loaded = tubelet.load(path, device="cpu")
    assert (loaded.data.frames, loaded.data.hw) == (FRAMES, SIZE)
    config = Config.model_validate(loaded.config["method"])
    assert (config.mean, config.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    inner = (model if layout == "encoder" else model.videomae).double()  # tokens without a norm are large: no rounding in the way
    loaded.model.double()
    with torch.no_grad():
        assert (loaded.encode(clip().double()).x - answers_of_theirs("encoder", inner, config)).abs().max() <= 1e-5
    report = loaded.report
    assert report is not None
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    inside = [name for name in model.state_dict() if layout == "encoder" or name.startswith("videomae.")]
    assert len(report.loaded) == len(inside)
    assert any(name.endswith("layer.1.attention.attention.q_bias") for name in report.loaded)
    parts = {"pretrain": {"decoder", "encoder_to_decoder", "mask_token"}, "classifier": {"fc_norm", "classifier"}, "encoder": set()}
    assert {name.split(".")[0] for name in report.unused} == parts[layout]
    again = tubelet.load(loaded.path, device="cpu", settings=["frames=8"])  # the file that the folder's was
    assert again.encode(torch.zeros(1, 3, 8, *SIZE)).x.shape == (1, 24, 16)


def test_nothing_of_transformers_is_imported_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder(tmp_path, "encoder")
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert tubelet.load(path, device="cpu").report is not None


def test_biases_that_a_folder_lacks_are_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "pretrain")
    state = load_file(path / "model.safetensors")
    lost = {name: value for name, value in state.items() if not name.endswith(("q_bias", "v_bias"))}
    save_file(lost, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"4 missing \(videomae\.encoder\.layer\.0\.attention\.attention\.q_bias"):
        tubelet.load(path, device="cpu")
    loaded = tubelet.load(path, device="cpu", strict=False)
    assert loaded.report is not None
    assert len(loaded.report.missing) == 4
    odd = {**state, "videomae.embeddings.cls_token": torch.zeros(1)}
    save_file(odd, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unknown \(videomae\.embeddings\.cls_token\)"):
        tubelet.load(path, device="cpu")
    thirds = {name: value for name, value in state.items() if name != "videomae.encoder.layer.1.attention.attention.key.weight"}
    save_file(thirds, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(videomae\.encoder\.layer\.1\.attention\.attention\.key\.weight\)"):
        tubelet.load(path, device="cpu")


def test_other_folders_say_what_they_are(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "encoder")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "vivit"}))
    with pytest.raises(CheckpointError, match=r"a model of the type 'vivit'; of transformers' models Tubelet reads 'videomae'"):
        tubelet.load(path, device="cpu")
    for broken in ("{", DEEP):
        (path / "config.json").write_text(broken)
        with pytest.raises(CheckpointError, match="cannot be read as JSON"):
            tubelet.load(path, device="cpu")
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="folder of transformers without weights"):
        tubelet.load(path, device="cpu")
    index = path / "model.safetensors.index.json"
    (path / "sub").mkdir()
    for text, said in (
        ('{"weight_map": {"a": "../x.safetensors"}}', r"the part \.\./x\.safetensors, which does not lie beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: no such file"),
        ("[]", "no weight_map"),
        ('{"weight_map": {"a": ".."}}', r"names the part \.\., which does not lie beside it"),
        ('{"weight_map": {"a": ""}}', r"names the part '', which does not lie beside it"),
        ('{"weight_map": {"a": "b\\u0000c"}}', r"names the part 'b\\x00c', which does not lie beside it"),
        ('{"weight_map": {"a": "\\ud800"}}', r"names the part '\\ud800', which does not lie beside it"),
        ('{"weight_map": {"a": "sub"}}', r"sub cannot be read"),
        (DEEP, "no weight_map"),
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            tubelet.load(path, device="cpu")


def test_official_names_beside_another_config_load_as_before(tmp_path: Path) -> None:
    state = to_official(ours("pretrain", Config.model_validate(OURS)).state_dict(), "pretrain")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "VideoMAEv2_Base"}')
    settings = ["method.heads=4", "frames=4", "size=[16,24]"]
    loaded = tubelet.load(tmp_path, device="cpu", settings=settings)
    assert loaded.report is not None
    assert loaded.report.layout == "VideoMAE pre-training file"
    for broken in ("{", DEEP):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
            tubelet.load(tmp_path, device="cpu", settings=settings)


def test_a_bare_file_loads_where_the_heads_are_known(tmp_path: Path) -> None:
    _, model = folder(tmp_path / "there", "pretrain")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "there" / "model.safetensors"), bare)
    with pytest.raises(ConfigError, match=r"width 16, .*give the folder with its config\.json, or method\.heads=N"):
        tubelet.load(bare, device="cpu")
    loaded = tubelet.load(bare, device="cpu", settings=["method.heads=4", "frames=4", "size=[16,24]"])
    config = Config.model_validate(loaded.config["method"])
    assert (loaded.encode(clip()).x - answers_of_theirs("encoder", model.videomae, config)).abs().max() <= 1e-5


def test_batches_are_ours() -> None:
    """The clip of these tests goes the road of a method, too."""
    model = ours("pretrain", Config.model_validate(OURS))
    assert isinstance(model, VideoMAE)
    with torch.no_grad():
        tokens = model.encode(Batch({"video": Stream(clip())}, {}, torch.arange(2))).x
        assert torch.equal(tokens, model.encoder(clip()).x)
