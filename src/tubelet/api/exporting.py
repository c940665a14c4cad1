"""A trained model as others read it: a folder of transformers, an official file, one file of ours, or a graph of operators."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

import tubelet
from tubelet.api._common import local
from tubelet.api._graphs import choose, refuse_settings, to_onnx, to_program
from tubelet.api.classifiers import _finetuned_file, load_classifier
from tubelet.api.loading import _tensors, _weights_file, load
from tubelet.config import parse
from tubelet.core import Frozen
from tubelet.data.settings import DataSettings
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import transformers_videomae as theirs
from tubelet.interop import videomae as official
from tubelet.interop.graphs import need_onnx
from tubelet.interop.transformers_settings import CARRIED, odd_targets, to_config, to_preprocessor
from tubelet.methods.classifier import Classifier
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.nn.video import VideoEncoder
from tubelet.train.checkpoint import atomic, read_meta, torch_file, write_tensors
from tubelet.weights import is_foreign, verified

To = Literal["hf", "official", "safetensors", "onnx", "torch-export"]
TARGETS: tuple[To, ...] = ("hf", "official", "safetensors", "onnx", "torch-export")
GRAPHS = ("onnx", "torch-export")
_ENDINGS = {"official": (".pth", ".safetensors"), "safetensors": (".safetensors",), "onnx": (".onnx",), "torch-export": (".pt2",)}
ALONE = "the encoder alone has none of it: encoder=True, on the command line --encoder"
# What a model's folder holds, and --overwrite may therefore remove.
_REPLACED = re.compile(
    r"(config|(video_)?preprocessor_config)\.json|(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)


@dataclass(frozen=True)
class Exported:
    """What was written. ``what``: the class of transformers, or the layout. ``tensors``: how many. ``notes``: what differs there."""

    path: Path
    to: To
    what: str
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.path}: {self.what}, {self.tensors} tensors", *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class _Model:
    """What is exported. ``state``: our names. ``settings``: of its method. ``wrong``: what of it a VideoMAE of others does not have."""

    layout: theirs.Layout
    module: nn.Module
    encoder: VideoEncoder
    state: Mapping[str, Tensor]
    settings: Config
    data: DataSettings
    classes: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def norm(self) -> bool:
        """Whether a norm follows the encoder's blocks."""
        return isinstance(self.encoder.trunk.norm, nn.LayerNorm)


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: To = "hf",
    weights: str = "auto",
    encoder: bool = False,
    pool: str | None = None,
    overwrite: bool = False,
    imports: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    download: bool = False,
    sha256: str | None = None,
) -> Exported:
    """Write the model of a run folder, or of anything that :func:`tubelet.load` reads, for others.

    ``to``: "hf" = a folder that transformers opens with ``from_pretrained`` (VideoMAEForPreTraining, VideoMAEForVideoClassification for a
    fine-tuned run, VideoMAEModel for an encoder); "official" = a .pth or .safetensors file with the official VideoMAE names;
    "safetensors" = one file with everything that :func:`tubelet.load` needs; "onnx" = an .onnx file, "torch-export" = a .pt2 archive that
    ``torch.export.load`` opens: a graph that reads (B, C, T, H, W) uint8 pixels, any number of clips, and is held to the model before it
    is written. A graph answers the logits of a fine-tuned run; of an encoder its ``pool``: tokens (B, N, D), the default, mean (B, D),
    slots (B, t*D) or class (B, D). ``weights``, ``imports``, ``settings``, ``download``, ``sha256``: as
    for :func:`tubelet.load`. ``encoder``: the encoder alone. ``overwrite``: replace what ``out`` holds.
    Written whole or not at all. Raises ConfigError that names what the target cannot express, CheckpointError.
    """
    if to not in TARGETS:
        raise ConfigError(f"to={to!r}: there are {', '.join(TARGETS)}")
    if pool is not None and to not in GRAPHS:
        raise ConfigError(f"pool={pool}: pooled answers are for {' and '.join(GRAPHS)}; to={to} writes weights")
    out = Path(out)
    _check_place(out, to, overwrite)
    if to == "onnx":
        need_onnx()
    run = local(run, download=download)
    if sha256 is not None:
        verified(_weights_file(run, weights), sha256)
    if to in GRAPHS:
        chosen = choose(run, weights=weights, alone=encoder, pool=pool, imports=imports, settings=settings)
        notes = to_onnx(chosen, out) if to == "onnx" else to_program(chosen, out)
        tensors = sum(1 for _ in chosen.encoder.parameters())
        return Exported(out, to, {"onnx": "ONNX graph", "torch-export": "program of torch.export"}[to], tensors, notes)
    if to == "safetensors":
        if settings:
            raise ConfigError(f"{', '.join(settings)}: to=safetensors keeps a run as it is; settings change encoders for other targets")
        return _whole(Path(run), out, weights, encoder)
    model = _open(run, weights=weights, alone=encoder, imports=imports, settings=settings)
    return _to_hf(model, out) if to == "hf" else _to_official(model, out)


