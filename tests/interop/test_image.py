"""Image transformers as video encoders: a still clip has the picture's tokens, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import tubelet
from tubelet.config import parse
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.image import to_image
from tubelet.interop.transformers_settings import inexpressible
from tubelet.interop.videomae import to_official
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config
from tubelet.nn.position import Learned
from tubelet.nn.video import VideoEncoder

DIM, DEPTH, HEADS, PATCH, SIDE = 16, 2, 2, 8, 32
HEADED = f"method.heads={HEADS}"
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def vit(*, token: bool = True, scale: bool = False, side: int = SIDE, norm: bool = True) -> dict[str, Tensor]:
    """The state dict of a tiny image ViT under timm's names, with numbers everywhere."""
    g = torch.Generator().manual_seed(1)

    def r(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=g)

    out = {"patch_embed.proj.weight": r(DIM, 3, PATCH, PATCH), "patch_embed.proj.bias": r(DIM)}
    out |= {"cls_token": r(1, 1, DIM)} if token else {}
    out["pos_embed"] = r(1, token + (side // PATCH) ** 2, DIM)
    shapes = {
        "norm1": (DIM,),
        "attn.qkv": (3 * DIM, DIM),
        "attn.proj": (DIM, DIM),
        "norm2": (DIM,),
        "mlp.fc1": (40, DIM),
        "mlp.fc2": (DIM, 40),
    }
    for i in range(DEPTH):
        for name, shape in shapes.items():
            out |= {f"blocks.{i}.{name}.weight": r(*shape) + (len(shape) == 1), f"blocks.{i}.{name}.bias": r(shape[0])}
        out |= {f"blocks.{i}.ls{j}.gamma": r(DIM) for j in (1, 2)} if scale else {}
    last = "norm" if norm else "fc_norm"
    return out | {f"{last}.weight": 1 + r(DIM), f"{last}.bias": r(DIM), "head.weight": r(5, DIM), "head.bias": r(5)}


def answer(state: dict[str, Tensor], picture: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, [1 +] N, D): what an image ViT says, written down plainly."""
    x = F.conv2d((picture - MEAN) / STD, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    if "cls_token" in state:
        x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(DEPTH):
        b = f"blocks.{i}."
        q, k, v = linear(norm(x, b + "norm1"), b + "attn.qkv").unflatten(2, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(2, 3) / (DIM // HEADS) ** 0.5).softmax(3)
        x = x + linear((weight @ v).transpose(1, 2).flatten(2), b + "attn.proj") * state.get(b + "ls1.gamma", torch.ones(1))
        inner = linear(F.gelu(linear(norm(x, b + "norm2"), b + "mlp.fc1")), b + "mlp.fc2")
        x = x + inner * state.get(b + "ls2.gamma", torch.ones(1))
    return norm(x, "norm") if "norm.weight" in state else x


def kept(path: Path, state: dict[str, Tensor], key: str = "model") -> Path:
    torch.save({key: state, "epoch": 1}, path)
    return path


def encoder(loaded: tubelet.Loaded) -> VideoEncoder:
    found = loaded.model.get_submodule("encoder")
    assert isinstance(found, VideoEncoder)
    return found


def still(frames: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """(a picture, a clip of it)."""
    picture = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    return picture, picture[:, :, None].expand(-1, -1, frames, -1, -1)


@pytest.mark.parametrize("tubelet_frames", [1, 2, 4])
@pytest.mark.parametrize("position", ["learned", "separable"])
@pytest.mark.parametrize(("token", "scale", "norm"), [(True, False, True), (False, False, False), (True, True, True)])
def test_one_slot_of_a_still_clip_has_the_tokens_of_the_picture(
    tmp_path: Path, tubelet_frames: int, position: str, token: bool, scale: bool, norm: bool
) -> None:
    state = vit(token=token, scale=scale, norm=norm)
    settings = [HEADED, f"method.patch=[{tubelet_frames},8,8]", f"method.position={position}", f"frames={tubelet_frames}", f"size={SIDE}"]
    loaded = tubelet.load(kept(tmp_path / "vit.pth", state), device="cpu", settings=settings)
    picture, video = still(tubelet_frames)
    with torch.no_grad():
        assert (loaded.encode(video).x - answer(state, picture)).abs().max() < 5e-5
    config = loaded.config["method"]
    assert (config["class_token"], config["attention"], config["position"]) == (token, "bias", position)
    assert encoder(loaded).heads == HEADS
    report = loaded.report
    assert report is not None
    assert (report.layout, report.missing, report.unexpected) == ("image ViT", (), ())
    assert set(report.loaded) | set(report.unused) == set(state)
    assert [name for name, _, _ in report.reshaped] == ["patch_embed.proj.weight"] * (tubelet_frames > 1)


@pytest.mark.parametrize("frames", [2, 8, 16])
def test_every_slot_of_a_still_clip_has_the_embedding_of_the_picture(tmp_path: Path, frames: int) -> None:
    state = vit()
    loaded = tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=[HEADED, f"frames={frames}", f"size={SIDE}"])
    net, (picture, video) = encoder(loaded), still(frames)
    assert net.embed.patch == (2, 8, 8)
    with torch.no_grad():
        ours = net.tokenise(video).x.unflatten(1, (frames // 2, -1))
    theirs = F.conv2d((picture - MEAN) / STD, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    wanted = theirs.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    assert (ours - wanted[:, None]).abs().max() < 1e-5
    assert isinstance(net.position, Learned)
    assert torch.equal(net.position.rows, state["pos_embed"][0, 1:])
    assert net.position.class_row is not None
    assert torch.equal(net.position.class_row, state["pos_embed"][0, :1])


def test_pictures_of_another_size_resize_the_stored_table_and_leave_the_class_row(tmp_path: Path) -> None:
    state = vit(side=64)
    loaded = tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=[HEADED, "frames=4", "size=[32,48]"])
    net = encoder(loaded)
    assert loaded.report is not None
    assert any(note.startswith("positions resized from 1x8x8 to 2x4x6") for note in loaded.notes)
    wanted = F.interpolate(state["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (8, 8)), size=(4, 6), mode="bicubic")
    rows = net.position.table(net.grid(torch.zeros(1, 3, 4, 32, 48)))
    assert torch.allclose(rows, wanted[0].flatten(1).T.repeat(2, 1), atol=1e-6)
    assert loaded.encode(torch.zeros(1, 3, 4, 32, 48)).x.shape == (1, 1 + 2 * 24, DIM)


def test_a_token_without_a_row_of_its_own(tmp_path: Path) -> None:
    """Some models give places alone positions (timm: no_embed_class)."""
    state = vit()
    state["pos_embed"] = state["pos_embed"][:, 1:]
    loaded = tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=[HEADED, "method.patch=[1,8,8]", "frames=1", "size=32"])
    picture, video = still(1)
    full = state | {"pos_embed": torch.cat([torch.zeros(1, 1, DIM), state["pos_embed"]], 1)}
    assert (loaded.encode(video).x - answer(full, picture)).abs().max() < 1e-5


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "_orig_mod.module."])
def test_a_pretraining_file_of_mae(tmp_path: Path, prefix: str) -> None:
    state = {name: value for name, value in vit().items() if not name.startswith("head.")}
    beside = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8), "decoder_embed.weight": torch.zeros(8, DIM)}
    beside |= {
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "decoder_norm.weight": torch.zeros(8),
        "decoder_pred.bias": torch.zeros(192),
    }
    whole = {prefix + name: value for name, value in {**state, **beside}.items()}
    loaded = tubelet.load(kept(tmp_path / "mae.pth", whole), device="cpu", settings=[HEADED, "frames=2", "size=32"])
    picture, video = still(2)
    assert (loaded.encode(video).x - answer(state, picture)).abs().max() < 5e-5
    assert loaded.report is not None
    assert loaded.report.layout == "image MAE's pre-training file"
    assert set(loaded.report.unused) == set(beside)
    assert any("ImageNet" in note for note in loaded.notes)


def test_a_folder_of_timm_says_mean_std_and_the_size_of_its_pictures(tmp_path: Path) -> None:
    state = vit()
    save_file(state, tmp_path / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, SIDE, SIDE]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny", "pretrained_cfg": said}))
    loaded = tubelet.load(tmp_path, device="cpu", settings=[HEADED, "frames=2"])
    assert loaded.data.hw == (SIDE, SIDE)
    assert loaded.config["method"]["mean"] == [0.5, 0.5, 0.5]
    assert loaded.config["method"]["std"] == [0.25, 0.25, 0.25]
    assert loaded.notes == ("tubelet 1 -> 2: kernel inflated",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": [0, 0, 0]},
        {"std": [0.2, -0.2, 0.2]},
        {"std": [0.2, float("nan"), 0.2]},
        {"mean": [float("nan")] * 3},
        {"mean": [float("inf")] * 3},
        {"mean": ["a"] * 3},
        {"mean": []},
    ],
)
def test_pixels_that_cannot_be_normalised_are_refused(tmp_path: Path, wrong: dict[str, list[float]]) -> None:
    save_file(vit(), tmp_path / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, SIDE, SIDE]} | wrong
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": said}))
    with pytest.raises(CheckpointError, match=r"config\.json, pretrained_cfg: (mean|std) .*must be finite"):
        tubelet.load(tmp_path, device="cpu", settings=[HEADED, "frames=2"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="must be finite, and above 0"):
        tubelet.load(tmp_path / "model.safetensors", device="cpu", settings=[HEADED, "frames=2", "size=32", "method.std=[0,0,0]"])


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    save_file(vit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        tubelet.load(tmp_path, device="cpu", settings=[HEADED, "frames=2"])


@pytest.mark.parametrize("strict", [True, False])
def test_a_class_token_is_not_left_out(tmp_path: Path, strict: bool) -> None:
    settings = [HEADED, "frames=2", "size=32", "method.class_token=false"]
    with pytest.raises(ConfigError, match=r"method\.class_token=false: .* cannot be left out"):
        tubelet.load(kept(tmp_path / "v.pth", vit()), device="cpu", settings=settings, strict=strict)


@pytest.mark.parametrize("attention", ["bias", "qv_bias"])
@pytest.mark.parametrize(("token", "scale"), [(True, False), (False, True)])
def test_a_video_encoder_becomes_an_image_vit(tmp_path: Path, attention: str, token: bool, scale: bool) -> None:
    """A trained one: the picture's tokens are those of its still clip, whose positions are the same in every slot."""
    plain = {
        "dim": DIM,
        "depth": DEPTH,
        "heads": HEADS,
        "mlp_ratio": 2.5,
        "patch": [4, 8, 8],
        "position": "learned",
        "attention": attention,
    }
    torch.manual_seed(4)
    config = parse(Config, {**plain, "class_token": token, "init_values": 0.5 if scale else 0.0})
    net = config.build_encoder(frames=4, size=(SIDE, SIDE)).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.2 * torch.randn(value.shape))
    picture, video = still(4)
    with torch.no_grad():
        assert (net(video).x - answer(to_image(net), picture)).abs().max() < 1e-4


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("position", ["learned", "separable"])
def test_there_and_back_is_bitwise(tmp_path: Path, frames: int, position: str) -> None:
    state = {name: value for name, value in vit(scale=True).items() if not name.startswith("head.")}
    settings = [HEADED, f"method.patch=[{frames},8,8]", f"method.position={position}", "frames=8", f"size={SIDE}"]
    back = to_image(encoder(tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=settings)))
    assert back.keys() == state.keys()
    assert [name for name, value in state.items() if not torch.equal(back[name], value)] == []
    again = tubelet.load(kept(tmp_path / "w.pth", back), device="cpu", settings=settings)
    assert again.report is not None
    assert again.report.unexpected == ()


