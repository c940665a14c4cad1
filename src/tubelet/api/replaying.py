"""One step of a run again: its batch from the counters, its weights from a checkpoint, and where it stops being finite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tubelet import recipe as recipe_book
from tubelet.api._common import CacheProgress, Sources, build
from tubelet.api._replay import SHOWN, Replay, examine, part
from tubelet.api.pretraining import augmentation, initialise
from tubelet.api.watching import clip_figures
from tubelet.config import import_file, parse, read_yaml
from tubelet.core import Step, Trainable
from tubelet.data.loader import VideoFeed
from tubelet.data.places import is_url
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.errors import CheckpointError, ConfigError
from tubelet.recipe import StageSettings
from tubelet.train.checkpoint import Checkpoint, Checkpoints, atomic, explain_mismatch, read_meta, read_tensors, write_text
from tubelet.train.course import Course, Gathered
from tubelet.train.distributed import pick_device
from tubelet.train.hooks import undisturbed
from tubelet.train.loop import apply_switches
from tubelet.train.plan import Position
from tubelet.train.runfile import read_run
from tubelet.train.settings import TrainSettings
from tubelet.train.step import Snapshot, Stepper
from tubelet.viz.pictures import sheet


def replay(
    run: str | Path,
    step: int,
    *,
    train: bool = True,
    sources: Sources | None = None,
    out: str | Path | None = None,
    pictures: int = SHOWN,
    device: str = "auto",
    imports: Sequence[str | Path] = (),
    say: Callable[[str], None] | None = None,
) -> Replay:
    """Do step ``step`` of a run again (counted from 0, as messages name it: the step that starts when ``step`` steps are done).

    Its batch is made anew from the counters. Its weights are those of the newest checkpoint at or before it; the steps between are trained
    again, which on a CPU gives the same bits. ``train=False``: take a checkpoint's weights as they are (the newest at or before the step,
    else the oldest). The run's folder stays as it is but for ``out`` (default RUN/replay), which gets step_00000008.json and .png: the
    ``pictures`` worst clips with their masks. ``sources``: where the videos are now, if they moved. Raises ConfigError, DataError,
    CheckpointError.
    """
    for path in imports:
        import_file(path)
    run, say = Path(run), say or (lambda text: None)
    place = _find(run, step, train, say)
    where = pick_device(device if device != "auto" else place.stage.train.device, "device")
    settings = place.stage.train.model_copy(update={"compile": False, "micro": _micro(place.stage.train, run), "device": str(where)})
    table = _open(run, place.stage, sources)
    data = place.stage.data.model_copy(update={"max_bad_rate": 1.0})  # they are shown, not counted
    with CacheProgress(speak=True) as progress:
        model = build(place.stage)
        feed = VideoFeed(table, data, seed=settings.seed, device=str(where), progress=progress, needs=model.needs)
    with feed:
        if place.meta is not None:
            _same_data(place.meta, feed)
        model = model.to(where).train()
        apply_switches(model, settings)
        course = Course(model, len(feed), settings, device=where, prepare=augmentation(place.stage, table, model))
        if step >= course.plan.total_steps:
            raise ConfigError(f"step {step}: the run has {course.plan.total_steps} steps, 0 to {course.plan.total_steps - 1}")
        stepper = Stepper(model, settings, course.rate, device=where)
        _restore(place, model, stepper, run)
        begin = place.step if train else step
        if begin < step:
            say(f"training steps {begin} to {step - 1} again, to reach the weights of step {step}")
        gathered, position = _walk(course, stepper, feed, begin, step)
        before = {k: v.detach().clone() for k, v in model.state_dict().items()}
        result = replace(
            examine(model, stepper, course, gathered, position),
            run=str(run),
            start=str(place.checkpoint.path) if place.checkpoint else None,
            trained=step - begin,
            notes=_notes(place, settings, step, train, run, feed),
        )
        model.load_state_dict(before)  # the pictures show what the step saw
    return _write(result, Path(out) if out is not None else run / "replay", model, gathered, course.at(position), pictures)


@dataclass(frozen=True)
class _Place:
    """Where a replay starts. ``step``: that of the checkpoint, 0 = untrained."""

    stage: StageSettings
    checkpoint: Checkpoint | None
    meta: dict[str, Any] | None
    step: int


def _find(run: Path, step: int, train: bool, say: Callable[[str], None]) -> _Place:
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder")
    found = Checkpoints(run, 1).all()
    if not found and not (run / "config.yaml").exists():
        raise CheckpointError(f"{run} is not a run folder: it holds neither checkpoints nor config.yaml")
    if step < 0:
        raise ConfigError(f"step {step}: the first step is 0")
    usable = [c for c in reversed(found) if c.step <= step] or ([] if train else found[:1])
    for checkpoint in usable:
        try:
            meta = read_meta(checkpoint.path)
        except CheckpointError as error:
            say(f"{error}; using the one before it")
            continue
        if "classifier" in meta["config"]:
            raise ConfigError(f"{run} is a fine-tuned classifier; replay does the steps of pre-training")
        names = [k for k in StageSettings.model_fields if k in meta["config"]]
        stage = parse(StageSettings, {k: meta["config"][k] for k in names}, where=str(checkpoint.path))
        return _Place(stage.model_copy(update={"name": run.name}), checkpoint, meta, checkpoint.step)
    if "classifier" in read_yaml(run / "config.yaml"):
        raise ConfigError(f"{run} is a fine-tuned classifier; replay does the steps of pre-training")
    stages = list(recipe_book.load(run / "config.yaml").stages)
    if len(stages) > 1:
        inside = ", ".join(str(run / s.name) for s in stages)
        raise CheckpointError(f"{run} is a run of several stages: give one of {inside}")
    return _Place(stages[0], None, None, 0)


def _micro(settings: TrainSettings, run: Path) -> int | None:
    """What one of the run's processes did at once, so that a batch of many processes fits into this one."""
    processes = int(read_run(run).get("machine", {}).get("processes") or 1)
    return settings.micro or (None if processes == 1 else -(-settings.batch // processes))


def _open(run: Path, stage: StageSettings, sources: Sources | None) -> Table:
    about = read_run(run)
    if sources is None:
        known = about.get("sources")
        if not known:
            raise ConfigError(f"{run} does not say where its videos are (no run.json); give them with --sources")
        home = Path(about.get("folder") or ".")
        sources = [s if is_url(s) or Path(s).is_absolute() else str(home / s) for s in known]
    data = stage.data
    return open_table(sources, split=data.split, labels=data.labels, images=data.images, exclude=about.get("exclude") or ())


def _same_data(meta: dict[str, Any], feed: VideoFeed) -> None:
    now = json.loads(json.dumps({"data": dict(feed.fingerprint())}))
    lines = explain_mismatch({"data": meta["data"]}, now, ())
    if lines:
        raise CheckpointError("these are not the videos that the run was trained on:\n" + "\n".join(f"  - {line}" for line in lines))


def _restore(place: _Place, model: Trainable, stepper: Stepper, run: Path) -> None:
    if place.checkpoint is None:
        initialise(model, place.stage, run.parent)
        return
    tensors = read_tensors(place.checkpoint.path)
    tensors.pop("figures/window", None)
    try:
        stepper.restore(Snapshot(tensors))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{place.checkpoint.path} does not fit its own settings: {error}") from None


def _walk(course: Course, stepper: Stepper, feed: VideoFeed, begin: int, step: int) -> tuple[Gathered, Position]:
    """Train from ``begin`` to ``step``, and the batch of that one."""
    position = course.position(begin)
    batches = feed.batches(course.schedule(position))
    while True:
        gathered = course.gather(batches, position)
        if position.step == step:
            return gathered, position
        stepper.step(gathered.micro, course.at(position), gathered.shares)
        position = course.plan.after(position)


def _notes(place: _Place, settings: TrainSettings, step: int, train: bool, run: Path, feed: VideoFeed) -> list[str]:
    """What keeps this step from being the run's own, bit for bit."""
    about, notes = read_run(run), []
    if not train and place.step != step:
        notes.append(f"the weights are those of step {place.step}, not of step {step}: no step was trained again")
    processes = int(about.get("machine", {}).get("processes") or 1)
    if processes > 1:
        notes.append(f"the run had {processes} processes, this is one: the same clips and masks, sums in another order")
    if place.stage.train.compile:
        notes.append("the run was compiled, this is not: other rounding")
    if settings.device != "cpu" or place.stage.train.device.startswith("cuda") or about.get("machine", {}).get("gpu"):
        notes.append("GPUs do not add in the same order every time: other rounding")
    if about.get("torch") not in (None, torch.__version__):
        notes.append(f"the run used torch {about['torch']}, this is {torch.__version__}")
    if replaced := feed.report()["samples_replaced"]:
        notes.append(f"{replaced} clips are replacements of videos that could not be read: {', '.join(feed.report()['reasons'])}")
    return notes


def _write(result: Replay, folder: Path, model: Trainable, gathered: Gathered, at: Step, pictures: int) -> Replay:
    """The JSON file and, where the model can show what it sees, the picture of the worst clips."""
    stem = folder / f"step_{at.index:08d}"
    if pictures and hasattr(model, "reconstruct"):
        images = dict(_figures(result, model, gathered, at, pictures))
        order = [c.sample for c in result.clips if c.sample in images]
        path = stem.with_suffix(".png")
        with atomic(path) as temporary:
            sheet([images[sample] for sample in order], columns=2 if len(order) > 3 else 1).save(temporary, format="PNG")
        result = replace(result, picture=str(path))
    result = replace(result, file=str(stem.with_suffix(".json")))
    write_text(stem.with_suffix(".json"), json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return result


def _figures(result: Replay, model: Trainable, gathered: Gathered, at: Step, pictures: int) -> Iterator[tuple[int, Any]]:
    """(sample number, picture) of the worst clips."""
    wanted = {c.sample: c for c in result.clips[:pictures]}
    for batch in gathered.micro:
        rows = [i for i, sample in enumerate(batch.sample.tolist()) if sample in wanted]
        if not rows:
            continue
        some = part(batch, rows)
        clips = [wanted[int(sample)] for sample in some.sample]
        titles = [f"{c.key}  (sample {c.sample}" + ("" if c.loss is None else f", loss {c.loss:.4g}") + ")" for c in clips]
        here = Step(at.index, at.samples, at.epoch, at.progress, at.draw.bind(some.sample, at.index))
        with undisturbed(model, some.sample.device):
            yield from zip(some.sample.tolist(), clip_figures(model, some, here, titles), strict=True)
