"""What plain transformers cost, in closed form. 2 operations per multiply-add; matrix products and attention only: norms, softmax,
activation functions and additions are left out, as in the papers (about one part in a hundred)."""

from __future__ import annotations

from dataclasses import dataclass

from tubelet.nn.encoder import SIZES


@dataclass(frozen=True)
class Tower:
    """``depth`` blocks of self-attention of width ``dim`` and an MLP of width ``hidden``, as :func:`tubelet.nn.block.stack` makes them."""

    dim: int
    depth: int
    hidden: int

    def flops(self, tokens: int) -> int:
        """One forward pass over a sample of N = ``tokens`` tokens. A token takes 4 D^2 for q, k, v and the projection, 2 D H for the MLP,
        and 2 N D for the two products of attention; all that twice, for multiplying and adding."""
        linear = tokens * (4 * self.dim**2 + 2 * self.dim * self.hidden)
        return 2 * self.depth * (linear + 2 * tokens**2 * self.dim)

    def parameters(self, biases: int = 2) -> int:
        """Of the blocks. ``biases``: how many of q, k and v have one (2: as VideoMAE)."""
        attention = 4 * self.dim**2 + (biases + 1) * self.dim
        mlp = 2 * self.dim * self.hidden + self.hidden + self.dim
        return self.depth * (attention + mlp + 4 * self.dim)


@dataclass(frozen=True)
class VideoMAECost:
    """A masked autoencoder that embeds visible cubes of ``cube`` numbers, encodes them, and decodes visible and asked tokens together into
    ``answers`` numbers each (VideoMAE section 3)."""

    encoder: Tower
    decoder: Tower
    cube: int
    answers: int

    @classmethod
    def of_size(cls, size: str, *, patch: tuple[int, int, int] = (2, 16, 16), channels: int = 3) -> VideoMAECost:
        """The named sizes."""
        named = SIZES[size]
        cube = channels * patch[0] * patch[1] * patch[2]
        towers = (
            Tower(named.dim, named.depth, int(named.dim * named.mlp_ratio)),
            Tower(named.decoder_dim, named.decoder_depth, int(named.decoder_dim * named.mlp_ratio)),
        )
        return cls(*towers, cube, cube)

    def encoder_parameters(self) -> int:
        """Embedding, blocks and final norm."""
        dim = self.encoder.dim
        return (self.cube + 1) * dim + self.encoder.parameters() + 2 * dim

    def encoder_flops(self, tokens: int) -> int:
        """One forward pass over ``tokens`` visible tokens, their embedding included."""
        return 2 * tokens * self.cube * self.encoder.dim + self.encoder.flops(tokens)

    def flops(self, visible: int, asked: int) -> int:
        """One forward pass of pre-training: encoder, bridge, decoder over all tokens, answers."""
        bridge = 2 * visible * self.encoder.dim * self.decoder.dim
        head = 2 * asked * self.decoder.dim * self.answers
        return self.encoder_flops(visible) + bridge + self.decoder.flops(visible + asked) + head
