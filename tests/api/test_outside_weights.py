"""Official VideoMAE files through the public functions: tokens as recorded, what is inferred, reported and refused."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import tubelet
from tubelet.cli import run
from tubelet.core import TokenGrid
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.videomae import to_official
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config
from tubelet.nn.position import Learned
from tubelet.nn.video import VideoEncoder
from tubelet.train.checkpoint import write_tensors

TINY: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "patch": (2, 8, 8), "decoder": {"dim": 8, "depth": 1, "heads": 2}}
SMALL = ("method.heads=2", "frames=4", "size=16")


def official(layout: str = "pretrain", **changes: Any) -> dict[str, Tensor]:
    """The state dict of a tiny model under official names, with numbers far from their start."""
    config = Config.model_validate(TINY | changes)
    torch.manual_seed(5)
    state = config.build(masking=None, frames=4, size=(16, 16)).state_dict()
    state = {name: value + 0.2 * torch.randn_like(value) for name, value in state.items()}
    if layout == "pretrain":
        return to_official(state, "pretrain")
    own = {name: value for name, value in state.items() if name.startswith("encoder.") and not name.startswith("encoder.trunk.norm.")}
    head = {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16), "linear.weight": torch.zeros(3, 16), "linear.bias": torch.zeros(3)}
    return to_official({**own, **{f"readout.head.{name}": value for name, value in head.items()}}, "classifier")


def saved(path: Path, state: dict[str, Tensor], key: str = "model") -> Path:
    """As the official code saves: the state under a key, beside an argparse.Namespace and NumPy scalars."""
    torch.save({key: state, "args": argparse.Namespace(lr=np.float64(1e-3), model="pretrain_videomae_x"), "epoch": 1}, path)
    return path


def encoder(loaded: tubelet.Loaded) -> VideoEncoder:
    found = loaded.model.get_submodule("encoder")
    assert isinstance(found, VideoEncoder)
    return found


def golden(path: Path, group: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(weights of a group, all other tensors, options) of a golden file."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        config = json.loads(file.metadata()["config"])
    return {n.removeprefix(group): v for n, v in tensors.items() if n.startswith(group)}, tensors, config


def clip(tensors: dict[str, Tensor]) -> Tensor:
    """The recorded input with ImageNet's mean and standard deviation undone: [0, 1]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return tensors["input/video"] * std + mean


@pytest.fixture
def options(shared: Callable[[str], Path]) -> list[str]:
    _, _, c = golden(shared("goldens/videomae_a.safetensors"), "weight/")
    return [f"method.heads={c['enc_heads']}", f"frames={c['frames']}", f"size={c['img_size']}"]


