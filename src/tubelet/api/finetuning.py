"""From a pre-trained encoder and labelled videos to a tested classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tubelet import finetune_recipe as recipe_book
from tubelet.api._common import CacheProgress, Sources, say, shown
from tubelet.api._cost import cost_line, measured
from tubelet.api._labelled import EVERYTHING, LabelledTables, open_labelled, open_test
from tubelet.api._record import command_line, listed, reported, write_report
from tubelet.api._supply import supply
from tubelet.api.classifiers import LoadedClassifier, Start, build_classifier, load_classifier, start_of
from tubelet.api.features import _delivered, _picture_problems, save_confusion
from tubelet.api.loading import Loaded
from tubelet.api.pretraining import FREE_DATA
from tubelet.config import at_default, import_file, overlay, parse, to_yaml
from tubelet.core import Batch, Step, Trainable
from tubelet.data.augment import Augment
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings, Views
from tubelet.data.supply import Supply
from tubelet.data.table import Table
from tubelet.errors import CheckpointError, ConfigError
from tubelet.finetune_recipe import FinetuneRecipe
from tubelet.methods.classifier import Classifier
from tubelet.tasks import Score
from tubelet.tasks.multiview import Progress, answers, score
from tubelet.train.checkpoint import Checkpoints, read_meta, write_text
from tubelet.train.distributed import Ranks, pick_device, process_group
from tubelet.train.loop import Result, fit
from tubelet.train.monitor import Yardstick
from tubelet.train.plan import Plan, Position
from tubelet.train.sinks import check

AT_ONCE = 16  # views in one forward pass of an evaluation


@dataclass(frozen=True)
class Finetuned:
    """How a fine-tuning run ended. ``score``: on the test items, ``validation``: on what ``val_share`` held out; None where there was
    none, where the run was stopped, and where an earlier call has tested it already."""

    result: Result
    score: Score | None
    validation: Score | None
    path: Path


def finetune(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    train: str | None = None,
    test: str | None = "test",
    test_sources: Sources | None = None,
    val_share: float | None = None,
    random: bool = False,
    weights: str = "auto",
    resume: bool = False,
    imports: Sequence[str | Path] = (),
    sha256: str | None = None,
    download: bool = False,
    exclude: Sequence[str] = (),
    quiet: bool = False,
) -> Finetuned:
    """Train a classifier on an encoder, all of it or its head; the same call under torchrun uses all its processes.

    ``run``: a pre-training or fine-tuned run, one of its files, or an outside file of weights. ``recipe``: a name or a YAML file; None
    takes what ``out`` was started with when resuming, else finetune-small or, without a GPU, finetune-tiny-cpu. ``settings``:
    ``["classifier.layer_decay=0.8", "epochs=30", ...]``; frames and size are also those that a bare file's positions are read for.
    ``train``, ``test``: splits of ``sources``; train "all" = everything, test None =
    no test. With ``test_sources`` all of ``sources`` is for training. ``val_share``: hold out this part of the training split and look at
    it during the run. ``random``: start from random weights, the control. ``weights``: auto | ema, of ``run``.
    ``sha256``: what its file must have. ``download``: fetch it from the hub, where ``run`` is an ``hf://`` name.

    The folder ``out`` gets config.yaml, metrics.jsonl, checkpoints/, model.safetensors, report.html, validation.json and, once,
    results.json with confusion.png: the test items are read when training is done.
    Raises ConfigError, DataError, CheckpointError, NonFiniteError.
    """
    for path in imports:
        import_file(path)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    of_model = [text for text in settings if text.startswith("method.")]
    of_run = [text for text in settings if text not in of_model]
    share = [] if val_share is None else [f"val_share={val_share}"]
    asked = _recipe(recipe, [*of_run, *share], out, resume)
    check(asked.watch)
    device = pick_device(asked.train.device)
    told = [*of_model, *recipe_book.clips_of(of_run)]
    start = start_of(run, weights=weights, random=random, imports=imports, settings=told, sha256=sha256, download=download)
    split = train or (EVERYTHING if test_sources is not None else asked.data.split or "train")
    resolved = asked.on(start.data)
    data = resolved.data.model_copy(update={"split": None if split == EVERYTHING else split})
    resolved = resolved.model_copy(update={"data": data})
    with process_group(device) as ranks:
        tables = open_labelled(
            sources, data, train=data.split, test=test, test_sources=test_sources, val_share=resolved.val_share, seed=resolved.train.seed,
            val_groups=resolved.val_groups, exclude=exclude,
        )  # fmt: skip
        job = _Job(resolved, start, tables, out, device, ranks, speak=ranks.first and not quiet)
        about = {"command": command_line(), "folder": str(Path.cwd()), "sources": listed(sources), "exclude": list(exclude)}
        about |= {"imports": [str(path) for path in imports]}
        if recipe is not None or not resume:  # a run that goes on keeps what it recorded at its start
            about["origins"] = recipe_book.origins(recipe or _default_recipe(), [*of_run, *share], start.data)
        with reported(out, out):
            result = job.train(shown(sources), about, resume=resume, quiet=quiet)
        if result.signal:
            result, found = replace(result, stopped_by=result.signal), (None, None)  # the test is still to be done
        else:
            found = job.test()
        if ranks.first:
            write_report(out, quiet)
        return Finetuned(result, *found, out)


class _Job:
    """One fine-tuning run on this process."""

    def __init__(
        self, recipe: FinetuneRecipe, start: Start, tables: LabelledTables, out: Path, device: torch.device, ranks: Ranks, speak: bool
    ) -> None:
        self.recipe, self.start, self.tables, self.out = recipe, start, tables, out
        self.device, self.ranks, self.speak = device, ranks, speak
        self.model = build_classifier(recipe.classifier, start, recipe.data, classes=len(tables.classes), seed=recipe.train.seed)

    def train(self, sources: str, about: dict[str, Any], *, resume: bool, quiet: bool) -> Result:
        r, s = self.recipe, self.recipe.train
        for note in self.tables.train.notes if self.speak else ():
            say(note)
        with CacheProgress(self.speak) as progress:
            feed = VideoFeed(self.tables.train, r.data, seed=s.seed, run_dir=self.out, device=str(self.device), progress=progress)
        plan = Plan(s, len(feed), world=self.ranks.world)
        augment = Augment(r.data.augment, classes=len(self.tables.classes), copies=r.data.clips_per_video * r.data.repeats)
        if r.data.augment.mixup or r.data.augment.cutmix:
            _check_pairs(plan, augment.group)
        # The encoder's backward pass is a part of the three forward passes that MFU counts.
        yardstick = None if r.classifier.frozen else measured(self.model.to(self.device), r.data, s, self.device)
        chosen = supply(feed, self.model.to(self.device), r.data, s, plan, self.device, self.ranks)
        if self.speak:
            say(self._summary(plan, yardstick, chosen))
        if self.ranks.first and not Checkpoints(self.out, 1).all():
            head = f"# tubelet {version('tubelet')}, torch {torch.__version__}; from {self.start.about['path']}; sources: {sources}\n"
            write_text(self.out / "config.yaml", head + to_yaml(r))
        looks = [] if self.tables.val is None else [_Validation(self.tables.val, r, self.device)]
        watch = r.watch
        if watch.every_samples is None and watch.every_minutes is None:
            watch = watch.model_copy(update={"every_samples": max(1, plan.total_samples // 10)})
        return fit(
            self.model,
            feed,
            s,
            self.out,
            identity=self._identity(),
            usual=at_default(self.recipe),
            free=(*FREE_DATA, "views", "start.path", "start.hub", "start.clips", *self._free_grid(resume)),
            prepare=_Prepare(augment, plan, self.ranks.rank),
            hooks=looks,
            watch=watch,
            yardstick=yardstick,
            about={**about, "supply": chosen and chosen.describe()},
            resume=resume,
            quiet=quiet,
        )

    def _free_grid(self, resume: bool) -> tuple[str, ...]:
        """The grid of the start matters where its encoder is not in the checkpoints; older ones do not record it."""
        last = Checkpoints(self.out, 1).latest(lambda _: None) if resume and self.recipe.classifier.frozen else None
        kept = last is not None and "grid" in read_meta(last.path).get("config", {}).get("start", {})
        return () if kept else ("start.grid",)

    def test(self) -> tuple[Score | None, Score | None]:
        """(on the test items, on the held-out ones), by the weights' average where the run kept one. Both are written down."""
        if (self.out / "results.json").exists():
            if self.speak:
                say(f"tested already: {self.out / 'results.json'}")
            return None, None
        t, model = self.tables, self.model
        if self.recipe.train.ema:
            self.ranks.together(lambda: None)  # the first process has written the average
            model = load_classifier(self.out, weights="ema", device=str(self.device)).model
        validation = None if t.val is None else self._score(model, t.val, "validation")
        tested = None if t.test is None else self._score(model, t.test, "test")
        if self.ranks.first:
            if validation is not None:
                validation.save_json(self.out / "validation.json")
            if tested is not None:
                save_confusion(tested, self.out / "confusion.png")
                tested.save_json(self.out / "results.json")  # last: with it the test is done
        return tested, validation

    def _score(self, model: Classifier, table: Table, role: str) -> Score:
        r = self.recipe
        details = {
            "start": dict(self.start.about),
            "weights": "average" if r.train.ema else "last",
            "n_train": len(self.tables.train),
            "epochs": r.train.epochs,
            "steps": r.train.steps,
            "seed": r.train.seed,
        }
        if self.speak:
            say(f"{role}: {len(table)} videos, {_looked_at(r.views)} each")
        with torch.compiler.set_stance("force_eager" if r.train.compile else "default"):
            return _scored(model, table, r.data, r.views, role, details, device=self.device, precision=r.train.precision, ranks=self.ranks)

    def _identity(self) -> dict[str, Any]:
        dumped = self.recipe.model_dump(mode="json", include={"classifier", "data", "views"})
        return {**dumped, "method": dict(self.start.method), "classes": list(self.tables.classes), "start": dict(self.start.about)}

    def _summary(self, plan: Plan, yardstick: Yardstick | None, chosen: Supply | None) -> str:
        """What is about to be trained, in a few aligned lines."""
        r, t, s = self.recipe, self.tables, self.recipe.train
        total = sum(p.numel() for p in self.model.parameters())
        h, w = r.data.hw
        held = "" if t.val is None else f", {len(t.val)} held out"
        tested = ", no test" if t.test is None else f", {len(t.test)} for the test ({_looked_at(r.views)} each)"
        batch = plan.batch(Position())
        rate = s.lr * (batch / s.lr_batch if s.lr_batch else 1.0)
        came = "random weights, built as" if self.start.state is None else "the encoder of"
        rows = [
            ("start", f"{came} {self.start.about['path']}, {total / 1e6:.1f} M parameters to train"),
            ("classes", f"{len(t.classes)}; {len(t.train)} videos to train on{held}{tested}"),
            ("clips", f"{r.data.frames}x{h}x{w}, {r.data.sampling}, {r.data.clips_per_video * r.data.repeats} per visit"),
            ("length", f"{plan.total_steps} steps = {plan.total_samples / plan.epoch_size:.4g} epochs, warm-up {plan.warmup_steps} steps"),
            ("batch", f"{batch} on {self.ranks.world} x {self.device}, learning rate {rate:.3g}, {s.precision}"),
            *([("cost", cost_line(yardstick, plan))] if yardstick is not None else []),
            *([("supply", chosen.why)] if chosen is not None else []),
            ("out", str(self.out)),
        ]
        return "\n".join(f"{name:>8}  {text}" for name, text in rows)


