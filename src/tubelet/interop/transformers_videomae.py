"""VideoMAE as the transformers package names it (page section 7): names <-> ours, and an encoder from such weights.

Our fused ``qkv.weight`` (3D, D) is three maps there, its ``q_bias`` and ``v_bias`` (D,) are ``query.bias`` and ``value.bias`` in modules
of transformers 5 and ``q_bias`` and ``v_bias`` in modules of transformers 4 and in all saved files. There is no key bias. A bias that is
absent where it should be is refused: zeros in its place would go unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import videomae
from tubelet.interop.outside import EncoderOnly, build_for, fill, grid_of, said_patch, said_positions, strict_problem
from tubelet.interop.report import Report, lines_of, some
from tubelet.interop.transformers_settings import Described
from tubelet.methods.classifier import Classifier
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.nn.encoder import SIZES

Layout = Literal["pretrain", "classifier", "encoder"]
LAYOUTS: dict[Layout, str] = {
    "pretrain": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
    "encoder": "VideoMAEModel",
}
MARKER = "embeddings.patch_embeddings.projection.weight"
FIXED_EPS = 1e-5  # of decoder.norm and fc_norm, whatever config.json says

_WRAPPERS = r"(?:module\.|_orig_mod\.)*"
_PREFIX = "videomae."
_PARTS = ("query", "key", "value")
_ATTENTION = "attention.attention."

# Ours -> theirs; what follows a full stop at the end is weight or bias.
_ENCODER = {"encoder.embed.": "embeddings.patch_embeddings.projection.", "encoder.trunk.norm.": "layernorm."}
_REST: dict[Layout, dict[str, str]] = {
    "encoder": {},
    "classifier": {"readout.head.norm.": "fc_norm.", "readout.head.linear.": "classifier."},
    "pretrain": {
        "decoder.bridge.": "encoder_to_decoder.",
        "decoder.norm.": "decoder.norm.",
        "head.": "decoder.head.",
        "mask_token.token": "mask_token",
    },
}
_BLOCKS = {"encoder.trunk.blocks.": "encoder.layer.", "decoder.blocks.": "decoder.decoder_layers."}
_INNER = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
_BIASES = {"attn.q_bias": ("query.bias", "q_bias"), "attn.v_bias": ("value.bias", "v_bias")}  # in modules of 5, in files


def _blocks(layout: Layout) -> dict[str, str]:
    return _BLOCKS if layout == "pretrain" else {k: v for k, v in _BLOCKS.items() if k.startswith("encoder.")}


def _swap(name: str, pairs: Mapping[str, str]) -> str | None:
    """``name`` with its beginning replaced; None where no pair fits or something else than weight or bias would follow."""
    for old, new in pairs.items():
        if name.startswith(old):
            leaf = name[len(old) :]
            return new + leaf if leaf in (("weight", "bias") if old.endswith(".") else ("",)) else None
    return None


def _inner(name: str) -> tuple[str, str] | None:
    """("attn.qkv.weight", part) or (our name, "") of a name within one of their blocks."""
    if name.startswith(_ATTENTION):
        leaf = name.removeprefix(_ATTENTION)
        ours = next((ours for ours, spellings in _BIASES.items() if leaf in spellings), None)
        if ours is not None:
            return ours, ""
        part = leaf.removesuffix(".weight")
        return ("attn.qkv.weight", part) if part in _PARTS and part != leaf else None
    plain = _swap(name, {theirs: ours for ours, theirs in _INNER.items()})
    return None if plain is None else (plain, "")


def _our_place(name: str, layout: Layout) -> tuple[str, str] | None:
    """(our name, which third of it or "") of a name of theirs without wrappers; None for an unknown one."""
    plain = name.removeprefix(_PREFIX)
    for ours, theirs in _blocks(layout).items():
        if match := re.fullmatch(rf"{re.escape(theirs)}(\d+)\.(.+)", plain):
            found = _inner(match[2])
            return None if found is None else (f"{ours}{match[1]}.{found[0]}", found[1])
    whole = _swap(plain, {theirs: ours for ours, theirs in (_ENCODER | _REST[layout]).items()})
    return None if whole is None else (whole, "")


def their_names(name: str, layout: Layout, *, stored: bool = False) -> tuple[str, ...]:
    """Their names of one of our parameters: one, or those of query, key and value. ``stored``: as files spell the biases.

    Raises CheckpointError for a parameter that has no counterpart there.
    """
    prefix = "" if layout == "encoder" else _PREFIX
    for ours, theirs in _blocks(layout).items():
        if match := re.fullmatch(rf"{re.escape(ours)}(\d+)\.(.+)", name):
            stem = f"{prefix if ours.startswith('encoder.') else ''}{theirs}{match[1]}."
            if match[2] == "attn.qkv.weight":
                return tuple(f"{stem}{_ATTENTION}{part}.weight" for part in _PARTS)
            if match[2] in _BIASES:
                return (f"{stem}{_ATTENTION}{_BIASES[match[2]][stored]}",)
            inner = _swap(match[2], _INNER)
            if inner is not None:
                return (stem + inner,)
    if (own := _swap(name, _ENCODER)) is not None:
        return (prefix + own,)
    if (own := _swap(name, _REST[layout])) is not None:
        return (own,)
    raise CheckpointError(f"parameter {name!r} has no counterpart in a {LAYOUTS[layout]} of transformers")


@dataclass
class _Sorted:
    """``given``: our name -> (their names, tensor). ``unknown``: names that the layout does not have. ``lone``, ``absent``: of queries,
    keys and values that did not come all three, those that did and those that did not."""

    given: dict[str, tuple[tuple[str, ...], Tensor]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    lone: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def _sort(state: Mapping[str, Tensor], layout: Layout) -> _Sorted:
    """A state dict without wrappers under our names, thirds joined. Raises CheckpointError where two names are one of ours."""
    out, thirds = _Sorted(), dict[str, dict[str, str]]()
    for name, value in state.items():
        place = _our_place(name, layout)
        if place is None:
            out.unknown.append(name)
        elif place[1]:
            taken = thirds.setdefault(place[0], {})
            if place[1] in taken:
                raise CheckpointError(
                    f"{taken[place[1]]} and {name} are the same parameter: two models in one file; save the wanted one alone"
                )
            taken[place[1]] = name
        elif place[0] in out.given:
            raise CheckpointError(
                f"{out.given[place[0]][0][0]} and {name} are the same parameter: two models in one file; save the wanted one alone"
            )
        else:
            out.given[place[0]] = (name,), value
    for ours, names in thirds.items():
        values = [state[name] for name in names.values()]
        if len(names) < len(_PARTS):
            some_name = next(iter(names.items()))
            out.lone += names.values()
            out.absent += [some_name[1].replace(f".{some_name[0]}.", f".{part}.") for part in _PARTS if part not in names]
        elif any(value.shape != values[0].shape or value.ndim != 2 or value.dtype != values[0].dtype for value in values):
            shapes = ", ".join(f"{names[part]} {tuple(state[names[part]].shape)}" for part in _PARTS)
            raise CheckpointError(f"queries, keys and values differ in shape or type: {shapes}")
        else:
            ordered = tuple(names[part] for part in _PARTS)
            out.given[ours] = ordered, torch.cat([state[name] for name in ordered])
    return out


def is_named(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of transformers' VideoMAE, with or without wrapper prefixes."""
    return any(name.endswith(MARKER) for name in state)


