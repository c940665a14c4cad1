"""VideoMAE's official checkpoints (page section 7): their names <-> ours, and an encoder from one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tubelet.config import overlay, parse
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import adamae
from tubelet.interop.outside import (
    EncoderOnly,
    Grid,
    asked_grid,
    build_for,
    fill,
    grid_of,
    said_doubt,
    said_patch,
    said_positions,
    stored_grid,
    strict_problem,
)
from tubelet.interop.report import Report, lines_of, some
from tubelet.methods.videomae import Config
from tubelet.nn.encoder import SIZES
from tubelet.weights import prefix_of, without_prefix

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


_TABLES = ("position.rows", "sampler.position")  # which official files keep with a leading 1


def _pairs(layout: Layout) -> dict[str, str]:
    if layout == "classifier":
        return _ENCODER | _REST[layout]
    # The sampler first: one of its names begins like the table of positions.
    return {ours: "encoder." + official for ours, official in (adamae.SAMPLER | _ENCODER).items()} | _REST[layout]


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
    return {name: value[0] if name.endswith(_TABLES) else value for name, value in named.items()}


def to_official(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our state dict under the official names: the inverse of :func:`from_official`."""
    named = {name: value[None] if name.endswith(_TABLES) else value for name, value in state.items()}
    return {official_name(name, layout): value for name, value in named.items()}


def pooled_norm(dim: int) -> dict[str, Tensor]:
    """``fc_norm`` as it starts: beside an encoder without final norm it says that none is missing."""
    return {"fc_norm.weight": torch.ones(dim), "fc_norm.bias": torch.zeros(dim)}


MARKER = "patch_embed.proj.weight"
LAYOUTS: dict[Layout, str] = {"pretrain": "VideoMAE pre-training file", "classifier": "VideoMAE fine-tuned file"}