def test_positions_of_many_slots_are_averaged() -> None:
    config = parse(Config, {"dim": DIM, "depth": 1, "heads": HEADS, "patch": [2, 8, 8], "position": "learned", "attention": "bias"})
    net = config.build_encoder(frames=6, size=(16, 16))
    assert isinstance(net.position, Learned)
    wanted = (net.position.rows[:4] + net.position.rows[4:8] + net.position.rows[8:]) / 3
    assert torch.allclose(to_image(net)["pos_embed"][0], wanted, atol=1e-6)
    odd = parse(Config, {"dim": DIM, "depth": 1, "heads": HEADS, "patch": [2, 8, 8], "attention": "cosine"})
    with pytest.raises(ConfigError, match="an image ViT cannot express attention cosine"):
        to_image(odd.build_encoder(frames=2, size=(16, 16)))


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"pos_embed": torch.zeros(1, 13, DIM)}, (), "13 rows of positions, which are those of no square picture and not the 4x4 places"),
        ({"reg_token": torch.zeros(1, 4, DIM)}, (), r"1 unknown \(reg_token\)"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(8)}, (), r"1 unknown \(blocks\.0\.attn\.q_norm\.weight\)"),
        ({}, ("method.patch=[2,16,16]",), r"has cubes of \[1, 8, 8\] .* give method\.patch=\[N,8,8\]"),
        ({}, ("method.position=sincos2d",), "a file's own table of positions is kept as learned or separable"),
        ({}, ("method.heads=3",), "cannot be split into heads 3"),
        ({}, ("size=20",), "change the clip's frames or size"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, change: dict[str, Tensor], settings: tuple[str, ...], said: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=said):
        tubelet.load(kept(tmp_path / "v.pth", vit() | change), device="cpu", settings=[HEADED, "frames=2", "size=32", *settings])


