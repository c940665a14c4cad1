"""Crops: the papers' boxes, the resize against exact arithmetic, and an affine that leads to the same place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data import transform as t
from tubelet.data.transform import Box

SIDE = st.integers(1, 300)
OUT = st.tuples(st.integers(1, 64), st.integers(1, 64))
U = st.floats(0, 1, exclude_max=True, width=32)
SIDES = (1.0, 0.875, 0.75, 0.66)


@given(SIDE, SIDE, OUT, st.lists(U, min_size=40, max_size=40))
def test_boxes_lie_in_the_frame(h: int, w: int, out: tuple[int, int], u: list[float]) -> None:
    draws = np.array(u)
    boxes = [
        t.centre(h, w, out),
        *t.three(h, w, out),
        t.multiscale(h, w, out, SIDES, draws[:2]),
        t.random_resized(h, w, out, (0.08, 1.0), (3 / 4, 4 / 3), draws.reshape(10, 4)),
    ]
    for box in boxes:
        assert box.h >= 1
        assert box.w >= 1
        assert 0 <= box.y <= h - box.h
        assert 0 <= box.x <= w - box.w
        small = t.rescale(box, (h, w), (max(1, h // 2), max(1, w // 3)))
        assert 0 <= small.y <= max(1, h // 2) - small.h
        assert 0 <= small.x <= max(1, w // 3) - small.w
        assert t.cut(torch.zeros(1, h, w, 3, dtype=torch.uint8), box, out).shape == (1, *out, 3)


def test_multiscale_takes_neighbouring_sides_at_thirteen_places() -> None:
    grid = (np.arange(130) + 0.5) / 130
    boxes = {t.multiscale(240, 320, (224, 224), SIDES, np.array([a, b])) for a in grid for b in grid}
    sizes = {(b.h, b.w) for b in boxes}
    sides = [240, 210, 180, 158]
    assert sizes == {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    places = {(b.y, b.x) for b in boxes if (b.h, b.w) == (180, 180)}
    step_y, step_x = 15, 35
    corners_and_edges = {(i * step_y, j * step_x) for i in (0, 2, 4) for j in (0, 2, 4)}
    quarters = {(i * step_y, j * step_x) for i in (1, 3) for j in (1, 3)}
    assert places == corners_and_edges | quarters
    assert len(places) == 13


def test_three_crops_are_both_ends_and_the_middle_of_the_long_side() -> None:
    assert t.three(240, 320, (224, 224)) == [Box(0, 0, 240, 240), Box(0, 40, 240, 240), Box(0, 80, 240, 240)]
    assert t.three(400, 100, (64, 64)) == [Box(0, 0, 100, 100), Box(150, 0, 100, 100), Box(300, 0, 100, 100)]
    assert t.centre(240, 320, (100, 200)) == Box(40, 0, 160, 320)


def test_random_resized_keeps_area_and_ratio() -> None:
    rng = np.random.default_rng(0)
    boxes = [t.random_resized(240, 320, (64, 64), (0.2, 0.5), (0.75, 4 / 3), rng.random((10, 4))) for _ in range(300)]
    share = np.array([b.h * b.w / (240 * 320) for b in boxes])
    ratio = np.array([b.w / b.h for b in boxes])
    assert share.min() > 0.19
    assert share.max() < 0.51
    assert ratio.min() > 0.73
    assert ratio.max() < 1.37
    assert 0.30 < share.mean() < 0.40


@pytest.mark.parametrize(("box", "out"), [(Box(10, 20, 96, 96), (32, 32)), (Box(0, 0, 120, 160), (97, 41)), (Box(5, 5, 20, 30), (64, 64))])
def test_cut_is_antialiased_bilinear_within_one_level(box: Box, out: tuple[int, int]) -> None:
    frames = torch.randint(0, 256, (2, 120, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = frames[:, box.y : box.y + box.h, box.x : box.x + box.w].permute(0, 3, 1, 2).double()
    exact = F.interpolate(part, out, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    assert (t.cut(frames, box, out).double() - exact).abs().max() <= 1.0


def test_affine_leads_from_a_source_pixel_to_where_it_went() -> None:
    frame = torch.zeros(1, 120, 160, 3, dtype=torch.uint8)
    frame[:, 50:54, 70:74] = 255
    box, out = Box(20, 30, 80, 100), (40, 60)
    image = t.cut(frame, box, out)[0, ..., 0].double()
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    centre = torch.stack([(image * x).sum(), (image * y).sum()]) / image.sum()
    matrix = torch.from_numpy(t.affine(box, out, (120, 160), (120, 160))).double()
    assert torch.allclose(matrix @ torch.tensor([72.0, 52.0, 1.0], dtype=torch.float64), centre, atol=0.05)
    kept = t.rescale(box, (120, 160), (60, 80))
    assert kept == Box(10, 15, 40, 50)
    assert np.allclose(t.affine(kept, out, (120, 160), (60, 80)), t.affine(box, out, (120, 160), (120, 160)))