def layout_of(state: Mapping[str, Tensor], where: str | Path) -> tuple[dict[str, Tensor], Layout]:
    """The state dict without wrapper prefixes, and whose it is. Raises CheckpointError for other names, and two models in one file."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = re.sub(f"^{_WRAPPERS}", "", name)
        if short in plain:
            raise CheckpointError(f"{where} holds {short} twice, once as {name}: two models in one file; save the wanted one alone")
        plain[short] = value
    if MARKER not in plain and _PREFIX + MARKER not in plain:
        raise CheckpointError(f"{where} is no VideoMAE of transformers: it has no {MARKER}, but {some(sorted(plain))}")
    if any(name.startswith(("decoder.", "encoder_to_decoder.", "mask_token")) for name in plain):
        return plain, "pretrain"
    return plain, "classifier" if any(name.startswith(("classifier.", "fc_norm.")) for name in plain) else "encoder"


def from_transformers(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """A state dict of transformers under our names, values bit for bit. Wrapper prefixes go; ``videomae.`` may be there or not.

    Raises CheckpointError that names every unknown key, every incomplete set of query, key and value, and every query bias without its
    value bias.
    """
    plain, _ = layout_of(state, "the state dict")
    found = _sort(plain, layout)
    problems = [f"unknown {some(sorted(found.unknown))}"] if found.unknown else []
    problems += [f"missing {some(found.absent)}"] if found.absent else []
    lonely = [name for name in found.given if name.endswith(("q_bias", "v_bias")) and _twin(name) not in found.given]
    problems += [f"{found.given[name][0][0]} without its twin {_twin(name).rsplit('.', 1)[1]}" for name in lonely[:4]]
    if problems:
        raise CheckpointError(f"these are not the keys of a {LAYOUTS[layout]} of transformers: {'; '.join(problems)}")
    return {ours: value for ours, (_, value) in found.given.items()}


def _twin(name: str) -> str:
    return name[:-6] + {"q_bias": "v_bias", "v_bias": "q_bias"}[name[-6:]]


def to_transformers(state: Mapping[str, Tensor], layout: Layout, *, stored: bool = False) -> dict[str, Tensor]:
    """Our state dict under their names: the inverse of :func:`from_transformers`. Raises CheckpointError for what has no counterpart.

    ``stored``: biases as ``q_bias`` and ``v_bias``, the spelling of saved files, which versions 4 and 5 read; otherwise as in
    ``state_dict()`` of version 5.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        names = their_names(name, layout, stored=stored)
        out |= zip(names, value.chunk(len(names)) if len(names) > 1 else [value], strict=True)
    return out