def _open(run: str | Path, *, weights: str, alone: bool, imports: Sequence[str | Path], settings: Sequence[str]) -> _Model:
    path = _weights_file(Path(run), weights)  # of an unfinished run its newest checkpoint, which holds a classifier's head, too
    if not alone and _finetuned_file(path, weights) is not None:
        refuse_settings(settings)
        tuned = load_classifier(path, weights=weights, device="cpu", imports=imports)
        return _classifier(tuned.model, _method(tuned.config, run), tuned.data, tuned.classes)
    loaded = load(path, weights=weights, device="cpu", imports=imports, settings=settings)
    method, encoder = _method(loaded.config, run), loaded.model.get_submodule("encoder")
    assert isinstance(encoder, VideoEncoder), "of the kind videomae"
    if isinstance(loaded.model, VideoMAE) and not alone:
        beside = sorted({name.split(".")[0] for name in _tensors(loaded.path) if name.startswith(("masking.", "align."))})
        said = {"masking": "its masking's own weights", "align": "its alignment with text"}
        state = {name: value for name, value in loaded.model.state_dict().items() if not name.startswith(("masking.", "align."))}
        wrong = tuple(f"{said[name]} ({ALONE})" for name in beside)
        return _Model("pretrain", loaded.model, encoder, state, method, loaded.data, wrong=wrong)
    return _Model("encoder", loaded.model, encoder, _named(encoder), method, loaded.data)


def _classifier(model: Classifier, method: Config, data: DataSettings, classes: tuple[str, ...]) -> _Model:
    encoder = model.encoder.inner if isinstance(model.encoder, Frozen) else model.encoder
    assert isinstance(encoder, VideoEncoder)
    head = {name: value for name, value in model.state_dict().items() if name.startswith("readout.")}
    wrong = [f"classifier.pool {model.config.pool}: it averages all tokens"] if model.config.pool != "mean" else []
    wrong += ["classifier.norm tokens: it has its norm after the average"] if model.config.norm != "pooled" else []
    return _Model("classifier", model, encoder, _named(encoder) | head, method, data, classes, tuple(wrong))


