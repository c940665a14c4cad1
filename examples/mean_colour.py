"""A method of your own is a file like this one. Use it with

tubelet pretrain my_videos/ --out runs/colour --import mean_colour.py --recipe mean_colour.yaml
"""

from torch import nn

from tubelet.config import Settings
from tubelet.core import Losses, Method, Tokens, patchify, to_unit
from tubelet.errors import ConfigError
from tubelet.methods import videomae
from tubelet.nn.decoder import MaskToken
from tubelet.objectives.losses import answer_error, reduce


class Config(Settings):
    dim: int = 192
    depth: int = 6
    heads: int = 3
    patch: tuple[int, int, int] = (2, 16, 16)

    def build(self, *, masking, frames, size, channels=3) -> "MeanColour":
        small = videomae.DecoderConfig(dim=self.dim // 2, depth=2, heads=self.heads)
        parts = videomae.Config(dim=self.dim, depth=self.depth, heads=self.heads, patch=self.patch, position="sincos3d", decoder=small)
        encoder = parts.build_encoder(frames=frames, size=size, channels=channels)
        return MeanColour(encoder=encoder, decoder=parts.build_decoder(frames=frames, size=size), channels=channels, masking=masking)


class MeanColour(Method):
    """Reads visible cubes, answers with the mean colour of the hidden ones: a target without any texture."""

    def __init__(self, *, encoder, decoder, channels, masking) -> None:
        super().__init__()
        self.encoder, self.decoder, self.masking = encoder, decoder, masking
        self.query = MaskToken(dim=decoder.position.dim)
        self.head = nn.Linear(decoder.position.dim, channels)

    def losses(self, phase, batch, at) -> Losses:
        if self.masking is None:
            raise ConfigError("mean_colour needs a masking, for example masking: tube")
        video = batch.stream("video").data
        mask = self.masking(self.encoder.grid(video), batch, "video", at)
        visible = self.encoder(video, mask.visible, valid=mask.visible_valid, draw=at.draw.child("encoder"))
        query = Tokens(self.query(mask.target), mask.target, mask.grid, mask.target_valid)
        answer = self.head(self.decoder(visible, query))  # (B, M, channels)
        colour = to_unit(patchify(video, mask.grid, mask.target)).flatten(3).mean(-1)  # cubes (B, M, channels, 2, 16, 16) -> their means
        weight = mask.weight if mask.target_valid is None else (1.0 if mask.weight is None else mask.weight) * mask.target_valid
        blind = colour.mean((0, 1)).expand_as(colour)  # one colour for all: what an answer without looking would score
        error, nothing = answer_error(answer, colour), answer_error(blind, colour)
        return Losses({"colour": (reduce(error, weight), 1.0)}, {"blind": reduce(nothing, weight)})

    def encode(self, batch, stream="video", *, layers=()) -> Tokens:
        return self.encoder(batch.stream(stream).data, layers=layers)
