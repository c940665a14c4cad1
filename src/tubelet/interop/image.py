"""Image transformers as video encoders and back: timm's ViT, and the official files of the image MAE.

Names: ``cls_token`` (1, 1, D), ``pos_embed`` (1, [1 +] N, D), ``patch_embed.proj.weight`` (D, 3, P, P), ``blocks.i.*`` as in VideoMAE's
files but with one ``attn.qkv.bias`` (3D,), LayerScale as ``ls1.gamma`` or ``gamma_1``, ``norm.*``. Beside them stand ``head.*``,
``fc_norm.*``, ``pre_logits.*``, and in a pre-training file of MAE ``decoder_*`` and ``mask_token``.

A picture's cube becomes a tubelet whose kernel is spread over its frames, and its position is that of every slot: a still clip has the
picture's embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.core import TokenGrid
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import videomae
from tubelet.interop.outside import (
    EncoderOnly,
    Grid,
    asked_grid,
    build_for,
    fill,
    said_doubt,
    said_patch,
    said_positions,
    stored_grid,
    strict_problem,
)
from tubelet.interop.report import Report, lines_of
from tubelet.interop.transformers_settings import is_number, read_json
from tubelet.methods.videomae import Config
from tubelet.nn.embed import retime_kernel
from tubelet.nn.video import AXES, VideoEncoder
from tubelet.weights import prefix_of, without_prefix

MARKER = videomae.MARKER
FRAMES = 2  # of the cubes that a picture's become, unless method.patch says otherwise
UNUSED = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "decoder_", "mask_token")
_SCALE = re.compile(r"\bls([12])\.gamma$")  # LayerScale as timm spells it
_OURS = {"blocks.": "trunk.blocks.", "norm.": "trunk.norm.", "patch_embed.proj.": "embed.", "cls_token": "class_token"}


def is_image(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of an image transformer with these names, with or without wrapper prefixes."""
    prefix = prefix_of(state, MARKER)
    return prefix is not None and state[prefix + MARKER].ndim == 4


@dataclass(frozen=True)
class Pictures:
    """What the config.json of a timm model's folder says. ``size`` (H, W): of the pictures. ``method``: mean and std, where it has both."""

    size: tuple[int, int] | None
    method: Mapping[str, Any]


def pictures_of(config: Mapping[str, Any], where: str | Path = "config.json") -> Pictures | None:
    """The same of a parsed file, its ``pretrained_cfg``; None where it has none. Raises CheckpointError for pixels that are no numbers, or
    no deviation."""
    said = config.get("pretrained_cfg")
    if not isinstance(said, Mapping):
        return None
    pixels = {name: said[name] for name in ("mean", "std") if isinstance(said.get(name), list)}
    for name, values in pixels.items():
        if not values or not all(is_number(value) and (name == "mean" or value > 0) for value in values):
            raise CheckpointError(f"{where}, pretrained_cfg: {name} {values}: the numbers must be finite, those of std above 0")
    size = None
    if isinstance(shape := said.get("input_size"), list) and len(shape) == 3 and all(isinstance(side, int) for side in shape):
        size = shape[1], shape[2]
    return Pictures(size, pixels if len(pixels) == 2 else {})


def pictures_beside(path: Path) -> Pictures | None:
    """The same of the config.json beside a file of weights; None where it says nothing of pictures. Raises CheckpointError for nonsense."""
    beside = path.parent / "config.json"
    found = read_json(beside)
    return pictures_of(found, beside) if isinstance(found, Mapping) else None


def _inner(name: str) -> str | None:
    """Our name within the encoder of one of theirs without prefix, but for ``pos_embed``; None for an unknown one."""
    ours = next((new + name[len(old) :] for old, new in _OURS.items() if name.startswith(old)), None)
    if ours is None or not ours.startswith("trunk.blocks."):
        return ours
    return _SCALE.sub(r"gamma_\1", ours)


