"""The training loop: any Trainable, any feed of numbered samples, exact resume by two counters."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tubelet.config import at_default
from tubelet.core import Batch, Frozen, Losses, Trainable
from tubelet.errors import CheckpointError, NonFiniteError
from tubelet.nn.block import Block, CrossBlock
from tubelet.nn.decoder import Decoder
from tubelet.nn.encoder import Encoder
from tubelet.train.checkpoint import FORMAT, Checkpoints, explain_mismatch, read_meta, read_tensors, write_tensors, write_text
from tubelet.train.course import Course, Prepare
from tubelet.train.distributed import pick_device, process_group
from tubelet.train.hooks import Hook, Watch
from tubelet.train.monitor import Pending, Rate, Window, Yardstick, peak_memory, send
from tubelet.train.panel import Panel
from tubelet.train.plan import Position
from tubelet.train.runfile import RunFile, machine
from tubelet.train.settings import FREE_ON_RESUME, TrainSettings, WatchSettings
from tubelet.train.signals import Signals
from tubelet.train.sinks import Sinks
from tubelet.train.step import Snapshot, Stepper


class Feed(Protocol):
    """Samples by number. Sample k of a run is a pure function of k: the loop owns the order, the feed only looks it up."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What must be the same when a run is resumed (JSON-able, readable names)."""
        ...

    def keys(self) -> Sequence[str]:
        """The items, for explaining which are new or gone."""
        ...

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """One batch for each list of global sample numbers, in order."""
        ...

    def report(self) -> Mapping[str, Any]:
        """Figures so far, such as counts of bad videos."""
        ...

    def close(self) -> None: ...


class BadStep(NonFiniteError):
    """``step``: the one whose gradient was not finite, counted from 0."""

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step


@dataclass(frozen=True)
class Result:
    """How a run ended. ``stopped_by``: a signal's name, or None when the run is complete. ``signal``: the one that came, also where it
    came in the last step and there was nothing left to stop."""

    step: int
    samples: int
    total_steps: int
    seconds: float
    stopped_by: str | None
    report: Mapping[str, Any]
    signal: str | None = None


