"""What a report says of every tensor; wrappers before names; half precision; models in parts; files of other models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tubelet
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.videomae import to_official
from tubelet.methods.videomae import Config
from tubelet.weights import sha256_of

TINY: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "patch": (2, 8, 8), "decoder": {"dim": 8, "depth": 1, "heads": 2}}
SMALL = ("method.heads=2", "frames=4", "size=16")


def official(layout: str, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = Config.model_validate(TINY | changes).build(masking=None, frames=4, size=(16, 16)).state_dict()
    state = {name: value + 0.2 * torch.randn_like(value) for name, value in state.items()}
    if layout == "pretrain":
        return to_official(state, "pretrain")
    own = {name: value for name, value in state.items() if name.startswith("encoder.") and not name.startswith("encoder.trunk.norm.")}
    head = {
        "fc_norm.weight": torch.ones(16),
        "fc_norm.bias": torch.zeros(16),
        "head.weight": torch.zeros(3, 16),
        "head.bias": torch.zeros(3),
    }
    return to_official(own, "classifier") | head


def tokens(path: Path, *settings: str) -> tuple[Tensor, tubelet.Loaded]:
    loaded = tubelet.load(path, device="cpu", settings=[*SMALL, *settings])
    return loaded.encode(torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))).x, loaded


def kept(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("position", ["sinusoid", "learned"])
@pytest.mark.parametrize("layout", ["pretrain", "classifier"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "backbone.", "model.", "module._orig_mod.", "_orig_mod.module.backbone.", "encoder."]
)
def test_wrappers_of_names(tmp_path: Path, layout: str, prefix: str, position: str) -> None:
    state = official(layout, position=position)
    wanted, plain = tokens(kept(tmp_path / "plain.pth", state))
    if prefix == "encoder." and layout == "pretrain":
        state, prefix = {name: value for name, value in state.items() if name.startswith("encoder.")}, ""
    head = ("fc_norm.", "head.") if prefix == "encoder." else ()
    wrapped = {name if name.startswith(head) and head else prefix + name: value for name, value in state.items()}
    found, loaded = tokens(kept(tmp_path / "wrapped.pth", wrapped))
    assert torch.equal(found, wanted)
    assert loaded.report is not None
    assert plain.report is not None
    assert loaded.report.loaded == plain.report.loaded
    assert ("pos_embed" in " ".join(loaded.report.loaded)) == (position == "learned")
    assert loaded.report.unexpected == ()


def test_what_torch_compile_puts_in_the_middle_of_names(tmp_path: Path) -> None:
    state = official("pretrain", position="learned")
    wanted, _ = tokens(kept(tmp_path / "plain.pth", state))
    middle = {name.replace("encoder.", "encoder._orig_mod.", 1) if name.startswith("encoder.") else name: v for name, v in state.items()}
    found, loaded = tokens(kept(tmp_path / "middle.pth", middle))
    assert torch.equal(found, wanted)
    assert loaded.report is not None
    assert loaded.report.layout == "VideoMAE pre-training file"
    twice = state | {"_orig_mod.encoder.norm.weight": torch.zeros(16)}
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.weight twice"):
        tokens(kept(tmp_path / "twice.pth", twice))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["pretrain", "classifier"])
def test_half_precision_is_converted_and_said(tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
    state = official(layout, position="learned")
    half = {name: value.to(dtype) if value.ndim > 1 else value for name, value in state.items()}
    found, loaded = tokens(kept(tmp_path / "half.pth", half))
    wanted, _ = tokens(kept(tmp_path / "same.pth", {name: value.float() for name, value in half.items()}))
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    report = loaded.report
    assert report is not None
    name = str(dtype).removeprefix("torch.")
    count = sum(half[line].dtype == dtype for line in report.loaded)
    assert report.converted == {name: count}
    assert f"{count} tensors converted from {name}" in str(report)
    first = "encoder." if layout == "pretrain" else ""
    line = next(line for line in report.lines if line.name == f"{first}pos_embed")
    assert (line.status, line.shape, line.here) == ("loaded", (1, 8, 16), (8, 16))
    assert (line.dtype, line.dtype_here) == (name, "float32")


def test_a_line_for_every_tensor(tmp_path: Path) -> None:
    state = official("pretrain")
    del state["encoder.blocks.0.mlp.fc2.bias"]
    state |= {"teacher.weight": torch.zeros(2, dtype=torch.int64), "steps": torch.tensor(3)}
    settings = [*SMALL, "method.patch=[4,8,8]"]
    report = tubelet.load(kept(tmp_path / "o.pth", state), device="cpu", settings=settings, strict=False).report
    assert report is not None
    by_name = {line.name: line for line in report.lines}
    assert by_name.keys() == state.keys() | {"encoder.blocks.0.mlp.fc2.bias"}
    kernel = by_name["encoder.patch_embed.proj.weight"]
    assert (kernel.status, kernel.shape, kernel.here) == ("reshaped", (16, 3, 2, 8, 8), (16, 3, 4, 8, 8))
    assert by_name["encoder.blocks.0.mlp.fc2.bias"].status == "missing"
    assert by_name["encoder.blocks.0.mlp.fc2.bias"].shape is None
    assert (by_name["teacher.weight"].status, by_name["teacher.weight"].dtype) == ("unexpected", "int64")
    assert (by_name["decoder.norm.weight"].status, by_name["decoder.norm.weight"].here) == ("unused", None)
    lines = report.table().splitlines()
    assert len(lines) == len(report.lines)
    row = next(line for line in lines if "patch_embed.proj.weight" in line)
    assert row.startswith("reshaped ")
    assert row.endswith("16x3x2x8x8 float32 -> 16x3x4x8x8 float32")
    assert "tubelet 2 -> 4: kernel inflated" in str(report)
    control = tubelet.load(tmp_path / "o.pth", device="cpu", settings=settings, strict=False, random=True).report
    assert control is not None
    assert control.loaded == ()


def parts(folder: Path, state: dict[str, Tensor]) -> Path:
    """A model in two pickled parts with its index."""
    halves = {f"pytorch_model-{i}.bin": {n: v for j, (n, v) in enumerate(state.items()) if j % 2 == i} for i in range(2)}
    for name, half in halves.items():
        torch.save(half, folder / name)
    index = {"metadata": {}, "weight_map": {n: name for name, half in halves.items() for n in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("layout", ["pretrain", "classifier"])
def test_a_model_in_pickled_parts(tmp_path: Path, layout: str) -> None:
    state = official(layout)
    wanted, _ = tokens(kept(tmp_path / "whole.pth", state))
    found, loaded = tokens(parts(tmp_path, state))
    assert torch.equal(found, wanted)
    assert loaded.sha256 == sha256_of(tmp_path / "pytorch_model.bin.index.json")
    before = sha256_of(tmp_path / "pytorch_model.bin.index.json")
    changed = {name: value + 1 for name, value in torch.load(tmp_path / "pytorch_model-1.bin").items()}
    torch.save(changed, tmp_path / "pytorch_model-1.bin")
    assert sha256_of(tmp_path / "pytorch_model.bin.index.json") != before, "the parts count, not the index alone"
    (tmp_path / "pytorch_model-0.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-0\.bin: no such file, and pytorch_model\.bin\.index\.json names it"):
        tokens(tmp_path)


def test_the_hash_is_looked_at_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(tmp_path / "o.pth", official("pretrain"))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    for spelled in (right, right.upper(), f"sha256:{right}"):
        assert tubelet.load(path, device="cpu", settings=SMALL, sha256=spelled).sha256 == right
    assert tubelet.load(path, device="cpu", settings=SMALL).sha256 == right

    def never(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("tubelet.api._outside.read_weights", never)
    monkeypatch.setattr(torch, "load", never)
    wrong = "0" * 64
    with pytest.raises(CheckpointError, match=rf"was not read: its sha256 is {right}, and {wrong} was asked for"):
        tubelet.load(path, device="cpu", settings=SMALL, sha256=wrong)
    with pytest.raises(ConfigError, match="'1234' is no sha256: it has 64 hexadecimal digits"):
        tubelet.load(path, device="cpu", settings=SMALL, sha256="1234")


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"), r"it looks like a convolutional network \(ResNet\)"),
        (("visual.conv1.weight", "token_embedding.weight", "text_projection"), r"it looks like a model of pictures and text \(CLIP\)"),
        (("text_model.embeddings.token_embedding.weight", "logit_scale"), r"it looks like a model of pictures and text \(CLIP\)"),
        (("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"), "it looks like a model of text"),
        (("model.embed_tokens.weight", "lm_head.weight"), "it looks like a model of text"),
        (("layers.0.blocks.0.attn.relative_position_index", "patch_embed.proj.bias"), "relative positions"),
        (("vit.embeddings.cls_token",), "a vision transformer with names of its own"),
        (("a.patch_embed.proj.weight", "b.patch_embed.proj.weight"), "is there more than once: save the wanted model alone"),
        (("weird",), "it has weird$"),
    ],
)
def test_files_of_other_models_get_one_error(tmp_path: Path, names: tuple[str, ...], looks: str) -> None:
    path = kept(tmp_path / "other.pth", {name: torch.zeros(2, 2) for name in names})
    with pytest.raises(CheckpointError, match=looks) as caught:
        tubelet.load(path, device="cpu")
    said = str(caught.value)
    assert said.count("\n") == 0
    assert all(read in said for read in ("VideoMAE V2", "AdaMAE", "transformers", "timm", "image MAE", "Tubelet's runs"))
