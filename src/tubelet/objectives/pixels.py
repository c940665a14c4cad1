"""The pixels that a masked autoencoder is asked for, in every convention of the literature."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import TokenGrid, flatten_cubes, patchify, to_unit, unflatten_cubes
from tubelet.errors import ConfigError


class PixelTarget(Settings):
    """What is predicted for a token.

    ``space``: "unit" = pixels in [0, 1]; "input" = after the network's mean and std.
    ``normalise``: "channel" = every cube and colour channel by its own mean and standard deviation (VideoMAE); "joint" = every cube
    over all its values (MAE, MAE-ST); "none" = raw. ``unbiased``: variance over n - 1. ``eps``: added where normalisation divides.
    ``eps_inside``: (x - m) / sqrt(var + eps)
    (MAE-ST) instead of (x - m) / (sqrt(var) + eps) (VideoMAE). ``order``: elements of a row, last letter fastest (c colour, t h w
    inside the cube). ``frames``: "all"; "centre" = the middle frame of each cube; a number n = n frames evenly over the clip, which
    must be a multiple of the grid's slots (MAE-ST's ``pred_t_dim``). ``grey``: luma instead of three colours (AV-MAE).
    """

    space: Literal["unit", "input"] = "unit"
    normalise: Literal["channel", "joint", "none"] = "channel"
    unbiased: bool = True
    eps: float = Field(default=1e-6, ge=0)
    eps_inside: bool = False
    order: str = "thwc"
    frames: Literal["all", "centre"] | Annotated[int, Field(ge=1)] = "all"
    grey: bool = False

    def cut(self, grid: TokenGrid) -> TokenGrid:
        """The grid that cuts the predicted frames: the tokens keep their places, their cubes may be thinner.

        Raises ConfigError where a number of frames does not spread over the slots.
        """
        if self.frames == "all":
            return grid
        axis = grid.axis("t")
        slots, thick = grid.shape[axis], grid.patch[axis]
        per = 1 if self.frames == "centre" else self.frames // slots
        if self.frames != "centre" and (per * slots != self.frames or per > thick):
            raise ConfigError(f"target.frames {self.frames} must be a multiple of the {slots} slots and at most the {slots * thick} frames")
        return replace(grid, patch=tuple(per if i == axis else p for i, p in enumerate(grid.patch)))

    def select(self, video: Tensor, grid: TokenGrid) -> Tensor:
        """The frames of a clip that are predicted, as :meth:`cut`'s grid cuts them."""
        if self.frames == "all":
            return video
        dim, total, thick = 2 + grid.axis("t"), grid.size[grid.axis("t")], grid.patch[grid.axis("t")]
        if self.frames == "centre":
            wanted = torch.arange(thick // 2, total, thick, device=video.device)
        else:
            wanted = torch.linspace(0, total - 1, self.frames).long().to(video.device)
        return video.index_select(dim, wanted)

    def width(self, grid: TokenGrid, channels: int) -> int:
        """Numbers per token: the output width of a prediction head. Raises ConfigError as :meth:`cut`."""
        return math.prod(self.cut(grid).patch) * (1 if self.grey else channels)

    def cubes(self, video: Tensor, grid: TokenGrid, index: Tensor | None, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """The wanted cubes (B, M, C, *patch), floating point, in the target's space but not yet normalised.

        ``video`` (B, C, T, H, W) uint8 or [0, 1]. ``mean``, ``std`` (C,): the network's, needed for ``space="input"``.
        """
        cubes = to_unit(patchify(self.select(video, grid), self.cut(grid), index))
        trail = [1] * len(grid.patch)
        if self.space == "input":
            if mean is None or std is None:
                raise ValueError("a target in input space needs the network's mean and std")
            cubes = (cubes - mean.view(-1, *trail)) / std.view(-1, *trail)
        if self.grey:
            if cubes.shape[2] != 3:
                raise ConfigError(f"target.grey needs 3 colour channels, the video has {cubes.shape[2]}")
            cubes = (cubes * cubes.new_tensor([0.2989, 0.5870, 0.1140]).view(-1, *trail)).sum(2, keepdim=True)
        return cubes

    def statistics(self, cubes: Tensor) -> tuple[Tensor, Tensor]:
        """What normalisation subtracts and divides by, (B, M, C or 1, 1, ...). (0, 1) where there is none."""
        if self.normalise == "none":
            return cubes.new_zeros(()), cubes.new_ones(())
        dims = list(range(3 if self.normalise == "channel" else 2, cubes.ndim))
        count = math.prod(cubes.shape[i] for i in dims)
        mean = cubes.mean(dims, keepdim=True)
        # Two passes: as exact as torch.var_mean and four times as fast on a CPU.
        var = (cubes - mean).square().sum(dims, keepdim=True) / (max(count - 1, 1) if self.unbiased else count)
        return mean, (var + self.eps).sqrt() if self.eps_inside else var.sqrt() + self.eps

    def rows(self, video: Tensor, grid: TokenGrid, index: Tensor | None, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """(B, M, E) targets of the tokens at ``index`` (B, M); only those are computed. Arguments as :meth:`cubes`."""
        cubes = self.cubes(video, grid, index, mean, std)
        centre, scale = self.statistics(cubes)
        return flatten_cubes((cubes - centre) / scale, grid, self.order)

    def pixels(self, rows: Tensor, grid: TokenGrid, video: Tensor, centre: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
        """Predicted rows (B, M, E) of a clip (B, C, T, H, W) -> cubes (B, M, C, *patch) in the target's space: rows * scale + centre.

        A normalised prediction says nothing about a cube's mean and contrast: whose ``centre`` and ``scale`` are used (the hidden cube's
        own, its neighbours', or none) is the caller's to choose and to say. Raises ValueError where the rows are not of such a clip.
        """
        if rows.shape[2] != self.width(grid, video.shape[1]):
            raise ValueError(f"rows of {rows.shape[2]} numbers do not fit this clip: its tokens have {self.width(grid, video.shape[1])}")
        return unflatten_cubes(rows, self.cut(grid), self.order) * scale + centre