class _Prepare:
    """Augmentation whose choices are drawn on the host: it knows each micro-batch's samples without asking the device."""

    def __init__(self, augment: Augment, plan: Plan, rank: int) -> None:
        self.augment, self.plan, self.rank = augment, plan, rank
        self.step, self.parts = -1, iter(())

    def __call__(self, batch: Batch, at: Step) -> Batch:
        if at.index != self.step:
            position = Position(at.index, at.samples)
            self.step, self.parts = at.index, iter([mine for mine, _ in self.plan.micro_batches(position, self.rank)])
        mine = next(self.parts)
        assert len(mine) == len(batch), "a step's micro-batches come in order"
        return self.augment(batch, at.draw, host=at.draw.bind(torch.arange(mine.start, mine.stop), at.index))


class _Validation:
    """Accuracy on the held-out part while a run goes on: the centre of each video, once."""

    name = "validation"

    def __init__(self, table: Table, recipe: FinetuneRecipe, device: torch.device) -> None:
        self.table, self.recipe, self.device = table, recipe, device
        self.views = Views(sampling=recipe.views.sampling)

    def look(self, trainable: Trainable, at: Step, ranks: Ranks) -> dict[str, float]:
        """``val_top1``, a share, and ``val_loss``, the mean of -log p of the true class."""
        assert isinstance(trainable, Classifier)
        r = self.recipe
        found = answers(
            trainable, self.table, _plain(r.data), self.views, device=self.device, batch=AT_ONCE, precision=r.train.precision, ranks=ranks
        )
        given = torch.from_numpy(found.probabilities)
        label = torch.from_numpy(self.table.labels[found.rows])
        likelihood = given.gather(1, label[:, None]).clamp(min=1e-12).log().mean()
        return {"val_top1": float((given.argmax(1) == label).float().mean()), "val_loss": -float(likelihood)}


