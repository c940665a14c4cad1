"""What became of one step of a run: looked at clip by clip, then done with a watch on every module and gradient."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.core import Batch, Step, Trainable
from tubelet.train.course import Course, Gathered
from tubelet.train.hooks import undisturbed
from tubelet.train.plan import Position
from tubelet.train.step import Stepper
from tubelet.train.trace import Spot, Trace, not_finite

SHOWN = 8


@dataclass(frozen=True)
class Clip:
    """A clip of the step's batch. ``seconds``: of its first and last frame in the source. ``crop``: affine (2, 3) from source pixel to
    this pixel. ``loss``: of this clip alone in eval mode, under the same mask; NaN where it is not finite, None where a single clip has
    no loss."""

    sample: int
    key: str
    seconds: tuple[float, float] | None
    crop: list[list[float]] | None
    loss: float | None


@dataclass(frozen=True)
class Replay:
    """What became of one step. ``inputs``: stream -> type, shape, range and values that are not finite. ``terms``: each loss.
    ``module``, ``parameter``: see Trace. ``weights``: parameters and buffers that were not finite before the step. ``gradients``: norm by
    parameter, before clipping, the largest first. ``clips``: the worst first. ``start``: the checkpoint whose weights were used, None =
    untrained ones. ``trained``: steps that were trained again to get from there to ``step``. ``notes``: what may differ from the run.
    """

    step: int
    epoch: float
    inputs: dict[str, dict[str, Any]]
    terms: dict[str, float]
    log: dict[str, float]
    grad_norm: float
    finite: bool
    module: Spot | None
    parameter: str | None
    weights: list[str]
    gradients: dict[str, float]
    clips: list[Clip]
    run: str = ""
    start: str | None = None
    trained: int = 0
    notes: list[str] = field(default_factory=list)
    picture: str | None = None
    file: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become words."""
        return _plain(asdict(self))

    def __str__(self) -> str:
        start = Path(self.start).name if self.start else "the untrained weights"
        again = f", {self.trained} step{'s' * (self.trained > 1)} trained again" if self.trained else ""
        samples = sorted(c.sample for c in self.clips)
        rows = [("step", f"{self.step} of {self.run}, from {start}{again}")]
        rows += [("note", note) for note in self.notes]
        rows.append(("batch", f"{len(samples)} clips, samples {samples[0]} to {samples[-1]}, epoch {self.epoch:.4g}"))
        for name, about in self.inputs.items():
            bad = f", {about['not_finite']} values not finite" if about["not_finite"] else ""
            rows.append(("input", f"{name} {about['type']} {about['shape']}, {about['min']:g} to {about['max']:g}{bad}"))
        if self.weights:
            more = f" and {len(self.weights) - 3} more" if len(self.weights) > 3 else ""
            rows.append(("weights", f"not finite before the step: {', '.join(self.weights[:3])}{more}"))
        rows += [("loss", f"{name} {value:.6g}") for name, value in self.terms.items()]
        rows.append(("gradient", f"norm {self.grad_norm:.6g}" + ("" if self.finite else ": not finite")))
        if self.module is not None:
            rows.append(("forward", f"first not finite in {self.module}"))
        if self.parameter is not None:
            rows.append(("backward", f"the first gradient that is not finite, coming from the loss, is that of {self.parameter}"))
        if self.finite and self.module is None:
            rows.append(("result", "everything in this step is finite"))
        rows += [("clips" if i == 0 else "", _line(clip)) for i, clip in enumerate(self.clips[:SHOWN])]
        if len(self.clips) > SHOWN:
            rows.append(("", f"... and {len(self.clips) - SHOWN} more in the JSON file"))
        rows.append(("written", ", ".join(filter(None, [self.file, self.picture]))))
        return "\n".join(f"{name:>8}  {text}" for name, text in rows)


