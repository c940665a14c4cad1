"""Classifiers on video encoders: what one starts from, and a fine-tuned one ready to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.api._common import build, local
from tubelet.api.loading import Loaded, _tensors, load
from tubelet.config import import_file, parse
from tubelet.data.settings import DataSettings, Views
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.hub import origin
from tubelet.interop.report import by
from tubelet.methods.classifier import Classifier
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.nn.init import truncated
from tubelet.nn.position import Learned, Separable, resize_table
from tubelet.nn.video import VideoEncoder
from tubelet.recipe import StageSettings
from tubelet.train.checkpoint import read_meta
from tubelet.train.distributed import pick_device
from tubelet.weights import is_foreign, sha256_of

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Start:
    """An encoder to fine-tune. ``method``: its settings. ``data``: how its clips were made. ``state``: its weights, None = random ones.
    ``shape``: slots, rows and columns of its position table. ``about``: for the record, path and sha256 of the file, ``method.*`` that were
    given, and where an outside file's own table was read: the ``clips`` (frames, H, W) that it was read for, and its ``grid``."""

    method: Mapping[str, Any]
    data: DataSettings
    state: Mapping[str, Tensor] | None
    shape: Shape
    about: Mapping[str, Any]


def start_of(
    run: str | Path | Loaded,
    *,
    weights: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    sha256: str | None = None,
    download: bool = False,
) -> Start:
    """The encoder of a pre-training run, a fine-tuned run or an outside file, as :func:`tubelet.load` reads them.

    ``random``: the same architecture untrained, the from-scratch control. ``settings``: ``method.*`` of an outside file, and of a run its
    ``method.patch``; frames and size of the clips, which the table of a bare file is read for. ``sha256``: what the file's must be.
    ``download``: fetch an ``hf://`` one. Raises CheckpointError, ConfigError.
    """
    loaded = run
    if not isinstance(loaded, Loaded):
        more: dict[str, Any] = {"sha256": sha256, "download": download}
        loaded = load(loaded, weights=weights, device="cpu", random=random, imports=imports, settings=settings, **more)
    elif sha256 is not None:
        raise ConfigError("sha256: this model is loaded already; give it to tubelet.load")
    encoder, file = _encoder_of(loaded.model, loaded.config), loaded.path
    state = None if random else {k: v.detach().cpu() for k, v in encoder.state_dict().items()}
    about = {"path": str(file), "sha256": None if random else loaded.sha256 or sha256_of(file), "random": random}
    about |= {"settings": list(loaded.settings)} if loaded.settings else {}
    if loaded.report is not None and isinstance(encoder.position, Learned | Separable):  # a bare file does not say its grid
        about |= {"clips": [loaded.data.frames, *loaded.data.hw], "grid": list(encoder.position.shape)}
    about |= {"hub": place} if (place := origin(file)) else {}  # the path of a cache is that of one machine
    return Start(loaded.config["method"], loaded.data, state, encoder.position.shape, about)


def build_encoder(method: Mapping[str, Any], data: DataSettings, seed: int = 0) -> VideoEncoder:
    """A method's encoder for such clips, freshly started. Raises ConfigError for clips that its patch does not cut."""
    plain = {"method": method, "masking": None, "data": data.model_dump(mode="json"), "train": {"steps": 1, "seed": seed}}
    return _encoder_of(build(parse(StageSettings, plain)), plain)


def build_classifier(config: ClassifierConfig, start: Start, data: DataSettings, *, classes: int, seed: int) -> Classifier:
    """A classifier on the encoder of ``start``, for clips of ``data``. Its head, and the encoder where ``start`` has no weights (truncated
    normal, page section 2), are a function of ``seed``. Learned position tables are resized to the clips.
    """
    encoder = build_encoder(start.method, data, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start.state is None:
            truncated(encoder)
        else:
            _fill(encoder, start)
        return config.build(encoder=encoder, classes=classes)


def _fill(encoder: VideoEncoder, start: Start) -> None:
    assert start.state is not None
    state, old, new = dict(start.state), start.shape, encoder.position.shape
    tables: dict[str, tuple[Shape, Shape]] = {
        "position.rows": (old, new),
        "position.space": ((1, *old[1:]), (1, *new[1:])),
        "position.time": ((old[0], 1, 1), (new[0], 1, 1)),
    }
    for name in tables.keys() & state.keys():
        state[name] = resize_table(state[name], *tables[name])
    try:
        missing, unknown = encoder.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{start.about['path']} does not fit its own settings: {error}") from None
    wrong = [*(name for name in missing if not name.startswith("trunk.norm.")), *unknown]  # a fine-tuned encoder has no final norm
    if wrong:
        raise CheckpointError(f"{start.about['path']} does not fit its own settings: {', '.join(wrong[:4])}")


def _encoder_of(model: Any, config: Mapping[str, Any]) -> VideoEncoder:
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, VideoEncoder):
        raise ConfigError(f"a {config['method'].get('kind', 'model')} has no video encoder that could be fine-tuned")
    return encoder


