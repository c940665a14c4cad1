"""Runs and outside weights for clips of another length and size, and for cubes of another number of frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import tubelet
from tubelet.api.classifiers import build_classifier, load_classifier, start_of
from tubelet.api.finetuning import finetune
from tubelet.cli import run as cli
from tubelet.config import parse
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.image import to_image
from tubelet.interop.transformers_settings import to_config
from tubelet.interop.transformers_videomae import to_transformers
from tubelet.interop.videomae import pooled_norm, to_official
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config
from tubelet.nn.position import Learned, Separable, SinCos3d
from tubelet.nn.video import VideoEncoder
from tubelet.train.checkpoint import write_tensors
from tubelet.weights import sha256_of

METHOD: dict[str, Any] = {
    "kind": "videomae", "dim": 16, "depth": 1, "heads": 2, "patch": [2, 8, 8], "decoder": {"dim": 16, "depth": 1, "heads": 2},
}  # fmt: skip
CLIPS: dict[str, Any] = {"frames": 8, "size": [32, 48]}
GRID = (4, 4, 6)
KINDS = ("learned", "separable", "sincos3d", "sinusoid")


def a_run(folder: Path, *, tuned: bool = False, **changes: Any) -> Path:
    """A run's folder with numbers far from their start, without training."""
    method = parse(Config, METHOD | changes)
    torch.manual_seed(2)
    if tuned:
        head = parse(ClassifierConfig, {})
        net: Any = head.build(encoder=method.build_encoder(frames=8, size=(32, 48)), classes=3)
    else:
        net = method.build(masking=None, frames=8, size=(32, 48))
    state = {name: value + 0.2 * torch.randn_like(value) for name, value in net.state_dict().items()}
    config = {"method": method.model_dump(mode="json"), "data": CLIPS, **({"classifier": head.model_dump(mode="json")} if tuned else {})}
    config |= {} if tuned else {"masking": {"kind": "tube"}, "train": {"steps": 1}}
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "model.safetensors", state, {"format": 1, "config": config})
    return folder


def encoder(loaded: tubelet.Loaded) -> VideoEncoder:
    found = loaded.model.get_submodule("encoder")
    assert isinstance(found, VideoEncoder)
    return found


def still(frames: int, h: int = 32, w: int = 48) -> Tensor:
    return torch.rand(2, 3, 1, h, w, generator=torch.Generator().manual_seed(0)).expand(-1, -1, frames, -1, -1)


