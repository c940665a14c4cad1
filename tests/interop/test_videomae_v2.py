"""Files of VideoMAE V2: the recorded answers of the original, and folders of a hub without running their code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import tubelet
from tubelet.errors import CheckpointError
from tubelet.interop.videomae import to_official
from tubelet.methods.videomae import Config
from tubelet.nn.video import VideoEncoder

SHAPE: dict[str, Any] = {"dim": 22, "depth": 2, "heads": 2, "mlp_ratio": 48 / 11, "patch": (2, 8, 8)}
SAID: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "num_classes": 0, "embed_dim": 22, "depth": 2, "num_heads": 2, "mlp_ratio": 48 / 11, "qkv_bias": True,
    "layer_norm_eps": 1e-5, "init_values": 0, "tubelet_size": 2, "use_mean_pooling": True, "num_frames": 4, "cos_attn": False,
}  # fmt: skip


def golden(path: Path, group: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """(weights of a group, all other tensors, settings) of the golden file."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        c = json.loads(file.metadata()["config"])
    settings = [f"method.heads={c['enc_heads']}", f"frames={tensors['input/video'].shape[2]}", "size=[16,24]"]
    return {n.removeprefix(group): v for n, v in tensors.items() if n.startswith(group)}, tensors, settings


def clip(tensors: dict[str, Tensor]) -> Tensor:
    """The recorded input with ImageNet's mean and standard deviation undone: [0, 1]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return tensors["input/video"] * std + mean


def encoder(loaded: tubelet.Loaded) -> VideoEncoder:
    found = loaded.model.get_submodule("encoder")
    assert isinstance(found, VideoEncoder)
    return found


CONTAINERS = pytest.mark.parametrize(("key", "prefix"), [("model", ""), ("module", "_orig_mod."), ("module", "module._orig_mod.")])


@CONTAINERS
def test_a_pretraining_file_gives_the_recorded_tokens(shared: Callable[[str], Path], tmp_path: Path, key: str, prefix: str) -> None:
    state, tensors, settings = golden(shared("goldens/videomae-v2_a.safetensors"), "weight/")
    torch.save({key: {prefix + name: value for name, value in state.items()}, "epoch": 3}, tmp_path / "vit_g_hybrid_pt.pth")
    loaded = tubelet.load(tmp_path / "vit_g_hybrid_pt.pth", device="cpu", settings=settings)
    video = clip(tensors)
    visible = (~tensors["input/encoder_mask"].bool()).nonzero()[:, 1].view(len(video), -1)
    with torch.no_grad():
        assert (encoder(loaded)(video, visible).x - tensors["output/encoder_tokens"]).abs().max() < 1e-4
    assert loaded.config["method"]["mlp_ratio"] == pytest.approx(48 / 11, abs=0.02)
    report = loaded.report
    assert report is not None
    assert (report.missing, report.unexpected, report.reshaped, report.notes) == ((), (), (), ())
    assert set(report.loaded) == {name for name in state if name.startswith("encoder.")}


@CONTAINERS
def test_a_classifier_gives_the_recorded_feature_and_logits(shared: Callable[[str], Path], tmp_path: Path, key: str, prefix: str) -> None:
    state, tensors, settings = golden(shared("goldens/videomae-v2_a.safetensors"), "ft_weight/")
    assert state["blocks.0.mlp.fc1.weight"].shape == (209, 48), "an odd ratio, cut to whole numbers"
    torch.save({key: {prefix + name: value for name, value in state.items()}}, tmp_path / "ft.pth")
    loaded = tubelet.load(tmp_path / "ft.pth", device="cpu", settings=settings)
    pooled = loaded.encode(clip(tensors)).x.mean(1)
    feature = F.layer_norm(pooled, pooled.shape[1:], state["fc_norm.weight"], state["fc_norm.bias"], eps=1e-6)
    assert (feature - tensors["ft_output/pooled_feature"]).abs().max() < 1e-4
    logits = F.linear(feature, state["head.weight"], state["head.bias"])
    assert (logits - tensors["ft_output/logits"]).abs().max() < 1e-4
    assert loaded.report is not None
    assert set(loaded.report.unused) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def hub(folder: Path, prefix: str = "model.", said: dict[str, Any] | None = None, **changes: Any) -> dict[str, Tensor]:
    """A folder as on a hub: settings, code, weights of a classifier's backbone; the state dict."""
    torch.manual_seed(3)
    state = Config.model_validate(SHAPE | changes).build_encoder(frames=4, size=(16, 16)).state_dict()
    named = {f"encoder.{name}": value + 0.1 * torch.randn_like(value) for name, value in state.items() if "trunk.norm" not in name}
    official = to_official(named, "classifier") | {"fc_norm.weight": torch.ones(22), "fc_norm.bias": torch.zeros(22)}
    save_file({prefix + name: value.contiguous() for name, value in official.items()}, folder / "model.safetensors")
    config = {
        "model_type": "VideoMAEv2_Base",
        "auto_map": {"AutoModel": "modeling_videomaev2.VideoMAEv2"},
        "model_config": SAID | (said or {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_videomaev2.py").write_text(f"open({str(folder / 'harm')!r}, 'w').close()\n")
    return named


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {}),
        ({"attention": "no_bias"}, {"qkv_bias": False}),
        ({"attention": "cosine"}, {"cos_attn": True}),
        ({"position": "learned"}, {}),
        ({"init_values": 0.1}, {"init_values": 0.1}),
    ],
)
def test_a_folder_of_the_hub_loads_and_nothing_of_it_is_run(
    tmp_path: Path, prefix: str, changes: dict[str, Any], said: dict[str, Any]
) -> None:
    state = hub(tmp_path, prefix, said, **changes)
    pixels = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2], "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    loaded = tubelet.load(tmp_path, device="cpu")
    assert not (tmp_path / "harm").exists()
    assert (loaded.data.frames, loaded.data.hw) == (4, (16, 16))
    assert (encoder(loaded).heads, loaded.config["method"]["eps"]) == (2, 1e-5)
    twin = Config.model_validate(SHAPE | changes | {"eps": 1e-5, "mean": (0.4, 0.5, 0.6), "std": (0.2,)})
    net = twin.build_encoder(frames=4, size=(16, 16)).variant(norm=False)
    net.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()})
    video = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(video).x, loaded.encode(video).x)
    assert loaded.report is not None
    assert {name.split(".")[0] for name in loaded.report.unused} == {"fc_norm"}