def test_a_table_that_is_missing_is_missed_and_heads_are_asked_for(tmp_path: Path) -> None:
    state = vit()
    del state["pos_embed"]
    with pytest.raises(CheckpointError, match=r"an image model .* without pos_embed"):
        tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=[HEADED])
    with pytest.raises(ConfigError, match=r"give method\.heads=N"):
        tubelet.load(kept(tmp_path / "v.pth", vit()), device="cpu")


def test_a_norm_is_missed_where_none_follows_the_pooling(tmp_path: Path) -> None:
    state = {name: value for name, value in vit().items() if not name.startswith("norm.")}
    settings = [HEADED, "frames=2", "size=32"]
    with pytest.raises(CheckpointError, match=r"2 missing \(norm\.weight, norm\.bias\)"):
        tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=settings)
    loaded = tubelet.load(tmp_path / "v.pth", device="cpu", settings=settings, strict=False)
    assert loaded.report is not None
    assert loaded.report.missing == ("norm.weight", "norm.bias")
    assert "trunk.norm.weight" in encoder(loaded).state_dict()
    pooled = tubelet.load(kept(tmp_path / "w.pth", vit(norm=False)), device="cpu", settings=settings)
    assert "trunk.norm.weight" not in encoder(pooled).state_dict()


def test_other_formats_cannot_express_a_class_token(tmp_path: Path) -> None:
    loaded = tubelet.load(kept(tmp_path / "v.pth", vit()), device="cpu", settings=[HEADED, "frames=2", "size=32"])
    config = parse(Config, loaded.config["method"])
    assert "class_token: it has none" in inexpressible(config, decoder=False)
    named = {f"encoder.{name}": value for name, value in encoder(loaded).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"encoder\.(class_token|position\.class_row).*no counterpart"):
        to_official(named, "classifier")


