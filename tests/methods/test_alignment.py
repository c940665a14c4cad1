"""MAE and InfoNCE together: who gets gradients, what is logged, what captions that are missing do, and loading such a run elsewhere."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tubelet
from tubelet.core import Aligned, Batch, CounterDraw, Frozen, Step, Stream
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.masking.tube import Config as Tube
from tubelet.methods import dual
from tubelet.methods._align import AlignConfig, Alignment
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.train.checkpoint import read_meta, read_tensors, write_tensors


class Words(nn.Module):
    """Texts -> vectors by a table that must get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))

    def text(self, texts: Sequence[str]) -> Tensor:
        return nn.functional.normalize(torch.stack([self.table[sum(map(ord, text)) % 64] for text in texts]), dim=-1)


def model(**settings: Any) -> VideoMAE:
    torch.manual_seed(0)
    options = {"dim": 16, "depth": 1, "heads": 2, "patch": (2, 8, 8), "decoder": {"dim": 8, "depth": 1, "heads": 1}}
    made = Config.model_validate(options).build(masking=Tube(ratio=0.5).build(), frames=4, size=(16, 16))
    made.align = Alignment(text=Frozen(Words(), path="words"), dim=16, width=6, settings=AlignConfig(model="words", **settings))
    return made


def batch_of(*texts: str) -> tuple[Batch, Step]:
    sample = torch.arange(len(texts))
    video = torch.rand(len(texts), 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch({"video": Stream(video)}, {}, sample, text=texts), Step(0, 0, 0.0, 0.0, CounterDraw(0, sample))


def test_gradients_reach_encoder_and_projection_and_never_the_text_encoder() -> None:
    made = model()
    losses = made.losses("main", *batch_of("a", "b", "c"))
    contrast, weight = losses.terms["contrast"]
    assert weight == 1.0
    assert set(losses.terms) == {"pixels", "contrast"}
    assert {"match", "scale", "zero_answer"} <= set(losses.log)
    assert float(losses.log["scale"]) == pytest.approx(1 / 0.07, rel=1e-5)
    contrast.backward()
    touched = {n.split(".")[0] for n, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {"encoder", "align"}
    assert made.align is not None
    assert made.align.text.inner.table.grad is None
    assert not any("text" in name for name in made.state_dict())


def test_the_total_is_the_weighted_sum_and_the_mask_is_the_same_without() -> None:
    batch, at = batch_of("a", "b", "c")
    made, plain = model(weight=0.5), model()
    plain.align = None
    losses = made.losses("main", batch, at)
    assert float(losses.total) == pytest.approx(float(losses.terms["pixels"][0]) + 0.5 * float(losses.terms["contrast"][0]), rel=1e-6)
    assert torch.equal(losses.terms["pixels"][0], plain.losses("main", batch, at).terms["pixels"][0])


def test_the_clip_vector_is_the_mean_of_visible_tokens_projected() -> None:
    made = model()
    batch, at = batch_of("a", "b")
    mask = made.mask(batch, at)
    visible = made.see(batch.stream("video").data, mask, at)
    align = made.align
    assert align is not None
    wanted = nn.functional.normalize(align.video_proj(visible.x.mean(1)), dim=-1)
    assert torch.allclose(align.video(visible), wanted, atol=1e-6)
    assert isinstance(made, Aligned)
    assert made.aligned
    assert made.embed_video(batch).shape == (2, 6)
    assert torch.allclose(made.embed_text(["a"]).norm(dim=1), torch.ones(1))


def test_samples_without_a_caption_do_not_count() -> None:
    made = model()
    batch, at = batch_of("a", "b", "c", "")
    whole = made.losses("main", batch, at).terms["contrast"][0]
    video = made.align.video(made.see(batch.stream("video").data, made.mask(batch, at), at))  # type: ignore[union-attr]
    words = made.embed_text(batch.text)
    rows = nn.functional.cross_entropy(video @ words.T / 0.07, torch.arange(4), reduction="none")
    columns = nn.functional.cross_entropy(words @ video.T / 0.07, torch.arange(4), reduction="none")
    assert torch.allclose(((rows + columns) / 2)[:3].mean(), whole, atol=1e-5)


def test_mistakes_are_said() -> None:
    made = model()
    batch, at = batch_of("a")
    with pytest.raises(ConfigError, match="needs other samples as negatives"):
        made.losses("main", batch, at)
    silent = Batch(batch.streams, {}, batch.sample)
    with pytest.raises(ConfigError, match=r"method\.align needs captions"):
        made.losses("main", silent, at)
    assert made.align is not None
    assert made.align.open() is made.align
    made.align.video_proj = nn.Linear(16, 9)
    with pytest.raises(ConfigError, match=r"method\.align\.width is 9, and words gives vectors of 6"):
        made.align.open()
    made.align = None
    assert not made.aligned
    for ask in (lambda: made.embed_text(["a"]), lambda: made.embed_video(batch)):
        with pytest.raises(ConfigError, match="was not aligned with text"):
            ask()


def test_learned_temperature_stops_at_a_hundred() -> None:
    align = model().align
    assert align is not None
    with torch.no_grad():
        align.logit_scale.fill_(math.log(1e6))
    align.after_step()
    assert float(align.scale) == pytest.approx(100.0)
    align.scale.backward()
    assert align.logit_scale.grad is not None
    assert float(align.logit_scale.grad) > 0, "it can come back"


def test_dual_encoders_learn_which_caption_is_whose() -> None:
    torch.manual_seed(0)
    made = dual.Config.model_validate({"network": {"dim": 16, "heads": 2, "out": 8, "depth": 1, "text_depth": 0}}).build(
        masking=None, frames=2, size=(16, 16)
    )
    colours = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0), "white": (1.0, 1.0, 1.0)}
    video = torch.stack([torch.tensor(c).view(3, 1, 1, 1).expand(3, 2, 16, 16) for c in colours.values()])
    sample = torch.arange(4)
    batch = Batch({"video": Stream(video)}, {}, sample, text=tuple(f"a {name} thing" for name in colours))
    at = Step(0, 0, 0.0, 0.0, CounterDraw(0, sample))
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for _ in range(60):
        losses = made.losses("main", batch, at)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert float(losses.log["match"]) == 1.0
    assert isinstance(made, Aligned)
    tokens = made.encode(batch)
    assert tokens.x.shape == (4, 2 * 2 * 2, 8)
    assert tokens.grid is not None
    assert tokens.grid.shape == (2, 2, 2)
    with pytest.raises(ConfigError, match="no outputs of single blocks"):
        made.encode(batch, layers=[0])


