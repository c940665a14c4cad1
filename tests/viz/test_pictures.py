"""Pictures hold the pixels they claim to hold."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tubelet.core import Mask, TokenGrid, to_unit
from tubelet.errors import ConfigError, DataError
from tubelet.methods.videomae import Reconstruction
from tubelet.objectives.pixels import PixelTarget
from tubelet.viz import _text as text
from tubelet.viz.curves import _ticks, curves, run_curves
from tubelet.viz.pictures import CAPTIONS, figure, hide, neighbour_statistics, restore, sheet

GRID = TokenGrid.of((4, 16, 24), (2, 8, 8))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def clip(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 4, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tube(batch: int = 2) -> Mask:
    space = torch.zeros(batch, 6, dtype=torch.bool)
    space[:, [0, 2, 3, 5]] = True
    return Mask.of_hidden(GRID, space.repeat(1, 2))


def perfect(video: Tensor, mask: Mask, target: PixelTarget) -> Reconstruction:
    return Reconstruction(mask, target.rows(video, mask.grid, mask.target, MEAN, STD), target)


def test_hide_greys_hidden_cubes_only():
    video, mask = clip(), tube()
    seen = hide(video, GRID, mask.hidden(), 0.5)
    truth = to_unit(video)
    assert (seen[:, :, :, :8, :8] == 0.5).all()
    assert (seen[:, :, :, 8:, 16:] == 0.5).all()
    assert torch.equal(seen[:, :, :, :8, 8:16], truth[:, :, :, :8, 8:16])


@pytest.mark.parametrize("space", ["unit", "input"])
@pytest.mark.parametrize("normalise", ["channel", "joint", "none"])
@pytest.mark.parametrize("order", ["thwc", "cthw"])
def test_a_perfect_answer_with_own_statistics_is_the_clip(space: str, normalise: str, order: str):
    video, mask = clip(), tube()
    target = PixelTarget.model_validate({"space": space, "normalise": normalise, "order": order})
    made = restore(video, perfect(video, mask, target), statistics="own", mean=MEAN, std=STD)
    assert torch.allclose(made, to_unit(video), atol=1e-4)


def test_the_default_does_not_look_at_hidden_pixels():
    video, mask = clip(), tube()
    answer = perfect(video, mask, PixelTarget())
    other = torch.where(hide(video, GRID, mask.hidden(), 2.0) == 2.0, clip(seed=1), video)
    assert torch.equal(restore(video, answer), restore(other, answer))
    assert not torch.allclose(restore(video, answer, statistics="own"), restore(other, answer, statistics="own"))


def test_visible_cubes_stay_as_filmed_whatever_is_predicted():
    video, mask = clip(), tube()
    wild = Reconstruction(mask, torch.full((2, mask.target.shape[1], 384), 50.0), PixelTarget())
    made = restore(video, wild)
    assert torch.equal(made[:, :, :, :8, 8:16], to_unit(video)[:, :, :, :8, 8:16])
    assert made.min() >= 0
    assert made.max() <= 1


def test_what_was_not_asked_stays_grey():
    video, full = clip(), tube()
    some = Mask(GRID, full.visible, full.target[:, :1])
    made = restore(video, perfect(video, some, PixelTarget(normalise="none")), statistics="visible")
    grey = (made == torch.tensor(0.78)).all(1)
    assert int(grey.sum()) == 2 * (full.target.shape[1] - 1) * 2 * 64


def test_padded_targets_are_not_drawn():
    video, full = clip(), tube()
    valid = torch.ones_like(full.target, dtype=torch.bool)
    valid[1, -3:] = False
    padded = Mask(GRID, full.visible, full.target, target_valid=valid)
    made = restore(video, perfect(video, padded, PixelTarget(normalise="none")))
    greys = (made == torch.tensor(0.78)).all(1).flatten(1).sum(1)
    assert greys.tolist() == [0, 3 * 2 * 64]


def test_some_frames_and_grey_targets():
    video, mask = clip(), tube()
    centre = restore(video, perfect(video, mask, PixelTarget(frames="centre")), statistics="own")
    assert centre.shape == (2, 3, 2, 16, 24)
    assert torch.allclose(centre, to_unit(video)[:, :, 1::2], atol=1e-4)
    grey = restore(video, perfect(video, mask, PixelTarget(grey=True, normalise="none")))
    assert grey.shape == (2, 3, 4, 16, 24)
    assert torch.equal(grey[:, 0, :, :8, :8], grey[:, 2, :, :8, :8])


def test_unknown_statistics():
    with pytest.raises(ConfigError, match="visible and own"):
        restore(clip(), perfect(clip(), tube(), PixelTarget()), statistics="true")  # type: ignore[arg-type]  # the mistake under test


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.9), st.floats(0.01, 0.3))
def test_neighbours_that_agree_are_believed(centre: float, scale: float):
    mask = tube()
    c, s = torch.full((2, 4, 3, 1, 1, 1), centre), torch.full((2, 4, 3, 1, 1, 1), scale)
    got_c, got_s = neighbour_statistics(c, s, mask)
    assert got_c.shape == (2, 8, 3, 1, 1, 1)
    assert torch.allclose(got_c, torch.tensor(centre), atol=1e-5)
    assert torch.allclose(got_s, torch.tensor(scale), rtol=1e-4)


def test_the_nearest_neighbour_counts_most():
    grid = TokenGrid(("t", "h", "w"), (1, 1, 12), (1, 1, 1))
    mask = Mask(grid, torch.tensor([[0, 11]]), torch.tensor([[1, 6]]))
    centre, _ = neighbour_statistics(torch.tensor([[0.0, 1.0]])[..., None], torch.ones(1, 2, 1), mask)
    assert centre[0, 0, 0] < 0.01
    assert 0.5 < centre[0, 1, 0] < 0.9


def test_figure_shows_the_pixels_and_says_whose_statistics():
    video, mask = clip(), tube()
    answer = perfect(video, mask, PixelTarget())
    picture = figure(video, answer, sample=1, cell=16, frames=4)
    array = np.asarray(picture)
    frame = video[1, :, 0].permute(1, 2, 0).numpy()
    found = [
        (y, x)
        for y, x in zip(*np.nonzero((array[..., :3] == frame[0, 0]).all(-1)), strict=True)
        if y + 16 <= array.shape[0] and x + 24 <= array.shape[1] and (array[y : y + 16, x : x + 24] == frame).all()
    ]
    assert len(found) == 1
    own = figure(video, answer, sample=1, cell=16, frames=4, statistics="own")
    assert np.asarray(own).shape != array.shape or not np.array_equal(np.asarray(own), array)
    assert "own" in CAPTIONS["own"]
    assert "own" not in CAPTIONS["visible"]


@pytest.mark.parametrize(("frames", "cell"), [(1, 8), (3, 100), (8, 500)])
def test_figure_of_any_size(frames: int, cell: int):
    video = clip()
    picture = figure(
        video, perfect(video, tube(), PixelTarget()), frames=frames, cell=cell, title="a title", time=torch.arange(8.0).view(2, 4)
    )
    assert picture.mode == "RGB"
    assert min(picture.size) > 20


def test_sheet_keeps_its_pictures():
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 30), "blue")
    made = sheet([red, blue], ["first", "second"], columns=2)
    colours = {c: n for n, c in made.getcolors(100_000) or []}
    assert colours[(255, 0, 0)] == 200
    assert colours[(0, 0, 255)] == 300
    with pytest.raises(ConfigError, match="as many captions"):
        sheet([red, blue], ["one"])
    with pytest.raises(ConfigError):
        sheet([])


@given(st.text(max_size=60), st.integers(20, 300))
@settings(max_examples=40, deadline=None)
def test_lines_fit(words: str, limit: int):
    assert all(text.width(line, 14) <= limit for line in text.wrap(words, 14, limit))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_ticks_enclose_the_values(values: list[float]):
    ticks = _ticks(values)
    slack = 1e-6 * max(1.0, max(map(abs, values)))
    assert 2 <= len(ticks) <= 12
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    assert all(a < b for a, b in itertools.pairwise(ticks))


def test_a_falling_curve_falls():
    picture = np.asarray(curves({"loss": [(0.0, 1.0), (10.0, 0.0)]}, size=(300, 200))).astype(int)
    blue = np.argwhere((picture[..., 2] > picture[..., 0] + 60) & (picture[..., 2] > 120))
    left, right = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert left[0] < 40
    assert right[0] > 130


def test_gaps_single_points_and_nothing_to_draw():
    assert curves({"a": [(0, 1.0), (1, math.nan), (2, 2.0)], "b": [(1, 1.5)]}).size == (720, 400)
    with pytest.raises(DataError, match="no finite points"):
        curves({"a": [(0, math.nan)]})


def test_curves_of_a_run(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        run_curves(tmp_path)
    lines = [json.dumps({"step": i, "loss": 1 / (i + 1), "device": "cpu"}) for i in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "lo']))
    assert run_curves(tmp_path).size == (720, 400)
    with pytest.raises(DataError, match="holds no los; it has loss"):
        run_curves(tmp_path, ["los"])
