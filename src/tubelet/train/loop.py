"""The training loop: any Trainable, any feed of numbered samples, exact resume by two counters."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tubelet.core import Batch, CounterDraw, Frozen, Losses, Step, Trainable
from tubelet.errors import CheckpointError, NonFiniteError
from tubelet.nn.block import Block, CrossBlock
from tubelet.nn.decoder import Decoder
from tubelet.nn.encoder import Encoder
from tubelet.train.checkpoint import FORMAT, Checkpoints, explain_mismatch, read_meta, read_tensors, write_tensors, write_text
from tubelet.train.distributed import Ranks, pick_device, process_group
from tubelet.train.monitor import MetricsFile, Pending, Rate, Reporter, Window, send
from tubelet.train.optim import learning_rate
from tubelet.train.plan import Plan, Position
from tubelet.train.settings import FREE_ON_RESUME, TrainSettings
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
        """Figures for the end of the run, such as counts of bad videos."""
        ...

    def close(self) -> None: ...


class Hook(Protocol):
    """Something that looks at a run between steps (pictures, probes). Called on every process at the same steps."""

    def after_step(self, trainable: Trainable, at: Step, ranks: Ranks) -> Mapping[str, float]:
        """Figures for metrics.jsonl; empty when it has nothing to say."""
        ...


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


class Signals:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a flag that the loop reads between steps. A second Ctrl-C interrupts at once."""

    names = ("SIGINT", "SIGTERM", "SIGUSR1")

    def __init__(self) -> None:
        self.got = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in self.names:
                number = getattr(signal, name, None)
                if number is not None:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.got and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.got = self.got or number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def fit(
    trainable: Trainable,
    feed: Feed,
    settings: TrainSettings,
    run_dir: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    free: Sequence[str] = (),
    prepare: Callable[[Batch, Step], Batch] | None = None,
    hooks: Sequence[Hook] = (),
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Train to the end of the plan, or until a signal asks to stop; either way the state is on disk when this returns.

    ``identity``: the resolved settings, kept in every checkpoint; on resume each difference is explained but for those under ``free``
    (and ``FREE_ON_RESUME``). ``prepare``: device-side augmentation. ``resume``: go on from the newest checkpoint of ``run_dir``.
    The run folder gets checkpoints/, metrics.jsonl, items.txt and, at the end, model.safetensors (and model_ema.safetensors).
    Raises CheckpointError (mismatch, full disk), NonFiniteError, and what the feed raises.
    """
    device = pick_device(settings.device)
    with process_group(device) as ranks, Signals() as signals:
        reset_peak_memory(device)
        return _Run(trainable, feed, settings, run_dir, identity or {}, free, prepare, hooks, ranks, device, signals, quiet).go(resume)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the run's own peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


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
        free: Sequence[str],
        prepare: Callable[[Batch, Step], Batch] | None,
        hooks: Sequence[Hook],
        ranks: Ranks,
        device: torch.device,
        signals: Signals,
        quiet: bool,
    ) -> None:
        self.trainable, self.feed, self.settings, self.run_dir = trainable.to(device).train(), feed, settings, run_dir
        self.prepare, self.hooks, self.ranks, self.device, self.signals = prepare, hooks, ranks, device, signals
        self.free = (*FREE_ON_RESUME, *free)
        frozen = {n: {"path": m.path, "sha256": m.sha256} for n, m in trainable.named_modules() if isinstance(m, Frozen)}
        meta = {"frozen": frozen, "config": {"train": settings.model_dump(mode="json"), **identity}, "data": dict(feed.fingerprint())}
        self.meta: dict[str, Any] = json.loads(json.dumps(meta))  # as it will read back
        self.plan = Plan(settings, len(feed), world=ranks.world, tokens=trainable.tokens)
        apply_switches(trainable, settings)
        self.stepper = Stepper(trainable, settings, self._rate, device=device)
        self.checkpoints = Checkpoints(run_dir, settings.keep)
        self.reporter = Reporter(self.plan.total_steps, quiet=quiet or not ranks.first)
        self.draw = CounterDraw(settings.seed, torch.zeros(1, dtype=torch.int64, device=device))
        self.window = Window()
        self.pending: Pending | None = None
        self.log: MetricsFile | None = None
        self.rate = Rate()
        self.lr = 0.0

    def _rate(self, at: Step, schedule: str | None) -> float:
        return learning_rate(self.settings, self.plan, Position(at.index, at.samples), schedule)

    def go(self, resume: bool) -> Result:
        began = time.monotonic()
        batches: Iterator[Batch] | None = None
        stopped: str | None = None
        try:
            position = self._start(resume)
            schedule = (list(mine) for p in self.plan.walk(position) for mine, _ in self.plan.micro_batches(p, self.ranks.rank))
            batches = self.feed.batches(schedule)
            saved, last_save = position, time.monotonic()
            mark = last_save
            while not self.plan.done(position):
                at = self._at(position)
                micro, shares, waited = self._collect(batches, position, at)
                self.lr = self._rate(at, None)
                losses = self.stepper.step(micro, at, shares)
                before, position = position, self.plan.after(position)
                self._note(losses, position)
                # From end to end: the wait for the device's figures is part of a step.
                now = time.monotonic()
                self.rate.add(now - mark, waited, self.plan.batch(before))
                mark = now
                due = self._due(position, saved, last_save)
                got, save_now = self.ranks.agree([self.signals.got, int(due)])
                if got or save_now or self.plan.done(position):
                    self._read_pending()  # nothing is saved after a step that was not finite
                    self._save(position)
                    saved, last_save = position, time.monotonic()
                if got:
                    stopped = signal.Signals(got).name
                    break
        finally:
            close = getattr(batches, "close", None)  # a generator has one; what else iterates need not
            if close is not None:
                close()
            self.feed.close()
            self.reporter.close()
            if self.log is not None:
                self.log.close()
        return self._finish(position, stopped, time.monotonic() - began)

    def _start(self, resume: bool) -> Position:
        """Restore the newest checkpoint, or begin. Explains every difference to what the checkpoint was made with."""
        found = self.checkpoints.latest(self.reporter.say) if resume else None
        position = Position()
        if not resume and self.checkpoints.all():
            raise CheckpointError(f"{self.run_dir} already holds a run; add --resume to continue it, or choose another --out")
        if resume and found is None:
            self.reporter.say(f"nothing to resume in {self.run_dir}: starting at step 0")
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
            self.reporter.say(f"resumed {found.path} at step {position.step} of {self.plan.total_steps}")

        def open_files() -> None:
            if self.ranks.first:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                self.checkpoints.clean()
                self.log = MetricsFile(self.run_dir / "metrics.jsonl", resume_step=position.step if found else None)
                if found is None:
                    write_text(self.run_dir / "items.txt", "\n".join([*self.feed.keys(), ""]))

        self.ranks.together(open_files)
        return position

    def _compare(self, meta: Mapping[str, Any], path: Path) -> None:
        lines = explain_mismatch({k: meta[k] for k in ("config", "data", "frozen")}, self.meta, [f"config.{f}" for f in self.free])
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

    def _at(self, position: Position) -> Step:
        # Between micro-batches (phase_order, after_step, hooks) per-sample draws are those of the step's first sample.
        draw = self.draw.bind(self.draw.sample + position.samples, position.step)
        return Step(position.step, position.samples, self.plan.epoch(position), self.plan.progress(position), draw)

    def _collect(self, batches: Iterator[Batch], position: Position, at: Step) -> tuple[list[Batch], list[float], float]:
        """The step's micro-batches on the device, their shares, and the seconds spent waiting for them."""
        parts = self.plan.micro_batches(position, self.ranks.rank)
        before = time.monotonic()
        found = self.ranks.together(lambda: [next(batches) for _ in parts])
        waited = time.monotonic() - before
        micro = []
        for batch, (mine, _) in zip(found, parts, strict=True):
            assert len(batch) == len(mine), f"the feed returned {len(batch)} samples for {len(mine)}"
            batch = batch.to(self.device)
            micro.append(self.prepare(batch, self._bound(at, batch)) if self.prepare else batch)
        return micro, [share for _, share in parts], waited

    def _bound(self, at: Step, batch: Batch) -> Step:
        return Step(at.index, at.samples, at.epoch, at.progress, at.draw.bind(batch.sample, at.index))

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
        extra["wait"] = self.rate.wait_share
        per = self.rate.seconds_per_sample
        extra |= {"clips_per_s": 1 / per if per else 0.0}
        if self.device.type == "cuda":
            extra["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        for hook in self.hooks:
            extra |= hook.after_step(self.trainable, self._at(position), self.ranks)
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
            last = self.checkpoints.all()
            kept = f"The newest checkpoint is {last[-1].path}." if last else "There is no checkpoint yet."
            raise NonFiniteError(
                f"the gradient of step {pending.step - 1} is not finite; that step was skipped and the run stopped. {kept} "
                "Lower train.lr, set train.clip=1.0, use train.precision=fp32, or look at the input."
            )
        if not pending.extra:
            return

        def write() -> None:
            if self.log is not None:
                self.log.write({"step": pending.step, **figures, **pending.extra})

        self.ranks.together(write)
        remaining = self.plan.total_samples - pending.extra["samples"]
        self.reporter.show(pending.step, figures["loss"], self.rate, pending.extra["lr"], max(0, remaining))

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
                self.checkpoints.save(position.step, self.stepper.snapshot().tensors | {"figures/window": figures.cpu()}, meta)

        self.ranks.together(write)

    def _finish(self, position: Position, stopped: str | None, seconds: float) -> Result:
        done = self.plan.done(position)
        meta = {**self.meta, "format": FORMAT, "step": position.step, "samples": position.samples}

        def write() -> None:
            if done and self.ranks.first:
                write_tensors(self.run_dir / "model.safetensors", self.trainable.state_dict(), meta)
                if self.stepper.ema:
                    write_tensors(self.run_dir / "model_ema.safetensors", self.trainable.state_dict() | self.stepper.ema, meta)

        self.ranks.together(write)
        return Result(
            position.step, position.samples, self.plan.total_steps, seconds, None if done else stopped, self.feed.report(), signal=stopped
        )
