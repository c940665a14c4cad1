"""VideoMAE: masked autoencoders are data-efficient learners for video (Tong et al., NeurIPS 2022, arXiv 2203.12602).

    pixels -> cubes -> [mask] -> visible cubes -> encoder -> bridge -> decoder reads visible + mask tokens -> pixels of asked cubes

The mask decides the rest: tube (VideoMAE), any other strategy, or a target set of its own with weights (VideoMAE V2). With ``align`` the
visible tokens must find their clip's caption, too (the unified framework of TGM), whatever the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tubelet.config import Settings
from tubelet.core import Batch, Group, Losses, Mask, Masker, Method, Step, TokenGrid, Tokens
from tubelet.errors import ConfigError
from tubelet.methods._align import AlignConfig, Alignment
from tubelet.methods._groups import decay_groups
from tubelet.nn.attention import AttentionKind
from tubelet.nn.block import stack
from tubelet.nn.decoder import Decoder, MaskToken
from tubelet.nn.embed import Pixels, TubeletEmbed
from tubelet.nn.encoder import SIZES, Encoder
from tubelet.nn.init import truncated, xavier
from tubelet.nn.position import PositionKind, make_position
from tubelet.nn.video import AXES, VideoEncoder
from tubelet.objectives.losses import LossKind, answer_error, reduce
from tubelet.objectives.pixels import PixelTarget

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class DecoderConfig(Settings):
    """None = what the papers pair with the encoder's size.

    ``dim``, ``depth``, ``heads``, ``mlp_ratio``: of its blocks. ``position``, ``attention``: as the encoder's; None = the same.
    """

    dim: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    mlp_ratio: float | None = Field(default=None, gt=0)
    position: PositionKind | None = None
    attention: AttentionKind | None = None


class Config(Settings):
    """``size`` names width, depth, heads, MLP ratio and decoder; ``dim``, ``depth``, ``heads``, ``mlp_ratio`` override single ones.

    ``patch``: frames, rows, columns of a cube. ``position``: the table of positions; "sinusoid" is 1-D over the raster index, as released.
    ``attention``: "qv_bias" as released, "bias", "no_bias", "cosine". ``eps``: of every
    LayerNorm. ``drop_path``, ``dropout``: chances in the encoder. ``loss``: how an answer's error is measured. ``init_values`` > 0 adds
    LayerScale. ``class_token``: a learned token without a place is read beside the cubes, as image models have it (pool "class").
    ``mean``, ``std``: per channel in [0, 1] units, or one for all (default ImageNet).
    ``init``: how the encoder starts, "xavier" for pre-training, "truncated" for a classifier from scratch. ``align``: with captions, None =
    no.
    """

    kind: Literal["videomae"] = "videomae"
    size: Literal["tiny", "small", "base", "large", "huge", "giant"] = "base"
    dim: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    mlp_ratio: float | None = Field(default=None, gt=0)
    patch: tuple[Positive, Positive, Positive] = (2, 16, 16)
    position: PositionKind = "sinusoid"
    attention: AttentionKind = "qv_bias"
    eps: float = Field(1e-6, gt=0)
    init_values: float = Field(0.0, ge=0)
    class_token: bool = False
    drop_path: Rate = 0.0
    dropout: Rate = 0.0
    decoder: DecoderConfig = DecoderConfig()
    target: PixelTarget = PixelTarget()
    loss: LossKind = "mse"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    init: Literal["xavier", "truncated"] = "xavier"
    align: AlignConfig | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        for name, dim, heads in (("", self.width, self.head_count), ("decoder.", *self.decoder_shape[::2])):
            if dim % heads:
                raise ValueError(f"{name}dim {dim} cannot be split into {name}heads {heads}; choose heads that divide it")
        return self

    @property
    def width(self) -> int:
        """Width of the encoder's tokens."""
        return self.dim or SIZES[self.size].dim

    @property
    def head_count(self) -> int:
        """Attention heads of the encoder."""
        return self.heads or SIZES[self.size].heads

    @property
    def decoder_shape(self) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder."""
        named = SIZES[self.size]
        own = self.decoder
        return own.dim or named.decoder_dim, own.depth or named.decoder_depth, own.heads or named.decoder_heads

    def grid(self, frames: int, size: tuple[int, int]) -> TokenGrid:
        """The lattice of clips of ``frames`` frames of ``size`` (H, W). Raises ConfigError where the patch does not cut them."""
        try:
            return TokenGrid.of((frames, *size), self.patch, AXES)
        except ValueError as error:
            raise ConfigError(f"{error}; change the clip's frames or size, or the method's patch") from None

    def build_encoder(self, *, frames: int, size: tuple[int, int], channels: int = 3) -> VideoEncoder:
        """The encoder alone, freshly started. Raises ConfigError for a clip that the patch does not cut."""
        named, dim = SIZES[self.size], self.width
        try:
            pixels = Pixels(mean=self.mean, std=self.std, channels=channels)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        blocks = stack(
            dim=dim,
            depth=self.depth or named.depth,
            heads=self.head_count,
            mlp_ratio=self.mlp_ratio or named.mlp_ratio,
            attention=self.attention,
            eps=self.eps,
            init_values=self.init_values,
        )
        norm = nn.LayerNorm(dim, eps=self.eps)
        encoder = VideoEncoder(
            pixels=pixels,
            embed=TubeletEmbed(dim=dim, patch=self.patch, channels=channels),
            position=make_position(self.position, dim=dim, grid=self.grid(frames, size), class_row=self.class_token),
            trunk=Encoder(blocks=blocks, norm=norm, drop_path=self.drop_path, dropout=self.dropout),
            class_token=self.class_token,
        )
        (xavier if self.init == "xavier" else truncated)(encoder)
        return encoder

    def build_decoder(self, *, frames: int, size: tuple[int, int]) -> Decoder:
        """The decoder without its output layer, freshly started."""
        dim, depth, heads = self.decoder_shape
        blocks = stack(
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_ratio=self.decoder.mlp_ratio or self.mlp_ratio or SIZES[self.size].mlp_ratio,
            attention=self.decoder.attention or self.attention,
            eps=self.eps,
            init_values=self.init_values,
        )
        xavier(blocks)
        return Decoder(
            bridge=nn.Linear(self.width, dim, bias=False),
            position=make_position(self.decoder.position or self.position, dim=dim, grid=self.grid(frames, size)),
            blocks=blocks,
            norm=nn.LayerNorm(dim, eps=self.eps),
        )

    def build(self, *, masking: Masker | None, frames: int, size: tuple[int, int], channels: int = 3) -> VideoMAE:
        """A freshly started model for clips (channels, frames, H, W) with ``size`` = (H, W). Raises ConfigError."""
        grid = self.grid(frames, size)
        return VideoMAE(
            encoder=self.build_encoder(frames=frames, size=size, channels=channels),
            decoder=self.build_decoder(frames=frames, size=size),
            answers=self.target.width(grid, channels),
            target=self.target,
            loss=self.loss,
            masking=masking,
            align=None if self.align is None else self.align.build(dim=self.width),
        )


@dataclass(frozen=True)
class Reconstruction:
    """What a model says about hidden cubes: ``rows`` (B, M, E) in the convention of ``target``, for the tokens ``mask.target``."""

    mask: Mask
    rows: Tensor
    target: PixelTarget


class VideoMAE(Method):
    """Reads visible cubes, answers with the pixels of the asked ones. Built by :class:`Config`."""

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        decoder: Decoder,
        answers: int,
        target: PixelTarget,
        loss: LossKind,
        masking: Masker | None,
        align: Alignment | None = None,
    ) -> None:
        super().__init__()
        dim = decoder.position.dim
        self.encoder = encoder
        self.mask_token = MaskToken(dim=dim)
        self.decoder = decoder
        self.head = nn.Linear(dim, answers)
        xavier(self.head)
        self.target, self.masking, self.align = target, masking, align
        self.loss: LossKind = loss
        self.needs = frozenset({"video"}) | (masking.needs if masking else frozenset()) | ({"text"} if align else frozenset())

    def mask(self, batch: Batch, at: Step) -> Mask:
        """Which cubes of the batch are read and which are asked for. Raises ConfigError for a model built without masking."""
        if self.masking is None:
            raise ConfigError("this model was built without masking: give one (for example masking: tube) to train or reconstruct")
        video = batch.stream("video").data
        tokens = self.encoder.cubes(video) if self.masking.reads_tokens else None
        return self.masking(self.encoder.grid(video), batch, "video", at, tokens)

    def see(self, video: Tensor, mask: Mask, at: Step) -> Tokens:
        """(B, C, T, H, W) -> tokens of the visible cubes."""
        return self.encoder(video, mask.visible, valid=mask.visible_valid, draw=at.draw.child("encoder"))

    def answer(self, visible: Tokens, mask: Mask) -> Tensor:
        """(B, M, E): what the decoder says about the asked cubes."""
        query = Tokens(self.mask_token(mask.target), mask.target, mask.grid, mask.target_valid)
        return self.head(self.decoder(visible, query))

    def predict(self, video: Tensor, mask: Mask, at: Step) -> Tensor:
        """(B, C, T, H, W) -> (B, M, E): both."""
        return self.answer(self.see(video, mask, at), mask)

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        """Mean error of the asked cubes, what the masking learns from it, and the alignment. The log holds what answering zero everywhere
        would score, and what mask and alignment say of themselves."""
        video, mask = batch.stream("video").data, self.mask(batch, at)
        visible = self.see(video, mask, at)
        pred = self.answer(visible, mask)
        target = self.target.rows(video, mask.grid, mask.target, self.encoder.pixels.mean, self.encoder.pixels.std)
        error = answer_error(pred, target, self.loss)
        weight = self._weight(mask)
        terms = {"pixels": (reduce(error, weight), 1.0)}
        learned = None if self.masking is None else self.masking.loss(mask, error.detach())
        if self.masking is not None and learned is not None:
            terms["masker"] = (learned, self.masking.loss_weight)
        zero = answer_error(torch.zeros_like(target), target, self.loss)
        log = {"zero_answer": reduce(zero, weight), **mask.log}
        if self.align is not None:
            contrast, figures = self.align(visible, batch.text)
            terms["contrast"] = (contrast, self.align.settings.weight)
            log |= figures
        return Losses(terms, log)

    @staticmethod
    def _weight(mask: Mask) -> Tensor | None:
        if mask.target_valid is None or mask.weight is None:
            return mask.weight if mask.target_valid is None else mask.target_valid
        return mask.weight * mask.target_valid

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        """All tokens, unmasked, after the final norm. Clips of another length or size are read, too: positions are computed anew or,
        where they were learned, interpolated."""
        return self.encoder(batch.stream(stream).data, layers=layers)

    def reconstruct(self, batch: Batch, at: Step) -> Reconstruction:
        """Answers for a masked batch, for pictures. Turning normalised rows into pixels needs a mean and a contrast for every cube:
        see :meth:`PixelTarget.pixels`."""
        mask = self.mask(batch, at)
        return Reconstruction(mask, self.predict(batch.stream("video").data, mask, at), self.target)

    @property
    def aligned(self) -> bool:
        """Whether it can compare clips with texts."""
        return self.align is not None

    def embed_video(self, batch: Batch, stream: str = "video") -> Tensor:
        """(B, width of the text encoder) of length 1, from all tokens. Raises ConfigError for a model that was not aligned."""
        return self._alignment().video(self.encode(batch, stream))

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(n, width) of length 1. Raises ConfigError as :meth:`embed_video`."""
        return self._alignment().words(texts)

    def _alignment(self) -> Alignment:
        if self.align is None:
            raise ConfigError("this model was not aligned with text: train it with method.align.model=FOLDER (recipe tgm)")
        return self.align

    def after_step(self, at: Step) -> None:
        """The alignment's temperature stays in its range."""
        if self.align is not None:
            self.align.after_step()

    def groups(self, phase: str) -> list[Group]:
        """No weight decay on 1-D parameters, biases, the mask token and the class token (page section 4)."""
        return decay_groups(self.named_parameters(), exempt={"token", "class_token", "class_row"})
