"""Names of VideoMAE's parameters: ours <-> the official checkpoints' (page section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from tubelet.errors import CheckpointError

Layout = Literal["pretrain", "classifier"]

# Ours -> official, longest first. The encoder's part is the same in both layouts but for the prefix.
_ENCODER = {
    "encoder.trunk.blocks.": "blocks.",
    "encoder.trunk.norm.": "norm.",
    "encoder.embed.": "patch_embed.proj.",
    "encoder.position.rows": "pos_embed",
}
_REST: dict[Layout, dict[str, str]] = {
    "pretrain": {
        "decoder.bridge.": "encoder_to_decoder.",
        "decoder.position.rows": "decoder.pos_embed",
        "decoder.blocks.": "decoder.blocks.",
        "decoder.norm.": "decoder.norm.",
        "head.": "decoder.head.",
        "mask_token.token": "mask_token",
    },
    "classifier": {"readout.head.norm.": "fc_norm.", "readout.head.linear.": "head."},
}


def _pairs(layout: Layout) -> dict[str, str]:
    prefix = "encoder." if layout == "pretrain" else ""
    return {ours: prefix + official for ours, official in _ENCODER.items()} | _REST[layout]


def official_name(name: str, layout: Layout) -> str:
    """The official key of one of our parameters. Raises CheckpointError for one that has none."""
    for ours, official in _pairs(layout).items():
        if name.startswith(ours):
            return official + name[len(ours) :]
    raise CheckpointError(f"parameter {name!r} has no counterpart in an official VideoMAE {layout} checkpoint")


def our_name(name: str, layout: Layout) -> str:
    """Our name of an official key. Raises CheckpointError for an unknown one."""
    for ours, official in _pairs(layout).items():
        if name.startswith(official):
            return ours + name[len(official) :]
    raise CheckpointError(f"key {name!r} is not one of an official VideoMAE {layout} checkpoint")


def from_official(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """An official state dict under our names, position tables without their leading 1. Raises CheckpointError for unknown keys."""
    named = {our_name(name, layout): value for name, value in state.items()}
    return {name: value[0] if name.endswith("position.rows") else value for name, value in named.items()}


def to_official(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our state dict under the official names: the inverse of :func:`from_official`."""
    named = {name: value[None] if name.endswith("position.rows") else value for name, value in state.items()}
    return {official_name(name, layout): value for name, value in named.items()}
