"""All of a VideoMAE file, not its encoder alone: a decoder, a masking's sampler or a classifier's head under our names, with the settings
that others need to rebuild it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import transformers_videomae as theirs
from tubelet.interop import videomae
from tubelet.interop.outside import strict_problem
from tubelet.interop.report import some
from tubelet.interop.transformers_settings import Described
from tubelet.methods.videomae import Config
from tubelet.nn.encoder import SIZES

DECODER_HEADS = {size.decoder_dim: size.decoder_heads for size in SIZES.values()}
# What the names of the parts begin with. An unknown name of a part is refused; one of something else is no part of the model.
_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "official": {"pretrain": ("encoder.", "decoder.", "encoder_to_decoder.", "mask_token"), "classifier": ("",)},
    "transformers": {
        "pretrain": ("videomae.", "encoder.", "embeddings.", "layernorm.", "decoder.", "encoder_to_decoder.", "mask_token"),
        "classifier": ("videomae.", "encoder.", "embeddings.", "layernorm.", "classifier.", "fc_norm."),
        "encoder": ("videomae.", "encoder.", "embeddings.", "layernorm."),
    },
}


@dataclass(frozen=True)
class Whole:
    """``state``: our names, those of a classifier as ``readout.head.*``. ``norm``: whether one must follow the encoder's blocks.
    ``dropped``: of the file, what is no part of such a model. ``notes``: what was taken for granted."""

    layout: theirs.Layout
    what: str
    state: Mapping[str, Tensor]
    config: Config
    norm: bool
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.state["encoder.embed.weight"].shape[1]

    @property
    def classes(self) -> int:
        return len(self.state["readout.head.linear.weight"]) if self.layout == "classifier" else 0


def of_official(
    state: Mapping[str, Tensor],
    where: str | Path,
    *,
    frames: int,
    size: tuple[int, int],
    settings: Sequence[str] = (),
    said: Mapping[str, Any] | None = None,
) -> Whole:
    """Of an official state dict. ``settings``: ``["heads=6", "decoder.heads=3"]``, without them by the widths of the named sizes. ``said``:
    by a config.json beside it. ``frames``, ``size`` (H, W): of its clips. Raises CheckpointError for tensors that are missing or unknown,
    ConfigError where the number of heads is not known."""
    plain, layout = videomae.layout_of(state, where)
    named, unknown = dict[str, Tensor](), list[str]()
    for name, value in plain.items():
        try:
            named |= videomae.from_official({name: value}, layout)
        except CheckpointError:
            unknown.append(name)
    dropped = _dropped(unknown, _PARTS["official"][layout], where)
    inside = ("encoder.", "masking.")
    if layout == "pretrain":
        whole: theirs.Layout = "pretrain" if any(not name.startswith(inside) for name in named) else "encoder"
    else:
        whole = "classifier" if any(name.startswith("readout.head.linear.") for name in named) else "encoder"
    if layout == "classifier" and whole == "encoder":  # the norm of a head that is not there
        dropped += tuple(videomae.official_name(name, layout) for name in named if not name.startswith(inside))
        named = {name: value for name, value in named.items() if name.startswith(inside)}
    known, notes = dict(said or {}), []
    asked = {text.split("=")[0].strip() for text in settings}
    if whole == "pretrain":
        known["decoder"] = _decoder(plain, where, heads_asked="decoder.heads" in asked)
    config = videomae.settings_of(plain, layout, where, settings, known)
    guessed = [str(config.head_count)] if not asked & {"heads", "size"} and "heads" not in known else []
    guessed += [f"{config.decoder_shape[2]} in the decoder"] if whole == "pretrain" and "decoder.heads" not in asked else []
    if guessed and config.attention != "cosine":
        notes.append(f"attention heads by the width, which the file does not say: {', '.join(guessed)}")
    what = videomae.LAYOUTS[layout] if whole != "encoder" else "official VideoMAE encoder"
    found = Whole(whole, what, named, config, videomae.has_norm(plain, layout), dropped, tuple(notes))
    _check(found, where, lambda name: (videomae.official_name(name, layout),), frames=frames, size=size)
    return found


def of_transformers(state: Mapping[str, Tensor], where: str | Path, *, described: Described, settings: Sequence[str] = ()) -> Whole:
    """Of a folder of transformers, as its config.json describes it. Raises CheckpointError, ConfigError, as :func:`of_official`."""
    plain, layout = theirs.layout_of(state, where)
    parts = _PARTS["transformers"][layout]
    dropped = tuple(name for name in plain if not name.startswith(parts))
    try:
        named = theirs.from_transformers({name: value for name, value in plain.items() if name not in dropped}, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    found = Whole(layout, f"transformers' {theirs.LAYOUTS[layout]}", named, described.method(settings), described.norm, dropped)
    _check(found, where, lambda name: theirs.their_names(name, layout, stored=True), frames=described.frames, size=described.size)
    return found


def _dropped(unknown: Sequence[str], parts: tuple[str, ...], where: str | Path) -> tuple[str, ...]:
    if wrong := [name for name in unknown if name.startswith(parts)]:
        raise CheckpointError(f"{where} has tensors that no VideoMAE has: {some(sorted(wrong))}; it may be of another family")
    return tuple(unknown)


def _decoder(plain: Mapping[str, Tensor], where: str | Path, *, heads_asked: bool) -> dict[str, Any]:
    """Settings of an official file's decoder. Raises CheckpointError, ConfigError."""
    bridge, hidden = plain.get("encoder_to_decoder.weight"), plain.get("decoder.blocks.0.mlp.fc1.weight")
    blocks = {int(match[1]) for name in plain if (match := re.match(r"decoder\.blocks\.(\d+)\.", name))}
    if bridge is None or hidden is None or blocks != set(range(len(blocks))):
        gone = "encoder_to_decoder.weight" if bridge is None else "a block of its decoder"
        raise CheckpointError(f"{where} is no whole pre-training file: it lacks {gone}; tubelet.load reads its encoder alone")
    dim = bridge.shape[0]
    if dim not in DECODER_HEADS and not heads_asked:
        raise ConfigError(
            f"{where} has a decoder of width {dim}, which no named size has ({', '.join(map(str, sorted(DECODER_HEADS)))}), and does not "
            "say how many attention heads it has: give method.decoder.heads=N (on the command line --set method.decoder.heads=N)"
        )
    inside = {name.removeprefix("decoder.blocks.0.attn.") for name in plain if name.startswith("decoder.blocks.0.attn.")}
    attention = "bias" if "qkv.bias" in inside else "no_bias"
    if "q_bias" in inside:
        attention = "cosine" if "scale" in inside else "qv_bias"
    return {
        "dim": dim,
        "depth": len(blocks),
        "heads": DECODER_HEADS.get(dim),
        "mlp_ratio": videomae.mlp_ratio(len(hidden), dim),
        "attention": attention,
        "position": "learned" if "decoder.pos_embed" in plain else "sinusoid",
    }