def _named(encoder: VideoEncoder) -> dict[str, Tensor]:
    return {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def _method(config: Mapping[str, Any], run: str | Path) -> Config:
    kind = config["method"].get("kind")
    if kind != "videomae":
        raise ConfigError(f"{run} is of the method {kind}; exported are videomae and classifiers on it")
    return parse(Config, config["method"], where=f"{run}, method")


def _to_hf(model: _Model, out: Path) -> Exported:
    architecture = theirs.LAYOUTS[model.layout]
    how: dict[str, Any] = {"frames": model.data.frames, "size": model.data.hw, "channels": model.encoder.embed.channels}
    try:
        said = to_config(model.settings, architecture=architecture, norm=model.norm, classes=model.classes, **how)
    except ConfigError as error:
        raise ConfigError([*error.problems, *(f"transformers cannot express {line}" for line in model.wrong)]) from None
    if model.wrong:
        raise ConfigError([f"transformers cannot express {line}" for line in model.wrong])
    data = model.data.model_dump(mode="json")
    said["tubelet"] = {"version": tubelet.__version__, "data": {name: data[name] for name in CARRIED}}
    state = {n: v.detach().float().contiguous() for n, v in theirs.to_transformers(model.state, model.layout, stored=True).items()}
    preprocessor = to_preprocessor(model.settings, model.data.hw, model.encoder.embed.channels)

    def write(folder: Path) -> None:
        for name, plain in (("config.json", said), ("preprocessor_config.json", preprocessor)):
            (folder / name).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        safetensors.torch.save_file({n: v.clone() for n, v in state.items()}, folder / "model.safetensors", {"format": "pt"})

    _write_folder(out, write)
    return Exported(out, "hf", architecture, len(state), _notes(model))


def _notes(model: _Model) -> tuple[str, ...]:
    """What transformers computes otherwise (page section 7)."""
    name, norm = {
        "pretrain": ("decoder.norm", model.module.decoder.norm if isinstance(model.module, VideoMAE) else None),
        "classifier": ("fc_norm", model.module.readout.head.norm if isinstance(model.module, Classifier) else None),
        "encoder": ("", None),
    }[model.layout]
    if not isinstance(norm, nn.LayerNorm) or norm.eps == theirs.FIXED_EPS:
        return ()
    return (
        f"transformers computes {name} with eps {theirs.FIXED_EPS:g}, this model with {norm.eps:g}: features are the same, what follows "
        f"differs slightly; after from_pretrained set model.{name}.eps = {norm.eps:g}",
    )


def _to_official(model: _Model, out: Path) -> Exported:
    layout: official.Layout = "classifier" if model.layout == "classifier" or not model.norm else "pretrain"
    wrong = [line for line in model.wrong if not line.startswith("its masking")]  # AdaMAE's sampler has official names
    wrong += _unofficial(model.settings, decoder=model.layout == "pretrain")
    state = dict(model.state)
    if isinstance(model.module, VideoMAE) and model.layout == "pretrain":
        state |= {name: value for name, value in model.module.state_dict().items() if name.startswith("masking.")}
    try:
        named = official.to_official(state, layout)
    except CheckpointError as error:
        named, wrong = {}, wrong or [str(error)]
    if wrong:
        raise ConfigError([f"an official file cannot express {line}" for line in wrong])
    if model.layout == "encoder" and layout == "classifier":
        named |= official.pooled_norm(model.settings.width)
    named = {name: value.detach().contiguous().clone() for name, value in named.items()}
    _write_official(out, named)
    return Exported(out, "official", official.LAYOUTS[layout], len(named))


def _write_official(out: Path, named: Mapping[str, Tensor]) -> None:
    """A .pth file as the official code saves them, or a .safetensors file; whole or not at all. Raises CheckpointError."""
    with atomic(out) as temporary:
        if out.suffix == ".pth":
            with torch_file(temporary) as file:
                torch.save({"model": dict(named)}, file)
        else:
            safetensors.torch.save_file(dict(named), temporary, {"format": "pt"})


def _unofficial(config: Config, *, decoder: bool) -> list[str]:
    """What official files have no tensors for and their code does otherwise, one line each."""
    places = {"position": config.position, **({"decoder.position": config.decoder.position} if decoder else {})}
    said = [f"{name} {kind}: it has sinusoid and learned" for name, kind in places.items() if kind not in (None, "sinusoid", "learned")]
    return [*said, *odd_targets(config)] if decoder else said


def _whole(run: Path, out: Path, weights: str, alone: bool) -> Exported:
    path = _weights_file(run, weights)
    if alone or path.suffix != ".safetensors" or is_foreign(path):
        raise ConfigError(f"to=safetensors keeps a run of Tubelet whole; for {'an encoder alone' if alone else path} take hf or official")
    meta, tensors = read_meta(path), _tensors(path)
    write_tensors(out, tensors, meta)
    return Exported(out, "safetensors", "Tubelet's own file", len(tensors))


def _check_place(out: Path, to: To, overwrite: bool) -> None:
    """Refuse a place that holds something else, before anything is read. Raises ConfigError."""
    if to == "hf":
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file; to=hf writes a folder")
        held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if held and not overwrite:
            raise ConfigError(f"{out} is not empty: give another folder, or overwrite=True (--overwrite)")
        strange = [name for name in held if not _REPLACED.fullmatch(name) or (out / name).is_dir()]
        if strange:
            raise ConfigError(
                f"{out} holds {strange[0]}, which is no part of an exported model: it is not overwritten; give another folder"
            )
        return
    endings = _ENDINGS[to]
    if out.suffix not in endings:
        raise ConfigError(f"to={to} writes one file: {out} must end in {' or '.join(endings)}")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; to={to} writes a file")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists: give another name, or overwrite=True (--overwrite)")


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """A folder whole or not at all: filled beside its place, then renamed. Raises CheckpointError where that fails."""
    out = out.absolute()
    mark = uuid.uuid4().hex[:8]
    made, old = (out.with_name(f".{out.name}.{mark}.{kind}") for kind in ("tmp", "old"))
    try:
        made.mkdir(parents=True)
        write(made)
        for path in made.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(made, out)
        except OSError:
            if old.exists():
                os.rename(old, out)
            raise
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