@pytest.mark.parametrize(("key", "prefix"), [("model", ""), ("module", "module."), ("state_dict", "_orig_mod.module.")])
def test_a_pretraining_file_gives_the_recorded_tokens(
    shared: Callable[[str], Path], options: list[str], tmp_path: Path, key: str, prefix: str
) -> None:
    state, tensors, config = golden(shared("goldens/videomae_a.safetensors"), "weight/")
    path = saved(tmp_path / "official.pth", {prefix + name: value for name, value in state.items()}, key)
    loaded = tubelet.load(path, device="cpu", settings=options)
    video = clip(tensors)
    visible = (~tensors["input/mask"].bool()).nonzero()[:, 1].view(len(video), -1)
    net = encoder(loaded)
    with torch.no_grad():
        assert (net(video, visible).x - tensors["output/encoder_tokens"]).abs().max() < 1e-4
        every = net.tokenise(video).x[: len(tensors["output/patch_tokens_with_pos"])]
    assert (every - tensors["output/patch_tokens_with_pos"]).abs().max() < 1e-4
    tokens = loaded.encode(video)
    assert tokens.x.shape == (len(video), config["frames"] // config["tubelet"] * 24, config["enc_dim"])
    report = loaded.report
    assert report is not None
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    assert {name for name in state if name.startswith("encoder.")} == set(report.loaded)
    assert {name.split(".")[0] for name in report.unused} == {"decoder", "encoder_to_decoder", "mask_token"}


def test_a_fine_tuned_file_gives_the_recorded_features(shared: Callable[[str], Path], options: list[str], tmp_path: Path) -> None:
    state, tensors, _ = golden(shared("goldens/videomae_a.safetensors"), "ft_weight/")
    path = tmp_path / "finetuned.safetensors"
    save_file(state, path)
    loaded = tubelet.load(path, device="cpu", settings=options)
    pooled = loaded.encode(clip(tensors)).x.mean(1)
    feature = F.layer_norm(pooled, pooled.shape[1:], state["fc_norm.weight"], state["fc_norm.bias"], eps=1e-6)
    assert (feature - tensors["ft_output/pooled_feature"]).abs().max() < 1e-4
    assert loaded.report is not None
    assert {name.split(".")[0] for name in loaded.report.unused} == {"fc_norm", "head"}


def test_an_outside_model_has_the_official_data_settings(tmp_path: Path) -> None:
    state = official(dim=192, heads=3, depth=1, patch=(2, 16, 16), mlp_ratio=1.0)
    loaded = tubelet.load(saved(tmp_path / "o.pth", state), device="cpu")
    assert (loaded.data.frames, loaded.data.hw, loaded.data.stride) == (16, (224, 224), 4)
    assert torch.allclose(encoder(loaded).pixels.mean, torch.tensor([0.485, 0.456, 0.406]))
    assert torch.allclose(encoder(loaded).pixels.std, torch.tensor([0.229, 0.224, 0.225]))
    assert encoder(loaded).heads == 3
    assert loaded.config["method"]["size"] == "tiny"
    assert encoder(loaded).position.shape == (8, 14, 14)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"attention": "qv_bias", "position": "sinusoid", "init_values": 0.0}),
        ({"attention": "bias"}, {"attention": "bias"}),
        ({"attention": "no_bias"}, {"attention": "no_bias"}),
        ({"attention": "cosine"}, {"attention": "cosine", "heads": 2}),
        ({"init_values": 0.3}, {"init_values": 0.1}),
        ({"position": "learned"}, {"position": "learned"}),
        ({"mlp_ratio": 48 / 11}, {}),
        ({"patch": (1, 4, 8), "depth": 3}, {"patch": [1, 4, 8], "depth": 3}),
    ],
)
@pytest.mark.parametrize("layout", ["pretrain", "classifier"])
def test_the_architecture_is_read_off_the_tensors(tmp_path: Path, layout: str, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    """The loaded encoder answers as the model that the file was made of."""
    path = saved(tmp_path / "o.pth", official(layout, **changes))
    settings = [s for s in SMALL if changes.get("attention") != "cosine" or "heads" not in s]
    loaded = tubelet.load(path, device="cpu", settings=settings)
    method = loaded.config["method"]
    assert expected.items() <= method.items()
    twin = Config.model_validate(TINY | changes).build_encoder(frames=4, size=(16, 16))
    twin.load_state_dict(twin.state_dict() | encoder(loaded).state_dict())
    video = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(twin.variant(norm=layout == "pretrain")(video).x, loaded.encode(video).x)


def test_a_learned_table_is_resized_per_slot_for_another_picture_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "o.pth", official("classifier", position="learned", patch=(2, 4, 4)))
    same = tubelet.load(path, device="cpu", settings=SMALL)
    larger = tubelet.load(path, device="cpu", settings=["method.heads=2", "frames=4", "size=32"])
    assert larger.report is not None
    assert larger.report.reshaped == ()
    assert larger.report.notes == ("positions resized from 2x4x4 to 2x8x8 (the file does not say its grid; this is the likeliest)",)
    old, new = encoder(same).position, encoder(larger).position
    assert isinstance(old, Learned)
    rows = new.table(TokenGrid.of((4, 32, 32), (2, 4, 4), ("t", "h", "w")))
    for slot in range(2):
        table = old.rows[slot * 16 : (slot + 1) * 16].T.reshape(1, 16, 4, 4)
        wanted = F.interpolate(table, size=(8, 8), mode="bicubic", align_corners=False)[0].flatten(1).T
        assert torch.allclose(rows[slot * 64 : (slot + 1) * 64], wanted, atol=1e-6)
    longer = tubelet.load(path, device="cpu", settings=["method.heads=2", "frames=6", "size=16"])
    assert longer.report is not None
    assert "positions resized from 2x4x4 to 3x4x4" in str(longer.report)
    assert longer.encode(torch.zeros(1, 3, 6, 16, 16)).x.shape == (1, 48, 16)
    odd = official("classifier", position="learned", patch=(2, 4, 4)) | {"pos_embed": torch.zeros(1, 30, 16)}
    with pytest.raises(CheckpointError, match=r"positions for 30 cubes, which are no slots of square pictures and not the 3x4x4"):
        tubelet.load(saved(path, odd), device="cpu", settings=["method.heads=2", "frames=6", "size=16"])


def test_the_number_of_heads_is_asked_for_where_no_size_has_the_width(tmp_path: Path) -> None:
    path = saved(tmp_path / "o.pth", official())
    with pytest.raises(ConfigError, match=r"width 16, which no named size has .*small 384.*give method\.heads=N"):
        tubelet.load(path, device="cpu")
    with pytest.raises(ConfigError, match=r"method\.size=small is 384 wide, .* 16 wide"):
        tubelet.load(path, device="cpu", settings=["method.size=small"])
    with pytest.raises(ConfigError, match="cannot be split into heads 3"):
        tubelet.load(path, device="cpu", settings=["method.heads=3"])
    with pytest.raises(ConfigError, match=r"hedas: unknown setting \(did you mean 'heads'\?\)"):
        tubelet.load(path, device="cpu", settings=["method.heads=2", "method.hedas=2"])


