"""Masking strategies: exact counts, cover, independence, and that a sample's mask is its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.config import config_class, kinds, parse
from tubelet.core import Batch, CounterDraw, Mask, Masker, Step, Stream, TokenGrid
from tubelet.errors import ConfigError
from tubelet.masking import frame, random, tube
from tubelet.masking._select import hidden_count

GRID = TokenGrid(("t", "h", "w"), (4, 5, 6), (2, 4, 4))
BUILD: dict[str, Callable[[float, str], Masker]] = {
    "tube": lambda ratio, rounding: parse(tube.Config, {"ratio": ratio, "rounding": rounding}).build(),
    "random": lambda ratio, rounding: parse(random.Config, {"ratio": ratio, "rounding": rounding}).build(),
    "frame": lambda ratio, rounding: parse(frame.Config, {"ratio": ratio, "rounding": rounding}).build(),
}
UNITS = {"tube": 30, "random": 120, "frame": 4}
kind_names, roundings = st.sampled_from(sorted(BUILD)), st.sampled_from(["hidden", "visible"])


def mask_of(masker: Masker, samples: list[int], *, seed: int = 0, grid: TokenGrid = GRID, index: int = 0) -> Mask:
    sample = torch.tensor(samples)
    batch = Batch({"video": Stream(torch.zeros(len(samples), 1))}, {}, sample)
    return masker(grid, batch, "video", Step(index, 0, 0.0, 0.0, CounterDraw(seed, sample, index)))


@given(
    kind_names, roundings, st.floats(0.26, 0.74), st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True), st.integers(0, 99)
)
def test_counts_are_exact_and_the_sets_cover_the_grid(kind: str, rounding: str, ratio: float, samples: list[int], seed: int) -> None:
    mask = mask_of(BUILD[kind](ratio, rounding), samples, seed=seed).validate()
    n = UNITS[kind]
    per = int(ratio * n) if rounding == "hidden" else n - int(n * (1 - ratio))
    assert mask.target.shape == (len(samples), per * (GRID.n // n))
    together = torch.cat([mask.visible, mask.target], 1)
    assert torch.equal(together.sort(1).values, torch.arange(GRID.n).expand(len(samples), -1))
    assert all(bool((part.diff(dim=1) > 0).all()) for part in (mask.visible, mask.target))
    assert mask.weight is None


@given(kind_names, st.lists(st.integers(0, 2**40), min_size=2, max_size=5, unique=True), st.integers(0, 99))
def test_a_sample_gets_the_same_mask_in_any_batch_and_step(kind: str, samples: list[int], seed: int) -> None:
    masker = BUILD[kind](0.5, "hidden")
    whole = mask_of(masker, samples, seed=seed)
    alone = mask_of(BUILD[kind](0.5, "hidden"), samples[1:2], seed=seed, index=7)
    assert torch.equal(whole.visible[1:2], alone.visible)
    assert torch.equal(whole.target[1:2], alone.target)


@pytest.mark.parametrize("kind", sorted(BUILD))
def test_samples_and_seeds_are_independent_and_every_token_is_hidden_as_often(kind: str) -> None:
    masker = BUILD[kind](0.5, "hidden")
    hidden = mask_of(masker, list(range(3000))).hidden().flatten(1).float()
    assert float((hidden.mean(0) - 0.5).abs().max()) < 0.05
    assert abs(float((hidden[:-1] == hidden[1:]).float().mean()) - 0.5) < 0.05
    other = mask_of(masker, list(range(3000)), seed=1).hidden().flatten(1).float()
    assert abs(float((hidden == other).float().mean()) - 0.5) < 0.05


@given(st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_tube_is_the_same_in_every_slot_and_a_frame_in_every_place(ratio: float, seed: int) -> None:
    tubes = mask_of(BUILD["tube"](ratio, "hidden"), [5, 6], seed=seed).hidden()
    assert torch.equal(tubes, tubes[:, :1].expand_as(tubes))
    if ratio >= 0.25:
        frames = mask_of(BUILD["frame"](ratio, "hidden"), [5, 6], seed=seed).hidden()
        assert torch.equal(frames, frames[:, :, :1, :1].expand_as(frames))


def test_the_papers_numbers() -> None:
    vit = TokenGrid(("t", "h", "w"), (8, 14, 14), (2, 16, 16))
    assert mask_of(tube.Config(ratio=0.9).build(), [1], grid=vit).visible.shape == (1, 160)  # VideoMAE: 20 of 196 places
    assert mask_of(random.Config(ratio=0.9).build(), [1], grid=vit).visible.shape == (1, 156)  # MAE-ST: int(1568 * .1)
    assert mask_of(frame.Config().build(), [1], grid=vit).visible.shape == (1, 196)  # 7 of 8 slots
    assert hidden_count(0.9, 196, "visible") == 177
    assert hidden_count(0.9, 196, "hidden") == 176


@pytest.mark.parametrize(("kind", "ratio", "said"), [("tube", 0.01, "none of the 30 places"), ("frame", 0.2, "none of the 4 time slots")])
def test_ratios_that_hide_nothing_are_refused(kind: str, ratio: float, said: str) -> None:
    with pytest.raises(ConfigError, match=f"hides {said}"):
        mask_of(BUILD[kind](ratio, "hidden"), [1])


def test_ratios_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="hides all of the 4 time slots"):
        mask_of(BUILD["frame"](0.9, "visible"), [1])
    with pytest.raises(ValueError, match="no 't'"):
        mask_of(tube.Config().build(), [1], grid=TokenGrid(("h", "w"), (4, 4), (8, 8)))


def test_settings_name_their_mistakes() -> None:
    assert {"frame", "random", "tube"} <= set(kinds("tubelet.masking"))
    assert config_class("tubelet.masking", "tube") is tube.Config
    for bad in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="ratio"):
            parse(tube.Config, {"ratio": bad})
