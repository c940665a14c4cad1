"""Weights of others as yet others read them: official files <-> folders of transformers, with decoder or head, without a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor

import tubelet
from tubelet.api._common import local
from tubelet.api._outside import _Beside, _beside, data_settings
from tubelet.api.exporting import _check_place, _unofficial, _write_folder, _write_official
from tubelet.api.loading import _weights_file, _written_by_us
from tubelet.config import parse
from tubelet.data.settings import DataSettings
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import transformers_videomae as theirs
from tubelet.interop import videomae as official
from tubelet.interop.families import family_of
from tubelet.interop.report import some
from tubelet.interop.transformers_settings import CARRIED, IMAGENET, to_config, to_preprocessor
from tubelet.interop.whole import DECODER_HEADS, Whole, of_official, of_transformers
from tubelet.methods.videomae import Config
from tubelet.nn.encoder import SIZES
from tubelet.train.checkpoint import read_meta
from tubelet.weights import ENDINGS, INDEX, read_sharded, read_weights, verified

Form = Literal["hf", "official"]
FORMS: tuple[Form, ...] = ("hf", "official")
FILES = (".pth", ".safetensors")
_EPS = Config.model_fields["eps"].default  # what the official code computes with


@dataclass(frozen=True)
class Converted:
    """What was written. ``read``, ``what``: the layouts before and after. ``tensors``: how many. ``dropped``: names of the source that are
    no part of its model. ``notes``: what was taken for granted, and what the target does not say or computes otherwise."""

    path: Path
    to: Form
    read: str
    what: str
    tensors: int
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lost = [f"dropped: {some(self.dropped)}"] if self.dropped else []
        said = f"{self.path}: {self.what}, {self.tensors} tensors, from: {self.read}"
        return "\n".join([said, *lost, *(f"note: {note}" for note in self.notes)])


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Form | None = None,
    overwrite: bool = False,
    settings: Sequence[str] = (),
    download: bool = False,
    sha256: str | None = None,
) -> Converted:
    """Write an official VideoMAE file or a folder of transformers in the other layout, values bit for bit, with its decoder or head.

    ``to``: "hf" = a folder, "official" = a .pth or .safetensors file; None = by the ending of ``out``. ``settings``: what an official file
    does not say (``method.heads=6``, ``method.decoder.heads=3``, ``frames=16``, ``size=224``). ``overwrite``: replace what ``out`` holds.
    ``download``: fetch an ``hf://`` source that the local cache lacks. ``sha256``: what the source must have, before it is opened.
    Nothing in the source is executed; what is written is there whole or not at all. Raises CheckpointError for a source that is missing,
    damaged, of another family, or not whole; ConfigError, also with all that the target cannot express.
    """
    out = Path(out)
    form = _form(out, to)
    source = local(source, download=download)
    path = _weights_file(source, "auto")
    _check_apart(source, path, out)
    _check_place(out, form, overwrite)
    if sha256 is not None:
        verified(path, sha256)
    if _written_by_us(path):
        read_meta(path)  # says what is wrong with a damaged file
        raise ConfigError(f"{path} is of a run of Tubelet, which says more than weights: tubelet export {source} {out} --to {form}")
    whole, data, names, beside = _read(path, settings)
    if form == "official":
        ignored = [text for text in settings if not text.startswith("method.")]
        if ignored and beside.how.get("described") is not None:  # whose own clips are known
            raise ConfigError(f"{', '.join(ignored)}: an official file says nothing of clips; leave it out")
        return _to_official(whole, out, names)
    given = {text.removeprefix("data.").split("=")[0].strip() for text in settings}
    return _to_hf(whole, out, data, names, beside, given)


def _form(out: Path, to: str | None) -> Form:
    if to is not None and to not in FORMS:
        raise ConfigError(f"to={to!r}: there are {', '.join(FORMS)}")
    is_file = out.suffix in (".safetensors", *ENDINGS)
    if to == "hf" and is_file:
        raise ConfigError(f"{out} is named like a file; to=hf writes a folder")
    if to == "official" or is_file:
        return "official"
    return "hf"


def _check_apart(source: Path, path: Path, out: Path) -> None:
    """Refuse to write over what is read. Raises ConfigError."""
    place = out.absolute().resolve()
    held = [path.absolute(), path.resolve()]  # files of the hub's cache are links
    folder = source if source.is_dir() else path.parent if path.name.endswith(INDEX) else None
    if place in held or any(place in file.parents for file in held) or (folder and folder.resolve() in place.parents):
        raise ConfigError(f"{out} is, holds or lies in {source}, which is read: give another place")


def _read(path: Path, settings: Sequence[str]) -> tuple[Whole, DataSettings, tuple[str, ...], _Beside]:
    """(the model, how its clips are made, names of its classes or none, what stands beside it)."""
    state = read_sharded(path) if path.suffix == ".json" else read_weights(path)
    family = family_of(state, path)
    if family == "image":
        raise CheckpointError(f"{path} holds an image model; converted are VideoMAE's files. tubelet.load reads it as an encoder")
    beside = _beside(path, family)
    method = [text.removeprefix("method.") for text in settings if text.startswith("method.")]
    data = data_settings(parse(DataSettings, beside.data, where=f"{path.parent}, data"), settings)
    if family == "official":
        if beside.hub is not None:
            beside.hub.check(state, path)
        how = {"frames": data.frames, "size": data.hw, "settings": method, "said": beside.how.get("said")}
        return of_official(state, path, **how), data, (), beside
    if beside.how["described"] is None:
        raise CheckpointError(f"{path} has the names of transformers, whose config.json must be beside it: give that folder")
    whole = of_transformers(state, path, described=beside.how["described"], settings=method)
    return whole, data, _class_names(path.parent, whole.classes), beside


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    """By number, as a config.json names them; none where it does not name that many."""
    labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label")
    numbers = [str(i) for i in range(count)]
    return tuple(str(labels[i]) for i in numbers) if isinstance(labels, Mapping) and sorted(labels) == sorted(numbers) else ()


def _to_hf(
    whole: Whole, out: Path, data: DataSettings, names: tuple[str, ...], beside: _Beside, given: set[str]
) -> Converted:  # fmt: skip
    architecture = theirs.LAYOUTS[whole.layout]
    wrong = ["its masking's own weights"] if any(name.startswith("masking.") for name in whole.state) else []
    classes = names or tuple(f"LABEL_{i}" for i in range(whole.classes))
    how: dict[str, Any] = {"frames": data.frames, "size": data.hw, "channels": whole.channels, "norm": whole.norm, "classes": classes}
    try:
        said = to_config(whole.config, architecture=architecture, **how)
    except ConfigError as error:
        raise ConfigError([*error.problems, *(f"transformers cannot express {line}" for line in wrong)]) from None
    if wrong:
        raise ConfigError([f"transformers cannot express {line}" for line in wrong])
    said["dtype"] = str(whole.state["encoder.embed.weight"].dtype).removeprefix("torch.")
    carried = {name: value for name, value in data.model_dump(mode="json").items() if name in CARRIED}
    if beside.data.keys() & carried.keys() or given & carried.keys():
        said["tubelet"] = {"version": tubelet.__version__, "data": carried}
    preprocessor = to_preprocessor(whole.config, data.hw, whole.channels)
    named = _own(theirs.to_transformers(whole.state, whole.layout, stored=True))

    def write(folder: Path) -> None:
        for name, plain in (("config.json", said), ("preprocessor_config.json", preprocessor)):
            (folder / name).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        safetensors.torch.save_file(named, folder / "model.safetensors", {"format": "pt"})

    notes = list(whole.notes)
    if not beside.data:
        clips = [
            text for name, text in (("frames", f"{data.frames} frames"), ("size", "{}x{} pixels".format(*data.hw))) if name not in given
        ]
        notes += [f"clips of {' of '.join(clips)}, which the file does not say: --set frames=N, --set size=N"] if clips else []
    if not beside.pixels:
        notes.append("its folder does not say how pixels are normalised: ImageNet's mean and standard deviation")
    if classes and not names:
        notes.append(f"the classes are named {classes[0]} to {classes[-1]}: the source has no names")
    _write_folder(out, write)
    return Converted(out, "hf", whole.what, architecture, len(named), whole.dropped, (*notes, *_computed(whole)))


def _computed(whole: Whole) -> tuple[str, ...]:
    """What transformers computes otherwise (page section 7)."""
    name = {"pretrain": "decoder.norm", "classifier": "" if whole.norm else "fc_norm", "encoder": ""}[whole.layout]
    if not name or whole.config.eps == theirs.FIXED_EPS or whole.what.startswith("transformers"):
        return ()
    eps = whole.config.eps
    return (f"transformers computes {name} with eps {theirs.FIXED_EPS:g}; for the very same numbers set model.{name}.eps = {eps:g}",)


def _to_official(whole: Whole, out: Path, names: tuple[str, ...]) -> Converted:
    layout: official.Layout = "pretrain" if whole.layout == "pretrain" or (whole.layout == "encoder" and whole.norm) else "classifier"
    wrong = _unofficial(whole.config, decoder=whole.layout == "pretrain")
    if whole.layout == "pretrain" and not whole.norm:
        wrong.append("a decoder on an encoder without final norm (use_mean_pooling: true)")
    if wrong:
        raise ConfigError([f"an official file cannot express {line}" for line in wrong])
    named = _own(official.to_official(whole.state, layout))
    if whole.layout == "encoder" and layout == "classifier":
        named |= official.pooled_norm(whole.config.width)
    _write_official(out, named)
    what = "VideoMAE encoder" if whole.layout == "encoder" else official.LAYOUTS[layout]
    return Converted(out, "official", whole.what, what, len(named), whole.dropped, (*whole.notes, *_unsaid(whole, names)))


def _unsaid(whole: Whole, names: tuple[str, ...]) -> list[str]:
    """What an official file has no place for and its reader would take otherwise, one line each."""
    config, said = whole.config, list[str]()
    if config.attention != "cosine" and config.head_count != {size.dim: size.heads for size in SIZES.values()}.get(config.width):
        said.append(f"{config.head_count} attention heads: --set method.heads={config.head_count}")
    dim, _, heads = config.decoder_shape
    if whole.layout == "pretrain" and heads != DECODER_HEADS.get(dim):
        said.append(f"{heads} attention heads of the decoder: --set method.decoder.heads={heads}")
    if config.eps != _EPS:
        said.append(f"eps {config.eps:g}: --set method.eps={config.eps:g}; the official code computes with {_EPS:g}")
    if [list(config.mean), list(config.std)] != [IMAGENET["mean"], IMAGENET["std"]]:
        said.append(f"mean {list(config.mean)} and std {list(config.std)} of its pixels")
    if any(name != f"LABEL_{i}" for i, name in enumerate(names)):
        said.append(f"the names of the classes ({some(names)})")
    return [f"an official file does not say {line}" for line in said]


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as files want them."""
    return {name: value.detach().contiguous().clone() for name, value in state.items()}