def test_encoder_tensors_that_do_not_match_are_refused(tmp_path: Path) -> None:
    state = official()
    gone = {name: value for name, value in state.items() if name != "encoder.blocks.1.attn.q_bias"}
    odd = {**gone, "encoder.cls_token": torch.zeros(1, 1, 16), "teacher.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 missing \(encoder\.blocks\.1\.attn\.q_bias\) and 1 unknown \(encoder\.cls_token\)"):
        tubelet.load(saved(tmp_path / "o.pth", odd), device="cpu", settings=SMALL)
    loaded = tubelet.load(tmp_path / "o.pth", device="cpu", settings=SMALL, strict=False)
    assert loaded.report is not None
    assert loaded.report.missing == ("encoder.blocks.1.attn.q_bias",)
    assert loaded.report.unexpected == ("encoder.cls_token", "teacher.weight")
    assert "1 missing and left random" in str(loaded.report)


def test_a_norm_is_missed_where_none_follows_the_pooling(tmp_path: Path) -> None:
    state = {name: value for name, value in official("classifier").items() if not name.startswith("fc_norm.")}
    with pytest.raises(CheckpointError, match=r"2 missing \(norm\.weight, norm\.bias\)"):
        tubelet.load(saved(tmp_path / "o.pth", state), device="cpu", settings=SMALL)
    loaded = tubelet.load(tmp_path / "o.pth", device="cpu", settings=SMALL, strict=False)
    assert loaded.report is not None
    assert loaded.report.missing == ("norm.weight", "norm.bias")
    whole = state | {"norm.weight": torch.full((16,), 2.0), "norm.bias": torch.ones(16)}
    full = tubelet.load(saved(tmp_path / "w.pth", whole), device="cpu", settings=SMALL)
    assert full.report is not None
    assert "norm.weight" in full.report.loaded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s | {"encoder.blocks.0.mlp.fc2.bias": torch.zeros(5)}, r"fc2\.bias is \(5,\), the encoder's \(16,\)"),
        (lambda s: s | {"encoder.norm.weight": torch.full((16,), torch.nan)}, r"encoder\.norm\.weight holds numbers that are not finite"),
        (lambda s: {n: v for n, v in s.items() if ".blocks.0." not in n}, r"lacks the encoder's block 0; it has 1 others"),
        (lambda s: {n: v for n, v in s.items() if ".blocks." not in n}, "lacks the encoder's block 0$"),
        (lambda s: s | {"encoder.patch_embed.proj.weight": torch.zeros(16, 3, 8, 8)}, "an image model"),
        (lambda s: {"fc.weight": torch.zeros(2, 2)}, r"no encoder in a layout that is read .*VideoMAE V2.*: it has fc\.weight$"),
        (
            lambda s: {"videomae.embeddings.patch_embeddings.projection.weight": torch.zeros(16, 3, 2, 8, 8)},
            "lacks the encoder's block 0$",
        ),
    ],
)
def test_other_files_say_what_they_are(tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str) -> None:
    path = saved(tmp_path / "o.pth", change(official()))
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=said):
            tubelet.load(path, device="cpu", settings=SMALL, strict=strict)