def _finetuned_file(run: Path, weights: str) -> Path | None:
    """The weights of a fine-tuned run; None where ``run`` is something else."""
    name = "model_ema.safetensors" if weights == "ema" else "model.safetensors"
    path = run / name if run.is_dir() else run
    if path.suffix != ".safetensors" or not path.is_file() or is_foreign(path):
        return None
    return path if "classifier" in read_meta(path).get("config", {}) else None


@dataclass(frozen=True)
class LoadedClassifier:
    """A fine-tuned classifier in eval mode on its device. ``classes``: names by number. ``data``: how its clips are made. ``views``: how
    its test videos were looked at. ``config``: the resolved settings."""

    model: Classifier
    classes: tuple[str, ...]
    data: DataSettings
    views: Views
    config: Mapping[str, Any]
    path: Path

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def predict(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W), uint8 0..255 or float [0, 1] -> class probabilities (B, C). Raises ValueError for another layout or size."""
        return self.model(video.to(self.device)).float().softmax(1)


def load_classifier(
    run: str | Path, *, weights: str = "auto", device: str = "auto", imports: Sequence[str | Path] = ()
) -> LoadedClassifier:
    """The classifier of a run folder of :func:`tubelet.finetune`, or of one of its .safetensors files.

    ``weights``: auto (the last ones) | ema (their average over training, where train.ema was set). ``imports``: as for
    :func:`tubelet.load`. Raises CheckpointError, also for a pre-training run.
    """
    for file in imports:
        import_file(file)
    if weights not in ("auto", "ema"):
        raise ConfigError(f"weights={weights!r}: there are auto and ema")
    run = local(run)
    path = _finetuned_file(run, weights)
    if path is None:
        raise CheckpointError(f"{run} {_other(run, weights)}")
    config = read_meta(path)["config"]
    data = parse(DataSettings, config["data"], where=str(path))
    settings = parse(ClassifierConfig, config["classifier"], where=str(path))
    classes = tuple(config["classes"])
    with torch.random.fork_rng(devices=[]):
        model = settings.build(encoder=build_encoder(config["method"], data), classes=len(classes))
        if settings.frozen:
            start, seed = _frozen_start(config, path, imports), config["train"]["seed"]
            model = build_classifier(settings, start, data, classes=len(classes), seed=seed)
    try:
        model.load_state_dict(_tensors(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own settings: {error}") from None
    views = parse(Views, config["views"], where=str(path))
    return LoadedClassifier(model.to(pick_device(device, "device")).eval(), classes, data, views, config, path)


def _frozen_start(config: Mapping[str, Any], path: Path, imports: Sequence[str | Path]) -> Start:
    """The encoder that a classifier of a frozen one was trained on. Raises CheckpointError where its file is gone or another."""
    asked = config["start"]
    place = Path(asked["path"])
    if not place.is_file() and asked.get("hub"):
        place = local(asked["hub"]) / place.name
    if not place.is_file():
        raise CheckpointError(f"{path} needs the encoder that it was trained on, and {asked['path']} is not there")
    settings = list(asked.get("settings", ()))
    if clips := asked.get("clips"):
        settings += [f"data.frames={clips[0]}", f"data.size={list(clips[1:])}"]
    start = start_of(place, random=asked["random"], imports=imports, settings=settings)
    if start.about["sha256"] != asked["sha256"]:
        raise CheckpointError(f"{path} needs the encoder that it was trained on, and {place} has changed since")
    if (grid := asked.get("grid")) and tuple(grid) != start.shape:
        raise CheckpointError(f"{path} was trained with {place} read as positions for {by(grid)}, and it is read as {by(start.shape)} now")
    return start


def _other(run: Path, weights: str) -> str:
    """What a path is that holds no fine-tuned classifier."""
    if not run.exists():
        return "is no run folder or file: there is nothing of that name"
    if run.is_dir() and not (run / "model.safetensors").exists():
        return "holds no model.safetensors: it is no run of tubelet finetune, or not a complete one"
    if weights == "ema" and run.is_dir() and not (run / "model_ema.safetensors").exists():
        return "has no model_ema.safetensors: train.ema was not set"
    return f"holds an encoder, not a classifier; fine-tune it first: tubelet finetune {run} LABELLED --out FOLDER"
