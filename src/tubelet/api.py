"""The public functions. Each command of the command line is a thin face of one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tubelet import recipe as recipe_book
from tubelet.config import did_you_mean, import_file, kinds, overlay, parse, to_yaml
from tubelet.core import Batch, Method, Stage, Stream, Tokens, Trainable
from tubelet.data.augment import Augment
from tubelet.data.evaluation import EvalFeed, Views, windows
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table, open_table_for
from tubelet.data.table import Table
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.playground import write as write_playground
from tubelet.recipe import Recipe, StageSettings
from tubelet.tasks import Score
from tubelet.tasks.embed import Embeddings, writable
from tubelet.tasks.embed import embed as embed_table
from tubelet.tasks.knn import score_knn
from tubelet.tasks.probe import score_probe
from tubelet.train.checkpoint import Checkpoints, read_meta, read_tensors, write_text
from tubelet.train.distributed import pick_device, process_group
from tubelet.train.loop import Result, fit
from tubelet.train.plan import Plan, Position

Sources = str | Path | Sequence[str | Path]

# Where data may change between a run's start and its continuation without changing which numbers it computes.
FREE_DATA = ("data.workers", "data.prefetch", "data.decode_timeout", "data.max_bad_rate")


def recipes() -> list[tuple[str, str]]:
    """Name and one-line description of every recipe that comes with Tubelet."""
    return [(name, str(yaml.safe_load(recipe_book.path_of(name).read_text(encoding="utf-8"))["about"])) for name in recipe_book.names()]


def show_recipe(name: str) -> str:
    """A recipe's YAML text. Raises ConfigError for an unknown name."""
    return recipe_book.path_of(name).read_text(encoding="utf-8")


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
    to leave out. The run folder ``out`` gets config.yaml, metrics.jsonl, checkpoints/ and model.safetensors; with several stages, one
    folder each. Raises ConfigError, DataError, CheckpointError, NonFiniteError.
    """
    for path in imports:
        import_file(path)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    plan = _recipe(recipe, settings, size, out, resume)
    book = {s.name: s for s in plan.stages}
    _check_init(plan)
    if len(plan.stages) > 1 and int(os.environ.get("RANK", 0)) == 0 and not (resume and (out / "config.yaml").exists()):
        write_text(out / "config.yaml", to_yaml(plan))
    last = list(book)[-1]
    result: Result | None = None
    for stage in plan.plan():
        folder = out if len(plan.stages) == 1 else out / stage.name
        if resume and (folder / "model.safetensors").exists() and len(plan.stages) > 1:
            continue
        one = plan.model_copy(update={"stages": (book[stage.name],)})
        result = _train_stage(stage, book[stage.name], one, sources, folder, out, resume=resume, exclude=exclude, quiet=quiet)
        if result.signal and stage.name != last:
            result = replace(result, stopped_by=result.signal)  # also after a stage's last step: the recipe is not done
        if result.stopped_by:
            break
    if result is None:
        raise CheckpointError(f"all stages in {out} are complete already; choose another --out to start anew")
    return result


def _recipe(recipe: str | Path | None, settings: Sequence[str], size: str | None, out: Path, resume: bool) -> Recipe:
    """The resolved recipe of a call."""
    if recipe is None and resume and out.exists():
        if not (out / "config.yaml").exists():
            raise CheckpointError(f"{out} holds no config.yaml to continue from; name its --recipe and settings again")
        return recipe_book.load(out / "config.yaml", settings, size=size)
    if recipe is None:
        recipe = "one-gpu" if torch.cuda.is_available() else "tiny-cpu"
    return recipe_book.load(recipe, settings, size=size)


def build(stage: StageSettings) -> Trainable:
    """The untrained model of a stage; its random weights are a function of ``train.seed`` alone."""
    masker = cast(Any, stage.masking).build() if stage.masking is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.train.seed)
        return cast(Any, stage.method).build(masking=masker, frames=stage.data.frames, size=stage.data.hw)


def _train_stage(
    stage: Stage,
    s: StageSettings,
    resolved: Recipe,
    sources: Sources,
    folder: Path,
    root: Path,
    *,
    resume: bool,
    exclude: Sequence[str],
    quiet: bool,
) -> Result:
    device = pick_device(s.train.device)
    model = build(s)
    _initialise(model, stage, root)
    with process_group(device) as ranks:
        speak = ranks.first and not quiet
        table = open_table(sources, split=s.data.split, labels=s.data.labels, images=s.data.images, exclude=exclude)
        for note in table.notes if speak else ():
            _say(note)
        with _CacheProgress(speak) as progress:
            feed = VideoFeed(table, s.data, seed=s.train.seed, run_dir=folder, device=str(device), progress=progress)
        plan = Plan(s.train, len(feed), world=ranks.world, tokens=model.tokens)
        if speak:
            _say(_summary(s, model, table, plan, device, ranks.world, folder))
        if ranks.first and not Checkpoints(folder, 1).all():
            head = f"# tubelet {version('tubelet')}, torch {torch.__version__}; sources: {_shown(sources)}\n"
            write_text(folder / "config.yaml", head + to_yaml(resolved))
        augment = Augment(s.data.augment, classes=len(table.classes))
        return fit(
            model,
            feed,
            s.train,
            folder,
            identity=s.model_dump(mode="json", include={"method", "masking", "data", "train", "init"}),
            free=FREE_DATA,
            prepare=lambda batch, at: augment(batch, at.draw),
            resume=resume,
            quiet=quiet,
        )


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


def _initialise(model: Trainable, stage: Stage, root: Path) -> None:
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


def _summary(s: StageSettings, model: Trainable, table: Table, plan: Plan, device: torch.device, world: int, out: Path) -> str:
    """What is about to be trained, in a few aligned lines."""
    batch = plan.batch(Position())
    count = sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("encoder", "embed")))
    rate = s.train.lr * (batch / s.train.lr_batch if s.train.lr_batch else 1.0)
    masking = f"{getattr(s.masking, 'kind', '')} {s.masking.model_dump().get('ratio', '')}" if s.masking is not None else "none"
    h, w = s.data.hw
    sampled = f"{s.data.fps:g} fps" if s.data.fps else f"stride {s.data.stride}"
    rows = [
        ("method", f"{getattr(s.method, 'kind', '')}, {count / 1e6:.1f} M parameters ({encoder / 1e6:.1f} M encoder), masking {masking}"),
        ("data", f"{len(table)} items, clips of {s.data.frames}x{h}x{w}, {sampled}, {s.data.clips_per_video} per visit"),
        ("length", f"{plan.total_steps} steps = {plan.total_samples / plan.epoch_size:.4g} epochs, warm-up {plan.warmup_steps} steps"),
        ("batch", f"{batch} on {world} x {device}, learning rate {rate:.3g}, {s.train.precision}"),
        ("out", str(out)),
    ]
    return "\n".join(f"{name:>8}  {text}" for name, text in rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (progress of a long call; silent with quiet=True)


def _shown(sources: Sources) -> str:
    return ", ".join(map(str, [sources] if isinstance(sources, str | Path) else sources))


class _CacheProgress:
    """Says what the cache announces, and shows a bar while it fills, on a terminal."""

    def __init__(self, speak: bool) -> None:
        self.speak = speak
        self.bar = Progress(TextColumn("caching"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("cache", total=None)

    def __enter__(self) -> _CacheProgress:
        return self

    def __call__(self, done: int, total: int, text: str) -> None:
        if not self.speak:
            return
        if text:
            _say(text)
        if self.bar.console.is_terminal:
            self.bar.start()
            self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()


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
    newest = Checkpoints(run, 1).latest(_say)
    if newest is None:
        stages = sorted(p.parent.name for p in run.glob("*/model.safetensors"))
        hint = f"; it holds the stages {', '.join(stages)}: give {run / stages[-1]}" if stages else ""
        raise CheckpointError(f"{run} holds neither model.safetensors nor a checkpoint{hint}")
    _say(f"{run} is not complete: using {newest.path.name}")
    return newest.path


def _evaluation_data(loaded: Loaded, settings: Sequence[str], split: str | None) -> tuple[DataSettings, Views]:
    """Data settings of an evaluation: the run's own, centre crop, no cache; ``views.*`` and data settings can be overridden."""
    base = loaded.data.model_dump(mode="json") | {"crop": "centre", "cache": "none", "clips_per_video": 1, "split": split, "augment": {}}
    plain = overlay({"data": base, "views": {}}, [t if t.startswith(("views.", "data.")) else f"data.{t}" for t in settings])
    return parse(DataSettings, plain["data"], where="--set"), parse(Views, plain["views"], where="--set")


