"""Batch augmentation: what each step does, per sample, and that it is a function of the counters."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.config import parse
from tubelet.core import Batch, CounterDraw, FixedDraw, Stream
from tubelet.data.augment import Augment, beta, partners, soft_targets
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import AugmentSettings, DataSettings
from tubelet.data.source import open_table
from tubelet.errors import ConfigError

B, T, H, W = 8, 4, 16, 24


def batch(samples: list[int] | None = None) -> Batch:
    sample = torch.tensor(samples if samples is not None else list(range(B)))
    pixels = torch.stack([torch.randint(0, 256, (3, T, H, W), generator=torch.Generator().manual_seed(int(k))) for k in sample]).to(
        torch.uint8
    )
    crop = torch.tensor([[2.0, 0, -10], [0, 3, -20]]).repeat(len(sample), 1, 1)
    return Batch({"video": Stream(pixels, crop=crop)}, {"class": sample % 3}, sample)


def run(settings: AugmentSettings, data: Batch, classes: int = 0, copies: int = 1, **fixed: torch.Tensor) -> Batch:
    draw = FixedDraw(CounterDraw(7, data.sample, 11), {f"augment/{k}": v for k, v in fixed.items()})
    return Augment(settings, classes=classes, copies=copies)(data, draw)


def pixels(data: Batch) -> torch.Tensor:
    return data.stream("video").data


def test_nothing_is_done_by_default() -> None:
    data = batch()
    out = run(AugmentSettings(), data)
    assert torch.equal(out.stream("video").data, data.stream("video").data)
    assert set(out.labels) == {"class"}


def test_flip_is_per_sample_and_moves_the_affine() -> None:
    data = batch()
    which = torch.arange(B) % 2 == 0
    out = run(AugmentSettings(flip=0.5), data, flip=torch.where(which, 0.1, 0.9)).stream("video")
    before = data.stream("video").data
    assert out.data.dtype == torch.uint8
    assert torch.equal(out.data[which], before[which].flip(-1))
    assert torch.equal(out.data[~which], before[~which])
    point = torch.tensor([7.0, 9.0, 1.0])
    assert out.crop is not None
    assert (out.crop[0] @ point).tolist() == [W - (2 * 7 - 10), 3 * 9 - 20]
    assert (out.crop[1] @ point).tolist() == [2 * 7 - 10, 3 * 9 - 20]


def test_every_sample_gets_the_same_whatever_its_batch() -> None:
    settings = AugmentSettings(flip=0.5, rand="rand-m7-n4-mstd0.5-inc1", brightness=0.4, contrast=0.4, saturation=0.4, erase=0.5)
    together, alone = run(settings, batch()).stream("video").data, run(settings, batch([5])).stream("video").data
    assert torch.equal(together[5], alone[0])
    assert not torch.equal(together, run(AugmentSettings(), batch()).stream("video").data.float() / 255)


def test_colour_is_the_same_in_all_frames_and_stays_in_range() -> None:
    data = batch()
    still = data.stream("video").data[:, :, :1].expand(-1, -1, T, -1, -1)
    out = run(AugmentSettings(brightness=0.4, contrast=0.4, saturation=0.4), data.with_stream("video", Stream(still))).stream("video").data
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    grey = run(AugmentSettings(saturation=1.0), data, colour=torch.zeros(B, 3)).stream("video").data
    assert (grey[:, 0] - grey[:, 1]).abs().max() < 1e-6, "saturation factor 0 is grey"
    dark = run(AugmentSettings(brightness=0.5), data, colour=torch.zeros(B, 3)).stream("video").data
    assert torch.allclose(dark, data.stream("video").data.float() / 255 * 0.5)


def test_erasing_takes_one_box_in_all_frames() -> None:
    data = batch(list(range(64)))
    before = data.stream("video").data.float() / 255
    out = run(AugmentSettings(erase=0.25), data).stream("video").data
    changed = (out != before).any(1)
    hit = changed.flatten(1).any(1)
    assert 6 <= int(hit.sum()) <= 28
    for clip in changed[hit]:
        union = clip.any(0)
        rows, columns = union.any(1).nonzero().flatten(), union.any(0).nonzero().flatten()
        box = clip[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.float().mean() > 0.9, "the box is filled in every frame"


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_keeps_pixels_and_targets_in_step(kind: str) -> None:
    data = batch()
    before = data.stream("video").data.float() / 255
    out = run(AugmentSettings.model_validate({kind: 1.0, "smoothing": 0.1}), data, classes=3, copies=B // 2)
    target, labels = out.labels["target"], data.labels["class"]
    assert isinstance(target, torch.Tensor)
    assert isinstance(labels, torch.Tensor)
    assert torch.allclose(target.sum(1), torch.ones(B))
    assert torch.equal(out.labels["class"], labels)  # type: ignore[arg-type]  # a tensor in this batch
    clean = soft_targets(labels, 3, 0.1)
    pairs = (labels != labels.flip(0)).nonzero().flatten()
    i = int(pairs[0])
    share = float((target[i, labels[i]] - clean[B - 1 - i, labels[i]]) / (clean[i, labels[i]] - clean[B - 1 - i, labels[i]]))
    pixels = out.stream("video").data
    if kind == "mixup":
        assert torch.allclose(pixels, share * before + (1 - share) * before.flip(0), atol=1e-5)
    else:
        own = (pixels == before).all(1)[i, 0]
        assert ((pixels == before) | (pixels == before.flip(0))).all()
        assert float(own.float().mean()) == pytest.approx(share, abs=0.02)


def test_switch_chooses_between_mixup_and_cutmix() -> None:
    data = batch()
    before = data.stream("video").data.float() / 255
    both = AugmentSettings(mixup=0.8, cutmix=1.0, switch=0.5)
    cut = run(both, data, classes=3, switch=torch.tensor(0.1)).stream("video").data
    mixed = run(both, data, classes=3, switch=torch.tensor(0.9)).stream("video").data
    other = before[partners(B, 2, before.device)]
    assert ((cut == before) | (cut == other)).all()
    assert not ((mixed == before) | (mixed == other)).all()


@pytest.mark.parametrize(
    ("n", "copies", "expected"),
    [
        (4, 1, [1, 0, 3, 2]),
        (5, 1, [1, 0, 3, 2, 4]),
        (8, 2, [3, 2, 1, 0, 7, 6, 5, 4]),
        (6, 2, [3, 2, 1, 0, 5, 4]),
    ],
)
def test_a_sample_is_mixed_with_another_video(n: int, copies: int, expected: list[int]) -> None:
    assert partners(n, 2 * copies, torch.device("cpu")).tolist() == expected
    video = [i // copies for i in range(n)]
    assert all(video[i] != video[p] for i, p in enumerate(expected) if i < n // (2 * copies) * 2 * copies)


@pytest.mark.parametrize("cuts", [(0, 4, 8), (0, 4, 12, 16), (0, 16)])
def test_a_step_may_be_cut_between_groups(cuts: tuple[int, ...]) -> None:
    """Micro-batches and ranks see the same clips and targets as one large batch."""
    everything = AugmentSettings(flip=0.5, rand="rand-m7-n4-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1)
    whole = run(everything, batch(list(range(cuts[-1]))), classes=3, copies=2)
    parts = [run(everything, batch(list(range(a, b))), classes=3, copies=2) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat([pixels(p) for p in parts]), pixels(whole))
    assert torch.equal(torch.cat([p.labels["target"] for p in parts]), whole.labels["target"])  # type: ignore[arg-type]  # tensors


def test_choices_may_come_from_the_host() -> None:
    data, augment = batch(), Augment(AugmentSettings(rand="rand-m9-n2", flip=0.5))
    draw = CounterDraw(7, data.sample, 11)
    assert torch.equal(pixels(augment(data, draw, host=CounterDraw(7, data.sample, 11))), pixels(augment(data, draw)))
    assert not torch.equal(pixels(augment(data, draw, host=CounterDraw(8, data.sample, 11))), pixels(augment(data, draw)))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_beta_has_the_right_moments(alpha: float) -> None:
    values = np.array([float(beta(alpha, CounterDraw(1, torch.zeros(1, dtype=torch.int64), step))) for step in range(2000)])
    assert values.mean() == pytest.approx(0.5, abs=0.03)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_soft_targets() -> None:
    assert soft_targets(torch.tensor([1]), 4, 0.2).tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]


def test_mixing_without_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="this data has none"):
        Augment(AugmentSettings(mixup=1.0))
    unlabelled = Batch(batch().streams, {}, torch.arange(B))
    with pytest.raises(ConfigError, match="this batch has none"):
        run(AugmentSettings(smoothing=0.1), unlabelled, classes=3)


@pytest.mark.parametrize("sampling", ["window", "dense", "tsn"])
def test_repeats_are_copies_of_one_clip_with_crops_of_their_own(numbered_set: Path, sampling: str) -> None:
    chosen = {"frames": 4, "stride": 2, "size": 24, "workers": 0, "decoder": "pyav", "crop": "random_resized", "sampling": sampling}
    table = open_table(numbered_set)
    with VideoFeed(table, parse(DataSettings, {**chosen, "repeats": 2, "clips_per_video": 2}), seed=3) as feed:
        assert len(feed) == 4 * len(table)
        (batch,) = feed.batches([range(32)])
        cut = list(feed.batches([range(7), range(7, 32)]))
    video = batch.stream("video")
    assert video.time is not None
    assert video.crop is not None
    assert torch.equal(video.time[0::2], video.time[1::2]), "two copies show the same frames"
    assert not (video.crop[0::2] == video.crop[1::2]).flatten(1).all(1).any(), "each copy is cropped for itself"
    assert len(set(batch.key)) == len(table), "one epoch shows every video"
    assert all(len(set(batch.key[i : i + 4])) == 1 for i in range(0, 32, 4)), "a visit's clips and their copies follow each other"
    assert not all(torch.equal(video.time[i], video.time[i + 2]) for i in range(0, 32, 4)), "clips of a visit are moments of their own"
    assert torch.equal(torch.cat([b.stream("video").data for b in cut]), video.data), "a copy is the same where its twin is elsewhere"
