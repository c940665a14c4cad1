"""The encoder of a video with everything it needs: pixels in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.core import Draw, TokenGrid, Tokens, patchify
from tubelet.nn.block import Block
from tubelet.nn.embed import Pixels, TubeletEmbed
from tubelet.nn.encoder import Encoder
from tubelet.nn.position import Position

AXES = ("t", "h", "w")


class VideoEncoder(nn.Module):
    """pixels -> cubes -> mean/std -> linear map + position [+ class token] -> blocks. Only wanted cubes are touched.

    ``class_token``: a learned vector without a place comes first in the sequence (index -1), normal std .02.
    """

    def __init__(self, *, pixels: Pixels, embed: TubeletEmbed, position: Position, trunk: Encoder, class_token: bool = False) -> None:
        super().__init__()
        self.pixels, self.embed, self.position, self.trunk = pixels, embed, position, trunk
        self.class_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, position.dim), std=0.02)) if class_token else None

    @property
    def dim(self) -> int:
        """Width of its tokens."""
        return self.position.dim

    @property
    def heads(self) -> int:
        """Attention heads of its blocks."""
        block = self.trunk.blocks[0]
        assert isinstance(block, Block)
        return block.attn.heads

    def variant(self, *, norm: bool = True, drop_path: float = 0.0) -> VideoEncoder:
        """The same weights (shared, not copied) for another use: see :meth:`Encoder.variant`."""
        twin = VideoEncoder(
            pixels=self.pixels, embed=self.embed, position=self.position, trunk=self.trunk.variant(norm=norm, drop_path=drop_path)
        )
        twin.class_token = self.class_token
        return twin

    def grid(self, video: Tensor) -> TokenGrid:
        """The lattice of (B, C, T, H, W) pixels. Raises ValueError that says which axis does not fit."""
        channels = self.embed.channels
        if video.ndim != 5:
            raise ValueError(f"a video batch is (B, C, T, H, W), got {video.ndim} dimensions {tuple(video.shape)}")
        if video.shape[1] != channels:
            swapped = video.shape[2] == channels
            hint = "; this looks like (B, T, C, H, W), swap with video.transpose(1, 2)" if swapped else ""
            raise ValueError(f"this model reads (B, {channels}, T, H, W), got {tuple(video.shape)}{hint}")
        return TokenGrid.of(video.shape[2:], self.embed.patch, AXES)

    def cubes(self, video: Tensor) -> Tensor:
        """(B, N, D): all embedded cubes, without positions: what a learned masking looks at."""
        return self.embed.project(self.pixels(patchify(video, self.grid(video)), channel=2))

    def tokenise(self, video: Tensor, index: Tensor | None = None) -> Tokens:
        """Embedded cubes with their positions, before the blocks. ``index`` (B, K): which ones, None = all N in raster order."""
        grid = self.grid(video)
        cubes = patchify(video, grid, index)
        if index is None:
            index = torch.arange(grid.n, device=video.device).expand(len(video), -1)
        x = self.embed.project(self.pixels(cubes, channel=2)) + self.position(index, grid)
        return Tokens(x, index, grid)

    def forward(
        self,
        video: Tensor,
        index: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
        draw: Draw | None = None,
    ) -> Tokens:
        """(B, C, T, H, W), uint8 0..255 or float 0..1 -> Tokens (B, K, D), the class token first where there is one.

        ``valid`` (B, K): which of ``index`` are real. ``draw``: noise of drop path and dropout while training.
        """
        tokens = self.tokenise(video, index)
        tokens = Tokens(tokens.x, tokens.index, tokens.grid, valid)
        if self.class_token is not None:
            nowhere = tokens.index.new_full((len(video), 1), -1)
            assert tokens.grid is not None
            first = self.class_token + self.position(nowhere, tokens.grid)
            tokens, _ = Tokens.join([Tokens(first, nowhere, tokens.grid), tokens])
        return self.trunk(tokens, layers=layers, draw=draw)
