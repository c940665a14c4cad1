"""Displacements that are seen in the pixels: exact for what moves by whole steps, nothing where nothing is to be seen."""

from __future__ import annotations

import pytest
import torch

from tubelet.nn.motion import block_match


def scrolled(frames: int, dx: int, dy: int, h: int = 64, w: int = 96) -> torch.Tensor:
    """(T, h, w): a window on smooth noise of whole levels, whose content moves by (dx, dy) a frame."""
    big = torch.rand(1, 1, h, w, generator=torch.Generator().manual_seed(1))
    big = torch.nn.functional.interpolate(big, scale_factor=4, mode="bilinear")[0, 0].mul(255).round()
    at = [(h - dy * t, w - dx * t) for t in range(frames)]
    return torch.stack([big[y : y + h, x : x + w] for y, x in at])


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (4, 0), (-6, 2), (16, -16), (0, -10)])
def test_what_moves_is_found_exactly(dx, dy):
    found = block_match(scrolled(3, dx, dy))
    assert found.shape == (3, 2, 4, 6)
    inner = found[:, :, 1:-1, 1:-1]  # what comes in at the border was not there before
    assert (inner[:, 0] == dx).all()
    assert (inner[:, 1] == dy).all()
    assert torch.equal(found[0], found[1])


def test_an_object_moves_on_still_ground():
    frames = torch.full((4, 96, 128), 90.0)
    texture = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(0)).float()
    texture = torch.nn.functional.avg_pool2d(texture[None, None], 5, 1, 2)[0, 0].round()
    for t in range(4):
        frames[t, 32:64, 16 + 8 * t : 48 + 8 * t] = texture
    found = block_match(frames)
    assert (found[2, :, 2:4, 2:4] == torch.tensor([8.0, 0.0])[:, None, None]).all()
    assert (found[:, :, :1] == 0).all()


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 17, 31), (2, 1, 1), (2, 5, 224)])
def test_any_size_has_a_number_for_each_block_and_sameness_is_stillness(shape):
    t, h, w = shape
    same = torch.rand(1, h, w).expand(shape)
    found = block_match(same)
    assert found.shape == (t, 2, -(-h // 16), -(-w // 16))
    assert not found.any()
    assert not block_match(torch.full(shape, 7.0)).any()


def test_stripes_that_fit_at_many_places_take_the_nearest():
    stripes = (torch.arange(64) // 4 % 2 * 200.0).expand(2, 64, 64).clone()
    stripes[1] = stripes[1].roll(4, 1)  # half a period: to the left or to the right
    assert block_match(stripes)[1, 0, 1:-1, 1:-1].abs().eq(4).all()
    assert not block_match(stripes)[:, 1, 1:-1, 1:-1].any()


def test_blocks_have_an_even_side():
    with pytest.raises(ValueError, match="even"):
        block_match(torch.zeros(2, 8, 8), block=5)
