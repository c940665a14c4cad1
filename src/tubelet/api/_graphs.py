"""A trained model as a graph of operators: what of it is exported, and what is written beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import tubelet
from tubelet.api.classifiers import _finetuned_file, load_classifier
from tubelet.api.loading import _weights_file, load
from tubelet.core import Frozen, Tokens
from tubelet.data.settings import DataSettings
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import graphs
from tubelet.nn.video import VideoEncoder
from tubelet.train.checkpoint import atomic
from tubelet.weights import sha256_of


@dataclass(frozen=True)
class Chosen:
    """What of a model becomes a graph. ``output``: the answer's name. ``shape``: its shape, in words."""

    encoder: VideoEncoder
    answer: Callable[[Tokens], Tensor]
    output: str
    data: DataSettings
    path: Path
    classes: tuple[str, ...] = ()

    def graph(self) -> graphs.Deployed:
        """Of one size of clips: that of the run, or what settings asked for."""
        return graphs.Deployed(encoder=self.encoder, answer=self.answer, frames=self.data.frames, size=self.data.hw)

    def about(self) -> dict[str, str]:
        """What whoever runs the graph needs to know, as text."""
        h, w = self.data.hw
        size = f"(batch, {self.encoder.embed.channels}, {self.data.frames}, {h}, {w})"
        said = {
            "tubelet": tubelet.__version__,
            "input": f"{graphs.INPUT} {size} uint8, RGB pixels 0..255; mean and standard deviation are applied inside",
            "output": self.output,
            "weights_sha256": sha256_of(self.path),
        }
        clips = {name: getattr(self.data, name) for name in ("frames", "stride", "fps", "sampling")} | {"size": [h, w]}
        said |= {name: json.dumps(value) for name, value in clips.items() if value is not None}
        return said | ({"classes": json.dumps(list(self.classes))} if self.classes else {})


def refuse_settings(settings: Sequence[str]) -> None:
    """Raises ConfigError: a classifier's head was trained on clips and cubes of one kind."""
    if settings:
        raise ConfigError(
            f"{', '.join(settings)}: a fine-tuned classifier keeps its settings; its encoder alone (--encoder) can be fitted to others"
        )


def choose(
    run: str | Path, *, weights: str, alone: bool, pool: str | None, imports: Sequence[str | Path], settings: Sequence[str]
) -> Chosen:
    """The classifier of a fine-tuned run, whose answer are logits; or, of anything else, with ``alone``, or with a ``pool``, the encoder.

    Raises ConfigError, CheckpointError.
    """
    path = _weights_file(Path(run), weights)  # of an unfinished run its newest checkpoint
    if pool is None and not alone and _finetuned_file(path, weights) is not None:
        refuse_settings(settings)
        tuned = load_classifier(path, weights=weights, device="cpu", imports=imports)
        encoder = tuned.model.encoder.inner if isinstance(tuned.model.encoder, Frozen) else tuned.model.encoder
        assert isinstance(encoder, VideoEncoder)
        return Chosen(encoder, tuned.model.readout, "logits", tuned.data, tuned.path, tuned.classes)
    loaded = load(path, weights=weights, device="cpu", imports=imports, settings=settings)
    encoder = getattr(loaded.model, "encoder", None)
    if not isinstance(encoder, VideoEncoder):
        raise ConfigError(f"{run}: a {type(loaded.model).__name__} has no video encoder that could be exported as a graph")
    output = "tokens" if pool in (None, "tokens") else "features"
    return Chosen(encoder.eval(), graphs.pooled(encoder, pool or "tokens"), output, loaded.data, loaded.path)


def to_program(chosen: Chosen, out: Path) -> tuple[str, ...]:
    """Write a .pt2 archive, whole or not at all; notes on it. Raises CheckpointError."""
    with atomic(out) as temporary:
        off = graphs.write_program(chosen.graph(), temporary, chosen.about(), out)
    return (_checked("torch.export.load", off), *_reading(chosen))


def to_onnx(chosen: Chosen, out: Path) -> tuple[str, ...]:
    """Write an .onnx file, and one beside it where 2 GiB do not hold the weights; notes on it. Raises CheckpointError."""
    graph = chosen.graph()
    mark = uuid.uuid4().hex[:8]
    # Of its own name, so that an older graph keeps its weights until the new one is in its place.
    data = None if graphs.parts(graph) == 1 else f"{out.name}.{mark}.data"
    place = out.absolute().with_name(f".{out.name}.{mark}.tmp")
    try:
        place.mkdir(parents=True)
        off = graphs.write_onnx(graph, place / out.name, chosen.about(), out, output=chosen.output, data=data)
        for name in ([data] if data else []) + [out.name]:  # the graph last: what it names is there
            with open(place / name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(place / name, out.absolute().with_name(name))
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    checked = "not run: the package onnxruntime is not installed" if off is None else _checked("ONNX Runtime", off)
    beside = (f"the weights are in {data}, which must stay beside it",) if data else ()
    return (checked, *beside, *_left(out, data), *_reading(chosen))


def _left(out: Path, data: str | None) -> tuple[str, ...]:
    """Weights of earlier graphs of this name: one that was renamed since may still read them, so they are not deleted."""
    older = [p for p in out.absolute().parent.iterdir() if re.fullmatch(re.escape(out.name) + r"\.[0-9a-f]{8}\.data", p.name)]
    names = ", ".join(sorted(f"{p.name} ({p.stat().st_size / 2**30:.2g} GiB)" for p in older if p.name != data))
    return (f"left from earlier exports, to be deleted where no renamed graph reads it: {names}",) if names else ()


def _checked(by: str, off: float) -> str:
    batches = ", ".join(map(str, graphs.BATCHES))
    return f"run by {by} on batches of {batches} clips: differs by at most {off:.1e} of the largest number"


def _reading(chosen: Chosen) -> tuple[str, ...]:
    about: Mapping[str, str] = chosen.about()
    names = f"; {len(chosen.classes)} classes in its metadata" if chosen.classes else ""
    return (f"reads {about['input']}; answers {chosen.output}{names}",)
