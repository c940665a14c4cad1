"""An encoder or a classifier as a graph of operators that runs without Tubelet: ONNX, or a program of torch.export.

Both come from one trace. Mean and standard deviation of pixels and the table of positions are constants in it; the batch alone varies.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.core import TokenGrid, Tokens, patchify
from tubelet.errors import CheckpointError, ConfigError
from tubelet.nn import pool as pools
from tubelet.nn.video import AXES, VideoEncoder
from tubelet.train.checkpoint import torch_file

PoolName = Literal["tokens", "mean", "slots", "class"]
POOLS: tuple[PoolName, ...] = ("tokens", "mean", "slots", "class")
INPUT = "video"
OPSET = 18  # what the exporter's operators are written in; read by ONNX Runtime from 1.14 on
BATCHES = (1, 2, 5)  # that a written graph is checked with
TOLERANCE = 1e-4  # largest difference from PyTorch, in units of the largest number of the answer
ONE_FILE = 2**31 - 2**24  # bytes of weights that a single ONNX file may hold: protobuf ends at 2 GiB
ABOUT = "tubelet.json"  # what a .pt2 archive holds beside its program


class Deployed(nn.Module):
    """(B, C, T, H, W) uint8 pixels 0..255 of one clip size -> answers (B, ...) of ``answer``, which reads the tokens."""

    places: Tensor
    index: Tensor

    def __init__(self, *, encoder: VideoEncoder, answer: Callable[[Tokens], Tensor], frames: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.encoder, self.answer = encoder, answer
        self.shape = (encoder.embed.channels, frames, *size)
        self.grid = TokenGrid.of(self.shape[1:], encoder.embed.patch, AXES)
        index = torch.arange(self.grid.n)[None]
        if encoder.class_token is not None:
            index = torch.cat([index.new_full((1, 1), -1), index], dim=1)
        with torch.no_grad():
            self.register_buffer("places", encoder.position(index, self.grid).detach().clone())
        self.register_buffer("index", index)
        self.eval()

    def forward(self, video: Tensor) -> Tensor:
        encoder, batch = self.encoder, video.shape[0]
        x = encoder.embed.project(encoder.pixels(patchify(video, self.grid), channel=2))
        if encoder.class_token is not None:
            x = torch.cat([encoder.class_token.expand(batch, -1, -1), x], dim=1)
        return self.answer(encoder.trunk(Tokens(x + self.places, self.index.expand(batch, -1), self.grid)))

    @torch.no_grad()
    def reference(self, video: Tensor) -> Tensor:
        """The same by the encoder's own forward pass, which knows nothing of this class: what written graphs are held to."""
        return self.answer(self.encoder(video))

    def clips(self, batch: int) -> Tensor:
        """(B, C, T, H, W) uint8 noise, the same at every call."""
        return torch.randint(0, 256, (batch, *self.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(batch))


def pooled(encoder: VideoEncoder, pool: str) -> Callable[[Tokens], Tensor]:
    """Tokens -> "tokens" (B, N, D), the class token first where there is one; "mean" (B, D); "slots" (B, t*D): the means of all time slots,
    one after the other; "class" (B, D). Raises ConfigError for another word, and for a class token that the encoder does not have."""
    if pool not in POOLS:
        raise ConfigError(f"pool={pool!r}: there are {', '.join(POOLS)}")
    if pool == "class" and encoder.class_token is None:
        raise ConfigError("pool=class: this encoder has no class token; take tokens, mean or slots")
    found: dict[str, Callable[[Tokens], Tensor]] = {
        "tokens": lambda tokens: tokens.x,
        "mean": pools.mean,
        "slots": lambda tokens: pools.slots(tokens).flatten(1),
        "class": pools.class_token,
    }
    return found[pool]


def trace(model: Deployed) -> torch.export.ExportedProgram:
    """Its program for any batch."""
    with torch.no_grad(), _silent():
        made = torch.export.export(model, (model.clips(2),), dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}})
    for node in made.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return made


