"""Weights that others trained: which family they are of, what stands beside them, and the encoder that comes of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.api._common import say
from tubelet.config import overlay, parse
from tubelet.data.settings import DataSettings
from tubelet.interop import image, transformers_videomae, videomae, videomae_v2
from tubelet.interop.families import Family, family_of
from tubelet.interop.outside import EncoderOnly
from tubelet.interop.report import Report
from tubelet.interop.transformers_settings import describe
from tubelet.methods.videomae import Config
from tubelet.weights import FOLDER_FILES, read_sharded, read_weights


@dataclass(frozen=True)
class Opened:
    """An encoder of an outside file. ``method``: its settings. ``data``: of clips. ``report``: what became of every tensor."""

    model: EncoderOnly
    method: Config
    data: DataSettings
    report: Report


@dataclass(frozen=True)
class _Beside:
    """What a folder says. ``how``: arguments of the family's load_encoder. ``data``: settings of clips. ``pixels``: whether mean and
    standard deviation are known. ``hub``: of VideoMAE V2."""

    how: dict[str, Any]
    data: dict[str, Any]
    pixels: bool = True
    hub: videomae_v2.Hub | None = None


def open_outside(path: Path, *, settings: Sequence[str], strict: bool, random: bool) -> Opened:
    """The encoder of a file, or of the index of its parts. ``settings``: of data, and ``method.*``. Raises CheckpointError, ConfigError."""
    method = [text.removeprefix("method.") for text in settings if text.startswith("method.")]
    state = read_sharded(path) if path.suffix == ".json" else read_weights(path)
    family = family_of(state, path)
    beside = _beside(path, family)
    data = data_settings(parse(DataSettings, beside.data, where=f"{path.parent}, data"), settings)
    how: dict[str, Any] = {"frames": data.frames, "size": data.hw, "settings": method, "strict": strict, "random": random, **beside.how}
    if beside.hub is not None:
        beside.hub.check(state, path)
    loads = {
        "transformers": transformers_videomae.load_encoder,
        "image": image.load_encoder,
        "official": videomae.load_encoder,
    }
    model, config, report = loads[family](state, path, **how)
    if not beside.pixels:
        say(f"{path.parent} has no preprocessor_config.json: pixels are normalised by ImageNet's mean and standard deviation")
    return Opened(model, config, data, report)


def _beside(path: Path, family: Family) -> _Beside:
    """Of a file of weights in a folder with a config.json; official names need none."""
    folder = path.name in FOLDER_FILES and (path.parent / "config.json").is_file()
    if family == "transformers":
        said = describe(path.parent) if folder else None
        if said is None:
            return _Beside({"described": None}, {})
        return _Beside({"described": said}, {**said.data, **_clips(said.frames, said.size)}, said.preprocessed)
    if family == "image":
        pictures = image.pictures_beside(path) if folder else None
        size = None if pictures is None else pictures.size
        return _Beside({"pictures": pictures}, {} if size is None else {"size": _clips(1, size)["size"]})
    hub = videomae_v2.hub_beside(path) if folder else None
    if hub is None:
        return _Beside({}, {})
    return _Beside({"said": hub.said, "trained": (hub.frames, hub.size)}, _clips(hub.frames, hub.size), hub.preprocessed, hub)


def _clips(frames: int, size: tuple[int, int]) -> dict[str, Any]:
    return {"frames": frames, "size": size[0] if size[0] == size[1] else list(size)}


def data_settings(base: DataSettings, settings: Sequence[str]) -> DataSettings:
    """Data settings with ``["frames=8", "data.size=112"]`` on top; ``method.*`` is passed over. Raises ConfigError."""
    named = [text if text.startswith("data.") else f"data.{text}" for text in settings if not text.startswith("method.")]
    plain = overlay({"data": base.model_dump(mode="json")}, named)
    return parse(DataSettings, plain["data"], where="--set")