def _line(clip: Clip) -> str:
    where = f"  {clip.seconds[0]:.2f} to {clip.seconds[1]:.2f} s" if clip.seconds else ""
    loss = "" if clip.loss is None else f"  alone: loss {clip.loss:.4g}"
    return f"{clip.sample}  {clip.key}{where}{loss}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def examine(model: Trainable, stepper: Stepper, course: Course, gathered: Gathered, position: Position) -> Replay:
    """Do the step that starts at ``position``; the model's weights are those after it when this returns."""
    at = course.at(position)
    state = [*model.named_parameters(), *model.named_buffers()]
    weights = [name for name, value in state if not_finite(value)[0]]
    clips = [clip for batch in gathered.micro for clip in _clips(model, batch, course.at(position))]
    clips.sort(key=lambda c: (c.loss is None, -math.inf if c.loss is None or math.isnan(c.loss) else -c.loss, c.sample))
    with Trace(model) as trace:
        losses = stepper.step(gathered.micro, at, gathered.shares)
    norms = sorted(trace.norms.items(), key=lambda n: (not math.isnan(n[1]), -n[1] if not math.isnan(n[1]) else 0.0))
    log = {name: float(value) for name, value in losses.log.items()}
    finite = log.pop("finite") == 1.0
    norm = math.hypot(*trace.norms.values())
    return Replay(
        step=position.step,
        epoch=at.epoch,
        inputs=_inputs(gathered.micro),
        terms={name: float(value) for name, (value, _) in losses.terms.items()},
        log=log,
        grad_norm=norm,
        finite=finite,
        module=trace.module,
        parameter=trace.parameter,
        weights=weights,
        gradients=dict(norms),
        clips=clips,
    )


def part(batch: Batch, which: list[int]) -> Batch:
    """Some samples of a batch."""
    streams = {k: s.map(lambda x: x[which]) for k, s in batch.streams.items()}
    labels = {k: v[which] if isinstance(v, Tensor) else [v[i] for i in which] for k, v in batch.labels.items()}
    key, text = (tuple(words[i] for i in which) if words else () for words in (batch.key, batch.text))
    return Batch(streams, labels, batch.sample[which], key, text)


def _clips(model: Trainable, batch: Batch, at: Step) -> list[Clip]:
    found = []
    video = batch.streams.get("video")
    for i in range(len(batch)):
        time = None if video is None or video.time is None else video.time[i]
        seconds = None if time is None else (float(time.min()), float(time.max()))
        crop = None if video is None or video.crop is None else video.crop[i].tolist()
        key = batch.key[i] if batch.key else ""
        found.append(Clip(int(batch.sample[i]), key, seconds, crop, _alone(model, part(batch, [i]), at)))
    return found


def _alone(model: Trainable, one: Batch, at: Step) -> float | None:
    """The loss of a single clip, in eval mode; None for losses that compare clips with each other and refuse a single one."""
    here = Step(at.index, at.samples, at.epoch, at.progress, at.draw.bind(one.sample, at.index))
    with undisturbed(model, one.sample.device):
        try:
            return float(model.losses(model.phase_order(here)[0], one, here).total)
        except (ValueError, RuntimeError, IndexError):
            return None


def _inputs(micro: list[Batch]) -> dict[str, dict[str, Any]]:
    """Type, shape, range and values that are not finite of every stream, over all micro-batches."""
    found = {}
    for name in micro[0].streams:
        parts = [batch.streams[name].data for batch in micro]
        sound = [p[torch.isfinite(p)] if p.is_floating_point() else p for p in parts]
        found[name] = {
            "type": str(parts[0].dtype).removeprefix("torch."),
            "shape": "x".join(map(str, (sum(len(p) for p in parts), *parts[0].shape[1:]))),
            "min": min((float(s.min()) for s in sound if s.numel()), default=math.nan),
            "max": max((float(s.max()) for s in sound if s.numel()), default=math.nan),
            "not_finite": not_finite(parts)[0],
        }
    return found
