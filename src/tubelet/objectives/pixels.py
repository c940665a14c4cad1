"""The pixels that a masked autoencoder is asked for, in every convention of the literature."""

from __future__ import annotations

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
    over all its values (MAE, MAE-ST); "none" = raw. ``unbiased``: variance over n - 1. ``eps_inside``: (x - m) / sqrt(var + eps)
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

    def select(self, video: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """The frames that are predicted and the grid that cuts them; tokens keep their places.

        Raises ConfigError where a number of frames does not spread over the slots.
        """
        if self.frames == "all":
            return video, grid
        axis = grid.axis("t")
        slots, u, total = grid.shape[axis], grid.patch[axis], video.shape[2 + axis]
        if self.frames == "centre":
            wanted, per = torch.arange(u // 2, total, u, device=video.device), 1
        else:
            wanted, per = torch.linspace(0, total - 1, self.frames).long(), self.frames // slots
            if per * slots != self.frames or self.frames > total:
                raise ConfigError(f"target.frames {self.frames} must be a multiple of the {slots} slots and at most the {total} frames")
        patch = tuple(per if i == axis else p for i, p in enumerate(grid.patch))
        return video.index_select(2 + axis, wanted.to(video.device)), replace(grid, patch=patch)

    def width(self, grid: TokenGrid, channels: int) -> int:
        """Numbers per token: the output width of a prediction head."""
        axis = grid.axes.index("t") if "t" in grid.axes else 0
        per = {"all": grid.patch[axis], "centre": 1}.get(str(self.frames))
        per = int(self.frames) // grid.shape[axis] if per is None else per
        others = torch.Size(p for i, p in enumerate(grid.patch) if i != axis).numel()
        return per * others * (1 if self.grey else channels)

    def cubes(self, video: Tensor, grid: TokenGrid, index: Tensor | None, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """The wanted cubes (B, M, C, *patch), floating point, in the target's space but not yet normalised.

        ``video`` (B, C, T, H, W) uint8 or [0, 1]. ``mean``, ``std`` (C,): the network's, needed for ``space="input"``.
        """
        video, grid = self.select(video, grid)
        cubes = to_unit(patchify(video, grid, index))
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
        var, mean = torch.var_mean(cubes, dim=dims, correction=int(self.unbiased), keepdim=True)
        return mean, (var + self.eps).sqrt() if self.eps_inside else var.sqrt() + self.eps

    def rows(self, video: Tensor, grid: TokenGrid, index: Tensor | None, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """(B, M, E) targets of the tokens at ``index`` (B, M); only those are computed. Arguments as :meth:`cubes`."""
        cubes = self.cubes(video, grid, index, mean, std)
        centre, scale = self.statistics(cubes)
        return flatten_cubes((cubes - centre) / scale, grid, self.order)

    def pixels(self, rows: Tensor, grid: TokenGrid, video: Tensor, centre: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
        """Predicted rows (B, M, E) -> cubes (B, M, C, *patch) in the target's space: rows * scale + centre.

        ``video``: any clip of that shape. A normalised prediction says nothing about a cube's mean and contrast: whose ``centre`` and
        ``scale`` are used (the hidden cube's own, its neighbours', or none) is the caller's to choose and to say.
        """
        _, cut = self.select(video, grid)
        return unflatten_cubes(rows, cut, self.order) * scale + centre
