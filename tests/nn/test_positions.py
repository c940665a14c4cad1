"""Position tables against their formulas, and between grids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tubelet.core import TokenGrid
from tubelet.errors import ConfigError
from tubelet.nn.position import KINDS, Learned, Separable, make_position, resize_table, sinusoid, thw

GRID = TokenGrid(("t", "h", "w"), (3, 4, 5), (2, 8, 8))
OTHER = TokenGrid(("t", "h", "w"), (5, 6, 3), (2, 8, 8))


@given(st.integers(1, 60), st.integers(1, 10).map(lambda n: 2 * n))
def test_sinusoid_follows_the_formula(n: int, dim: int) -> None:
    table = sinusoid(torch.arange(n), dim)
    place, j = n - 1, dim - 1
    angle = place / 10000 ** (2 * (j // 2) / dim)
    assert float(table[place, j]) == pytest.approx(math.cos(angle), abs=1e-12)
    assert float(table[place, j - 1]) == pytest.approx(math.sin(angle), abs=1e-12)
    blocked = sinusoid(torch.arange(n), dim, "blocked")
    assert torch.equal(blocked, torch.cat([table[:, 0::2], table[:, 1::2]], 1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_serves_its_grid_other_grids_and_no_place(kind) -> None:
    position = make_position(kind, dim=32, grid=GRID)
    index = torch.tensor([[0, 7, -1], [59, 3, 3]])
    rows = position(index, GRID)
    table = position.table(GRID)
    assert torch.equal(rows[1, 0], table[59])
    assert torch.equal(rows[0, 2], torch.zeros(32))
    assert position.table(OTHER).shape == (OTHER.n, 32)
    assert torch.isfinite(position.table(OTHER)).all()
    saved = {"sinusoid": [], "sincos2d": [], "sincos3d": [], "learned": ["rows"], "separable": ["space", "time"]}[kind]
    assert list(position.state_dict()) == saved
    classy = make_position(kind, dim=32, grid=GRID, class_row=True)
    assert torch.equal(classy(index, GRID)[0, 2], classy.get_parameter("class_row")[0])


def test_computed_tables_do_not_depend_on_the_grid_they_were_made_for() -> None:
    for kind in ("sinusoid", "sincos2d", "sincos3d"):
        assert torch.equal(make_position(kind, dim=32, grid=GRID).table(OTHER), make_position(kind, dim=32, grid=OTHER).table(OTHER))


def test_sincos_splits_the_channels_as_documented() -> None:
    index = torch.arange(GRID.n)
    t, h, w = (GRID.where(axis, index) for axis in GRID.axes)
    flat = make_position("sincos2d", dim=32, grid=GRID).table(GRID)
    assert torch.equal(flat, torch.cat([sinusoid(w, 16, "blocked"), sinusoid(h, 16, "blocked")], 1).float())
    deep = make_position("sincos3d", dim=32, grid=GRID).table(GRID)
    parts = [sinusoid(t, 8, "blocked"), sinusoid(w, 12, "blocked"), sinusoid(h, 12, "blocked")]
    assert torch.equal(deep, torch.cat(parts, 1).float())


def test_separable_is_the_sum_of_space_and_time() -> None:
    position = Separable(dim=8, grid=GRID)
    index = torch.arange(GRID.n)
    t, place = GRID.where("t", index), index % 20
    assert torch.allclose(position.table(GRID), position.time[t] + position.space[place])


def test_resizing_interpolates_each_slot_and_leaves_equal_grids_alone() -> None:
    table = torch.randn(60, 8)
    assert resize_table(table, (3, 4, 5), (3, 4, 5)) is table
    bigger = resize_table(table, (3, 4, 5), (3, 6, 7)).view(3, 6, 7, 8)
    slot = F.interpolate(table.view(3, 4, 5, 8)[1].permute(2, 0, 1)[None], size=(6, 7), mode="bicubic", align_corners=False)
    assert torch.allclose(bigger[1], slot[0].permute(1, 2, 0), atol=1e-6)
    longer = resize_table(table, (3, 4, 5), (6, 4, 5)).view(6, 20, 8)
    line = F.interpolate(table.view(3, 20, 8)[:, 11].T[None], size=6, mode="linear", align_corners=False)[0].T
    assert torch.allclose(longer[:, 11], line, atol=1e-6)
    constant = resize_table(torch.ones(60, 8), (3, 4, 5), (5, 6, 3))
    assert torch.allclose(constant, torch.ones(90, 8), atol=1e-5)


def test_learned_tables_get_gradient_through_interpolation() -> None:
    position = Learned(dim=8, grid=GRID)
    position.table(OTHER).sum().backward()
    assert position.rows.grad is not None
    assert float(position.rows.grad.abs().min()) > 0


def test_pictures_and_sequences_are_grids_too() -> None:
    assert thw(TokenGrid(("h", "w"), (4, 5), (8, 8))) == (1, 4, 5)
    assert thw(TokenGrid(("step",), (9,), (1,))) == (9, 1, 1)
    with pytest.raises(ConfigError, match="up to 3 axes"):
        thw(TokenGrid(("a", "b", "c", "d"), (1, 1, 1, 1), (1, 1, 1, 1)))


@pytest.mark.parametrize(("kind", "dim", "multiple"), [("sinusoid", 7, "even"), ("sincos2d", 6, "of 4"), ("sincos3d", 24, "of 16")])
def test_widths_that_cannot_be_split_are_refused(kind, dim: int, multiple: str) -> None:
    with pytest.raises(ConfigError, match=multiple):
        make_position(kind, dim=dim, grid=GRID)