def test_a_folder_says_the_grid_of_a_learned_table(tmp_path: Path) -> None:
    hub(tmp_path, position="learned")
    loaded = tubelet.load(tmp_path, device="cpu", settings=["frames=8", "size=32"])
    assert loaded.notes == ("positions resized from 2x2x2 to 4x4x4",), "nothing is taken for granted"


def test_computed_positions_of_other_clips_are_said(tmp_path: Path) -> None:
    hub(tmp_path)
    assert tubelet.load(tmp_path, device="cpu").notes == ()
    loaded = tubelet.load(tmp_path, device="cpu", settings=["frames=8", "size=32"])
    assert loaded.notes == ("positions computed for 4x4x4, where 2x2x2 was trained",)


def test_folders_of_two_models_and_nonsense_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub(tmp_path, said={"depth": 12, "cos_attn": True})
    with pytest.raises(CheckpointError, match=r"of two models: it says depth 12, its weights 2; attention cosine, its weights qv_bias"):
        tubelet.load(tmp_path, device="cpu")
    hub(tmp_path, said={"num_heads": "two", "tubelet_size": 0})
    with pytest.raises(CheckpointError, match=r"model_config: num_heads 'two', tubelet_size 0"):
        tubelet.load(tmp_path, device="cpu")
    hub(tmp_path)
    tubelet.load(tmp_path, device="cpu")
    assert "has no preprocessor_config.json: pixels are normalised by ImageNet's" in capsys.readouterr().err