def like_transformers(model: VideoMAE | Classifier) -> None:
    """Give a model's ``decoder.norm`` or ``fc_norm`` the eps that transformers fixes for it (1e-5), in place, to compute the same."""
    norm = model.decoder.norm if isinstance(model, VideoMAE) else model.readout.head.norm
    if isinstance(norm, nn.LayerNorm):
        norm.eps = FIXED_EPS


def _settings(
    state: Mapping[str, Tensor], found: _Sorted, where: str | Path, described: Described | None, settings: Sequence[str]
) -> tuple[Config, bool]:
    """The method's settings, and whether a norm follows the blocks: from config.json, or inferred from the tensors where there is none."""
    if described is not None:
        return described.method(settings), described.norm
    own = {name: value for name, (_, value) in found.given.items() if name.startswith("encoder.")}
    official = videomae.to_official(own, "classifier")
    width = official[videomae.MARKER].shape[0] if videomae.MARKER in official else 0
    asked = {text.split("=")[0].strip() for text in settings}
    if not asked & {"heads", "size"} and (width == SIZES["small"].dim or width not in {size.dim for size in SIZES.values()}):
        raise ConfigError(
            f"{where} holds an encoder of width {width}, and weights do not say how many attention heads there are (transformers' small "
            "models have 16, the official ones 6): give the folder with its config.json, or method.heads=N (--set method.heads=N)"
        )
    return videomae.settings_of(official, "classifier", where, settings), "encoder.trunk.norm.weight" in own


def load_encoder(
    state: Mapping[str, Tensor],
    where: str | Path,
    *,
    described: Described | None,
    frames: int,
    size: tuple[int, int],
    settings: Sequence[str] = (),
    strict: bool = True,
    random: bool = False,
) -> tuple[EncoderOnly, Config, Report]:
    """The encoder of a VideoMAE of transformers, for clips of ``frames`` frames of ``size`` (H, W).

    ``described``: what its config.json says; None = inferred from the tensors. ``strict``: refuse tensors of the encoder that are missing
    or unknown. ``random``: the same architecture, untrained. Raises CheckpointError, ConfigError.
    """
    plain, layout = layout_of(state, where)
    found = _sort(plain, layout)
    config, norm = _settings(plain, found, where, described, settings)
    kernel = found.given["encoder.embed.weight"][1]
    if kernel.ndim != 5:
        raise CheckpointError(f"{where} holds an image model: its {MARKER} is {tuple(kernel.shape)}, a video's has five dimensions")
    encoder = build_for(config, kernel, None, frames=frames, size=size, where=where).variant(norm=norm)
    inside = {name.removeprefix("encoder."): pair for name, pair in found.given.items() if name.startswith("encoder.")}
    own = encoder.state_dict()
    given = {name: pair for name, pair in inside.items() if name in own}
    strange = [name for key, (names, _) in inside.items() if key not in own for name in names] + found.unknown
    missing = _missing(own.keys() - given.keys(), plain, layout)
    wrong = [name for name in strange if layout == "encoder" or name.startswith((_PREFIX, "encoder.", "embeddings.", "layernorm."))]
    if strict and (missing or wrong):
        raise CheckpointError(
            f"{where} does not fit this encoder: of its tensors {strict_problem(missing, wrong)}; config.json or method settings may be "
            "another model's. load(..., strict=False) takes what fits and leaves the rest random"
        )
    reshaped = () if random else fill(encoder, given, str(where))
    rest = [name for key, (names, _) in found.given.items() if not key.startswith("encoder.") for name in names] + found.lone
    lines = lines_of(plain, given, encoder, missing=missing, unexpected=strange, unused=rest, reshaped=reshaped, random=random)
    notes = said_patch(config.patch[0], kernel.shape[2])
    if described is not None:
        own = grid_of(kernel.shape[2:], described.frames, described.size)
        notes += said_positions(encoder, frames=frames, size=size, trained=own)
    return EncoderOnly(encoder=encoder), config, Report(f"transformers' {LAYOUTS[layout]}", lines, notes)


def _missing(ours: Set[str], plain: Mapping[str, Tensor], layout: Layout) -> tuple[str, ...]:
    """What a file would call parameters of an encoder that it does not hold whole."""
    prefix = _PREFIX if _PREFIX + MARKER in plain else ""
    theirs = (name for key in sorted(ours) for name in their_names(f"encoder.{key}", layout, stored=True))
    return tuple(name for name in (prefix + name.removeprefix(_PREFIX) for name in theirs) if name not in plain)