def evaluate(
    run: str | Path | LoadedClassifier,
    sources: Sources,
    *,
    test: str | None = "test",
    weights: str = "auto",
    settings: Sequence[str] = (),
    batch: int = AT_ONCE,
    device: str = "auto",
    imports: Sequence[str | Path] = (),
    exclude: Sequence[str] = (),
    json_out: str | Path | None = None,
    picture: str | Path | None = None,
    progress: Progress | None = None,
) -> Score:
    """Test a fine-tuned classifier on labelled videos; the same call under torchrun shares them among all its processes.

    ``test``: a split of ``sources``, "all" = everything. ``settings``: data settings and ``views.clips=10`` ..., else those of its own
    test. ``weights``: auto | ema. ``batch``: views in one forward pass. ``json_out``, ``picture``: as for :func:`probe`. What cannot be
    read is listed in ``failures``, never replaced.
    Raises ConfigError, DataError, CheckpointError.
    """
    if problems := _picture_problems(picture):
        raise ConfigError(problems)
    ready = run if isinstance(run, LoadedClassifier) else load_classifier(run, weights=weights, device=device, imports=imports)
    base = {"data": ready.data.model_dump(mode="json"), "views": ready.views.model_dump(mode="json")}
    plain = overlay(base, [t if t.startswith(("views.", "data.")) else f"data.{t}" for t in settings])
    data, views = parse(DataSettings, plain["data"], where="--set"), parse(Views, plain["views"], where="--set")
    if (data.frames, data.hw) != (ready.data.frames, ready.data.hw):
        h, w = ready.data.hw
        raise ConfigError(f"this classifier reads {ready.data.frames} frames of {h}x{w}; frames and size cannot be changed")
    everything = test in (None, EVERYTHING)
    table = open_test(sources, data, ready.classes, test=test, test_sources=sources if everything else None, exclude=exclude)
    assert table is not None, "a split or everything was asked for"
    details = {"weights": weights, "run": str(ready.path)}
    with process_group(ready.device) as ranks:
        precision = ready.config["train"]["precision"]
        found = _scored(
            ready.model, table, data, views, "test", details,
            device=ready.device, precision=precision, ranks=ranks, batch=batch, progress=progress if ranks.first else None,
        )  # fmt: skip
        return _delivered(found, json_out, picture) if ranks.first else found


