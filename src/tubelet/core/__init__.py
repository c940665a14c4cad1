"""The nouns of the house. Imports torch only."""

from tubelet.core.batch import Batch, Stream
from tubelet.core.draw import CounterDraw, Draw, FixedDraw, permutation
from tubelet.core.grid import TokenGrid
from tubelet.core.mask import Mask
from tubelet.core.pixels import flatten_cubes, patchify, to_unit, unflatten_cubes, unpatchify
from tubelet.core.stage import Stage
from tubelet.core.tokens import Tokens
from tubelet.core.trainable import Aligned, Decoder, Encoder, Field, Frozen, Group, Guide, Losses, Masker, Method, Step, Trainable

__all__ = [
    "Aligned", "Batch", "CounterDraw", "Decoder", "Draw", "Encoder", "Field", "FixedDraw", "Frozen", "Group", "Guide", "Losses",
    "Mask", "Masker", "Method", "Stage", "Step", "Stream", "TokenGrid", "Tokens", "Trainable", "flatten_cubes", "patchify",
    "permutation", "to_unit", "unflatten_cubes", "unpatchify",
]  # fmt: skip
