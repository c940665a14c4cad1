"""A small dual encoder: pictures and sentences in one space, patches pooled by their mean so that each patch can be asked on its own."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.config import Settings
from tubelet.core import TokenGrid, Tokens, patchify
from tubelet.errors import ConfigError
from tubelet.nn.block import MLP, stack
from tubelet.nn.embed import Pixels, TubeletEmbed
from tubelet.nn.encoder import Encoder
from tubelet.nn.position import make_position

MOST_SCALE = 100.0  # similarities are multiplied by at most this (CLIP)


@lru_cache(maxsize=65536)
def word_id(word: str, vocabulary: int) -> int:
    """1 .. vocabulary - 1: words by their hash, so that there is no list of words to keep. 0 is padding."""
    return 1 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") % (vocabulary - 1)


def words(texts: Sequence[str], vocabulary: int, longest: int) -> Tensor:
    """(n, L) int64 of lower-case words, padded with 0; L is that of the longest sentence, at most ``longest`` (what is beyond is left out).
    A sentence without words is one padding token."""
    rows = [[word_id(w, vocabulary) for w in re.findall(r"\w+", text.lower())][:longest] for text in texts]
    out = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return out


class DualShape(Settings):
    """``dim``, ``depth``: of the picture's blocks. ``mixing``: "none" leaves every patch to itself (MLPs only), so that its vector speaks
    of its own place; with "attention" patches read each other and spread what they saw over the picture (measured: docs/methods/tgm.md).
    ``heads``: of attention; ``text_depth`` of the text's, as wide. ``patch`` in pixels. ``out``: width of the space they share.
    ``vocabulary``: numbers that words are hashed to. ``longest``: words of a sentence that are read. ``temperature``: where its learned
    value starts. ``mean``, ``std`` of pixels in [0, 1]."""

    dim: int = Field(default=96, ge=1)
    depth: int = Field(default=2, ge=0)
    mixing: Literal["none", "attention"] = "none"
    heads: int = Field(default=4, ge=1)
    text_depth: int = Field(default=2, ge=0)
    patch: int = Field(default=8, ge=1)
    out: int = Field(default=64, ge=1)
    vocabulary: int = Field(default=4096, ge=2)
    longest: int = Field(default=48, ge=1)
    temperature: float = Field(default=0.07, gt=0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def build(self, *, size: tuple[int, int]) -> DualEncoder:
        """A freshly started one for pictures of ``size`` (H, W). Raises ConfigError."""
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} cannot be split into heads {self.heads}; choose heads that divide it")
        try:
            image = PatchTower(
                dim=self.dim,
                depth=self.depth,
                heads=self.heads if self.mixing == "attention" else None,
                patch=self.patch,
                size=size,
                out=self.out,
                mean=self.mean,
                std=self.std,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        text = WordTower(
            dim=self.dim, depth=self.text_depth, heads=self.heads, out=self.out, vocabulary=self.vocabulary, longest=self.longest
        )
        return DualEncoder(image=image, text=text, temperature=self.temperature)


class Alone(nn.Module):
    """x += MLP(norm x): a block of :mod:`~tubelet.nn.block` without its attention."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim=dim, hidden=4 * dim)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x + self.mlp(self.norm(x))


class PatchTower(nn.Module):
    """(n, 3, H, W) in [0, 1] -> (n, rows, columns, D): a linear map, position, ``depth`` blocks, norm, projection. ``heads`` None:
    blocks without attention, so that a patch's vector is about its own place."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int | None,
        patch: int,
        size: tuple[int, int],
        out: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.size = size
        self.grid = TokenGrid.of((1, *size), (1, patch, patch), ("t", "h", "w"))
        self.pixels = Pixels(mean=mean, std=std, channels=3)
        self.embed = TubeletEmbed(dim=dim, patch=self.grid.patch)
        self.position = make_position("sincos3d", dim=dim, grid=self.grid)
        if heads is None:
            blocks = nn.ModuleList(Alone(dim=dim) for _ in range(depth))
        else:
            blocks = stack(dim=dim, depth=depth, heads=heads, attention="bias")
        self.trunk = Encoder(blocks=blocks, norm=nn.LayerNorm(dim, eps=1e-6))
        self.project = nn.Linear(dim, out, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        grid = TokenGrid.of((1, *frames.shape[-2:]), self.grid.patch, self.grid.axes)
        index = torch.arange(grid.n, device=frames.device).expand(len(frames), -1)
        cubes = self.pixels(patchify(frames[:, :, None], grid), channel=2)
        tokens = Tokens(self.embed.project(cubes) + self.position(index, grid), index, grid)
        return self.project(self.trunk(tokens).x).unflatten(1, grid.shape[1:])


class WordTower(nn.Module):
    """Sentences -> (n, D): hashed words, learned positions, ``depth`` blocks, mean over the words, norm, projection."""

    def __init__(self, *, dim: int, depth: int, heads: int, out: int, vocabulary: int = 4096, longest: int = 48) -> None:
        super().__init__()
        self.vocabulary, self.longest = vocabulary, longest
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.zeros(longest, dim))
        self.blocks = stack(dim=dim, depth=depth, heads=heads, attention="bias")
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, out, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, texts: Sequence[str]) -> Tensor:
        ids = words(texts, self.vocabulary, self.longest).to(self.position.device)
        real = ids > 0
        x = self.embed(ids) + self.position[: ids.shape[1]]
        keys = real.clone()
        keys[:, 0] = True  # a sentence without words still has something to look at
        for block in self.blocks:
            x = block(x, keys)
        share = real.to(x.dtype)[..., None]
        return self.project(self.norm((x * share).sum(1) / share.sum(1).clamp(min=1)))


class DualEncoder(nn.Module):
    """``patches`` and ``image`` of pictures, ``text`` of sentences, all of length 1; ``scale``: what InfoNCE multiplies their cosines by.

    A picture's vector is the mean over its patches' vectors before they are normalised.
    """

    def __init__(self, *, image: PatchTower, text: WordTower, temperature: float = 0.07) -> None:
        super().__init__()
        self.image_tower, self.text_tower = image, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def scale(self) -> Tensor:
        """exp of the learned logarithm."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def hold_scale(self) -> None:
        """Keep the scale at 100 or below: the number itself is held, so that it can come back."""
        self.logit_scale.clamp_(max=math.log(MOST_SCALE))

    def patches(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, rows, columns, D)."""
        return F.normalize(self.image_tower(frames).float(), dim=-1)

    def image(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, D)."""
        return F.normalize(self.image_tower(frames).float().mean((1, 2)), dim=-1)

    def text(self, texts: Sequence[str]) -> Tensor:
        """n sentences -> (n, D)."""
        return F.normalize(self.text_tower(texts).float(), dim=-1)
