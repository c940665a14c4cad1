"""What config.json and preprocessor_config.json of a VideoMAE of transformers say <-> our settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.config import overlay, parse
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.videomae import mlp_ratio
from tubelet.methods.videomae import Config
from tubelet.nn.encoder import SIZES

KIND = "videomae"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
# What VideoMAEConfig takes where a file does not say.
DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "num_frames": 16,
    "tubelet_size": 2,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "use_mean_pooling": True,
    "decoder_num_attention_heads": 6,
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 4,
    "decoder_intermediate_size": 1536,
    "norm_pix_loss": True,
}
CARRIED = ("stride", "fps", "sampling", "folder_fps")  # data settings of ours that an exported config.json keeps under "tubelet"
_COUNTS = tuple(name for name, value in DEFAULTS.items() if isinstance(value, int) and not isinstance(value, bool))
_SIDES = ("image_size", "patch_size")
GELUS = ("gelu", "gelu_python")


@dataclass(frozen=True)
class Described:
    """A model as its folder describes it. ``found``: our method's settings. ``frames``, ``size`` (H, W) of its clips. ``norm``: whether one
    follows the encoder's blocks. ``data``: data settings that Tubelet wrote into the folder. ``preprocessed``: whether the folder says
    mean and standard deviation; ImageNet's otherwise."""

    found: Mapping[str, Any]
    frames: int
    size: tuple[int, int]
    norm: bool
    where: str
    data: Mapping[str, Any]
    preprocessed: bool

    def method(self, settings: Sequence[str] = ()) -> Config:
        """Our settings, with ``["heads=3", ...]`` on top. Raises ConfigError."""
        return parse(Config, overlay(self.found, settings), where=f"{self.where}, method")


def describe(folder: str | Path) -> Described:
    """What a folder of transformers says of its VideoMAE. Raises CheckpointError for other models and settings that are none."""
    folder = Path(folder)
    path = folder / "config.json"
    config = _read(path)
    kind = config.get("model_type")
    if kind != KIND:
        what = f"a model of the type {kind!r}" if kind else "no model_type"
        raise CheckpointError(f"{path} describes {what}; of transformers' models Tubelet reads {KIND!r} as encoders")
    return from_config(config, _preprocessor(folder), where=str(path))


def _preprocessor(folder: Path) -> dict[str, Any] | None:
    beside = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    return None if beside is None else _read(beside)


def pixels_beside(folder: str | Path, channels: int = 3) -> dict[str, list[float]]:
    """Mean and standard deviation that a folder's preprocessor says; empty where it has none. Raises CheckpointError for nonsense."""
    found = _preprocessor(Path(folder))
    pixels, wrong = ({}, []) if found is None else _pixels(found, channels)
    if wrong:
        raise CheckpointError(f"{folder}: {'; '.join(wrong)}")
    return pixels


def from_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, *, where: str = "config.json") -> Described:
    """The same of parsed files. ``qkv_bias`` is also read as ``qv_bias``. Raises CheckpointError that lists what is wrong."""
    given = {"qkv_bias": config["qv_bias"]} if "qv_bias" in config else {}
    c = DEFAULTS | given | {name: config[name] for name in DEFAULTS if name in config}
    sides, problems = _checked(c)
    pixels, wrong = ({**IMAGENET}, []) if preprocessor is None else _pixels(preprocessor, c["num_channels"])
    if problems or wrong:
        raise CheckpointError(f"{where}: {'; '.join([*problems, *wrong])}")
    width = c["hidden_size"]
    named = next((name for name, size in SIZES.items() if size.dim == width), None)
    found = {
        **({} if named is None else {"size": named}),
        "dim": width,
        "depth": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "mlp_ratio": mlp_ratio(c["intermediate_size"], width),
        "patch": [c["tubelet_size"], *sides["patch_size"]],
        "attention": "qv_bias" if c["qkv_bias"] else "no_bias",
        "eps": c["layer_norm_eps"],
        "decoder": {
            "dim": c["decoder_hidden_size"],
            "depth": c["decoder_num_hidden_layers"],
            "heads": c["decoder_num_attention_heads"],
            "mlp_ratio": mlp_ratio(c["decoder_intermediate_size"], c["decoder_hidden_size"]),
        },
        "target": {"normalise": "channel" if c["norm_pix_loss"] else "none"},
        **pixels,
    }
    extra = config.get("tubelet")
    data = extra.get("data", {}) if isinstance(extra, Mapping) else {}
    return Described(
        found,
        frames=c["num_frames"],
        size=sides["image_size"],
        norm=not c["use_mean_pooling"],
        where=where,
        data={name: data[name] for name in CARRIED if name in data} if isinstance(data, Mapping) else {},
        preprocessed=preprocessor is not None,
    )


