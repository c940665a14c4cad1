"""A trained run's model, ready to encode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tubelet.api._common import build, say
from tubelet.config import import_file, kinds, parse
from tubelet.core import Batch, Method, Stream, Tokens
from tubelet.data.settings import DataSettings
from tubelet.errors import CheckpointError, ConfigError
from tubelet.recipe import StageSettings
from tubelet.train.checkpoint import Checkpoints, read_meta, read_tensors
from tubelet.train.distributed import pick_device


@dataclass(frozen=True)
class Loaded:
    """A trained (or, with ``random``, untrained) model, ready to encode.

    ``model``: the Method in eval mode on its device. ``data``: how its clips are made. ``config``: the resolved settings.
    """

    model: Method
    data: DataSettings
    config: Mapping[str, Any]
    path: Path

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> Tokens:
        """Tokens of clips: (B, 3, T, H, W), uint8 0..255 or float [0, 1]. Raises ValueError for another layout or size."""
        sample = torch.zeros(video.shape[0], dtype=torch.int64)
        return self.model.encode(Batch({"video": Stream(video)}, {}, sample).to(self.device))


def load(
    run: str | Path, *, weights: str = "auto", device: str = "auto", random: bool = False, imports: Sequence[str | Path] = ()
) -> Loaded:
    """The model of a run folder, or of one of its .safetensors files.

    ``weights``: auto (model.safetensors, or the newest checkpoint of an unfinished run) | ema. ``random``: the same architecture with
    random weights, as a control. ``imports``: your own files whose method the run used. Raises CheckpointError, ConfigError.
    """
    for file in imports:
        import_file(file)
    path = _weights_file(Path(run), weights)
    meta = read_meta(path)
    config = dict(meta.get("config", {}))
    if (config.get("masking") or {}).get("kind") not in kinds("tubelet.masking"):
        config["masking"] = None  # a user's own file, which encoding does not need
    stage = parse(StageSettings, {k: config[k] for k in ("method", "masking", "data", "train", "init") if k in config}, where=str(path))
    model = build(stage)
    if not isinstance(model, Method):
        raise CheckpointError(f"{path} holds a {config.get('method', {}).get('kind', 'model')}, which has no encoder to load")
    if not random:
        tensors = read_tensors(path)
        if any(k.startswith("model/") for k in tensors):
            tensors = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit its own settings: {error}") from None
    return Loaded(model.to(pick_device(device, "device")).eval(), stage.data, config, path)


def _weights_file(run: Path, weights: str) -> Path:
    if weights not in ("auto", "ema"):
        raise ConfigError(f"weights={weights!r}: there are auto and ema")
    if run.is_file():
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder or .safetensors file")
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
