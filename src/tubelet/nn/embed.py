"""From pixels to token vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.core import TokenGrid, patchify, to_unit
from tubelet.errors import ConfigError


def retime_kernel(weight: Tensor, frames: int) -> Tensor:
    """A kernel (D, C, u, P, P) for cubes of another number of frames, so that a still clip keeps its embedding.

    More frames: each is spread evenly over those that take its place. Fewer: neighbours are summed. For factors of 2, inflating and
    deflating again gives the same bits. Raises ConfigError where neither number divides the other.
    """
    old = weight.shape[2]
    if frames % old == 0:
        return weight if frames == old else weight.repeat_interleave(frames // old, 2) / (frames // old)
    if old % frames == 0:
        return weight.unflatten(2, (frames, old // frames)).sum(3)
    raise ConfigError(f"a kernel for {old} frames cannot be made one for {frames}: one number must divide the other")


class Pixels(nn.Module):
    """The method's own mean and standard deviation as first layer: pixels -> (x - mean) / std in network space.

    ``mean``, ``std``: one number per channel in [0, 1] units, or one for all. Accepts uint8 0..255 or floating point 0..1.
    Raises ValueError where the count fits neither, for numbers that are not finite, and for a deviation that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(values)} numbers, the video has {channels} channels: give {channels} numbers or one for all"
                )
            if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} {list(values)}: the numbers must be finite{', and above 0' if name == 'std' else ''}")
            self.register_buffer(name, torch.tensor(values).expand(channels).clone(), persistent=False)

    def forward(self, pixels: Tensor, channel: int) -> Tensor:
        """Normalised float pixels, shaped as given; ``channel``: which dimension holds the channels."""
        shape = [1] * pixels.ndim
        shape[channel] = -1
        return (to_unit(pixels, self.mean.dtype) - self.mean.view(shape)) / self.std.view(shape)


class TubeletEmbed(nn.Module):
    """One linear map of every cube: equals a convolution with kernel = stride = ``patch``, but only wanted cubes are projected.

    ``weight`` (D, C, *patch) and ``bias`` (D,) lie and start as nn.Conv3d's (Conv2d's for a 2-D patch).
    """

    def __init__(self, *, dim: int, patch: Sequence[int], channels: int = 3) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))
        self.bias = nn.Parameter(torch.empty(dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.bias, -bound, bound)

    @property
    def channels(self) -> int:
        """Channels of the data it reads."""
        return self.weight.shape[1]

    def project(self, cubes: Tensor) -> Tensor:
        """(B, K, C, *patch) -> (B, K, D)."""
        return F.linear(cubes.flatten(2), self.weight.flatten(1), self.bias)

    def forward(self, data: Tensor, grid: TokenGrid, index: Tensor | None = None) -> Tensor:
        """(B, C, *grid.size) -> (B, K, D): the cubes at raster indices ``index`` (B, K), None = all."""
        return self.project(patchify(data, grid, index))