def _scored(
    model: Classifier,
    table: Table,
    data: DataSettings,
    views: Views,
    role: str,
    details: dict[str, Any],
    *,
    device: torch.device,
    precision: str,
    ranks: Ranks,
    batch: int = AT_ONCE,
    progress: Progress | None = None,
) -> Score:
    found = answers(
        model, table, _plain(data), views, device=device, batch=batch, precision=precision, ranks=ranks, progress=progress
    )  # fmt: skip
    chosen = {"pool": model.config.pool, "views": views.model_dump(), **details}
    return score(f"fine-tuned, {role}, {_looked_at(views)}", found, table, details=chosen)


def _plain(data: DataSettings) -> DataSettings:
    """The settings of training clips without what is drawn."""
    still = {"crop": "centre", "cache": "none", "clips_per_video": 1, "repeats": 1, "augment": {}}
    return DataSettings.model_validate(data.model_dump() | still)


def _looked_at(views: Views) -> str:
    if views.clips == views.crops == 1:
        return "1 view"
    return f"{views.clips} x {views.crops} views"


def _default_recipe() -> str:
    return "finetune-small" if torch.cuda.is_available() else "finetune-tiny-cpu"


def _recipe(recipe: str | Path | None, settings: Sequence[str], out: Path, resume: bool) -> FinetuneRecipe:
    if recipe is None and resume and out.exists():
        if not (out / "config.yaml").exists():
            raise CheckpointError(f"{out} holds no config.yaml to continue from; name its --recipe and settings again")
        return recipe_book.load(out / "config.yaml", settings)
    return recipe_book.load(recipe or _default_recipe(), settings)


def _check_pairs(plan: Plan, group: int) -> None:
    """Whether every piece of a step begins with a whole ``group`` of samples, which mixup and cutmix mix with each other. Raises
    ConfigError: otherwise a run would depend on how its steps are cut."""
    first: dict[int, Position] = {}
    for position in [Position()] if plan.constant else plan.walk(Position()):
        first.setdefault(plan.batch(position), position)
    for batch, position in first.items():
        starts = {mine.start for rank in range(plan.world) for mine, _ in plan.micro_batches(position, rank)}
        if batch < group or any((start - position.samples) % group for start in starts):
            raise ConfigError(
                f"train.batch {batch} in {len(starts)} pieces (train.micro, processes) does not fit mixup and cutmix: they mix {group} "
                f"neighbouring samples with each other, so every piece must be a multiple of {group}"
            )