@pytest.mark.parametrize(("more", "said"), [({"masking": Tube().build()}, "leave masking out"), ({"channels": 1}, "reads colour videos")])
def test_dual_encoders_refuse_what_they_cannot_use(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dual.Config().build(**({"masking": None, "frames": 2, "size": (16, 16)} | more))


SMALL = ["method.dim=32", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 2}"]
SMALL += ["data.size=32", "data.frames=8", "data.stride=1", "data.workers=0", "train.device=cpu", "steps=2", "batch=4", "data.labels=none"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with captions, a dual encoder's run on it, and a run that is guided by and aligned with it."""
    home = tmp_path_factory.mktemp("aligned")
    manifest = tubelet.make_playground(home / "world", clips=12, scene="easy", size=32, frames=8)
    words = ["data.size=32", "data.frames=2", "data.stride=1", "data.cache_size=32", "train.device=cpu", "steps=2", "batch=4"]
    tubelet.pretrain(manifest, out=home / "words", recipe="dual", settings=[*words, "data.workers=0"], quiet=True)
    guided = [f"method.align.model={home / 'words'}", "masking=tgm", f"masking.guide.model={home / 'words'}", "masking.guide.every=2"]
    tubelet.pretrain(manifest, out=home / "tgm", recipe="tiny-cpu", settings=[*SMALL, *guided], quiet=True)
    return home


def test_a_guided_and_aligned_run_by_the_public_road(runs: Path) -> None:
    lines = (runs / "tgm" / "metrics.jsonl").read_text()
    for name in ("contrast", "match", "guided"):
        assert name in lines
    recorded = read_meta(runs / "tgm" / "model.safetensors")["frozen"]
    assert {(place, outside["path"], len(outside["sha256"])) for place, outside in recorded.items()} == {
        (place, str(runs / "words"), 64) for place in ("align.text", "masking.guide.dual")
    }
    found = tubelet.retrieve(runs / "tgm", runs / "world" / "manifest.csv", device="cpu")
    assert found.text_to_video.candidates == 12
    again = tubelet.retrieve(runs / "words", runs / "world" / "manifest.csv", device="cpu")
    assert again.text_to_video.candidates == 12
    named = tubelet.zeroshot(runs / "words", runs / "world" / "manifest.csv", device="cpu")
    assert 0 <= named.value <= 1


def test_its_encoder_is_useful_where_the_text_model_is_not(runs: Path, tmp_path: Path) -> None:
    shutil.move(str(runs / "words"), tmp_path / "gone")
    try:
        loaded = tubelet.load(runs / "tgm", device="cpu")
        assert loaded.encode(torch.rand(1, 3, 8, 32, 32)).x.shape == (1, 64, 32)
        assert not loaded.model.aligned  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match="aligned"):
            tubelet.retrieve(runs / "tgm", runs / "world" / "manifest.csv", device="cpu")
        with pytest.raises(CheckpointError, match="no such folder of a dual encoder"):
            tubelet.pretrain(
                runs / "world" / "manifest.csv",
                out=tmp_path / "x",
                recipe="tiny-cpu",
                settings=[*SMALL, "masking=tgm", f"masking.guide.model={runs / 'words'}"],
                quiet=True,
            )
    finally:
        shutil.move(str(tmp_path / "gone"), runs / "words")


def test_another_text_model_in_the_same_place_is_refused(runs: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    weights = runs / "words" / "model.safetensors"
    shutil.copy(weights, kept)
    try:
        tensors = {k: v + 0.1 for k, v in read_tensors(weights).items()}
        write_tensors(weights, tensors, read_meta(kept))
        assert tubelet.load(runs / "tgm", device="cpu").encode(torch.rand(1, 3, 8, 32, 32)).x.shape == (1, 64, 32), "encoding needs no text"
        with pytest.raises(CheckpointError, match=r"was trained with another model than .*words holds now"):
            tubelet.retrieve(runs / "tgm", runs / "world" / "manifest.csv", device="cpu")
    finally:
        shutil.copy(kept, weights)


def test_planning_reads_the_width_from_settings(runs: Path) -> None:
    from tubelet.guides._dual import width_of

    assert width_of(runs / "words") == 64
    settings = [*SMALL, f"method.align.model={runs / 'words'}"]
    assert "contrast" not in str(tubelet.plan(runs / "world" / "manifest.csv", recipe="tiny-cpu", settings=settings))


def test_an_aligned_run_reconstructs_videos_without_captions(runs: Path) -> None:
    found = tubelet.reconstruct(runs / "tgm", runs / "world" / "clips" / "000000.mp4", settings=["masking=tube"], device="cpu")
    assert found.error.cubes > 0


def test_videos_without_captions_are_refused_before_anything_else(runs: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "masking=tgm", f"masking.guide.model={runs / 'words'}"]
    with pytest.raises(DataError, match="needs captions, and none of the 12 items has one"):
        tubelet.pretrain(runs / "world" / "clips", out=tmp_path / "x", recipe="tiny-cpu", settings=settings, quiet=True)
    wrong = [*SMALL, "masking=tgm", f"masking.guide.model={runs / 'tgm'}"]
    with pytest.raises(CheckpointError, match="not of a dual encoder"):
        tubelet.pretrain(runs / "world" / "manifest.csv", out=tmp_path / "y", recipe="tiny-cpu", settings=wrong, quiet=True)