def embed(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    out: str | Path | None = None,
    pool: str = "mean",
    seconds: float | None = None,
    hop: float | None = None,
    batch: int = 8,
    device: str = "auto",
    split: str | None = None,
    settings: Sequence[str] = (),
    random: bool = False,
    imports: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """One vector for each video (or for each window of ``seconds``, every ``hop``), with key and time stamps.

    ``pool``: mean | slots | class. ``out``: .npz or .parquet. ``settings``: data settings and ``views.clips=4`` ... Videos that cannot
    be read are listed in ``failures``, never replaced. Raises ConfigError, DataError, CheckpointError.
    """
    if out is not None:
        writable(out, overwrite=overwrite)
    loaded = run if isinstance(run, Loaded) else load(run, device=device, random=random, imports=imports)
    data, views = _evaluation_data(loaded, settings, split)
    table = open_table_for(sources, data)
    for name, value in (("seconds", seconds), ("hop", hop)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be more than 0, got {value:g}")
    if seconds is not None:
        table = windows(table, seconds=seconds, hop=hop, settings=data)
    elif hop is not None:
        raise ConfigError("hop needs seconds: the length of a window")
    feed = EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device))
    result = embed_table(loaded.model, feed, table, pool=pool, device=loaded.device, progress=progress)
    if out is not None:
        result.save(Path(out), overwrite=overwrite)
    return result