def by_hand(rows: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Bicubic in every slot, then linear over slots, written out once more."""
    t, h, w = old
    slots = rows.reshape(t, h, w, -1).permute(0, 3, 1, 2)
    slots = F.interpolate(slots, size=new[1:], mode="bicubic", align_corners=False) if old[1:] != new[1:] else slots
    at = ((torch.arange(new[0]) + 0.5) * t / new[0] - 0.5).clamp(0, t - 1)
    low = at.floor().long()
    high, share = (low + 1).clamp(max=t - 1), (at - low)[:, None, None, None]
    return (slots[low] * (1 - share) + slots[high] * share).permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("position", KINDS)
@pytest.mark.parametrize(("frames", "h", "w"), [(8, 32, 48), (16, 32, 48), (4, 32, 48), (8, 48, 48), (16, 64, 16), (2, 16, 8)])
@pytest.mark.parametrize("per_cube", [1, 2, 4])
def test_a_run_reads_other_clips_with_other_cubes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], position: str, frames: int, h: int, w: int, per_cube: int
) -> None:
    folder = a_run(tmp_path / "run", position=position)
    own = tubelet.load(folder, device="cpu")
    capsys.readouterr()
    settings = [f"method.patch=[{per_cube},8,8]"] * (per_cube != 2) + [f"frames={frames}", f"size=[{h},{w}]"]
    if frames % per_cube:
        with pytest.raises(ConfigError, match="change the clip's frames or size"):
            tubelet.load(folder, device="cpu", settings=settings)
        return
    loaded = tubelet.load(folder, device="cpu", settings=settings)
    new, net, before = (frames // per_cube, h // 8, w // 8), encoder(loaded), encoder(own)
    assert (loaded.data.frames, loaded.data.hw) == (frames, (h, w))
    assert loaded.config["method"]["patch"] == [per_cube, 8, 8]
    grid = net.grid(torch.zeros(1, 3, frames, h, w))
    assert grid.shape == new
    table = net.position.table(grid)
    if isinstance(before.position, Learned):
        assert (table - by_hand(before.position.rows, GRID, new)).abs().max() < 1e-5
    elif isinstance(before.position, Separable):
        space = by_hand(before.position.space, (1, *GRID[1:]), (1, *new[1:]))
        time = by_hand(before.position.time, (GRID[0], 1, 1), (new[0], 1, 1))
        assert (table - (time[:, None] + space[None]).flatten(0, 1)).abs().max() < 1e-5
    else:
        assert torch.equal(table, type(before.position)(dim=16, grid=grid).table(grid))
    plain = [net.embed(still(frames, h, w), grid), before.embed(still(2, h, w), before.grid(still(2, h, w)))]
    assert (plain[0].unflatten(1, (new[0], -1)) - plain[1][:, None]).abs().max() < 1e-5, "a still clip keeps its embeddings"
    assert loaded.encode(still(frames, h, w)).x.shape == (2, grid.n, 16)
    notes = ["tubelet 2 -> 1: kernel deflated"] * (per_cube == 1) + ["tubelet 2 -> 4: kernel inflated"] * (per_cube == 4)
    learned = position in ("learned", "separable")
    said = "resized from 4x4x6 to {}x{}x{}" if learned else "computed for {}x{}x{}, where 4x4x6 was trained"
    notes += [f"positions {said.format(*new)}"] * (new != GRID)
    assert list(loaded.notes) == notes
    assert all(note in capsys.readouterr().err for note in notes[:1])


def test_a_run_as_it_is_has_no_notes_and_its_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = tubelet.load(a_run(tmp_path / "run"), device="cpu", settings=["method.patch=[2,8,8]"])
    assert (loaded.notes, loaded.report, loaded.sha256, capsys.readouterr().err) == ((), None, None, "")
    assert hasattr(loaded.model, "decoder")
    deflated = tubelet.load(tmp_path / "run", device="cpu", settings=["method.patch=[1,8,8]"])
    with pytest.raises(ConfigError, match="no pre-training objective"):
        deflated.model.losses("main", None, None)  # type: ignore[arg-type]  # it raises before it looks at them


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method.patch=[2,4,8]"], r"has cubes of \[2, 8, 8\] .* only their number of frames can be changed: give method\.patch=\[N,8,8\]"),
        (["method.patch=[3,8,8]"], "has cubes of 2 frames, which can be made cubes of 1 frame"),
        (["method.patch=[2,8]"], r"give frames, rows and columns of a cube, such as \[2, 8, 8\]"),
        (["method.patch=often"], "give frames, rows and columns of a cube"),
        (["method.heads=4", "method.patch=[1,8,8]"], r"method\.heads=4: a run's model keeps its own settings but for method\.patch"),
        (["frames=7"], "change the clip's frames or size"),
        (["size=[32,44]"], "change the clip's frames or size"),
        (["method.patch=[16,8,8]"], "change the clip's frames or size"),
    ],
)
def test_what_cannot_be_fitted_to_a_run_is_refused(tmp_path: Path, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tubelet.load(a_run(tmp_path / "run"), device="cpu", settings=settings)


def test_the_encoder_of_a_tuned_run_can_have_other_cubes(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", tuned=True, position="learned")
    one, four = (tubelet.load(folder, device="cpu", settings=[f"method.patch=[{u},8,8]", f"frames={4 * u}"]) for u in (1, 4))
    with torch.no_grad():
        assert (one.encode(still(4)).x - four.encode(still(16)).x).abs().max() < 1e-4


def outside(path: Path, layout: str, position: str = "learned") -> Path:
    """An official file, or a folder of transformers, of a model for 8 frames of 32x48 pixels."""
    kept = "sinusoid" if layout == "transformers" else position
    config = parse(Config, METHOD | {"position": kept})
    torch.manual_seed(2)
    state = config.build(masking=None, frames=8, size=(32, 48)).state_dict()
    state = {name: value + 0.2 * torch.randn_like(value) for name, value in state.items()}
    if layout == "transformers":
        path.mkdir()
        said = to_config(config, architecture="VideoMAEForPreTraining", frames=8, size=(32, 48), norm=True)
        (path / "config.json").write_text(json.dumps(said))
        save_file(to_transformers(state, "pretrain", stored=True), path / "model.safetensors")
        return path
    own = {
        n: v
        for n, v in state.items()
        if layout == "pretrain" or (n.startswith("encoder.") and ".norm." not in n.removeprefix("encoder.trunk.blocks"))
    }
    named = to_official(own, layout)  # type: ignore[arg-type]  # one of the two
    named |= pooled_norm(config.width) if layout == "classifier" else {}
    torch.save({"model": named}, path)
    return path


@pytest.mark.parametrize("layout", ["pretrain", "classifier", "transformers"])
@pytest.mark.parametrize("frames", [4, 8, 16])
@pytest.mark.parametrize("per_cube", [1, 2, 4])
def test_outside_weights_have_other_cubes(tmp_path: Path, layout: str, frames: int, per_cube: int) -> None:
    path = outside(tmp_path / "o.pth", layout)
    base = ["method.heads=2"] * (layout != "transformers") + ["size=[32,48]"]
    own = tubelet.load(path, device="cpu", settings=[*base, "frames=8"])
    loaded = tubelet.load(path, device="cpu", settings=[*base, f"frames={frames}", f"method.patch=[{per_cube},8,8]"])
    net, before = encoder(loaded), encoder(own)
    assert net.embed.patch == (per_cube, 8, 8)
    slots = frames // per_cube
    ours = net.embed(still(frames), net.grid(still(frames))).unflatten(1, (slots, -1))
    assert (ours - before.embed(still(2), before.grid(still(2)))[:, None]).abs().max() < 1e-5
    if layout != "transformers":
        assert isinstance(before.position, Learned)
        assert net.position.shape == GRID, "kept as it was stored, so that nothing is resized twice"
        table = net.position.table(net.grid(still(frames)))
        assert (table - by_hand(before.position.rows, GRID, (slots, 4, 6))).abs().max() < 1e-5
    if slots == 4:
        with torch.no_grad():
            assert (loaded.encode(still(frames)).x - own.encode(still(8)).x).abs().max() < 1e-4
    assert (len(loaded.notes) > 0) == (per_cube != 2 or slots != 4)
    what = "computed for {}, where 4x4x6 was trained" if layout == "transformers" else "resized from 4x4x6 to {}"
    assert any(what.format(f"{slots}x4x6") in note for note in loaded.notes) == (slots != 4)


def test_cubes_of_another_side_are_refused_for_outside_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"only their number of frames can be changed: give method\.patch=\[N,8,8\]"):
        tubelet.load(
            outside(tmp_path / "o.pth", "pretrain"), device="cpu", settings=["method.heads=2", "method.patch=[2,16,16]", "size=[32,48]"]
        )


@pytest.mark.parametrize(
    ("rows", "settings", "grid"),
    [
        (8 * 14 * 14, ["frames=4"], "8x14x14"),
        (8 * 14 * 14, ["frames=32", "size=160"], "8x14x14"),
        (8 * 24 * 24, ["frames=16"], "8x24x24"),
        (16 * 14 * 14, ["frames=32", "size=112"], "16x14x14"),
        (4 * 7 * 5, ["frames=16", "size=[112,80]"], "4x7x5"),
    ],
)
def test_the_grid_of_a_table_that_its_file_does_not_say(tmp_path: Path, rows: int, settings: list[str], grid: str) -> None:
    config = parse(Config, METHOD | {"patch": [2, 16, 16], "position": "learned"})
    state = to_official({f"encoder.{n}": v for n, v in config.build_encoder(frames=2, size=(16, 16)).state_dict().items()}, "pretrain")
    torch.save({"model": state | {"encoder.pos_embed": torch.randn(1, rows, 16)}}, tmp_path / "o.pth")
    loaded = tubelet.load(tmp_path / "o.pth", device="cpu", settings=["method.heads=2", *settings])
    said = str(loaded.report)
    assert f"positions resized from {grid} to" in said
    assert "the file does not say its grid; this is the likeliest" in said


def test_two_grids_of_as_many_rows_are_said(tmp_path: Path) -> None:
    config = parse(Config, METHOD | {"patch": [2, 16, 16], "position": "learned"})
    state = to_official({f"encoder.{n}": v for n, v in config.build_encoder(frames=16, size=(224, 224)).state_dict().items()}, "pretrain")
    torch.save({"model": state}, tmp_path / "o.pth")
    loaded = tubelet.load(tmp_path / "o.pth", device="cpu", settings=["method.heads=2", "frames=64", "size=112"])
    assert loaded.notes == ("positions taken for those of 32x7x7; 8x14x14 has as many",)
    assert tubelet.load(tmp_path / "o.pth", device="cpu", settings=["method.heads=2"]).notes == ()


def test_computed_tables_are_those_of_the_clips() -> None:
    """What the runs above are compared with is no constant."""
    small, large = (parse(Config, METHOD | {"position": "sincos3d"}).build_encoder(frames=f, size=(16, 16)).position for f in (4, 8))
    assert isinstance(small, SinCos3d)
    assert isinstance(large, SinCos3d)
    assert small.fixed.shape != large.fixed.shape


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tubelet.make_playground(tmp_path_factory.mktemp("clips"), clips=40, scene="easy", size=16, frames=4)


FINE = """
about: one step on very small clips
classifier: {frozen: %s}
data: {workers: 0, stride: 1, frames: 4, size: 16}
train: {steps: 1, batch: 4, device: cpu}
watch: {pictures: 0, probe: 0, every_minutes: null, tensorboard: false}
"""


def image_file(path: Path) -> Path:
    config = parse(Config, METHOD | {"patch": [1, 8, 8], "position": "learned", "attention": "bias", "class_token": True})
    torch.manual_seed(2)
    torch.save({"model": to_image(config.build_encoder(frames=1, size=(32, 32)))}, path)
    return path


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("start", ["run", "image", "parts"])
def test_a_classifier_is_trained_from_such_a_start(tmp_path: Path, clips: Path, start: str, frozen: bool) -> None:
    (tmp_path / "fine.yaml").write_text(FINE % str(frozen).lower())
    if start == "run":
        origin, settings = a_run(tmp_path / "run", position="learned"), ["method.patch=[4,8,8]"]
    elif start == "image":
        origin, settings = image_file(tmp_path / "vit.pth"), ["method.heads=2", "method.position=separable"]
    else:
        origin, settings = in_parts(tmp_path / "parts"), ["method.heads=2", "method.patch=[1,8,8]"]
    done = finetune(origin, clips, out=tmp_path / "tuned", recipe=tmp_path / "fine.yaml", settings=settings, quiet=True)
    assert done.score is not None
    loaded = load_classifier(tmp_path / "tuned", device="cpu")
    about = loaded.config["start"]
    file = {"run": origin / "model.safetensors", "image": origin, "parts": origin / "pytorch_model.bin.index.json"}[start]
    assert about["sha256"] == sha256_of(file)
    assert about["settings"] == settings
    assert loaded.config["method"]["patch"] == {"run": [4, 8, 8], "image": [2, 8, 8], "parts": [1, 8, 8]}[start]
    assert loaded.predict(torch.rand(2, 3, 4, 16, 16)).shape[0] == 2
    if not frozen:
        again = tubelet.load(tmp_path / "tuned", device="cpu", settings=["frames=8"])
        assert again.encode(torch.rand(1, 3, 8, 16, 16)).x.shape[2] == 16


def in_parts(folder: Path) -> Path:
    """An official model in two pickled parts."""
    state = torch.load(outside(folder.parent / "whole.pth", "pretrain", "sinusoid"))["model"]
    folder.mkdir()
    halves = {f"part-{i}.bin": {n: v for j, (n, v) in enumerate(state.items()) if j % 2 == i} for i in range(2)}
    for name, half in halves.items():
        torch.save(half, folder / name)
    index = {"weight_map": {n: name for name, half in halves.items() for n in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def test_a_table_is_resized_once_from_what_the_file_holds(tmp_path: Path) -> None:
    """To the clips of the classifier, not by way of those that a file is loaded for."""
    path = image_file(tmp_path / "vit.pth")
    start = start_of(path, settings=["method.heads=2"])
    assert start.shape == (1, 4, 4)
    data = start.data.model_copy(update={"frames": 8, "size": 64})
    net = build_classifier(parse(ClassifierConfig, {"pool": "class"}), start, data, classes=3, seed=0)
    assert isinstance(net.encoder, VideoEncoder)
    stored = torch.load(path)["model"]["pos_embed"][0]
    assert isinstance(net.encoder.position, Learned)
    assert (net.encoder.position.rows - by_hand(stored[1:], (1, 4, 4), (4, 8, 8))).abs().max() < 1e-5
    assert net.encoder.position.class_row is not None
    assert torch.equal(net.encoder.position.class_row, stored[:1])


def test_commands_take_image_weights_and_look_at_the_hash(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image_file(tmp_path / "vit.pth")
    words = ["--device", "cpu", "--sha256"]
    sets = [word for text in ("method.heads=2", "frames=4", "size=16", "stride=1", "workers=0") for word in ("--set", text)]
    asked = ["embed", str(path), str(clips), "--out", str(tmp_path / "e.npz"), "--pool", "class", *sets, *words]
    assert cli([*asked, sha256_of(path)]) == 0
    assert "40 / 40 embedded, 16 numbers" in capsys.readouterr().out
    assert cli(["probe", str(path), str(clips), *sets, *words, sha256_of(path)]) == 0
    capsys.readouterr()
    for command in (["knn"], ["probe"]):
        assert cli([*command, str(path), str(clips), *sets, *words, "0" * 64]) != 0
        assert "was not read: its sha256 is" in capsys.readouterr().err
    assert cli(["finetune", str(path), str(clips), "--out", str(tmp_path / "t"), "--sha256", "0" * 64, "--set", "method.heads=2"]) != 0
    assert "was not read: its sha256 is" in capsys.readouterr().err
    loaded = tubelet.load(path, device="cpu", settings=["method.heads=2", "frames=4", "size=16"])
    with pytest.raises(ConfigError, match="this model is loaded already"):
        tubelet.embed(loaded, clips, sha256="0" * 64)


def test_a_run_has_a_hash_where_it_was_asked_for(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    right = sha256_of(folder / "model.safetensors")
    assert tubelet.load(folder, device="cpu", sha256=right).sha256 == right
    with pytest.raises(CheckpointError, match="was not read"):
        tubelet.load(folder, device="cpu", sha256="f" * 64)