def _check(whole: Whole, where: str | Path, names: Any, *, frames: int, size: tuple[int, int]) -> None:
    """Every tensor of such a model must be there, in its shape, and nothing else. Raises CheckpointError."""
    expected = _shapes(whole, where, frames, size)
    given = {name: tuple(value.shape) for name, value in whole.state.items() if not name.startswith("masking.")}
    missing = [said for name in expected if name not in given for said in names(name)]
    strange = [said for name in given if name not in expected for said in names(name)]
    if missing or strange:
        raise CheckpointError(f"{where} does not fit a {whole.what}: of its tensors {strict_problem(missing, strange)}")
    odd = [name for name in given if given[name] != expected[name] and not name.endswith("position.rows")]
    if odd:
        pairs = ", ".join(f"{names(name)[0]} {given[name]} instead of {expected[name]}" for name in odd[:3])
        raise CheckpointError(f"{where} does not fit its settings: {pairs}; config.json or --set method.* may be another model's")


def _shapes(whole: Whole, where: str | Path, frames: int, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a model in this layout by our names; nothing is allocated. Raises ConfigError for clips that are not cut."""
    kernel, config = whole.state.get("encoder.embed.weight"), whole.config
    if kernel is None or kernel.ndim != 5:
        raise CheckpointError(f"{where} holds no video model: the embedding of a video's cubes has five dimensions")
    how: dict[str, Any] = {"frames": frames, "size": size, "channels": kernel.shape[1]}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if whole.layout == "pretrain":
            held = config.model_copy(update={"align": None}).build(masking=None, **how).state_dict()
        else:
            held = {f"encoder.{name}": value for name, value in config.build_encoder(**how).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in held.items() if whole.norm or not name.startswith("encoder.trunk.norm.")}
    if whole.layout == "classifier":
        linear = whole.state.get("readout.head.linear.weight")
        found |= {"readout.head.linear.weight": (0 if linear is None else len(linear), config.width)}
        found |= {"readout.head.linear.bias": (0 if linear is None else len(linear),)}
        if not whole.norm:
            found |= {f"readout.head.norm.{leaf}": (config.width,) for leaf in ("weight", "bias")}
    return found
