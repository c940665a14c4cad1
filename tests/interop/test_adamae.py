"""Official AdaMAE files: an encoder comes out of one, the sampler is told apart, and names go both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tubelet
from tubelet.interop.videomae import from_official, official_name, our_name, to_official
from tubelet.masking.adamae import Config as Masking
from tubelet.methods.videomae import Config, VideoMAE


def model() -> VideoMAE:
    torch.manual_seed(0)
    config = Config.model_validate({"dim": 24, "depth": 2, "heads": 3, "patch": (2, 8, 8), "decoder": {"dim": 16, "depth": 1, "heads": 2}})
    masking = Masking(heads=4).build(grid=config.grid(16, (24, 24)), dim=24)
    return config.build(masking=masking, frames=16, size=(24, 24))


def test_names_go_both_ways() -> None:
    made = model()
    official = to_official(made.state_dict(), "pretrain")
    assert {k for k in official if "prob" in k} == {
        "encoder.pos_embed_probs",
        *(f"encoder.get_token_probs.0.{n}.{p}" for n in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")),
        "encoder.get_token_probs.0.attn.qkv.weight",
        *(f"encoder.get_token_probs.1.{p}" for p in ("weight", "bias")),
    }
    assert official["encoder.pos_embed_probs"].shape == (1, 72, 24)
    back = from_official(official, "pretrain")
    assert back.keys() == made.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in made.state_dict().items())
    for name in made.state_dict():
        assert our_name(official_name(name, "pretrain"), "pretrain") == name


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_official_file_gives_its_encoder(tmp_path: Path, prefix: str) -> None:
    made = model().eval()
    path = tmp_path / "adamae.pth"
    torch.save({"model": {prefix + k: v for k, v in to_official(made.state_dict(), "pretrain").items()}, "epoch": 800}, path)
    loaded = tubelet.load(path, settings=["frames=16", "size=24", "method.heads=3"], device="cpu")
    video = torch.rand(2, 3, 16, 24, 24)
    with torch.no_grad():
        assert torch.allclose(loaded.encode(video).x, made.encoder(video).x, atol=1e-6)
    assert loaded.report is not None
    assert loaded.report.missing == loaded.report.unexpected == ()
    assert "encoder.pos_embed_probs" in loaded.report.unused


def test_the_shared_weights_load(shared, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = {
        k.removeprefix("weight/"): v for k, v in load_file(shared("goldens/adamae_a.safetensors")).items() if k.startswith("weight/")
    }
    path = tmp_path / "official.pth"
    torch.save({"model": weights}, path)
    loaded = tubelet.load(path, settings=["frames=16", "size=24", "method.heads=4"], device="cpu")
    assert loaded.encode(torch.rand(1, 3, 16, 24, 24)).x.shape == (1, 72, 48)
