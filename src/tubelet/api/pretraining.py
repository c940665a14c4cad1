"""From a recipe and videos to a trained run: stages, their models, what is said before they start."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tubelet import recipe as recipe_book
from tubelet.api._common import CacheProgress, Sources, build, say, shown
from tubelet.api._cost import cost_line, measured
from tubelet.api._record import command_line, listed, reported, write_report
from tubelet.api._supply import supply
from tubelet.api.watching import make_hooks
from tubelet.config import at_default, did_you_mean, import_file, to_yaml
from tubelet.core import Frozen, Stage, Trainable
from tubelet.data.augment import Augment
from tubelet.data.loader import VideoFeed
from tubelet.data.source import open_table
from tubelet.data.supply import Supply
from tubelet.data.table import Table
from tubelet.errors import CheckpointError, ConfigError, NonFiniteError
from tubelet.methods._align import Alignment
from tubelet.recipe import Recipe, StageSettings
from tubelet.train.checkpoint import Checkpoints, read_tensors, write_text
from tubelet.train.course import Prepare
from tubelet.train.distributed import pick_device, process_group
from tubelet.train.loop import BadStep, Result, fit, refuse_other_run
from tubelet.train.monitor import Yardstick
from tubelet.train.plan import Plan, Position
from tubelet.train.settings import TrainSettings
from tubelet.train.sinks import check

# Where data may change between a run's start and its continuation without changing which numbers it computes.
FREE_DATA = ("data.workers", "data.prefetch", "data.decode_timeout", "data.max_bad_rate", "data.cache_dir", "data.cache_limit")


def pretrain(
    sources: Sources,
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    size: str | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    imports: Sequence[str | Path] = (),
    exclude: Sequence[str] = (),
    quiet: bool = False,
) -> Result:
    """Pre-train an encoder on videos; the same call under torchrun uses all its processes.

    ``sources``: folders, files, manifests, list files or URLs. ``recipe``: a name (see :func:`recipes`) or a YAML file; None takes what
    ``out`` was started with when resuming, else one-gpu or, without a GPU, tiny-cpu. ``size``: tiny | small | base | large | huge |
    giant. ``settings``: ``["masking.ratio=0.95", ...]``. ``imports``: your own Python files with kinds. ``exclude``: patterns of keys
    to leave out. The run folder ``out`` gets config.yaml, run.json, metrics.jsonl, tensorboard/, pictures/, checkpoints/, model.safetensors
    and report.html; with several stages, one folder each. Raises ConfigError, DataError, CheckpointError, NonFiniteError.
    """
    for path in imports:
        import_file(path)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    plan = _recipe(recipe, settings, size, out, resume)
    book = {s.name: s for s in plan.stages}
    for stage in plan.stages:
        check(stage.watch)
    _check_init(plan)
    about = {"command": command_line(), "folder": str(Path.cwd()), "sources": listed(sources), "exclude": list(exclude)}
    about |= {"imports": [str(path) for path in imports]} | _origins(recipe, settings, size, resume)
    if len(plan.stages) > 1 and int(os.environ.get("RANK", 0)) == 0 and not (resume and (out / "config.yaml").exists()):
        write_text(out / "config.yaml", to_yaml(plan))
    last = list(book)[-1]
    result: Result | None = None
    for stage in plan.plan():
        folder = out if len(plan.stages) == 1 else out / stage.name
        if resume and (folder / "model.safetensors").exists() and len(plan.stages) > 1:
            continue
        one = plan.model_copy(update={"stages": (book[stage.name],)})
        with reported(folder, out):
            result = _train_stage(stage, book[stage.name], one, sources, folder, out, about, resume=resume, exclude=exclude, quiet=quiet)
        if result.signal and stage.name != last:
            result = replace(result, stopped_by=result.signal)  # also after a stage's last step: the recipe is not done
        if result.stopped_by:
            break
    if result is None:
        raise CheckpointError(f"all stages in {out} are complete already; choose another --out to start anew")
    if int(os.environ.get("RANK", 0)) == 0:
        write_report(out, quiet)
    return result


def _origins(recipe: str | Path | None, settings: Sequence[str], size: str | None, resume: bool) -> dict[str, Any]:
    """Where each setting of a new run comes from; a run that goes on keeps what it recorded at its start."""
    if resume and recipe is None:
        return {}
    return {"origins": recipe_book.origins(recipe or _default_recipe(), settings, size)}


def _default_recipe() -> str:
    return "one-gpu" if torch.cuda.is_available() else "tiny-cpu"


def _recipe(recipe: str | Path | None, settings: Sequence[str], size: str | None, out: Path, resume: bool) -> Recipe:
    """The resolved recipe of a call."""
    if recipe is None and resume and out.exists():
        if not (out / "config.yaml").exists():
            raise CheckpointError(f"{out} holds no config.yaml to continue from; name its --recipe and settings again")
        return recipe_book.load(out / "config.yaml", settings, size=size)
    return recipe_book.load(recipe or _default_recipe(), settings, size=size)


def _train_stage(
    stage: Stage,
    s: StageSettings,
    resolved: Recipe,
    sources: Sources,
    folder: Path,
    root: Path,
    about: Mapping[str, Any],
    *,
    resume: bool,
    exclude: Sequence[str],
    quiet: bool,
) -> Result:
    refuse_other_run(folder, resume)  # before anything is read that takes long
    device = pick_device(s.train.device)
    model = build(s)
    open_outside(model)
    initialise(model, stage, root)
    with process_group(device) as ranks:
        speak = ranks.first and not quiet
        table = open_table(sources, split=s.data.split, labels=s.data.labels, images=s.data.images, exclude=exclude)
        for note in table.notes if speak else ():
            say(note)
        prepare = augmentation(s, table, model)
        with CacheProgress(speak) as progress:
            feed = VideoFeed(table, s.data, seed=s.train.seed, run_dir=folder, device=str(device), progress=progress, needs=model.needs)
        for note in feed.notes if speak else ():
            say(note)
        plan = Plan(s.train, len(feed), world=ranks.world, tokens=model.tokens)
        yardstick = measured(model.to(device), s.data, s.train, device)
        chosen = supply(feed, model, s.data, s.train, plan, device, ranks)
        if speak:
            say(_summary(s, model, table, plan, device, ranks.world, folder, yardstick, chosen))
        if ranks.first and not Checkpoints(folder, 1).all():
            head = f"# tubelet {version('tubelet')}, torch {torch.__version__}; sources: {shown(sources)}\n"
            write_text(folder / "config.yaml", head + to_yaml(resolved))
        return _fit(
            model,
            feed,
            s.train,
            folder,
            identity=s.model_dump(mode="json", include={"method", "masking", "data", "train", "init", "watch"}),
            usual=at_default(s),
            free=FREE_DATA,
            prepare=prepare,
            hooks=make_hooks(s, model, table, folder, say if speak else lambda text: None),
            watch=s.watch,
            yardstick=yardstick,
            about={**about, "items": len(table), "supply": chosen and chosen.describe()},
            resume=resume,
            quiet=quiet,
        )


def _fit(model: Trainable, feed: VideoFeed, settings: TrainSettings, folder: Path, **more: Any) -> Result:
    """Train; a step that went wrong is named with the command that looks into it."""
    try:
        return fit(model, feed, settings, folder, **more)
    except BadStep as error:
        look = f"tubelet replay {shlex.quote(str(folder))} {error.step}"
        raise NonFiniteError(f"{error}\nWhere it began, and in which videos:\n  {look}") from None


def augmentation(s: StageSettings, table: Table, model: Trainable) -> Prepare:
    """What is done to a stage's batches on the device. Raises ConfigError where that cannot be done to what the model needs."""
    augment = Augment(s.data.augment, classes=len(table.classes), needs=model.needs)
    return lambda batch, at: augment(batch, at.draw)