def test_the_random_control_and_settings_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "o.pth", official())
    one, two = (tubelet.load(path, device="cpu", settings=SMALL, random=True) for _ in range(2))
    trained = tubelet.load(path, device="cpu", settings=SMALL)
    weight = [encoder(loaded).embed.weight for loaded in (one, two, trained)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    assert "VideoMAE pre-training file: 30 tensors of the encoder loaded; 19 not used" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="one set of weights"):
        tubelet.load(path, weights="ema", device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tubelet.make_playground(tmp_path_factory.mktemp("clips"), clips=40, scene="easy", size=16, frames=4)


def test_embed_knn_and_probe_take_an_official_file(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(saved(tmp_path / "official.pth", official("classifier")))
    sets = [word for text in (*SMALL, "stride=1", "workers=0") for word in ("--set", text)]
    assert run(["embed", path, str(clips), "--out", str(tmp_path / "e.npz"), "--device", "cpu", *sets]) == 0
    assert "40 / 40 embedded, 16 numbers" in capsys.readouterr().out
    for command in (["knn"], ["probe"]):
        assert run([*command, path, str(clips), "--device", "cpu", *sets]) == 0
        said = capsys.readouterr()
        assert "8 / 8 scored" in said.out
        assert "VideoMAE fine-tuned file" in said.err
    assert run(["knn", path, str(clips), "--device", "cpu"]) == 2
    assert "give method.heads=N" in capsys.readouterr().err


def test_settings_of_a_probe_are_chosen_on_films_of_their_own(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class is one film: by groups nothing can be held out, and the penalty stays the default."""
    monkeypatch.setattr("tubelet.tasks.attentive.STEPS", 5)
    films = clips.with_name("films.csv")
    with open(clips, newline="") as source, open(films, "w", newline="") as target:
        rows = list(csv.DictReader(source))
        writer = csv.DictWriter(target, [*rows[0], "film"])
        writer.writeheader()
        writer.writerows({**row, "film": row["label"]} for row in rows)
    path = str(saved(tmp_path / "official.pth", official("classifier")))
    sets = [f"--set={text}" for text in (*SMALL, "stride=1", "workers=0")]
    args = ["probe", path, str(films), "--device", "cpu", "--json", str(tmp_path / "p.json"), *sets]
    for more, key in (([], "C_tried"), (["--kind", "attentive"], "tried")):
        assert run([*args, *more]) == 0
        assert json.loads((tmp_path / "p.json").read_text())["details"][key]
        assert run([*args, *more, "--groups", "film"]) == 0
        assert not json.loads((tmp_path / "p.json").read_text())["details"][key]
    capsys.readouterr()
    assert run([*args, "--groups", "flim"]) == 1
    assert "did you mean 'film'" in capsys.readouterr().err


def test_the_attentive_probe_and_what_lies_behind_its_score(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tubelet.tasks.attentive.STEPS", 5)
    path, picture, kept = str(saved(tmp_path / "official.pth", official())), tmp_path / "new" / "c.png", tmp_path / "p.json"
    args = ["probe", path, str(clips), "--kind", "attentive", "--device", "cpu", "--set", "views.clips=2", "--set", "stride=1"]
    sets = [word for text in (*SMALL, "workers=0") for word in ("--set", text)]
    assert run([*args, *sets, "--details", "--picture", str(picture), "--json", str(kept)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("attentive probe (all tokens): ")
    assert all(title in out for title in ("recall by class", "most confused", "hardest clips"))
    found = json.loads(kept.read_text())
    assert len(found["predictions"]) == found["n_scored"] == sum(map(sum, found["confusion"])) == 8
    assert (found["details"]["views"], found["details"]["tokens"], found["details"]["kept_in"]) == (2, 8, "memory")
    assert found["hardest"][0]["key"] in out
    assert Image.open(picture).size[0] > 400
    assert run([*args, *sets, "--memory", "0", "--json", str(kept)]) == 0
    again = json.loads(kept.read_text())
    assert again["details"]["kept_in"] == "file"
    assert again["predictions"] == found["predictions"]
    assert run([*args, "--pool", "slots", "--picture", "c.gif"]) == 2
    assert capsys.readouterr().err.count("\n  - ") == 2


@pytest.mark.parametrize("norm", ["pooled", "tokens"])
def test_the_encoder_of_a_fine_tuned_run(tmp_path: Path, norm: str) -> None:
    """What tubelet finetune writes: the classifier's weights, with settings of encoder, classifier and data."""
    method, head = Config.model_validate(TINY), ClassifierConfig.model_validate({"norm": norm})
    net = head.build(encoder=method.build_encoder(frames=4, size=(16, 16)), classes=3).eval()
    config = {"method": method.model_dump(mode="json"), "classifier": head.model_dump(mode="json"), "data": {"frames": 4, "size": 16}}
    write_tensors(tmp_path / "model.safetensors", net.state_dict(), {"format": 1, "config": config})
    loaded = tubelet.load(tmp_path, device="cpu")
    video = torch.rand(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.encode(video).x, net.encoder(video).x)
    config["classifier"]["frozen"] = True
    write_tensors(tmp_path / "model.safetensors", net.state_dict(), {"format": 1, "config": config | {"start": {"path": "runs/first"}}})
    with pytest.raises(CheckpointError, match="frozen encoder, which it does not hold; load runs/first"):
        tubelet.load(tmp_path)


def test_a_run_keeps_its_own_model(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["method={kind: videomae, dim: 16, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 8, depth: 1, heads: 2}}", "size=16"]
    tubelet.pretrain(
        clips, out=tmp_path / "run", recipe="demo", quiet=True,
        settings=[*model, "frames=4", "steps=1", "batch=4", "train.device=cpu", "train.warmup_steps=0"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"method\.heads=4: a run's model keeps its own settings"):
        tubelet.load(tmp_path / "run", device="cpu", settings=["method.heads=4"])
    assert tubelet.load(tmp_path / "run", device="cpu", settings=["frames=8"]).data.frames == 8
    assert tubelet.load(tmp_path / "run", device="cpu").report is None
