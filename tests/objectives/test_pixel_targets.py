"""Pixel targets in the conventions of the papers, against formulas written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.core import TokenGrid, patchify, unpatchify
from tubelet.errors import ConfigError
from tubelet.objectives.pixels import PixelTarget

GRID = TokenGrid(("t", "h", "w"), (2, 2, 3), (4, 4, 4))
VIDEO = torch.rand(2, 3, *GRID.size, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([[0, 5, 7], [11, 2, 1]])
MEAN, STD = torch.tensor([0.45, 0.4, 0.5]), torch.tensor([0.2, 0.25, 0.3])


def cube(b: int, n: int, video: torch.Tensor = VIDEO) -> torch.Tensor:
    """(t, h, w, c) pixels of one token, by slicing."""
    t, h, w = n // 6 * 4, n // 3 % 2 * 4, n % 3 * 4
    return video[b, :, t : t + 4, h : h + 4, w : w + 4].permute(1, 2, 3, 0)


def test_videomae_normalises_each_colour_of_a_cube() -> None:
    rows = PixelTarget().rows(VIDEO, GRID, INDEX)
    values = cube(1, 2).reshape(64, 3)
    expected = (values - values.mean(0)) / (values.std(0, unbiased=True) + 1e-6)
    assert torch.allclose(rows[1, 1], expected.flatten(), atol=1e-5)
    n = 64
    assert torch.allclose(rows.square().mean(), torch.tensor((n - 1) / n), atol=1e-4)  # what answering zero scores


def test_mae_st_normalises_jointly_in_input_space_and_predicts_some_frames() -> None:
    target = PixelTarget(space="input", normalise="joint", eps_inside=True, frames=4)
    rows = target.rows(VIDEO, GRID, INDEX, MEAN, STD)
    inputs = (VIDEO - MEAN.view(1, 3, 1, 1, 1)) / STD.view(1, 3, 1, 1, 1)
    chosen = [int(7 * i / 3) for i in range(4)]
    assert chosen == [0, 2, 4, 7]
    values = torch.stack([inputs[0, :, f, 4:8, 8:12].permute(1, 2, 0) for f in chosen[:2]]).flatten()  # token 5, first slot
    assert torch.allclose(rows[0, 1], (values - values.mean()) / (values.var(unbiased=True) + 1e-6).sqrt(), atol=1e-5)
    assert rows.shape[2] == target.width(GRID, 3) == 2 * 16 * 3


def test_published_frame_choice_of_mae_st() -> None:
    grid = TokenGrid(("t", "h", "w"), (8, 1, 1), (2, 1, 1))
    clip = torch.arange(16.0).view(1, 1, 16, 1, 1)
    rows = PixelTarget(normalise="none", frames=8).rows(clip, grid, None)
    assert rows.flatten().tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    centre = PixelTarget(normalise="none", frames="centre").rows(clip, grid, None)
    assert centre.flatten().tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    with pytest.raises(ConfigError, match=r"target\.frames 6 must be a multiple of the 8 slots"):
        PixelTarget(frames=6).rows(clip, grid, None)


@given(
    st.builds(
        PixelTarget,
        normalise=st.sampled_from(["channel", "joint", "none"]),
        unbiased=st.booleans(),
        eps_inside=st.booleans(),
        order=st.permutations("cthw").map("".join),
        frames=st.sampled_from(["all", "centre", 2, 4, 8]),
        grey=st.booleans(),
    )
)
def test_rows_have_the_promised_width_and_go_back_to_pixels(target: PixelTarget) -> None:
    cubes = target.cubes(VIDEO, GRID, INDEX)
    centre, scale = target.statistics(cubes)
    rows = target.rows(VIDEO, GRID, INDEX)
    assert rows.shape == (2, 3, target.width(GRID, 3))
    assert torch.allclose(target.pixels(rows, GRID, VIDEO, centre, scale), cubes, atol=1e-5)
    assert torch.equal(rows, target.rows(VIDEO, GRID, None).gather(1, INDEX[..., None].expand(-1, -1, rows.shape[2])))


def test_biased_variance_and_eps_places_differ_as_they_should() -> None:
    values = cube(0, 0).reshape(64, 3)
    rows = PixelTarget(unbiased=False, eps=0.1).rows(VIDEO, GRID, INDEX)[0, 0]
    assert torch.allclose(rows, ((values - values.mean(0)) / (values.std(0, unbiased=False) + 0.1)).flatten(), atol=1e-5)
    inside = PixelTarget(eps=0.1, eps_inside=True).rows(VIDEO, GRID, INDEX)[0, 0]
    assert torch.allclose(inside, ((values - values.mean(0)) / (values.var(0) + 0.1).sqrt()).flatten(), atol=1e-5)


def test_constant_cubes_are_zero_not_infinite() -> None:
    for eps_inside in (False, True):
        assert torch.equal(PixelTarget(eps_inside=eps_inside).rows(torch.full_like(VIDEO, 0.5), GRID, INDEX), torch.zeros(2, 3, 192))


def test_bytes_and_unit_floats_are_the_same_pixels() -> None:
    raw = (VIDEO * 255).byte()
    assert torch.allclose(PixelTarget().rows(raw, GRID, INDEX), PixelTarget().rows(raw.float() / 255, GRID, INDEX), atol=1e-5)


def test_a_picture_is_rebuilt_from_raw_rows() -> None:
    target = PixelTarget(normalise="none", order="cthw")
    rows = target.rows(VIDEO, GRID, None)
    assert torch.equal(unpatchify(target.pixels(rows, GRID, VIDEO), GRID), VIDEO)
    assert torch.equal(target.cubes(VIDEO, GRID, None), patchify(VIDEO, GRID))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="needs the network's mean and std"):
        PixelTarget(space="input").rows(VIDEO, GRID, INDEX)
    with pytest.raises(ConfigError, match="needs 3 colour channels, the video has 1"):
        PixelTarget(grey=True).rows(VIDEO[:, :1], GRID, INDEX)
    with pytest.raises(ValueError, match="rows of 96 numbers do not fit this clip: its tokens have 192"):
        PixelTarget().pixels(torch.zeros(2, 3, 96), GRID, VIDEO)
    grey = PixelTarget(normalise="none", grey=True).rows(torch.ones_like(VIDEO), GRID, INDEX)
    assert torch.allclose(grey, torch.full((2, 3, 64), 0.9999))