def _check_init(plan: Recipe) -> None:
    """Whether the modules that stages start from exist and fit, before hours of training are spent on the first. Raises ConfigError."""
    if not any(s.init for s in plan.stages):
        return
    with torch.device("meta"):  # shapes only
        models = {s.name: build(s) for s in plan.stages}
    problems = []
    for stage in plan.stages:
        for target, origin in stage.init.items():
            name, _, part = origin.partition(".")
            where = f"{stage.name}.init: {target}: {origin}"
            sides = []
            for owner, module, said in ((stage.name, target, target), (name, part, origin)):
                if module and module not in dict(models[owner].named_modules()):
                    known = [n for n, _ in models[owner].named_children()]
                    problems.append(f"{where}: there is no {said!r}{did_you_mean(module, known)}; stage {owner} has {', '.join(known)}")
                    continue
                sides.append({k: tuple(v.shape) for k, v in models[owner].get_submodule(module).state_dict().items()})
            if len(sides) == 2 and sides[0] != sides[1]:
                different = sorted({k for k, _ in sides[0].items() ^ sides[1].items()})
                problems.append(
                    f"{where}: {target} and {origin} are built differently, first in {different[0]}; give both the same settings"
                )
    if problems:
        raise ConfigError(problems)


def open_outside(model: Trainable) -> None:
    """Get the outside models that a model uses, so that a missing one is said before the work begins. Raises what opening them raises."""
    for module in model.modules():
        if isinstance(module, Frozen | Alignment):
            module.open()