def write_program(model: Deployed, file: Path, about: Mapping[str, str], said: str | Path) -> float:
    """A .pt2 archive that ``torch.export.load`` opens, checked as it lies there: the largest difference found, in units of the largest
    number. ``about``: goes along as tubelet.json. ``said``: its name in messages. Raises CheckpointError, OSError."""
    program = trace(model)
    with torch_file(file) as out, _silent():
        torch.export.save(program, out, extra_files={ABOUT: json.dumps(dict(about), indent=2)})  # pyright: ignore[reportArgumentType]
    with open(file, "rb") as back, _silent():
        again = torch.export.load(back).module()  # pyright: ignore[reportArgumentType] (any binary file)
    return compare(model, again, said)


def need_onnx() -> None:
    """Raises ConfigError where a package that writes ONNX is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'to=onnx needs {" and ".join(missing)}: pip install "tubelet[onnx]"')


def parts(model: nn.Module) -> int:
    """1 where an ONNX file holds the weights, 2 where they need a file of their own."""
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    return 1 if held <= ONE_FILE else 2


def write_onnx(
    model: Deployed, file: Path, about: Mapping[str, str], said: str | Path, *, output: str, data: str | None = None
) -> float | None:
    """An ONNX file of opset 18, checked as it lies there by onnx.checker and by ONNX Runtime: the largest difference found, as of
    :func:`write_program`; None where the package onnxruntime is not installed. ``about``: its metadata_props. ``output``: the answer's
    name. ``data``: name of the file beside it that takes the weights, None = all in one. Raises CheckpointError, OSError."""
    import onnx
    import onnx_ir

    program = trace(model)
    with torch.no_grad(), _silent():
        made: Any = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[output], verbose=False
        )
    _tidy(made.model)
    made.model.metadata_props.update(about)
    with _silent():
        onnx_ir.save(made.model, file, format="protobuf", external_data=data)
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except onnx.checker.ValidationError as error:
        raise CheckpointError(f"{said}: onnx.checker refuses what was to be written ({_line(error)}); nothing was written") from None
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return compare(model, lambda video: torch.from_numpy(session.run(None, {INPUT: video.numpy()})[0]), said)


@torch.no_grad()
def compare(model: Deployed, written: Callable[[Tensor], Tensor], said: str | Path) -> float:
    """The largest difference between a written graph and PyTorch on batches of 1, 2 and 5 clips of noise, in units of the answer's largest
    number. Raises CheckpointError where it is beyond the tolerance, or shapes differ."""
    worst = 0.0
    for batch in BATCHES:
        video = model.clips(batch)
        wanted, found = model.reference(video), written(video)
        if found.shape != wanted.shape:
            raise CheckpointError(
                f"{said}: the written graph answers {tuple(found.shape)} to {batch} clips, the model {tuple(wanted.shape)}; nothing was "
                "written"
            )
        if not bool(wanted.isfinite().all()):
            raise CheckpointError(f"{said}: the model's own answer is not finite: its weights are damaged or diverged; nothing was written")
        off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if not off <= TOLERANCE:
            raise CheckpointError(
                f"{said}: the written graph differs from the model by {off:.1e} of its largest number on {batch} clips, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
        worst = max(worst, off)
    return worst


def _tidy(model: Any) -> None:
    """The exporter numbers the symbol of the batch, where a reader wants its name, and notes where in which file of ours each operator
    was called."""
    import onnx_ir

    symbol = str(model.graph.inputs[0].shape[0])
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.outputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]:
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = onnx_ir.Shape([str(dim).replace(symbol, "batch") if symbol in str(dim) else dim for dim in value.shape])


@contextmanager
def _silent() -> Iterator[None]:
    """What exporters warn of concerns them, not who exports; what is wrong is raised."""
    loud = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
