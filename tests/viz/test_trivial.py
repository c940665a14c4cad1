"""The masked error and the answers that need no model, against what they are defined to be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.core import Mask, TokenGrid, patchify, to_unit
from tubelet.methods.videomae import Reconstruction
from tubelet.objectives.pixels import PixelTarget
from tubelet.viz.trivial import NAMES, MaskedError, masked_error, nearest

GRID = TokenGrid.of((4, 16, 24), (2, 8, 8))
RAW, NORMAL = PixelTarget(normalise="none"), PixelTarget()


def clip(seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 4, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def frame_mask(batch: int = 2) -> Mask:
    """The second of two slots is hidden."""
    return Mask.of_hidden(GRID, (torch.arange(12) >= 6).expand(batch, -1))


def said(video: Tensor, mask: Mask, target: PixelTarget, off: float = 0.0) -> Reconstruction:
    """The right answer, plus ``off``."""
    return Reconstruction(mask, target.rows(video, mask.grid, mask.target) + off, target)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**30), st.booleans())
def test_nearest_is_what_a_loop_finds(seed: int, place_first: bool):
    grid = TokenGrid(("t", "h", "w"), (3, 3, 2), (1, 1, 1))
    order = torch.randperm(18, generator=torch.Generator().manual_seed(seed))
    visible, target = order[:5][None], order[5:][None]
    valid = torch.tensor([[True, True, True, False, True]])
    found = nearest(Mask(grid, visible, target, visible_valid=valid), place_first=place_first)[0]
    places = [(i // 6, i // 2 % 3, i % 2) for i in range(18)]
    for m, chosen in zip(target[0].tolist(), found.tolist(), strict=True):
        gaps = []
        for v in visible[0].tolist():
            (t, y, x), (s, b, a) = places[m], places[v]
            space, time = (y - b) ** 2 + (x - a) ** 2, abs(t - s)
            gaps.append((space, time) if place_first else (time, space))
        best = min(gap for gap, real in zip(gaps, valid[0].tolist(), strict=True) if real)
        assert valid[0, chosen]
        assert gaps[chosen] == best


@pytest.mark.parametrize("target", [RAW, NORMAL], ids=["raw", "normalised"])
def test_a_right_answer_beats_all_and_a_wrong_one_none(target: PixelTarget):
    video, mask = clip(), frame_mask()
    right = masked_error(video, said(video, mask, target), statistics="own")
    assert right.cubes == 12
    assert set(right.pixels) == set(NAMES)
    assert right.pixels["model"] < 1e-8 < min(right.pixels[n] for n in NAMES[1:])
    assert "better than trivial" in right.verdict()
    assert "no better" not in right.verdict()
    wrong = masked_error(video, said(video, mask, target, off=50.0), statistics="own")
    assert wrong.verdict().count("no better than trivial") == (2 if target is NORMAL else 1)


def test_a_still_scene_is_copied_exactly_in_time_and_not_in_space():
    still = clip()[:, :, :1].expand(-1, -1, 4, -1, -1).clone()
    places = torch.zeros(1, 12, dtype=torch.bool)
    places[0, [0, 1, 2, 6 + 3, 6 + 4, 6 + 5]] = True  # every place is visible in one of two slots
    error = masked_error(still, said(still, Mask.of_hidden(GRID, places.expand(2, -1)), RAW))
    assert error.pixels["copy in time"] == 0
    assert error.pixels["copy in space"] > 0.05


def test_a_clip_of_columns_is_copied_exactly_in_space_and_not_in_time():
    """Frames differ; every frame repeats its upper half below."""
    half = clip()[:, :, :, :8]
    video = torch.cat([half, half], 3)
    places = torch.zeros(1, 12, dtype=torch.bool)
    places[0, [0, 1, 2, 6 + 3, 6 + 4, 6 + 5]] = True
    error = masked_error(video, said(video, Mask.of_hidden(GRID, places.expand(2, -1)), RAW))
    assert error.pixels["copy in space"] == 0
    assert error.pixels["copy in time"] > 0.05


def test_the_visible_mean_is_the_mean_of_what_is_visible():
    video, mask = clip(), frame_mask()
    seen, hidden = (to_unit(video)[:, :, part] for part in (slice(0, 2), slice(2, 4)))
    colour = seen.mean((2, 3, 4), keepdim=True)
    assert masked_error(video, said(video, mask, RAW)).pixels["visible mean"] == pytest.approx(float((hidden - colour).square().mean()))
    valid = torch.ones_like(mask.visible, dtype=torch.bool)
    valid[:, 3:] = False  # the lower half of the first slot is padding
    padded = Mask(GRID, mask.visible, mask.target, visible_valid=valid)
    colour = seen[:, :, :, :8].mean((2, 3, 4), keepdim=True)
    hidden_too = torch.cat([hidden.flatten(2)], 2)
    got = masked_error(video, said(video, padded, RAW)).pixels["visible mean"]
    assert got == pytest.approx(float((hidden_too - colour.flatten(2)).square().mean()))


def test_a_normalised_target_is_scored_in_its_own_convention_too():
    video, mask = clip(), frame_mask()
    error = masked_error(video, said(video, mask, NORMAL, off=0.5))
    assert error.target["model"] == pytest.approx(0.25, rel=1e-4)
    assert error.target["visible mean"] == pytest.approx(1.0, rel=0.02)  # a unit-variance pattern against none
    assert masked_error(video, said(video, mask, RAW)).target == {}


def test_with_own_statistics_trivial_answers_get_them_too():
    """One colour with a cube's own mean is wrong by that cube's variance."""
    video, mask = clip(), frame_mask()
    error = masked_error(video, said(video, mask, NORMAL), statistics="own")
    variance = patchify(to_unit(video), GRID)[:, 6:].var(dim=(3, 4, 5), correction=0).mean()
    assert error.pixels["visible mean"] == pytest.approx(float(variance), rel=1e-4)
    honest = masked_error(video, said(video, mask, NORMAL), statistics="visible")
    assert honest.pixels["visible mean"] > error.pixels["visible mean"]
    assert honest.target == error.target


@pytest.mark.parametrize("target", [PixelTarget(space="input"), PixelTarget(grey=True), PixelTarget(frames="centre", normalise="none")])
def test_other_conventions_are_in_pixels(target: PixelTarget):
    video, mask, mean, std = clip(), frame_mask(), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    answer = Reconstruction(mask, target.rows(video, mask.grid, mask.target, mean, std), target)
    error = masked_error(video, answer, statistics="own", mean=mean, std=std)
    assert error.pixels["model"] < 1e-8
    assert all(0.005 < error.pixels[name] < 0.3 for name in NAMES[1:])


def test_only_hidden_asked_and_real_cubes_count():
    video, full = clip(), frame_mask()
    valid = torch.ones_like(full.target, dtype=torch.bool)
    valid[1] = False
    assert masked_error(video, said(video, Mask(GRID, full.visible, full.target, target_valid=valid), RAW)).cubes == 6
    everything = torch.arange(12).expand(2, -1)
    seen_too = Mask(GRID, full.visible, everything)
    assert masked_error(video, said(video, seen_too, RAW)).cubes == 12
    none = masked_error(video, said(video, Mask(GRID, everything, full.target), RAW))
    assert (none.cubes, none.pixels) == (0, {})
    assert "no masked error" in str(none)


def test_clips_count_by_their_cubes():
    one, two = (MaskedError(n, dict.fromkeys(NAMES, v), {}) for n, v in ((10, 1.0), (30, 2.0)))
    together = MaskedError.mean([one, MaskedError(0, {}, {}), two])
    assert together.cubes == 40
    assert together.pixels == dict.fromkeys(NAMES, 1.75)
    assert MaskedError.mean([]).cubes == 0


def test_the_mean_of_clips_is_the_error_of_the_batch():
    video, mask = clip(batch=2), frame_mask()
    answer = said(video, mask, NORMAL, off=0.3)
    whole = masked_error(video, answer)
    ones = [masked_error(video[i : i + 1], Reconstruction(frame_mask(1), answer.rows[i : i + 1], NORMAL)) for i in range(2)]
    for table, name in itertools.product(("pixels", "target"), NAMES):
        assert getattr(MaskedError.mean(ones), table)[name] == pytest.approx(getattr(whole, table)[name], rel=1e-4)


def test_the_table_reads_well():
    table = str(MaskedError(4, dict(zip(NAMES, (0.02, 0.04, 0.03, 0.05), strict=True)), {}))
    assert table.splitlines()[0].split() == ["masked", "error", "pixels"]
    assert table.splitlines()[-1] == "better than trivial: 0.67 times the error of a copy in time"