def initialise(model: Trainable, stage: Stage | StageSettings, root: Path) -> None:
    """Start modules from earlier stages: ``{"encoder": "pretrain.encoder"}`` copies that stage's trained ``encoder.*``."""
    for target, origin in stage.init.items():
        name, _, part = origin.partition(".")
        tensors = read_tensors(root / name / "model.safetensors")
        prefix = f"{part}." if part else ""
        values = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            model.get_submodule(target).load_state_dict(values)
        except (AttributeError, RuntimeError) as error:
            raise CheckpointError(f"stage {stage.name}: init {target!r} from {origin!r} does not fit: {error}") from None


def _summary(
    s: StageSettings,
    model: Trainable,
    table: Table,
    plan: Plan,
    device: torch.device,
    world: int,
    out: Path,
    yardstick: Yardstick | None,
    chosen: Supply | None,
) -> str:
    """What is about to be trained, in a few aligned lines."""
    batch = plan.batch(Position())
    count = sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("encoder", "embed", "dual.image_tower")))
    rate = s.train.lr * (batch / s.train.lr_batch if s.train.lr_batch else 1.0)
    masking = f"{getattr(s.masking, 'kind', '')} {s.masking.model_dump().get('ratio', '')}" if s.masking is not None else "none"
    h, w = s.data.hw
    warmup = f"warm-up {plan.warmup_steps} steps"
    if plan.warmup_shortened:
        warmup += f" (train.warmup_epochs = {s.train.warmup_epochs:g} is longer than the run)"
    sampled = f"{s.data.fps:g} fps" if s.data.fps else f"stride {s.data.stride}"
    rows = [
        ("method", f"{getattr(s.method, 'kind', '')}, {count / 1e6:.1f} M parameters ({encoder / 1e6:.1f} M encoder), masking {masking}"),
        ("data", f"{len(table)} items, clips of {s.data.frames}x{h}x{w}, {sampled}, {s.data.clips_per_video} per visit"),
        ("length", f"{plan.total_steps} steps = {plan.total_samples / plan.epoch_size:.4g} epochs, {warmup}"),
        ("batch", f"{batch} on {world} x {device}, learning rate {rate:.3g}, {s.train.precision}"),
        *([("cost", cost_line(yardstick, plan))] if yardstick is not None else []),
        *([("supply", chosen.why)] if chosen is not None else []),
        ("out", str(out)),
    ]
    return "\n".join(f"{name:>8}  {text}" for name, text in rows)
