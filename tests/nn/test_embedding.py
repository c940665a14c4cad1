"""Kernels for cubes of another number of frames."""

from __future__ import annotations

import pytest
import torch

from tubelet.core import TokenGrid
from tubelet.errors import ConfigError
from tubelet.nn.embed import TubeletEmbed, retime_kernel

RANDOM = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("old", [1, 2, 4, 6])
@pytest.mark.parametrize("new", [1, 2, 4, 12])
def test_a_still_clip_keeps_its_embedding(old: int, new: int) -> None:
    if old % new and new % old:
        with pytest.raises(ConfigError, match=f"a kernel for {old} frames cannot be made one for {new}"):
            retime_kernel(torch.zeros(2, 3, old, 4, 4), new)
        return
    embed, other = (TubeletEmbed(dim=8, patch=(u, 4, 4)) for u in (old, new))
    other.load_state_dict({"weight": retime_kernel(embed.weight, new), "bias": embed.bias})
    picture = torch.rand(2, 3, 1, 8, 12, generator=RANDOM)

    def of(net: TubeletEmbed, u: int) -> torch.Tensor:
        video = picture.expand(-1, -1, 12, -1, -1)
        return net(video, TokenGrid.of((12, 8, 12), (u, 4, 4), ("t", "h", "w")))[:, :6]

    assert (of(embed, old) - of(other, new)).abs().max() < 1e-5


@pytest.mark.parametrize(("old", "more"), [(1, 2), (1, 4), (2, 4), (2, 8)])
def test_inflating_and_deflating_gives_the_same_bits(old: int, more: int) -> None:
    kernel = torch.randn(4, 3, old, 2, 2, generator=RANDOM)
    wide = retime_kernel(kernel, more)
    assert wide.shape == (4, 3, more, 2, 2)
    assert torch.equal(retime_kernel(wide, old), kernel)
    assert torch.equal(wide[:, :, 0], wide[:, :, more // old - 1]), "every frame is spread over those in its place"


def test_moving_pictures_are_summed_frame_by_frame() -> None:
    kernel = torch.randn(4, 3, 4, 2, 2, generator=RANDOM)
    assert torch.equal(retime_kernel(kernel, 2)[:, :, 1], kernel[:, :, 2] + kernel[:, :, 3])