def test_an_export_says_what_the_other_format_lacks_and_writes_nothing(tmp_path: Path) -> None:
    path, settings = kept(tmp_path / "v.pth", vit()), [HEADED, "frames=2", "size=32"]
    for out, to, said in (
        (tmp_path / "hf", "hf", "cannot express class_token"),
        (tmp_path / "o.pth", "official", "class_token' has no counter"),
    ):
        with pytest.raises(ConfigError, match=said):
            tubelet.export(path, out, to=to, settings=settings)  # type: ignore[arg-type]  # one of the two
        assert not out.exists()


def test_a_classifier_reads_the_class_token(tmp_path: Path) -> None:
    state = vit()
    loaded = tubelet.load(kept(tmp_path / "v.pth", state), device="cpu", settings=[HEADED, "frames=2", "size=32"])
    head = parse(ClassifierConfig, {"pool": "class", "norm": "tokens", "init_scale": 1.0})
    net = head.build(encoder=encoder(loaded), classes=5).eval()
    net.readout.head.linear.load_state_dict({"weight": state["head.weight"], "bias": state["head.bias"]})
    picture, video = still(2)
    with torch.no_grad():
        assert (net(video) - F.linear(answer(state, picture)[:, 0], state["head.weight"], state["head.bias"])).abs().max() < 1e-5