def _labelled(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    pool: str,
    train: str,
    test: str,
    test_sources: Sources | None,
    batch: int,
    device: str,
    random: bool,
    imports: Sequence[str | Path],
    settings: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[Embeddings, Embeddings]:
    """Vectors of the training and the test items: two splits of one source, or two sources with the same classes."""
    loaded = run if isinstance(run, Loaded) else load(run, device=device, random=random, imports=imports)
    apart = test_sources is not None
    data, views = _evaluation_data(loaded, settings, None if apart else train)
    first = open_table_for(sources, data)
    if apart:
        second = open_table_for(test_sources, data, classes=first.classes)
    else:
        second = open_table_for(sources, data.model_copy(update={"split": test}))
    for table, where in ((first, sources), (second, test_sources or sources)):
        if not table.classes:
            raise DataError(
                f"{_shown(where)}: no labels found; a probe needs a folder per class or a manifest with a label column (data.labels)"
            )
    total = len(first) + len(second)
    halves = []
    for table, before in ((first, 0), (second, len(first))):
        feed = EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device))
        step = None if progress is None else lambda done, _, before=before: progress(before + done, total)
        halves.append(embed_table(loaded.model, feed, table, pool=pool, device=loaded.device, progress=step))
    return halves[0], halves[1]


def knn(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    k: int = 20,
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Top-1 of a weighted ``k``-nearest-neighbour vote on frozen features; nothing is fitted.

    ``train`` and ``test`` name splits of ``sources``; or give ``test_sources``, and all of ``sources`` is the training set. ``pool``:
    mean | slots | class. ``random``: the control with random weights. Raises ConfigError, DataError, CheckpointError.
    """
    pair = _labelled(
        run, sources, pool=pool, train=train, test=test, test_sources=test_sources, batch=batch, device=device, random=random,
        imports=imports, settings=settings, progress=progress,
    )  # fmt: skip
    return _saved(score_knn(*pair, k=k), json_out)


def probe(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    seed: int = 0,
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Top-1 of a linear probe on frozen features; its strength is chosen on a seeded split of the training set.

    Parameters as for :func:`knn`; ``seed``: of that split. Raises ConfigError, DataError, CheckpointError.
    """
    pair = _labelled(
        run, sources, pool=pool, train=train, test=test, test_sources=test_sources, batch=batch, device=device, random=random,
        imports=imports, settings=settings, progress=progress,
    )  # fmt: skip
    return _saved(score_probe(*pair, seed=seed), json_out)


def _saved(score: Score, path: str | Path | None) -> Score:
    if path is not None:
        score.save_json(Path(path))
    return score


def make_playground(
    out: str | Path,
    *,
    clips: int,
    seed: int = 0,
    scene: str = "full",
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``clips`` generated videos with true masks, flow, events, captions and sound into ``out``; returns its manifest.csv.

    ``scene``: easy | full. ``size``: side or (height, width) in pixels. See :func:`tubelet.playground.write`.
    """
    return write_playground(
        out, clips=clips, seed=seed, scene=scene, verify=verify, overwrite=overwrite, progress=progress, size=size, frames=frames, fps=fps
    )
