"""Fine-tuning from one call to its test: what it starts from, exact resume, views, the papers' numbers, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tubelet
from helpers import stop_tuning_after
from tubelet import finetune_recipe, recipe
from tubelet.api import finetuning
from tubelet.api._labelled import open_labelled
from tubelet.api.classifiers import build_classifier, build_encoder, load_classifier, start_of
from tubelet.api.finetuning import Finetuned, evaluate, finetune
from tubelet.config import to_yaml
from tubelet.core import CounterDraw, Frozen
from tubelet.data.evaluation import EvalFeed
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.interop.videomae import to_official
from tubelet.methods.videomae import Config as VideoMAEConfig
from tubelet.tasks.multiview import answers, average_views, score
from tubelet.train.checkpoint import read_meta, read_tensors, write_tensors
from tubelet.train.settings import TrainSettings
from tubelet.train.step import Stepper

METHOD = "{kind: videomae, dim: 32, depth: 2, heads: 2, patch: [2, 8, 8], decoder: {dim: 16, depth: 1, heads: 2}}"
PRE = f"""
about: a very small encoder
table: "none: for tests"
method: {METHOD}
masking: {{kind: tube, ratio: 0.5}}
data: {{frames: 4, stride: 1, size: 16, workers: 0}}
train: {{steps: 1, batch: 4, device: cpu, lr: 0.01, lr_batch: null}}
watch: {{pictures: 0, probe: 0, tensorboard: false}}
"""
FINE = """
about: everything that fine-tuning has, on very small clips
classifier: {drop_path: 0.2, dropout: 0.5, layer_decay: 0.5}
data:
  workers: 0
  crop: random_resized
  repeats: 2
  augment: {flip: 0.5, rand: rand-m7-n4-mstd0.5-inc1, erase: 0.25, mixup: 0.8, cutmix: 1.0, smoothing: 0.1}