def fit(
    trainable: Trainable,
    feed: Feed,
    settings: TrainSettings,
    run_dir: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    usual: Collection[str] = (),
    free: Sequence[str] = (),
    prepare: Prepare | None = None,
    hooks: Sequence[Hook] = (),
    watch: WatchSettings | None = None,
    yardstick: Yardstick | None = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Train to the end of the plan, or until a signal asks to stop; either way the state is on disk when this returns.

    ``identity``: the resolved settings, kept in every checkpoint; on resume each difference is explained but for those under ``free``
    (and ``FREE_ON_RESUME``). ``usual``: the paths in it that hold defaults (``config.at_default``): those that an older checkpoint does not
    know are no difference. ``prepare``: device-side augmentation. ``hooks`` look at the run when ``watch`` says. ``yardstick``:
    what utilisation is measured with. ``about``: what run.json says besides the loop's own figures. ``resume``: go on from the newest
    checkpoint of ``run_dir``.

    The run folder gets checkpoints/, metrics.jsonl, tensorboard/, run.json, items.txt and, at the end, model.safetensors (and
    model_ema.safetensors). Raises CheckpointError (mismatch, full disk), BadStep, and what the feed raises.
    """
    device = pick_device(settings.device)
    with process_group(device) as ranks, Signals() as signals:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # the run's own peak
        course = Course(trainable, len(feed), settings, device=device, ranks=ranks, prepare=prepare)
        run = _Run(trainable, feed, settings, run_dir, identity or {}, usual, free, course, signals, yardstick, quiet)
        return run.go(resume, hooks, watch or WatchSettings(), about or {})


def refuse_other_run(run_dir: Path, resume: bool) -> None:
    """Raises CheckpointError where a run would be overwritten."""
    if not resume and Checkpoints(run_dir, 1).all():
        raise CheckpointError(f"{run_dir} already holds a run; add --resume to continue it, or choose another --out")


def apply_switches(trainable: nn.Module, settings: TrainSettings) -> None:
    """Activation checkpointing on every module that has the switch; torch.compile block by block, which is quick and always whole."""
    for module in trainable.modules():
        if settings.activation_checkpointing and isinstance(module, Encoder | Decoder):
            module.recompute = True
        if settings.compile and isinstance(module, Block | CrossBlock):
            module.compile()


class _Run:
    def __init__(
        self,
        trainable: Trainable,
        feed: Feed,
        settings: TrainSettings,
        run_dir: Path,
        identity: Mapping[str, Any],
        usual: Collection[str],
        free: Sequence[str],
        course: Course,
        signals: Signals,
        yardstick: Yardstick | None,
        quiet: bool,
    ) -> None:
        self.course, self.plan, self.ranks, self.device = course, course.plan, course.ranks, course.device
        self.trainable, self.feed, self.settings, self.run_dir = trainable.to(self.device).train(), feed, settings, run_dir
        self.signals, self.yardstick, self.free = signals, yardstick, (*FREE_ON_RESUME, *free)
        frozen = {n: {"path": m.path, "sha256": m.sha256} for n, m in trainable.named_modules() if isinstance(m, Frozen)}
        meta = {"frozen": frozen, "config": {"train": settings.model_dump(mode="json"), **identity}, "data": dict(feed.fingerprint())}
        self.usual = {f"config.{path}" for path in (*usual, *at_default(settings, "train."))}
        self.meta: dict[str, Any] = json.loads(json.dumps(meta))  # as it will read back
        apply_switches(trainable, settings)
        self.stepper = Stepper(trainable, settings, course.rate, device=self.device)
        self.checkpoints = Checkpoints(run_dir, settings.keep)
        peak = yardstick.peak[0] if yardstick is not None and yardstick.peak is not None else ""
        self.panel = Panel(self.plan.total_steps, folder=run_dir, peak=peak, quiet=quiet or not self.ranks.first)
        self.window, self.rate, self.lr = Window(), Rate(), 0.0
        self.pending: Pending | None = None
        self.sinks: Sinks | None = None
        self.file: RunFile | None = None

    def go(self, resume: bool, hooks: Sequence[Hook], watching: WatchSettings, about: Mapping[str, Any]) -> Result:
        began = time.monotonic()
        batches: Iterator[Batch] | None = None
        stopped: str | None = None
        error: BaseException | None = None
        try:
            position = self._start(resume, watching, about)
            watch = Watch(
                hooks, watching, self.settings, self.trainable,
                ranks=self.ranks, device=self.device, say=self.panel.say, doing=self.panel.doing,
            )  # fmt: skip
            if position.step == 0:
                self._look(watch, position)
            batches = self.feed.batches(self.course.schedule(position))
            saved, last_save = position, time.monotonic()
            mark = last_save
            while not self.plan.done(position):
                at = self.course.at(position)
                step = self.course.gather(batches, position)
                self.lr = self.course.rate(at, None)
                losses = self.stepper.step(step.micro, at, step.shares)
                before, position = position, self.plan.after(position)
                self._note(losses, position)
                # From end to end: the wait for the device's figures is part of a step.
                now = time.monotonic()
                self.rate.add(now - mark, step.waited, self.plan.batch(before))
                mark = now
                self.panel.step(position.step, (self.plan.total_samples - position.samples) * self.rate.seconds_per_sample)
                due = [int(self._due(position, saved, last_save)), int(watch.due(before, position))]
                got, save_now, look_now = self.ranks.agree([self.signals.got, *due])
                done = self.plan.done(position)
                if got or save_now or look_now or done:
                    self._read_pending()  # nothing is looked at or saved after a step that was not finite
                if (look_now or done) and not got:
                    self._look(watch, position)  # before saving, so that what it found is on disk with the checkpoint's step
                    mark += watch.last_cost
                    got = self.ranks.agree([self.signals.got])[0]  # it may have taken long
                if got or save_now or done:
                    self._save(position)
                    saved, last_save = position, time.monotonic()
                if got:
                    stopped = signal.Signals(got).name
                    break
            return self._finish(position, stopped, time.monotonic() - began, watch)
        except BaseException as problem:
            error = problem
            raise
        finally:
            self._close(batches, error)

    def _start(self, resume: bool, watching: WatchSettings, about: Mapping[str, Any]) -> Position:
        """Restore the newest checkpoint, or begin. Explains every difference to what the checkpoint was made with."""
        found = self.checkpoints.latest(self.panel.say) if resume else None
        position = Position()
        refuse_other_run(self.run_dir, resume)
        if resume and found is None:
            self.panel.say(f"nothing to resume in {self.run_dir}: starting at step 0")
        if found is not None:
            meta = read_meta(found.path)
            self._compare(meta, found.path)
            tensors = read_tensors(found.path)
            window = tensors.pop("figures/window")
            try:
                self.stepper.restore(Snapshot(tensors))
            except (RuntimeError, KeyError) as error:
                raise CheckpointError(f"{found.path} does not fit this model: {error}") from None
            if self.ranks.first:
                self.window.load(window.to(self.device), meta["figures"])
            position = Position(meta["step"], meta["samples"])
            self.panel.say(f"resumed {found.path} at step {position.step} of {self.plan.total_steps}")

        def open_files() -> None:
            if not self.ranks.first:
                return
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.checkpoints.clean()
            step = position.step if found else None
            self.sinks = Sinks(self.run_dir, watching, resume_step=step, config=self.meta["config"], say=self.panel.say)
            self.panel.recall(self.sinks.metrics.kept)
            self.file = RunFile(self.run_dir, about, resumed=found is not None, say=self.panel.say)
            self._describe(position)
            if found is None:
                write_text(self.run_dir / "items.txt", "\n".join([*self.feed.keys(), ""]))

        self.ranks.together(open_files)
        return position

    def _describe(self, position: Position, *, ended: bool = False, **more: Any) -> None:
        """Bring run.json up to date."""
        if self.file is None:
            return
        self.file.write(
            ended=ended,
            machine=machine(self.device, self.ranks.world),
            parameters=sum(p.numel() for p in self.trainable.parameters()),
            steps=position.step,
            total_steps=self.plan.total_steps,
            samples=position.samples,
            **(self.yardstick.describe() if self.yardstick is not None else {}),
            **more,
        )

    def _compare(self, meta: Mapping[str, Any], path: Path) -> None:
        saved = {k: meta[k] for k in ("config", "data", "frozen")}
        lines = explain_mismatch(saved, self.meta, [f"config.{f}" for f in self.free], self.usual)
        if not lines:
            return
        if any(line.startswith("data.") for line in lines):
            lines += self._changed_items()
        text = "\n".join(f"  - {line.removeprefix('config.')}" for line in lines)
        raise CheckpointError(
            f"{path} was made with other settings or data, so the run cannot go on exactly:\n{text}\n"
            "Give the old values to continue it, or another --out to start anew."
        )

    def _changed_items(self) -> list[str]:
        items = self.run_dir / "items.txt"
        if not items.exists():
            return []
        before, now = set(items.read_text(encoding="utf-8").splitlines()), set(self.feed.keys())
        lines = []
        for word, keys in (("gone since", sorted(before - now)), ("new since", sorted(now - before))):
            if keys:
                lines.append(f"items {word}: {len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
        return lines

    def _note(self, losses: Losses, position: Position) -> None:
        """Keep this step's figures; read those of the step before; log when due."""
        self._read_pending()
        flag = losses.log.pop("finite")
        self.window.add({"loss": losses.total.detach(), **{k: v for k, (v, _) in losses.terms.items()}, **losses.log})
        if position.step % self.settings.log_every and not self.plan.done(position):
            self.pending = send(position.step, {"finite": flag})
            return
        means = self._over_processes(self.window.means()) | {"finite": flag}
        extra: dict[str, Any] = {"samples": position.samples, "epoch": self.plan.epoch(position), "lr": self.lr}
        extra |= self.rate.figures()
        if self.yardstick is not None:
            extra |= self.yardstick.figures(extra["clips_per_s"], self.ranks.world)
        if (memory := peak_memory(self.device)) is not None:
            extra["memory_gib"] = memory
        self.pending = send(position.step, means, extra)

    def _over_processes(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.ranks.world == 1:
            return means
        packed = torch.stack(list(means.values()))
        torch.distributed.all_reduce(packed)
        return dict(zip(means, packed / self.ranks.world, strict=True))

    def _read_pending(self) -> None:
        """The figures of the step before. A step that was not finite ends the run here, one step later, without having changed it."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        figures = pending.read()
        if figures.pop("finite") == 0.0:
            last, step = self.checkpoints.all(), pending.step - 1
            kept = f"The newest checkpoint is {last[-1].path}." if last else "There is no checkpoint yet."
            raise BadStep(
                f"the gradient of step {step} is not finite; that step was skipped and the run stopped. {kept} "
                "Lower train.lr, set train.clip=1.0, use train.precision=fp32, or look at the input.",
                step,
            )
        if pending.extra:
            self._write({"step": pending.step, **figures, **pending.extra})

    def _write(self, row: Mapping[str, Any]) -> None:
        """A row to all places; a disk that is full ends all processes alike."""

        def write() -> None:
            if self.sinks is not None:
                self.sinks.write(row)

        self.ranks.together(write)
        if self.ranks.first:
            self.panel.row(row, self.feed.report())

    def _look(self, watch: Watch, position: Position) -> None:
        """Let the hooks look at the run; what they found is a row of its own."""
        found = watch.look(self.course.at(position))
        if self.ranks.agree([len(found)])[0]:
            self._write({"step": position.step, "samples": position.samples, "epoch": self.plan.epoch(position), **found})

    def _due(self, position: Position, saved: Position, last_save: float) -> bool:
        """Whether a checkpoint is due; the first process's clock decides."""
        s = self.settings
        if not self.ranks.first or position.step == saved.step:
            return False
        by_steps = s.checkpoint_every is not None and position.step % s.checkpoint_every == 0
        by_time = s.checkpoint_minutes is not None and time.monotonic() - last_save >= 60 * s.checkpoint_minutes
        return by_steps or by_time

    def _save(self, position: Position) -> None:
        figures, names = self.window.state()
        if self.ranks.world > 1 and names:
            parts = [torch.empty_like(figures) for _ in range(self.ranks.world)]
            torch.distributed.all_gather(parts, figures)
            figures = torch.stack(parts).sum(0)
        meta = {**self.meta, "samples": position.samples, "total_steps": self.plan.total_steps, "figures": names}

        def write() -> None:
            if self.ranks.first:
                if self.sinks is not None:
                    self.sinks.flush()  # what a run that goes on from here will not write again
                self.checkpoints.save(position.step, self.stepper.snapshot().tensors | {"figures/window": figures.cpu()}, meta)

        self.ranks.together(write)
        self._describe(position)

    def _finish(self, position: Position, stopped: str | None, seconds: float, watch: Watch) -> Result:
        done = self.plan.done(position)
        meta = {**self.meta, "format": FORMAT, "step": position.step, "samples": position.samples}

        def write() -> None:
            if done and self.ranks.first:
                write_tensors(self.run_dir / "model.safetensors", self.trainable.state_dict(), meta)
                if self.stepper.ema:
                    write_tensors(self.run_dir / "model_ema.safetensors", self.trainable.state_dict() | self.stepper.ema, meta)

        self.ranks.together(write)
        report = {**self.feed.report(), "hooks_failed": watch.failed} if watch.failed else self.feed.report()
        stopped_by = None if done else stopped
        self._describe(position, ended=True, stopped_by=stopped_by, watch_seconds=round(watch.seconds, 3), report=report)
        return Result(position.step, position.samples, self.plan.total_steps, seconds, stopped_by, report, signal=stopped)

    def _close(self, batches: Iterator[Batch] | None, error: BaseException | None) -> None:
        close = getattr(batches, "close", None)  # a generator has one; what else iterates need not
        if close is not None:
            close()
        self.feed.close()
        self.panel.close()
        if self.sinks is not None:
            self.sinks.close()
        if self.file is not None and error is not None:
            self.file.failed = True  # the error itself is what is to be said
            kind = NonFiniteError if isinstance(error, NonFiniteError) else type(error)
            self.file.write(ended=True, stopped_by=kind.__name__, error=str(error))