def plain_names(state: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """A state dict without ``_orig_mod.``, which torch.compile puts before the names of any module. Raises CheckpointError where two names
    become one."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = name.replace("_orig_mod.", "")
        if short in plain:
            raise CheckpointError(f"{where} holds {short} twice, once as {name}: two models in one file; save the wanted one alone")
        plain[short] = value
    return plain


def layout_of(state: Mapping[str, Tensor], where: str | Path) -> tuple[dict[str, Tensor], Layout]:
    """The state dict without wrapper prefixes, and which of the two layouts it has. Raises CheckpointError for another one.

    A classifier's blocks may stand under ``encoder.``, too: it has no decoder, and a norm that follows the pooling.
    """
    state = plain_names(state, where)
    prefix = prefix_of(state, MARKER)
    if prefix is None:
        known = some(sorted(state))
        raise CheckpointError(f"{where} is no VideoMAE checkpoint in an official layout: it has no {MARKER}, but {known}")
    outer = prefix.removesuffix("encoder.")
    plain = without_prefix(state, outer, where)
    if outer == prefix:
        return plain, "classifier"
    parts = {name.removeprefix("encoder.").split(".")[0] for name in plain}
    tuned = "fc_norm" in parts and not parts & {"decoder", "encoder_to_decoder", "mask_token"}
    return (without_prefix(plain, "encoder.", where), "classifier") if tuned else (plain, "pretrain")


def has_norm(state: Mapping[str, Tensor], layout: Layout) -> bool:
    """Whether one must follow the encoder's blocks: in a fine-tuned file ``fc_norm``, after the pooling, may stand in its place."""
    return layout == "pretrain" or "norm.weight" in state or "fc_norm.weight" not in state


def mlp_ratio(hidden: int, dim: int) -> float:
    """The ratio r with int(dim * r) == hidden, as blocks count their MLP's width."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def infer(state: Mapping[str, Tensor], layout: Layout, where: str | Path) -> dict[str, Any]:
    """Settings of the encoder that can be read off a state dict: all but the number of heads.

    Width, patch and tubelet from the embedding's kernel; blocks counted; MLP ratio, the form of the attention's biases, LayerScale and
    learned positions from what is there. Raises CheckpointError where it is no video encoder.
    """
    first = "encoder." if layout == "pretrain" else ""
    kernel = state[first + MARKER]
    if kernel.ndim != 5:
        raise CheckpointError(f"{where} holds an image model: its {first}{MARKER} is {tuple(kernel.shape)}, a video's has five dimensions")
    blocks = {int(match[1]) for name in state if (match := re.match(rf"{re.escape(first)}blocks\.(\d+)\.", name))}
    if not blocks or blocks != set(range(len(blocks))):
        gone = sorted(set(range(max(blocks, default=0) + 1)) - blocks)
        raise CheckpointError(f"{where} lacks the encoder's block {gone[0]}" + (f"; it has {len(blocks)} others" if blocks else ""))

    def block(name: str) -> Tensor | None:
        return state.get(f"{first}blocks.0.{name}")

    dim, hidden, scale = kernel.shape[0], block("mlp.fc1.weight"), block("attn.scale")
    attention = "bias" if block("attn.qkv.bias") is not None else "no_bias"
    if block("attn.q_bias") is not None:
        attention = "qv_bias" if scale is None else "cosine"
    found: dict[str, Any] = {"dim": dim, "depth": len(blocks), "patch": list(kernel.shape[2:]), "attention": attention}
    if hidden is not None:
        found["mlp_ratio"] = mlp_ratio(len(hidden), dim)
    if block("gamma_1") is not None:
        found["init_values"] = 0.1  # where a control with random weights starts; the file's own values are loaded
    if first + "pos_embed" in state:
        found["position"] = "learned"
    if scale is not None:
        found["heads"] = len(scale)
    return found


def settings_of(
    state: Mapping[str, Tensor], layout: Layout, where: str | Path, settings: Sequence[str] = (), said: Mapping[str, Any] | None = None
) -> Config:
    """The method's settings for a state dict: inferred, then what its folder ``said``, with ``["heads=3", ...]`` on top; heads by the width
    from the table of sizes.

    Raises ConfigError where the width is none of the table's and no heads are given: a file does not say how many there are.
    """
    found = overlay(infer(state, layout, where) | dict(said or {}), settings)
    dim, asked = found["dim"], found.get("size")
    if asked in SIZES and SIZES[asked].dim != dim:
        raise ConfigError(f"method.size={asked} is {SIZES[asked].dim} wide, {where} holds an encoder {dim} wide")
    size = asked or next((name for name, named in SIZES.items() if named.dim == dim), None)
    if size is None and "heads" not in found:
        widths = ", ".join(f"{name} {named.dim}" for name, named in SIZES.items())
        raise ConfigError(
            f"{where} holds an encoder of width {dim}, which no named size has ({widths}), and a file of weights does not say how many "
            "attention heads there are: give method.heads=N (on the command line --set method.heads=N)"
        )
    return parse(Config, found if size is None else {"size": size, **found}, where=f"{where}, method")


def load_encoder(
    state: Mapping[str, Tensor],
    where: str | Path,
    *,
    frames: int,
    size: tuple[int, int],
    settings: Sequence[str] = (),
    said: Mapping[str, Any] | None = None,
    trained: tuple[int, tuple[int, int]] | None = None,
    strict: bool = True,
    random: bool = False,
) -> tuple[EncoderOnly, Config, Report]:
    """The encoder of an official pre-training or fine-tuning state dict, for clips of ``frames`` frames of ``size`` (H, W).

    A fine-tuned file has no norm after its blocks where it has ``fc_norm``, which follows the pooling and belongs to the head: that encoder
    has none either. ``said``: settings from beside the file. ``trained``: frames and size of its own clips, where known; a learned table's
    grid is guessed otherwise. ``strict``: refuse tensors of the encoder that are missing or unknown. ``random``: the same architecture,
    untrained. Raises CheckpointError, ConfigError.
    """
    state, layout = layout_of(state, where)
    config = settings_of(state, layout, where, settings, said)
    first = "encoder." if layout == "pretrain" else ""
    kernel, table = state[first + MARKER], state.get(f"{first}pos_embed") if config.position == "learned" else None
    stored = None if table is None else _stored(table, kernel, config, trained, where, frames=frames, size=size)
    encoder = build_for(config, kernel, stored, frames=frames, size=size, where=where)
    if not has_norm(state, layout):
        encoder = encoder.variant(norm=False)
    given, unused, unexpected = _sorted(state, layout, set(encoder.state_dict()))
    missing = tuple(official_name(f"encoder.{name}", layout) for name in encoder.state_dict() if name not in given)
    wrong = [name for name in unexpected if layout == "classifier" or name.startswith("encoder.")]
    if strict and (missing or wrong):
        raise CheckpointError(
            f"{where} does not fit this encoder: of its tensors {strict_problem(missing, wrong)}; it may be of another family, or method "
            "settings are wrong. load(..., strict=False) takes what fits and leaves the rest random"
        )
    reshaped = () if random else fill(encoder, given, str(where))
    lines = lines_of(
        state, given, encoder, missing=missing, unexpected=unexpected, unused=unused, reshaped=reshaped, random=random
    )  # fmt: skip
    notes = said_patch(config.patch[0], kernel.shape[2])
    if table is not None and trained is None:
        notes += said_doubt(table.shape[-2], asked_grid(config, frames, size), kernel.shape[2:])
    own = None if trained is None else grid_of(kernel.shape[2:], *trained)
    notes += said_positions(encoder, frames=frames, size=size, guessed=table is not None and trained is None, trained=own)
    return EncoderOnly(encoder=encoder), config, Report(LAYOUTS[layout], lines, notes)


def _stored(
    table: Tensor,
    kernel: Tensor,
    config: Config,
    trained: tuple[int, tuple[int, int]] | None,
    where: str | Path,
    *,
    frames: int,
    size: tuple[int, int],
) -> Grid | None:
    """The grid of a learned table. Raises CheckpointError where its rows are those of no grid."""
    cube, rows = tuple(kernel.shape[2:]), table.shape[-2]
    if trained is not None:
        own = grid_of(cube, *trained)
        found = own if math.prod(own) == rows else None
    else:
        found = stored_grid(rows, asked_grid(config, frames, size), cube)
    if found is None:
        t, h, w = asked_grid(config, frames, size)
        raise CheckpointError(
            f"{where} holds positions for {rows} cubes, which are no slots of square pictures and not the {t}x{h}x{w} of {frames} frames "
            f"of {size[0]}x{size[1]} either: give the frames and the size of the clips that it was trained with"
        )
    return found


def _sorted(
    state: Mapping[str, Tensor], layout: Layout, own: set[str]
) -> tuple[dict[str, tuple[tuple[str, ...], Tensor]], tuple[str, ...], tuple[str, ...]]:
    """(our name -> (official name, tensor)) of the encoder's tensors; names of other known parts; unknown names."""
    given: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    unused, unexpected = [], []
    for name, value in state.items():
        try:
            ours = our_name(name, layout)
        except CheckpointError:
            unexpected.append(name)
            continue
        inner = ours.removeprefix("encoder.")
        if inner == ours:
            unused.append(name)
        elif inner not in own:
            unexpected.append(name)
        else:
            given[inner] = (name,), value[0] if inner == "position.rows" and value.ndim == 3 else value
    return given, tuple(unused), tuple(unexpected)