def _checked(c: Mapping[str, Any]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The sides as (H, W), and what is wrong with a configuration's values."""
    problems = [f"hidden_act {c['hidden_act']!r} is not what Tubelet computes (gelu)"] if c["hidden_act"] not in GELUS else []
    sides: dict[str, tuple[int, int]] = {}
    for name in _SIDES:
        value = c[name]
        pair = [value, value] if isinstance(value, int) else value
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_count(side) for side in pair):
            sides[name] = (pair[0], pair[1])
        else:
            problems.append(f"{name} must be a whole number or two, got {value!r}")
    problems += [f"{name} must be a whole number, got {c[name]!r}" for name in _COUNTS if name not in _SIDES and not _is_count(c[name])]
    eps = c["layer_norm_eps"]
    if not isinstance(eps, int | float) or isinstance(eps, bool) or not eps > 0:
        problems.append(f"layer_norm_eps must be above 0, got {eps!r}")
    return sides, problems


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: Any) -> bool:
    """Whether it is a finite one, of single precision."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38


def _pixels(preprocessor: Mapping[str, Any], channels: int) -> tuple[dict[str, list[float]], list[str]]:
    """Mean and standard deviation of pixels in [0, 1], as a preprocessor applies them to pixels 0..255, and what is wrong with it."""
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    mean, std = (preprocessor.get(f"image_{name}", [0.5] * channels) for name in ("mean", "std"))  # transformers' own default
    if not preprocessor.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    try:
        unit = 255.0 * float(factor)
        unit = 1.0 if abs(unit - 1) < 1e-6 else unit
        found = {name: [float(v) / unit for v in ([value] if isinstance(value, int | float) else value)] for name, value in
                 (("mean", mean), ("std", std))}  # fmt: skip
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return {}, [f"its preprocessor has image_mean {mean!r}, image_std {std!r}, rescale_factor {factor!r}, which are no numbers"]
    counts = {len(values) for values in found.values()}
    finite = all(is_number(value) for values in found.values() for value in values)
    if not counts <= {1, channels} or not finite or min(found["std"], default=0) <= 0:
        return {}, [f"its preprocessor has image_mean {mean!r} and image_std {std!r} for {channels} channels"]
    return found, []


def read_json(path: Path) -> Any:
    """What a file beside weights says. Raises CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from None


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no settings")
    return found


def inexpressible(config: Config, *, decoder: bool) -> list[str]:
    """What of a method's settings a VideoMAE of transformers does not have, one line each. ``decoder``: whether it goes along."""
    said = [f"patch {list(config.patch)}: rows and columns of a cube must be equal"] if config.patch[1] != config.patch[2] else []
    if config.position != "sinusoid":
        said.append(f"position {config.position}: it has sinusoid alone, with which a run would have to be trained")
    if config.attention not in ("qv_bias", "no_bias"):
        said.append(f"attention {config.attention}: it has qv_bias (or no_bias)")
    if decoder and config.decoder.position not in (None, "sinusoid"):
        said.append(f"decoder.position {config.decoder.position}: it has sinusoid alone")
    if decoder and config.decoder.attention not in (None, config.attention):
        said.append(f"decoder.attention {config.decoder.attention}: it has one setting for encoder and decoder")
    if config.init_values > 0:
        said.append(f"init_values {config.init_values}: it has no LayerScale")
    if config.class_token:
        said.append("class_token: it has none")
    return [*said, *odd_targets(config)] if decoder else said


def odd_targets(config: Config) -> list[str]:
    """What of a method's target neither transformers nor the official code predicts, one line each."""
    t = config.target
    wrong = {
        "space": t.space != "unit",
        "normalise": t.normalise == "joint",
        "order": t.order != "thwc",
        "frames": t.frames != "all",
        "grey": t.grey,
        "eps_inside": t.eps_inside,
        "unbiased": not t.unbiased,
    }
    return [f"target.{name} {getattr(t, name)}: its answers are the pixels of whole cubes" for name, odd in wrong.items() if odd]


def to_config(
    config: Config, *, architecture: str, frames: int, size: tuple[int, int], norm: bool, channels: int = 3, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """The config.json of a model of ours as ``architecture``. ``norm``: one follows the encoder's blocks. ``classes``: their names.

    Raises one ConfigError with all that a VideoMAE of transformers cannot express.
    """
    if said := inexpressible(config, decoder=architecture == "VideoMAEForPreTraining"):
        raise ConfigError([f"transformers cannot express {line}" for line in said])
    named = SIZES[config.size]
    dim, depth, heads = config.decoder_shape
    ratio = config.mlp_ratio or named.mlp_ratio
    labels = {"id2label": {str(i): n for i, n in enumerate(classes)}, "label2id": {n: i for i, n in enumerate(classes)}} if classes else {}
    biased = config.attention == "qv_bias"
    return {
        "architectures": [architecture],
        "model_type": KIND,
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": config.patch[1],
        "num_channels": channels,
        "num_frames": frames,
        "tubelet_size": config.patch[0],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth or named.depth,
        "num_attention_heads": config.head_count,
        "intermediate_size": int(config.width * ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.eps,
        "qkv_bias": biased,  # in version 4
        "qv_bias": biased,
        "use_mean_pooling": not norm,
        "decoder_hidden_size": dim,
        "decoder_num_hidden_layers": depth,
        "decoder_num_attention_heads": heads,
        "decoder_intermediate_size": int(dim * (config.decoder.mlp_ratio or ratio)),
        "norm_pix_loss": config.target.normalise != "none",
        "dtype": "float32",
        **labels,
    }


def to_preprocessor(config: Config, size: tuple[int, int], channels: int = 3) -> dict[str, Any]:
    """The preprocessor_config.json of clips of ``size`` (H, W)."""
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (config.mean, config.std))
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(size)},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": size[0], "width": size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