def _plain(state: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    state = videomae.plain_names(state, where)
    prefix = prefix_of(state, MARKER)
    if prefix is None or state[prefix + MARKER].ndim != 4:
        raise CheckpointError(f"{where} is no image transformer in the layout of timm or MAE: it has no {MARKER} of four dimensions")
    return without_prefix(state, prefix, where)


def _settings(plain: Mapping[str, Tensor], where: str | Path, settings: Sequence[str], pictures: Pictures | None) -> Config:
    """The method's settings of an image file: read off the tensors, cubes of two frames, learned positions."""
    kernel = plain[MARKER]
    if "pos_embed" not in plain:
        raise CheckpointError(
            f"{where} holds an image model (its {MARKER} is {tuple(kernel.shape)}) without pos_embed, and of image models those with a "
            "table of positions are read: ViT of timm, MAE"
        )
    as_video = {_SCALE.sub(r"gamma_\1", name): value for name, value in plain.items()} | {MARKER: kernel[:, :, None]}
    said = {"patch": [FRAMES, *kernel.shape[2:]], "class_token": "cls_token" in plain, **(pictures.method if pictures else {})}
    config = videomae.settings_of(as_video, "classifier", where, settings, said)
    if "cls_token" in plain and not config.class_token:
        raise ConfigError(f"method.class_token=false: {where} has a class token, which its other tokens read: it cannot be left out")
    if config.position not in ("learned", "separable"):
        raise ConfigError(f"method.position={config.position}: a file's own table of positions is kept as learned or separable")
    return config


def _positions(plain: Mapping[str, Tensor], config: Config, stored: Grid) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Rows of the picture's places, and of the class token where the file has one: zeros where only places have rows."""
    table = plain["pos_embed"].flatten(0, -2)
    places, dim = stored[1] * stored[2], table.shape[-1]
    own = "rows" if config.position == "learned" else "space"
    found: dict[str, tuple[tuple[str, ...], Tensor]] = {f"position.{own}": (("pos_embed",), table[len(table) - places :])}
    if own == "space":
        found["position.time"] = (), table.new_zeros(1, dim)
    if "cls_token" in plain:
        found["position.class_row"] = (), table[:1] if len(table) > places else table.new_zeros(1, dim)
    return found


def _stored(plain: Mapping[str, Tensor], config: Config, pictures: Pictures | None, asked: Grid, where: str | Path) -> tuple[Grid, bool]:
    """(the grid of the table of positions, whether the file or its folder left it open). Raises CheckpointError where there is none."""
    rows, (p, q) = plain["pos_embed"].flatten(0, -2).shape[0], plain[MARKER].shape[2:]
    counts = [rows - 1, rows] if "cls_token" in plain else [rows]  # some models give the class token no place
    if pictures is not None and pictures.size is not None:
        own = (1, pictures.size[0] // p, pictures.size[1] // q)
        if own[1] * own[2] in counts:
            return own, False
    for count in counts:
        found = stored_grid(count, (1, *asked[1:]), (1, p, q), frames=1) if count > 0 else None
        if found is not None and found[0] == 1:
            return found, True
    raise CheckpointError(
        f"{where} holds {rows} rows of positions, which are those of no square picture and not the {asked[1]}x{asked[2]} places of a frame "
        "either: give the size of the pictures that it was trained with (size=HxW)"
    )


def load_encoder(
    state: Mapping[str, Tensor],
    where: str | Path,
    *,
    frames: int,
    size: tuple[int, int],
    settings: Sequence[str] = (),
    pictures: Pictures | None = None,
    strict: bool = True,
    random: bool = False,
) -> tuple[EncoderOnly, Config, Report]:
    """The encoder of an image file, for clips of ``frames`` frames of ``size`` (H, W).

    ``settings``: such as ``["patch=[1,16,16]", "position=separable"]``. ``pictures``: what its folder says. ``strict``: refuse tensors of
    the encoder that are missing or unknown. ``random``: the same architecture, untrained. Raises CheckpointError, ConfigError.
    """
    plain = _plain(state, where)
    config = _settings(plain, where, settings, pictures)
    asked = asked_grid(config, frames, size)
    stored, guessed = _stored(plain, config, pictures, asked, where)
    kernel = plain[MARKER][:, :, None]
    normed = "norm.weight" in plain or "fc_norm.weight" not in plain  # which follows the pooling instead, and is the head's
    encoder = build_for(config, kernel, stored, frames=frames, size=size, where=where).variant(norm=normed)
    own = encoder.state_dict()
    given = _positions(plain, config, stored)
    unused = [name for name in plain if name.startswith(UNUSED)]
    strange = []
    for name, value in plain.items():
        inner = None if name in unused else _inner(name)
        if inner in own:
            given[inner] = (name,), kernel if inner == "embed.weight" else value
        elif name not in unused and name != "pos_embed":
            strange.append(name)
    missing = [_theirs(name) for name in own if name not in given]
    if strict and (missing or strange):
        raise CheckpointError(
            f"{where} is no plain image transformer: of its tensors {strict_problem(missing, strange)}. load(..., strict=False) takes what "
            "fits and leaves the rest random, and other features come of it"
        )
    reshaped = () if random else fill(encoder, given, str(where))
    lines = lines_of(plain, given, encoder, missing=missing, unexpected=strange, unused=unused, reshaped=reshaped, random=random)
    notes = said_patch(config.patch[0], 1)
    notes += said_doubt(stored[1] * stored[2], (1, *asked[1:]), (1, *kernel.shape[3:]), frames=1) if guessed else ()
    notes += said_positions(encoder, frames=frames, size=size, guessed=guessed)
    if not (pictures and pictures.method) and not any(text.split("=")[0].strip() in ("mean", "std") for text in settings):
        notes += ("pixels are normalised by ImageNet's mean and standard deviation, for the file does not say (method.mean, method.std)",)
    layout = "image MAE's pre-training file" if any(name.startswith("decoder_") for name in plain) else "image ViT"
    return EncoderOnly(encoder=encoder), config, Report(layout, lines, notes)


def _theirs(name: str) -> str:
    """Their name of one of our parameters within the encoder."""
    return next((old + name[len(new) :] for old, new in _OURS.items() if name.startswith(new)), "pos_embed")


@torch.no_grad()
def to_image(encoder: VideoEncoder) -> dict[str, Tensor]:
    """The state dict of an image ViT with a video encoder's weights: the inverse of reading one, bit for bit where nothing was trained.

    The kernel is summed over a cube's frames, so that a picture has the embedding of its still clip; positions are averaged over slots;
    biases of query and value become one of all three. It has no head. Raises ConfigError for what an image ViT cannot express.
    """
    state = encoder.state_dict()
    if any(name.endswith("attn.scale") for name in state):
        raise ConfigError("an image ViT cannot express attention cosine; it has bias, qv_bias and no_bias")
    t, h, w = encoder.position.shape
    grid = TokenGrid(AXES, (t, h, w), encoder.embed.patch)
    rows = encoder.position.table(grid).unflatten(0, (t, h * w)).mean(0)
    out = {MARKER: retime_kernel(state["embed.weight"], 1)[:, :, 0], "patch_embed.proj.bias": state["embed.bias"]}
    if encoder.class_token is not None:
        row = encoder.position.class_row
        out["cls_token"] = state["class_token"]
        rows = torch.cat([rows.new_zeros(1, rows.shape[1]) if row is None else row.detach(), rows])
    out["pos_embed"] = rows[None]
    for name, value in state.items():
        if name.endswith("attn.q_bias"):
            out[_theirs(name).replace("q_bias", "qkv.bias")] = torch.cat([value, value * 0, state[name.replace("q_bias", "v_bias")]])
        elif name.startswith("trunk.") and not name.endswith("attn.v_bias"):
            out[re.sub(r"\bgamma_([12])$", r"ls\1.gamma", _theirs(name))] = value
    return out
