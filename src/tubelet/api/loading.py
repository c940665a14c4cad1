"""A trained model, ready to encode: of a run, or from a file of weights that others wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tubelet.api._common import build, local, say
from tubelet.api._outside import data_settings, open_outside
from tubelet.config import import_file, kinds, overlay, parse
from tubelet.core import Batch, Frozen, Method, Stream, Tokens
from tubelet.data.settings import DataSettings
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.outside import EncoderOnly, check_patch, said_patch, said_positions
from tubelet.interop.report import Report
from tubelet.nn.embed import retime_kernel
from tubelet.nn.video import VideoEncoder
from tubelet.recipe import StageSettings
from tubelet.train.checkpoint import Checkpoints, read_meta, read_tensors
from tubelet.train.distributed import pick_device
from tubelet.weights import FOLDER_FILES, is_foreign, verified, weights_of


@dataclass(frozen=True)
class Loaded:
    """A trained (or, with ``random``, untrained) model, ready to encode.

    ``model``: the Method in eval mode on its device. ``data``: how its clips are made. ``config``: the resolved settings. ``report``: what
    became of every tensor of an outside file, None for a run. ``notes``: what was made to fit other clips. ``sha256``: of an outside file,
    and of a run's where it was asked for. ``settings``: the ``method.*`` that were given.
    """

    model: Method
    data: DataSettings
    config: Mapping[str, Any]
    path: Path
    report: Report | None = None
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> Tokens:
        """Tokens of clips: (B, 3, T, H, W), uint8 0..255 or float [0, 1]. Raises ValueError for another layout or size."""
        sample = torch.zeros(video.shape[0], dtype=torch.int64)
        return self.model.encode(Batch({"video": Stream(video)}, {}, sample).to(self.device))


def load(
    run: str | Path,
    *,
    weights: str = "auto",
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    strict: bool = True,
    sha256: str | None = None,
    download: bool = False,
) -> Loaded:
    """The model of a run folder, of one of its .safetensors files, of an official VideoMAE file (.pth, .pt, .safetensors ...), of the
    folder of a VideoMAE of transformers (which need not be installed), of one on the hub by its name (``hf://MCG-NJU/videomae-base``,
    ``hf://...@REVISION``), or of an image ViT. Of a fine-tuned run it is the encoder alone.

    ``weights``: auto (model.safetensors, or the newest checkpoint of an unfinished run) | ema. ``random``: the same architecture with
    random weights, as a control. ``imports``: your own files whose method the run used. ``settings``: data settings such as ``frames=8``.
    An official file says nothing about data: 16 frames, stride 4, 224 x 224 pixels and ImageNet's mean and standard deviation unless
    ``settings`` say otherwise, also about its model (``method.heads=6``); a folder of transformers says all but the stride. Nothing in
    them is executed. Cubes of another number of frames (``method.patch=[4,16,16]``), of a run, too, and clips of another length and size
    are fitted, and said in ``notes``. ``strict``: refuse outside weights whose encoder lacks tensors or has unknown ones. ``sha256``: what
    the file's must be, looked at before it is opened; a model in parts has one of its index and parts. ``download``: fetch what the hub's
    local cache lacks; without it nothing touches the network.
    Raises CheckpointError, ConfigError.
    """
    for file in imports:
        import_file(file)
    path = _weights_file(local(run, download=download), weights)
    digest = None if sha256 is None else verified(path, sha256)
    if path.name.endswith(".json") or not _written_by_us(path):
        digest = digest or verified(path, None)
        return _load_outside(path, weights, device=device, random=random, settings=settings, strict=strict, sha256=digest)
    meta = read_meta(path)
    config = dict(meta.get("config", {}))
    if not _masking_known(config.get("masking")):
        config["masking"] = None  # a user's own file, which encoding does not need
    lost = ("align.",) if _without_text(config, path) else ()
    lost += ("masking.",) if config.get("masking") is None else ()
    tuned = config.get("classifier")
    if tuned and tuned["frozen"]:
        raise CheckpointError(f"{path} was trained on a frozen encoder, which it does not hold; load {config['start']['path']}")
    changed = _retimed(config, settings, path)
    known = {k: changed[k] for k in ("method", "masking", "data", "train", "init") if k in changed}
    stage = parse(StageSettings, known | ({"train": {"steps": 1}} if tuned else {}), where=str(path))
    data = data_settings(parse(DataSettings, config.get("data", {}), where=str(path)), settings)
    model = build(stage)
    if not isinstance(model, Method):
        raise CheckpointError(f"{path} holds a {config.get('method', {}).get('kind', 'model')}, which has no encoder to load")
    same_outside(model, meta, path)
    tensors = {k: v for k, v in _tensors(path).items() if not k.startswith(lost)} if lost else _tensors(path)
    notes: tuple[str, ...] = ()
    if tuned or changed.get("method") != config.get("method"):
        tensors = {k: v for k, v in tensors.items() if k.startswith("encoder.")}
        model = _encoder_alone(model, norm="encoder.trunk.norm.weight" in tensors)
        notes = _retime(tensors, model.encoder.embed.patch[0])
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, VideoEncoder):
        notes += said_positions(encoder, frames=data.frames, size=data.hw)
    if not random:
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit its own settings: {error}") from None
    if notes:
        say(f"{path}: {'; '.join(notes)}")
    config |= {"method": changed["method"]} if "method" in changed else {}
    return Loaded(model.to(pick_device(device, "device")).eval(), data, config, path, None, notes, digest, _of_model(settings))


def _retime(tensors: dict[str, torch.Tensor], frames: int) -> tuple[str, ...]:
    """Make a run's kernel one for cubes of ``frames`` frames, in place; what was done."""
    kernel = tensors["encoder.embed.weight"]
    tensors["encoder.embed.weight"] = retime_kernel(kernel, frames)
    return said_patch(frames, kernel.shape[2])


def same_outside(model: torch.nn.Module, meta: Mapping[str, Any], where: str | Path) -> None:
    """Refuse, when they are opened, outside models that are not those which a run was trained with. Raises CheckpointError then."""
    for name, module in model.named_modules():
        known = (meta.get("frozen") or {}).get(name, {})
        if isinstance(module, Frozen) and known.get("sha256"):
            module.when_opened(
                partial(_same, str(known["sha256"]), f"{where} was trained with another model than {known['path']} holds now")
            )


def _same(expected: str, message: str, found: str | None) -> None:
    if found != expected:
        raise CheckpointError(f"{message} (its files have changed); put back the one it had")


def _masking_known(masking: Any) -> bool:
    """Whether a masking and its guide can be built here: both are kinds of Tubelet or of files that were imported."""
    if not isinstance(masking, Mapping):
        return masking is None or masking in kinds("tubelet.masking")
    guide = masking.get("guide")
    named = guide.get("kind") if isinstance(guide, Mapping) else guide
    return masking.get("kind") in kinds("tubelet.masking") and (named is None or named in kinds("tubelet.guides"))


def _without_text(config: dict[str, Any], path: Path) -> bool:
    """Leave the alignment out where the model that it reads texts with is not on this machine: the encoder does not need it."""
    align = (config.get("method") or {}).get("align")
    if not align or Path(align["model"]).exists():
        return False
    say(f"{path}: loaded without its alignment with text, for {align['model']} is not there")
    config["method"] = {**config["method"], "align": None}
    return True


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """A model's weights, also from a checkpoint of an unfinished run."""
    tensors = read_tensors(path)
    inside = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    return inside or tensors


def _encoder_alone(model: Method, *, norm: bool) -> EncoderOnly:
    """Without decoder; without final norm where a classifier normalises after pooling instead."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, VideoEncoder):
        raise ConfigError(f"a {type(model).__name__} has no video encoder whose cubes could be made others")
    return EncoderOnly(encoder=encoder.variant(norm=norm))


def _of_model(settings: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in settings if text.startswith("method."))


def _retimed(config: Mapping[str, Any], settings: Sequence[str], where: Path) -> dict[str, Any]:
    """A run's settings with cubes of as many frames as ``method.patch=[4,16,16]`` asks for, on a grid as large as its own.

    Raises ConfigError for any other setting of its model, and for cubes that cannot be made of its own.
    """
    asked = _of_model(settings)
    if not asked:
        return dict(config)
    own = (config.get("method") or {}).get("patch") or []
    if others := [text for text in asked if text.split("=")[0].strip() != "method.patch" or not own]:
        raise ConfigError(
            f"{', '.join(others)}: a run's model keeps its own settings but for method.patch, whose frames can be changed; other method.* "
            "is for outside weights"
        )
    method = overlay(dict(config["method"]), [text.removeprefix("method.") for text in asked])
    patch = method["patch"]
    if not (isinstance(patch, list) and len(patch) == len(own) == 3 and all(isinstance(n, int) and n > 0 for n in patch)):
        raise ConfigError(f"method.patch={patch}: give frames, rows and columns of a cube, such as {list(own)}")
    check_patch(patch, own, where)
    frames = parse(DataSettings, config["data"], where=str(where)).frames
    return {**config, "method": method, "data": {**config["data"], "frames": frames // own[0] * patch[0]}}


def _written_by_us(path: Path) -> bool:
    """Whether a file is a run's. A damaged .safetensors file may be: its own reader then says what is wrong with it."""
    return path.suffix == ".safetensors" and not is_foreign(path)


def _load_outside(path: Path, kind: str, *, device: str, random: bool, settings: Sequence[str], strict: bool, sha256: str) -> Loaded:
    if kind != "auto":
        raise ConfigError(f"weights={kind!r}: an outside file such as {path} has one set of weights")
    where = pick_device(device, "device")
    opened = open_outside(path, settings=settings, strict=strict, random=random)
    if not random:
        say(f"{path}: {opened.report}")
    resolved = {"method": opened.method.model_dump(mode="json"), "masking": None, "data": opened.data.model_dump(mode="json")}
    return Loaded(
        opened.model.to(where).eval(), opened.data, resolved, path, opened.report, opened.report.notes, sha256, _of_model(settings)
    )


def _weights_file(run: Path, weights: str) -> Path:
    if weights not in ("auto", "ema"):
        raise ConfigError(f"weights={weights!r}: there are auto and ema")
    if run.is_file():
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder or file of weights")
    if (run / "config.json").is_file():  # which no run has
        found = weights_of(run)
        if found is None:
            raise CheckpointError(f"{run} is a folder of transformers without weights: it has none of {', '.join(FOLDER_FILES)}")
        return found
    name = "model_ema.safetensors" if weights == "ema" else "model.safetensors"
    if (run / name).exists():
        return run / name
    if weights == "ema":
        raise CheckpointError(f"{run} has no {name}: the run is not complete, or train.ema was not set")
    newest = Checkpoints(run, 1).latest(say)
    if newest is None:
        stages = sorted(p.parent.name for p in run.glob("*/model.safetensors"))
        hint = f"; it holds the stages {', '.join(stages)}: give {run / stages[-1]}" if stages else ""
        raise CheckpointError(f"{run} holds neither model.safetensors nor a checkpoint{hint}")
    say(f"{run} is not complete: using {newest.path.name}")
    return newest.path