views: {clips: 2, crops: 3}
train: {steps: 6, batch: 8, device: cpu, lr: 0.01, lr_batch: null, log_every: 1, ema: 0.5}
watch: {pictures: 0, probe: 0, every_minutes: null, tensorboard: false}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/ with manifest.csv, fine.yaml, and pre/: a run of one step."""
    home = tmp_path_factory.mktemp("finetuning")
    (home / "pre.yaml").write_text(PRE)
    (home / "fine.yaml").write_text(FINE)
    tubelet.make_playground(home / "clips", clips=48, scene="easy", size=16, frames=6)
    tubelet.pretrain(home / "clips", out=home / "pre", recipe=home / "pre.yaml", quiet=True)
    return home


@pytest.fixture(scope="module")
def straight(place: Path) -> Finetuned:
    """A run with all there is, without a stop."""
    return go(place, place / "straight", val_share=0.2)


def go(place: Path, out: Path, *settings: str, run: Any = "pre", resume: bool = False, sources: Any = None, **more: Any) -> Finetuned:
    more.setdefault("recipe", None if resume else place / "fine.yaml")
    return finetune(place / run, sources or place / "clips" / "manifest.csv", out=out, settings=settings, resume=resume, quiet=True, **more)


def different(a: Path, b: Path) -> list[str]:
    one, other = read_tensors(a), read_tensors(b)
    assert one.keys() == other.keys()
    return [k for k in one if not torch.equal(one[k], other[k])]


def test_a_run_ends_with_its_test(place: Path, straight: Finetuned) -> None:
    out = place / "straight"
    assert straight.result.stopped_by is None
    assert straight.score is not None
    assert straight.validation is not None
    written, held = (json.loads((out / name).read_text()) for name in ("results.json", "validation.json"))
    truth = {row["path"]: row for row in csv.DictReader((place / "clips" / "manifest.csv").open())}
    test = {key for key, row in truth.items() if row["split"] == "test"}
    train = set((out / "items.txt").read_text().split())
    assert {p["key"] for p in written["predictions"]} == test == set(straight.score.predictions)
    assert all(p["class"] == truth[p["key"]]["label"] for p in written["predictions"])
    assert (written["n_scored"], written["n_total"]) == (len(test), len(test))
    assert written["details"]["views"] == {"sampling": "window", "clips": 2, "crops": 3}
    assert written["details"]["weights"] == "average"
    assert "2 x 3 views" in str(straight.score)
    assert f"{len(test)} / {len(test)} scored" in str(straight.score)
    kept_out = {p["key"] for p in held["predictions"]}
    assert kept_out.isdisjoint(train | test), "what is held out is neither trained on nor tested on"
    assert kept_out | train | test == set(truth)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    looked = [row for row in rows if "val_top1" in row]
    assert [row["step"] for row in looked][:1] == [0]
    assert looked[-1]["step"] == 6
    assert all(0 <= row["val_top1"] <= 1 and row["val_loss"] > 0 for row in looked)
    assert (out / "config.yaml").read_text().startswith("# tubelet ")


@pytest.mark.parametrize("changed", [(), ("train.micro=4",)], ids=["as before", "in smaller pieces"])
def test_a_stopped_run_resumes_exactly(place: Path, straight: Finetuned, tmp_path: Path, changed: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_tuning_after(patch, 2)
        stopped = go(place, out, val_share=0.2)
    assert (stopped.result.stopped_by, stopped.score) == ("SIGTERM", None)
    assert 2 <= stopped.result.step < 6
    assert not (out / "results.json").exists(), "the test waits for the end of training"
    done = go(place, out, *changed, resume=True)
    assert done.result.step == 6
    if not changed:
        assert different(place / "straight" / "model.safetensors", out / "model.safetensors") == []
        assert different(place / "straight" / "model_ema.safetensors", out / "model_ema.safetensors") == []
        assert done.score is not None
        assert straight.score is not None
        assert done.score.predictions == straight.score.predictions
    else:  # sums of gradients are taken in another order
        one, other = (read_tensors(folder / "model.safetensors") for folder in (place / "straight", out))
        assert all(torch.allclose(one[k], other[k], atol=2e-3) for k in one)
    written = (out / "results.json").stat().st_mtime_ns
    again = go(place, out, *changed, resume=True)
    assert (again.score, again.validation) == (None, None)
    assert (out / "results.json").stat().st_mtime_ns == written, "the test items are read once"


def test_micro_batches_see_the_same_clips(place: Path, tmp_path: Path) -> None:
    """Augmentation, mixing and soft targets of a step do not depend on how it is cut."""
    seen: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}

    def recording(name: str) -> Callable[..., Any]:
        call = finetuning._Prepare.__call__

        def prepare(self, batch, at):
            out = call(self, batch, at)
            video, target = out.stream("video").data, out.labels["target"]
            seen.setdefault(name, {}).update({int(k): (video[i], target[i]) for i, k in enumerate(batch.sample)})
            return out

        return prepare

    for name, micro in (("whole", "null"), ("pieces", "4")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finetuning._Prepare, "__call__", recording(name))
            go(place, tmp_path / name, "steps=2", f"micro={micro}", "ema=null", test=None)
    assert seen["whole"].keys() == seen["pieces"].keys() == set(range(16))
    for k, (video, target) in seen["whole"].items():
        assert torch.equal(video, seen["pieces"][k][0])
        assert torch.equal(target, seen["pieces"][k][1])
    assert any((target > 0.2).sum() == 2 for _, target in seen["whole"].values()), "some clips are mixed with another class"


def test_it_starts_from_the_pretrained_encoder(place: Path, tmp_path: Path) -> None:
    still = ["steps=1", "lr=0", "min_lr=0", "ema=null"]
    go(place, tmp_path / "ft", *still, test=None)
    go(place, tmp_path / "scratch", *still, test=None, random=True)
    go(place, tmp_path / "again", *still, "seed=1", test=None, random=True)
    before = read_tensors(place / "pre" / "model.safetensors")
    tuned, scratch, again = (read_tensors(tmp_path / name / "model.safetensors") for name in ("ft", "scratch", "again"))
    encoder = [k for k in tuned if k.startswith("encoder.")]
    assert len(encoder) > 20
    assert all(torch.equal(tuned[k], before[k]) for k in encoder)
    weights = [k for k in encoder if k.endswith("weight") and "norm" not in k]
    assert not any(torch.equal(scratch[k], before[k]) for k in weights)
    assert not any(torch.equal(scratch[k], again[k]) for k in weights), "the control's weights follow train.seed"
    assert float(scratch["encoder.trunk.blocks.0.mlp.fc1.weight"].std()) == pytest.approx(0.02, rel=0.1)
    start = {name: read_meta(tmp_path / name / "model.safetensors")["config"]["start"] for name in ("ft", "scratch")}
    assert (start["ft"]["random"], start["scratch"]["random"]) == (False, True)
    assert len(start["ft"]["sha256"]) == 64


def test_another_start_is_refused_on_resume(place: Path, straight: Finetuned, tmp_path: Path) -> None:
    shutil.copytree(place / "straight", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(CheckpointError, match=r"start\.sha256: the checkpoint has '[0-9a-f]{64}', this call nothing"):
        go(place, tmp_path / "run", resume=True, random=True)


def test_layer_rates_reach_the_optimiser(place: Path) -> None:
    start = start_of(place / "pre")
    asked = finetune_recipe.load(place / "fine.yaml")
    model = build_classifier(asked.classifier, start, asked.on(start.data).data, classes=3, seed=0)
    stepper = Stepper(model, asked.train, lambda at, schedule: 1.0)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = stepper.optimizers["main"].param_groups
    scale = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
    assert scale["encoder.embed.weight"] == 0.5**3
    assert scale["encoder.trunk.blocks.0.attn.qkv.weight"] == 0.5**2
    assert scale["encoder.trunk.blocks.1.mlp.fc2.bias"] == 0.5
    assert scale["readout.head.linear.weight"] == 1.0
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert (decay["encoder.embed.weight"], decay["encoder.embed.bias"], decay["readout.head.norm.weight"]) == (0.05, 0.0, 0.0)


def test_clips_are_the_pretrained_ones_unless_told(place: Path) -> None:
    trained = DataSettings(frames=8, size=(32, 48), stride=3, fps=5.0)
    small = finetune_recipe.load("finetune-tiny-cpu")
    taken = small.on(trained).data
    assert (taken.frames, taken.hw, taken.stride, taken.fps) == (8, (32, 48), 3, 5.0)
    told = finetune_recipe.load("finetune-tiny-cpu", ["frames=4", "stride=2"]).on(trained).data
    assert (told.frames, told.hw, told.stride, told.fps) == (4, (32, 48), 2, None)
    assert finetune_recipe.load("finetune-tiny-cpu", ["sampling=tsn"]).on(trained).data.fps is None
    assert finetune_recipe.load("finetune-tiny-cpu", ["fps=2"]).on(trained).data.fps == 2
    paper = finetune_recipe.load("finetune-k400").on(trained).data
    assert (paper.frames, paper.hw, paper.stride, paper.fps) == (16, (224, 224), 4, None)


@pytest.mark.parametrize("position", ["learned", "separable", "sinusoid"])
def test_position_tables_follow_the_clips(position: str) -> None:
    method = {"kind": "videomae", "dim": 32, "depth": 1, "heads": 2, "patch": [2, 8, 8], "position": position}
    data = DataSettings(frames=4, size=16)
    encoder = build_encoder(method, data, seed=3)
    start = finetuning.Start(method, data, encoder.state_dict(), encoder.position.shape, {"path": "x"})
    config = finetune_recipe.load("finetune-tiny-cpu").classifier
    large = build_classifier(config, start, DataSettings(frames=8, size=32), classes=2, seed=0)
    video = torch.rand(2, 3, 8, 32, 32)
    assert isinstance(large.encoder, torch.nn.Module)
    grid = encoder.grid(video)
    assert torch.allclose(large.encoder.position.table(grid), encoder.position.table(grid), atol=1e-6)  # type: ignore[union-attr, operator]
    assert large.eval()(video).shape == (2, 2)


def test_views_are_averaged_after_the_softmax() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 6.0], [0.0, 0.0], [1.0, 0.0]])
    found = average_views(logits, torch.tensor([7, 7, 3, 3]))
    e = np.exp
    first = (e(2) / (e(2) + 1) + 1 / (1 + e(6))) / 2
    second = (0.5 + e(1) / (e(1) + 1)) / 2
    assert list(found) == [7, 3]
    assert found[7] == pytest.approx([first, 1 - first])
    assert found[3] == pytest.approx([second, 1 - second])
    mean_logits = logits[:2].mean(0).softmax(0).numpy()
    assert abs(found[7] - mean_logits).max() > 0.1, "averaging the logits is something else"


def test_answers_are_the_mean_over_every_view(place: Path, straight: Finetuned) -> None:
    """By hand: every view of every test video through the network, one at a time."""
    ready = load_classifier(place / "straight", weights="ema", device="cpu")
    data = ready.data.model_copy(update={"crop": "centre", "repeats": 1})
    table = open_table(place / "clips" / "manifest.csv", split="test")
    views = Views(clips=2, crops=3)
    by_hand = []
    for batch in EvalFeed(table, data, views=views, batch=1):
        each = [torch.softmax(ready.model(clip[None]).double(), 1)[0] for clip in batch.stream("video").data]
        assert len(each) == 6
        by_hand.append(torch.stack(each).mean(0).detach().numpy())
    found = answers(ready.model, table, data, views, device=torch.device("cpu"), batch=5)
    assert np.allclose(found.probabilities, by_hand, atol=1e-6)
    assert found.rows.tolist() == list(range(len(table)))
    assert straight.score is not None
    assert score("x", found, table).predictions == straight.score.predictions


def test_a_tested_run_is_tested_the_same_by_evaluate(place: Path, straight: Finetuned, tmp_path: Path) -> None:
    again = evaluate(place / "straight", place / "clips" / "manifest.csv", weights="ema", device="cpu", json_out=tmp_path / "e.json")
    assert straight.score is not None
    assert again.predictions == straight.score.predictions
    assert json.loads((tmp_path / "e.json").read_text())["n_scored"] == again.n_scored
    one = evaluate(place / "straight", place / "clips" / "manifest.csv", test="all", settings=["views.clips=1", "views.crops=1"])
    assert one.n_total == 48
    assert "1 view" in one.name
    probabilities = load_classifier(place / "straight").predict(torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8))
    assert torch.allclose(probabilities.sum(1), torch.ones(2))


def test_what_cannot_be_read_is_not_scored(place: Path, straight: Finetuned, tmp_path: Path) -> None:
    table = tmp_path / "clips"
    shutil.copytree(place / "clips", table)
    with (table / "manifest.csv").open() as file:
        broken = next(row["path"] for row in csv.DictReader(file) if row["split"] == "test")
    (table / broken).write_bytes(b"text")
    result = evaluate(place / "straight", table / "manifest.csv")
    assert result.n_scored == result.n_total - 1
    assert [key for key, _ in result.failures] == [broken]
    assert broken not in result.predictions


def test_a_finetuned_run_and_outside_weights_can_be_starts(place: Path, straight: Finetuned, tmp_path: Path) -> None:
    still = ["steps=1", "lr=0", "min_lr=0", "ema=null"]
    go(place, tmp_path / "next", *still, run="straight", test=None)
    one, other = read_tensors(place / "straight" / "model.safetensors"), read_tensors(tmp_path / "next" / "model.safetensors")
    assert all(torch.equal(one[k], other[k]) for k in one if k.startswith("encoder."))
    assert not torch.equal(one["readout.head.linear.weight"], other["readout.head.linear.weight"])
    ours = read_tensors(place / "pre" / "model.safetensors")
    torch.save({"model": to_official(ours, "pretrain")}, tmp_path / "outside.pth")
    go(place, tmp_path / "outside", *still, "method.heads=2", "frames=4", "size=16", "stride=1", run=tmp_path / "outside.pth", test=None)
    there = read_tensors(tmp_path / "outside" / "model.safetensors")
    assert all(torch.equal(ours[k], there[k]) for k in there if k.startswith("encoder."))


def test_a_frozen_encoder_is_found_again_or_asked_for(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "pre", tmp_path / "pre")
    here = {"recipe": place / "fine.yaml", "sources": place / "clips" / "manifest.csv"}
    done = go(tmp_path, tmp_path / "head", "classifier.frozen=true", "ema=null", **here)
    assert done.score is not None
    assert all(k.startswith("readout.") for k in read_tensors(tmp_path / "head" / "model.safetensors"))
    again = evaluate(tmp_path / "head", place / "clips" / "manifest.csv")
    assert again.predictions == done.score.predictions
    with pytest.raises(CheckpointError, match="trained on a frozen encoder, which it does not hold"):
        go(tmp_path, tmp_path / "more", run="head", **here)
    shutil.rmtree(tmp_path / "pre")
    with pytest.raises(CheckpointError, match=r"needs the encoder that it was trained on, and .* is not there"):
        evaluate(tmp_path / "head", place / "clips" / "manifest.csv")


def bare(path: Path, *, frames: int, size: int) -> torch.Tensor:
    """A file of an encoder with a learned table for such clips, which does not say its grid; the table."""
    torch.manual_seed(3)
    method = VideoMAEConfig.model_validate({"dim": 32, "depth": 1, "heads": 2, "patch": (2, 8, 8), "position": "learned"})
    state = {f"encoder.{name}": value for name, value in method.build_encoder(frames=frames, size=(size, size)).state_dict().items()}
    torch.save(to_official(state, "classifier"), path)
    return state["encoder.position.rows"]


def frozen_rows(run: Path) -> torch.Tensor:
    encoder = load_classifier(run, device="cpu").model.encoder
    assert isinstance(encoder, Frozen)
    return encoder.inner.position.rows


# Without its own clips the one file could not be read, and the other one's 2x16x16 would be taken for 8x8x8.
@pytest.mark.parametrize(("frames", "size"), [(8, 16), (4, 128)])
def test_a_table_is_read_for_the_clips_that_are_given(place: Path, tmp_path: Path, frames: int, size: int) -> None:
    rows = bare(tmp_path / "bare.pth", frames=frames, size=size)
    own = (f"data.frames={frames}", f"size={size}", "stride=1", "data.crop=centre", "batch=4", "data.repeats=1")
    still = ("method.heads=2", "ema=null", "steps=1", "lr=0", "min_lr=0", "data.augment.mixup=0", "data.augment.cutmix=0")
    go(place, tmp_path / "tuned", *own, *still, run=tmp_path / "bare.pth", test=None)
    assert torch.equal(read_tensors(tmp_path / "tuned" / "model.safetensors")["encoder.position.rows"], rows)
    go(place, tmp_path / "head", *own, *still, "classifier.frozen=true", run=tmp_path / "bare.pth", test=None)
    assert torch.equal(frozen_rows(tmp_path / "head"), rows)
    ready = tubelet.load(tmp_path / "bare.pth", device="cpu", settings=["method.heads=2", *own[:3]])
    assert start_of(ready).about == start_of(tmp_path / "bare.pth", settings=["method.heads=2", *own[:2]]).about

    file = tmp_path / "head" / "model.safetensors"
    tensors, meta = read_tensors(file), read_meta(file)
    start = meta["config"]["start"]
    assert (start["clips"], start["grid"]) == ([frames, size, size], [frames // 2, size // 8, size // 8])
    start["grid"] = [1, 1, 2]
    write_tensors(file, tensors, meta)
    with pytest.raises(CheckpointError, match=f"positions for 1x1x2, and it is read as {frames // 2}x{size // 8}x{size // 8} now"):
        load_classifier(tmp_path / "head", device="cpu")
    if frames == 4:  # as older runs recorded it: guessed anew
        del start["grid"], start["clips"]
        write_tensors(file, tensors, meta)
        assert frozen_rows(tmp_path / "head").shape == rows.shape


def test_a_frozen_encoder_is_the_same_when_a_run_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare(tmp_path / "bare.pth", frames=4, size=128)
    own = ("method.heads=2", "classifier.frozen=true", "ema=null", "steps=3", "batch=4", "stride=1", "data.repeats=1")
    own += ("data.augment.mixup=0", "data.augment.cutmix=0")
    stop_tuning_after(monkeypatch, 1)
    go(place, tmp_path / "run", *own, "frames=4", "size=128", run=tmp_path / "bare.pth", test=None)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"start\.grid: the checkpoint has \[2, 16, 16\], this call \[8, 8, 8\]"):
        go(place, tmp_path / "run", "method.heads=2", run=tmp_path / "bare.pth", test=None, resume=True)
    again = go(place, tmp_path / "run", "method.heads=2", "frames=4", "size=128", run=tmp_path / "bare.pth", test=None, resume=True)
    assert again.result.stopped_by is None


def folders(root: Path, videos: Path, **classes: int) -> Path:
    """root/CLASS/i.mp4; a name ``train_a`` becomes train/a."""
    clips = iter(sorted(videos.glob("clips/*.mp4")))
    for name, n in classes.items():
        home = root.joinpath(*name.split("_"))
        home.mkdir(parents=True)
        for i in range(n):
            shutil.copy(next(clips), home / f"{i}.mp4")
    return root


@pytest.mark.parametrize(
    ("classes", "more", "message"),
    [
        ({"train": 3, "test": 2}, {}, "no labels found; fine-tuning needs a folder per class, or a manifest with a label column"),
        ({"a": 3, "b": 3}, {}, r"no training split: .* has no sub-folder 'train'; it has a, b. Name it with --train NAME, or take every"),
        ({"train_a": 3, "test_a": 2, "test_b": 2}, {}, "all 3 training items are of one class, 'a'; there must be at least two"),
        ({"train_a": 3, "train_b": 3}, {}, r"no test split: .* Name it with --test NAME, give --test-sources, or leave the test out"),
        (
            {"train_a": 3, "train_b": 3, "test_a": 1, "test_c": 2, "test_bb": 1},
            {},
            r"2 test classes do not occur in training: 'bb' \(1 items, did you mean 'b'\?\), 'c' \(2 items\)",
        ),
        ({"train_a": 1, "train_b": 1, "test_a": 1}, {"val_share": 0.2}, "val_share 0.2 holds nothing out: no class has two training items"),
        ({"a": 3, "b": 3}, {"train": "all", "test_sources": "a"}, r"the test items have no labels"),
    ],
    ids=["no labels", "no train split", "one class", "no test split", "unknown classes", "nothing to hold out", "unlabelled test"],
)
def test_wrong_data_is_refused_before_training(
    place: Path, tmp_path: Path, classes: dict[str, int], more: dict[str, Any], message: str
) -> None:
    root = folders(tmp_path / "videos", place / "clips", **classes)
    if "test_sources" in more:
        more = more | {"test_sources": root / more["test_sources"]}
    with pytest.raises(DataError, match=message):
        go(place, tmp_path / "run", sources=root, **more)
    assert not (tmp_path / "run").exists()


def test_items_of_both_sides_are_refused(place: Path, tmp_path: Path) -> None:
    root = folders(tmp_path / "videos", place / "clips", a=3, b=3)
    with pytest.raises(DataError, match=r"6 test items are also training items \(.*a/0.mp4, .*\); give disjoint splits"):
        go(place, tmp_path / "run", sources=root, test_sources=root)
    done = go(place, tmp_path / "run", "steps=1", sources=root, train="all", test=None)
    assert (done.score, done.result.step) == (None, 1)
    go(place, tmp_path / "other", "steps=1", "data.split=test", test=None)
    test = {row["path"] for row in csv.DictReader((place / "clips" / "manifest.csv").open()) if row["split"] == "test"}
    assert set((tmp_path / "other" / "items.txt").read_text().split()) == test


def test_classes_are_those_of_the_training_split(place: Path, tmp_path: Path) -> None:
    root = folders(tmp_path / "videos", place / "clips", train_b=3, train_c=2, val_a=2, test_c=2)
    done = go(place, tmp_path / "run", "steps=1", sources=root)
    assert done.score is not None
    assert tuple(done.score.classes) == ("b", "c")
    assert read_tensors(tmp_path / "run" / "model.safetensors")["readout.head.linear.weight"].shape[0] == 2


def test_other_mistakes(place: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], message: str, *settings: str, **more: Any) -> None:
        with pytest.raises(kind, match=message):
            go(place, tmp_path / "run", *settings, **more)
        assert not (tmp_path / "run").exists()

    refused(ConfigError, "train.batch 2 in 1 pieces .* mix 4 neighbouring samples .* multiple of 4", "batch=2", "data.augment.cutmix=0")
    refused(ConfigError, "train.batch 10 in 3 pieces", "batch=10", "micro=4")
    refused(ConfigError, "change the clip's frames or size, or the method's patch", "frames=5")
    refused(ConfigError, r"augmnet: unknown setting \(did you mean 'augment'\?\)", "data.augmnet.flip=1")
    refused(ConfigError, "a run's model keeps its own settings", "method.heads=4")
    refused(ConfigError, "classifier.smoothing acts on class numbers", "classifier.smoothing=0.1")
    refused(ConfigError, "watch.pictures and watch.probe are for pre-training", "watch.pictures=2")
    refused(ConfigError, "val_groups=film keeps items together in what val_share holds out, and val_share is 0", "val_groups=film")
    refused(ConfigError, "videomae is no recipe of fine-tuning", recipe="videomae")
    refused(CheckpointError, "no such run folder", run="nothing")
    with pytest.raises(ConfigError, match="finetune-k400 is a recipe of fine-tuning: use it with tubelet finetune; pretrain takes adamae"):
        recipe.load("finetune-k400")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        go(place, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config.yaml to continue from"):
        go(place, tmp_path / "empty", resume=True)
    with pytest.raises(CheckpointError, match="pre holds an encoder, not a classifier; fine-tune it first: tubelet finetune"):
        evaluate(place / "pre", place / "clips")
    with pytest.raises(CheckpointError, match="nothing of that name"):
        evaluate(tmp_path / "nowhere", place / "clips")
    with pytest.raises(CheckpointError, match="is no run of tubelet finetune, or not a complete one"):
        evaluate(tmp_path / "empty", place / "clips")


def test_mistakes_of_an_evaluation(place: Path, straight: Finetuned) -> None:
    manifest = place / "clips" / "manifest.csv"
    with pytest.raises(ConfigError, match="reads 4 frames of 16x16; frames and size cannot be changed"):
        evaluate(place / "straight", manifest, settings=["frames=8"])
    with pytest.raises(DataError, match="no test split"):
        evaluate(place / "straight", manifest, test="final")
    with pytest.raises(ConfigError, match=r"there are auto and ema"):
        evaluate(place / "straight", manifest, weights="best")


@pytest.mark.parametrize("name", finetune_recipe.names())
def test_recipes_are_valid_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    one = finetune_recipe.load(name)
    (tmp_path / "x.yaml").write_text(to_yaml(one))
    assert finetune_recipe.load(tmp_path / "x.yaml") == one
    assert one.about
    assert one.table
    assert name in {listed for listed, _ in tubelet.api.recipes()}
    assert one.classifier.layer_decay is not None


def test_recipes_hold_the_papers_numbers() -> None:
    """VideoMAE, arXiv 2203.12602, fine-tuning settings of ViT-B."""
    k400, ssv2, ucf, hmdb = all_four = [finetune_recipe.load(f"finetune-{name}") for name in ("k400", "ssv2", "ucf101", "hmdb51")]
    assert [r.train.epochs for r in all_four] == [75, 40, 100, 50]
    assert [r.classifier.layer_decay for r in all_four] == [0.75, 0.75, 0.7, 0.7]
    assert [r.classifier.drop_path for r in all_four] == [0.1, 0.1, 0.2, 0.2]
    assert [r.train.lr for r in all_four] == [1e-3, 5e-4, 5e-4, 1e-3]
    assert [r.train.batch // r.data.repeats for r in all_four] == [512, 512, 128, 128]
    assert [(r.views.clips, r.views.crops) for r in all_four] == [(5, 3), (2, 3), (5, 3), (10, 3)]
    assert [r.data.augment.flip for r in all_four] == [0.5, 0.0, 0.5, 0.5]
    assert (k400.data.sampling, ssv2.data.sampling, ucf.classifier.dropout) == ("dense", "tsn", 0.5)
    for r in all_four:
        rate = r.train.lr * r.train.batch / (r.train.lr_batch or 1)
        assert rate == pytest.approx(r.train.lr * r.train.batch / r.data.repeats / 256), "the rate is scaled by clips, not by copies"
        a = r.data.augment
        assert (r.data.repeats, a.rand, a.erase, a.mixup, a.cutmix, a.smoothing) == (2, "rand-m7-n4-mstd0.5-inc1", 0.25, 0.8, 1.0, 0.1)
        assert (r.data.crop, r.data.area, r.data.ratio) == ("random_resized", (0.08, 1.0), (3 / 4, 4 / 3))
        assert (r.train.betas, r.train.weight_decay, r.train.warmup_epochs) == ((0.9, 0.999), 0.05, 5)
        assert (r.data.frames, r.data.hw, r.views.sampling) == (16, (224, 224), r.data.sampling)
        assert (r.classifier.pool, r.classifier.norm, r.classifier.init_scale) == ("mean", "pooled", 0.001)
    assert hmdb.data.stride == 2


def test_choices_on_the_host_are_those_of_the_device(place: Path) -> None:
    """The host's draw is bound to the numbers of each micro-batch of the step, for every process."""
    from tubelet.core import Step
    from tubelet.train.plan import Plan, Position

    plan = Plan(TrainSettings(steps=3, batch=12, micro=2), 100, world=2)
    seen = []

    class Recorder:
        def __call__(self, batch, draw, *, host):
            seen.append((host.uniform("x"), draw.uniform("x")))
            return batch

    for rank in (0, 1):
        prepare = finetuning._Prepare(Recorder(), plan, rank)  # type: ignore[arg-type]  # stands in for Augment
        at = Position(1, 12)
        for mine, _ in plan.micro_batches(at, rank):
            sample = torch.arange(mine.start, mine.stop)
            step = Step(at.step, at.samples, 0.0, 0.0, CounterDraw(4, sample, at.step))
            prepare(tubelet.core.Batch({}, {}, sample), step)  # type: ignore[attr-defined]
    assert len(seen) == 6
    assert all(torch.equal(host, device) for host, device in seen)


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(place: Path, straight: Finetuned, tmp_path: Path) -> None:
    code = (
        "import sys; from tubelet.api.finetuning import finetune; home, out = sys.argv[1:]; "
        "finetune(home + '/pre', home + '/clips/manifest.csv', out=out, recipe=home + '/fine.yaml', val_share=0.2, quiet=True)"
    )
    (tmp_path / "run.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, str(tmp_path / "run.py"), str(place), str(tmp_path / "two")], check=True, timeout=500)
    one, two = (read_tensors(folder / "model.safetensors") for folder in (place / "straight", tmp_path / "two"))
    assert all(torch.allclose(one[k], two[k], atol=2e-3) for k in one)
    written = json.loads((tmp_path / "two" / "results.json").read_text())
    assert straight.score is not None
    assert {p["key"] for p in written["predictions"]} == set(straight.score.predictions)
    assert [p["key"] for p in written["predictions"]] == list(straight.score.predictions)


def test_what_is_held_out_is_of_films_of_its_own(place: Path, tmp_path: Path) -> None:
    with open(place / "clips" / "manifest.csv", newline="") as source:
        rows = [row for row in csv.DictReader(source) if row["split"] == "train"]
    films = place / "clips" / "films.csv"  # beside the clips that it names
    with open(films, "w", newline="") as target:
        writer = csv.DictWriter(target, [*rows[0], "film"])
        writer.writeheader()
        writer.writerows({**row, "film": f"{i // 2}"} for i, row in enumerate(rows))
    tables = open_labelled(
        films, DataSettings.model_validate({}), train="train", test=None, test_sources=None, val_share=0.3, val_groups="film", seed=0
    )
    assert tables.val is not None
    sides = [set(table.extra["film"]) for table in (tables.train, tables.val)]
    assert not sides[0] & sides[1]
    assert 0.1 < len(tables.val) / len(rows) < 0.5
    with pytest.raises(DataError, match="no column 'movie'"):
        open_labelled(
            films, DataSettings.model_validate({}), train="train", test=None, test_sources=None, val_share=0.3, val_groups="movie", seed=0
        )
