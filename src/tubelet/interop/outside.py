"""An encoder with weights that others trained, and what became of every tensor of their file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.core import Batch, Losses, Method, Step, Tokens
from tubelet.errors import CheckpointError, ConfigError
from tubelet.nn.position import resize_table
from tubelet.nn.video import VideoEncoder


class EncoderOnly(Method):
    """Encodes; it has no decoder and no objective, so it cannot be pre-trained further."""

    def __init__(self, *, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        """Raises ConfigError."""
        raise ConfigError("an encoder alone has no pre-training objective; use it to embed, probe or fine-tune")

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        """All tokens, unmasked, after the final norm where the file has one."""
        return self.encoder(batch.stream(stream).data, layers=layers)


@dataclass(frozen=True)
class Report:
    """What became of every tensor, by the file's names without wrapper prefixes.

    ``missing``: of the encoder, left at its random start. ``unexpected``: names that this family does not have. ``unused``: parts that an
    encoder lacks (decoder, head). ``reshaped``: (name, the file's shape, ours) of those loaded tensors that were resized.
    """

    layout: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors of the encoder loaded"]
        parts += [f"{name} resized from {old} to {new}" for name, old, new in self.reshaped]
        if self.unused:
            parts.append(f"{len(self.unused)} not used ({', '.join(sorted({name.split('.')[0] for name in self.unused}))})")
        if self.missing:
            parts.append(f"{len(self.missing)} missing and left random ({some(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unknown ({some(self.unexpected)})")
        return f"{self.layout}: {'; '.join(parts)}"


def some(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@torch.no_grad()
def fill(encoder: VideoEncoder, given: Mapping[str, tuple[str, Tensor]], where: str) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Copy tensors into an encoder; those that it has and ``given`` lacks stay as they are. Returns which were resized.

    ``given``: our name within the encoder -> (the file's name, tensor). Position tables of another picture size are resized per time slot,
    bicubic. Raises CheckpointError that lists every tensor whose shape does not fit, or that is not finite.
    """
    own = encoder.state_dict()
    problems, resized = [], []
    for name, (said, value) in given.items():
        if name == "position.rows" and value.shape != own[name].shape:
            table = _resized(value.float(), encoder.position.shape)
            if table is not None:
                resized.append((said, tuple(value.shape), tuple(table.shape)))
                value = table
        if value.shape != own[name].shape:
            problems.append(f"{said} is {tuple(value.shape)}, the encoder's {tuple(own[name].shape)}")
        elif not bool(value.isfinite().all()):
            problems.append(f"{said} holds numbers that are not finite")
        else:
            own[name].copy_(value)
    if problems:
        rest = [f"{len(problems) - 6} more"] if len(problems) > 6 else []
        raise CheckpointError(f"{where} does not fit: {'; '.join([*problems[:6], *rest])}")
    return resized


def _resized(table: Tensor, shape: tuple[int, int, int]) -> Tensor | None:
    """A table (n, D) of as many time slots and a square of places, for another grid; None where n is no such number."""
    t, h, w = shape
    side = math.isqrt(len(table) // t)
    if table.ndim != 2 or t * side * side != len(table) or side == 0:
        return None
    return resize_table(table, (t, side, side), (t, h, w))
