"""What a run will take before it is started: memory, time, cores and disk, counted and measured where that is possible."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tubelet import recipe as recipe_book
from tubelet.api import _trial
from tubelet.api._common import Sources, build
from tubelet.api._run_plan import GIB, PER_NODE, SPARE, Decoding, Fit, Launch, Machine, Memory, RunPlan, StagePlan, Time
from tubelet.config import did_you_mean, import_file
from tubelet.core import Batch, CounterDraw, Losses, Method, Step, Trainable
from tubelet.data.cache import free_bytes
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.data.workers import auto_workers
from tubelet.errors import ConfigError
from tubelet.recipe import StageSettings
from tubelet.train import cost
from tubelet.train.checkpoint import write_text
from tubelet.train.distributed import pick_device
from tubelet.train.loop import apply_switches
from tubelet.train.peaks import GPUS, known_gpu, peak_flops, peak_of
from tubelet.train.plan import Plan, Position

ASSUMED_GPU = "a100-80"  # where several GPUs are asked for, none is named and none is here
LONG_ON_CPU = 86400.0  # seconds, from which on a GPU is advised
MOST_WORKERS = 16  # what data.workers=auto takes at most


def plan(
    sources: Sources | None = None,
    *,
    recipe: str | Path | None = None,
    size: str | None = None,
    settings: Sequence[str] = (),
    gpus: int = 1,
    gpu: str | None = None,
    items: int | None = None,
    cores: int | None = None,
    mfu: float = 0.35,
    measure: bool = False,
    out: str | Path | None = None,
    sbatch: str | Path | None = None,
    hours: float = 24.0,
    json_out: str | Path | None = None,
    overwrite: bool = False,
    imports: Sequence[str | Path] = (),
    exclude: Sequence[str] = (),
) -> RunPlan:
    """What :func:`tubelet.pretrain` with the same arguments will take. Nothing is trained, and no model of that size is made in memory.

    ``sources``: as for pretrain; a sample of them is decoded to see how fast that is. None: nothing is decoded, and ``items`` says how
    many there are. ``gpus``: how many. ``gpu``: which (a name in ``tubelet.train.peaks.GPUS``), or only its memory, such as "48GB"; None =
    the one that is here, or the CPU. ``cores``: CPU cores for each GPU. ``mfu``: the share of the GPU's peak that training is assumed to
    reach. ``measure``: time a few real steps on this machine instead. ``out``: the run folder for the lines that start it. ``sbatch``:
    write a Slurm script there; ``hours``: the longest job that the cluster takes. ``json_out``: write all figures there. Files are replaced
    only with ``overwrite``. Raises ConfigError, DataError.
    """
    asked = _Asked(sources, gpus, gpu, items, cores, mfu, measure, hours)
    problems = asked.problems()
    for path in (p for p in (sbatch, json_out) if p is not None and Path(p).exists() and not overwrite):
        problems.append(f"{path} exists already; give another name, or replace it with --overwrite")
    name = recipe or ("one-gpu" if gpu or gpus > 1 or torch.cuda.is_available() else "tiny-cpu")
    resolved = None
    try:
        for path in imports:
            import_file(path)
        resolved = recipe_book.load(name, settings, size=size)
    except ConfigError as error:
        problems += error.problems
    if problems or resolved is None:
        raise ConfigError(problems)
    stages, notes = [], []
    for s in resolved.stages:
        machine = asked.machine(s, notes)
        table = None
        if sources is not None:
            table = open_table(sources, split=s.data.split, labels=s.data.labels, images=s.data.images, exclude=exclude)
        prefix = f"{s.name}.train." if len(resolved.stages) > 1 else ""
        stages.append(_Planner(s, machine, table, asked, notes).stage(prefix))
    launch = Launch(
        sources=asked.named,
        recipe=str(name),
        size=size,
        settings=(*settings, *(x for stage in stages for x in stage.fit.settings)),
        imports=tuple(map(str, imports)),
        exclude=tuple(exclude),
        out=str(out or f"runs/{Path(name).stem}{f'-{size}' if size else ''}"),
        hours=hours,
    )
    found = RunPlan(launch, stages[0].machine, tuple(stages), tuple(dict.fromkeys(notes)))
    if sbatch is not None:
        write_text(Path(sbatch), found.sbatch)
    if json_out is not None:
        write_text(Path(json_out), json.dumps(found.to_dict(), indent=1) + "\n")
    return found


@dataclass(frozen=True)
class _Asked:
    """The arguments that say where and how long."""

    sources: Sources | None
    gpus: int
    gpu: str | None
    items: int | None
    cores: int | None
    mfu: float
    measure: bool
    hours: float

    @property
    def named(self) -> tuple[str, ...]:
        if self.sources is None:
            return ()
        return tuple(map(str, [self.sources] if isinstance(self.sources, str | Path) else self.sources))

    def problems(self) -> list[str]:
        """What is wrong with them, one line each."""
        counts = {"gpus": self.gpus, "items": self.items, "cores": self.cores}
        wrong = [f"{name} must be at least 1, got {n}" for name, n in counts.items() if n is not None and n < 1]
        if self.gpus > PER_NODE and self.gpus % PER_NODE:
            wrong.append(f"gpus: above {PER_NODE} they stand in machines of {PER_NODE}: give a multiple of {PER_NODE}, not {self.gpus}")
        if not 0 < self.mfu <= 1:
            wrong.append(f"mfu is a share of the peak, above 0 and at most 1, got {self.mfu:g}")
        if not 0 < self.hours < float("inf"):
            wrong.append(f"hours must be above 0, got {self.hours:g}")
        if self.gpu is not None and self.gpu.lower() not in GPUS and _gib(self.gpu) is None:
            kin = [name for name in GPUS if name.startswith(self.gpu.lower())]
            hint = f" (did you mean {' or '.join(map(repr, kin))}?)" if kin else did_you_mean(self.gpu.lower(), list(GPUS))
            wrong.append(f"unknown gpu {self.gpu!r}{hint}; there are {', '.join(GPUS)}, or give its memory, such as 48GB")
        if self.sources is not None and self.items is not None:
            wrong.append("items is for a plan without sources; theirs are counted")
        if self.measure and self.gpu is not None:
            wrong.append("measure times steps on this machine, not on a GPU that is named: leave out one of the two")
        return wrong

    def machine(self, s: StageSettings, notes: list[str]) -> Machine:
        """What a stage is planned for. Raises ConfigError for a device that is not here."""
        name = self.gpu.lower() if self.gpu is not None else None
        if name is None:
            device = pick_device(s.train.device)
            if device.type == "cuda":
                return self._here(s, device)
            if self.gpus == 1 or s.train.device != "auto":
                return self._cpu(s)
            name = ASSUMED_GPU
            notes.append(f"no GPU is here and none was named: {GPUS[name].title} is assumed (--gpu)")
        cores, origin = self._cores(s, MOST_WORKERS, "assumed, as data.workers=auto uses no more; --cores changes that")
        if name not in GPUS:
            memory = _gib(name)
            return Machine(f"GPU with {memory:g} GiB", self.gpus, memory, None, cores, origin)
        gpu, precision = GPUS[name], s.train.precision
        if gpu.bf16 is None and precision == "bf16":
            notes.append(f"{gpu.title} has no fast bf16: train with --set precision=fp32")
        return Machine(gpu.title, self.gpus, gpu.memory, peak_of(gpu, precision), cores, origin)

    def _here(self, s: StageSettings, device: torch.device) -> Machine:
        title = torch.cuda.get_device_name(device)
        known = known_gpu(title)
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        cores, origin = self._cores(s, max(1, _cores_here() // self.gpus), "this machine's")
        return Machine(known.title if known else title, self.gpus, memory, peak_flops(device, s.train.precision), cores, origin)

    def _cpu(self, s: StageSettings) -> Machine:
        device = torch.device("cpu")
        free = free_bytes(device)
        cores, origin = self._cores(s, auto_workers(), "data.workers=auto here")
        peak = peak_flops(device, s.train.precision)
        return Machine("CPU", self.gpus, free / GIB if free < 2**60 else None, peak, cores, origin, cpu=True)

    def _cores(self, s: StageSettings, default: int, origin: str) -> tuple[int, str]:
        if self.cores is not None:
            return self.cores, "--cores"
        if isinstance(s.data.workers, int):
            return s.data.workers, "data.workers"
        return default, origin


def _cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gib(text: str) -> float | None:
    """The memory that "48GB" or "48" says, in GiB: what makers call GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(g|gb|gib)?", text.lower())
    return float(match[1]) if match and float(match[1]) > 0 else None


def view_macs(model: Trainable, batch: Batch) -> float | None:
    """Multiply-adds of a method's encoder that reads all tokens of a clip: the figure of papers' tables. None for what has no encoder."""
    if not isinstance(model, Method):
        return None
    return cost.measure(_Encoding(model), batch, Step(0, 0, 0.0, 0.0, CounterDraw(0, batch.sample))).forward_flops / 2


class _Encoding(Trainable):
    """What an encoder computes when it reads all tokens, as something that can be counted."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        return Losses({"mean": (self.method.encode(batch).x.float().mean(), 1.0)})


class _Planner:
    """Plans one stage. ``table``: its items, None = not known."""

    def __init__(self, s: StageSettings, machine: Machine, table: Table | None, asked: _Asked, notes: list[str]) -> None:
        self.s, self.machine, self.table, self.asked, self.notes = s, machine, table, asked, notes
        if s.train.batch < machine.count:
            raise ConfigError(f"train.batch has {s.train.batch} clips for {machine.count} devices; each needs at least one")
        self.decoding: Decoding | None = None
        self.model = self._built()
        batch = _trial.blank(s, self.model.needs)
        if table is not None:
            batch, self.decoding = _trial.decode_sample(s, table, self.model.needs)
            notes += table.notes
            self._look_at_cache(self.decoding.cache_bytes)
        self.batch = _trial.prepared(s, batch, len(table.classes) if table is not None else 0)
        at, precision = _trial.clock(s), s.train.precision
        try:
            self.cost = cost.measure(self.model, self.batch, at, precision=precision)
            self.plain = [cost.rehearse(self.model, part, at, precision=precision) for part in self._parts()]
            leaner = self._built()
            apply_switches(leaner, s.train.model_copy(update={"activation_checkpointing": True, "compile": False}))
            self.lean = [cost.rehearse(leaner, part, at, precision=precision) for part in self._parts()]
        except ValueError as error:
            raise ConfigError(f"stage {s.name} cannot be planned: {error}") from None
        self.view = view_macs(self.model, self.batch)

    def _look_at_cache(self, size: int | None) -> None:
        free = free_bytes(torch.device("cpu"))
        if size is not None and self.asked.gpu is None and size > 0.8 * free:
            self.notes.append(f"data.cache = {self.s.data.cache} takes {size / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free here")

    def _built(self) -> Trainable:
        with torch.device("meta"):  # shapes only
            return build(self.s).train()

    def _parts(self) -> tuple[Batch, Batch]:
        """Half of the clips, and all."""
        return _trial.first(self.batch, len(self.batch) // 2), self.batch

    def stage(self, prefix: str) -> StagePlan:
        """All figures. ``prefix`` of settings that the stage should be given."""
        s, t = self.s, self.s.train
        clock, epoch = self._clock()
        batch = clock.batch(Position()) if clock else t.batch
        per_device = math.ceil(batch / self.machine.count)
        memory = self._memory(per_device)
        fit = _fit(memory, self.machine, per_device, t.micro, prefix)
        samples = clock.total_samples if clock else None
        known = dict(self.model.named_parameters())
        state = sum(v.nbytes for v in self.model.state_dict().values())
        learned = sum(v.nbytes for v in known.values())
        ema = learned if t.ema else 0
        masking = s.masking.model_dump() if s.masking is not None else None
        scale = batch / t.lr_batch if t.lr_batch else 1.0
        return StagePlan(
            name=s.name,
            machine=self.machine,
            method=str(getattr(s.method, "kind", "")),
            masking="no masking" if masking is None else f"masking {masking.get('kind', '')} {masking.get('ratio', '')}".rstrip(),
            clip=(s.data.frames, *s.data.hw),
            parameters=self.cost.parameters,
            trained=self.cost.trained,
            encoder_parameters=sum(p.numel() for n, p in known.items() if n.startswith(("encoder", "embed"))),
            forward_flops=self.cost.forward_flops,
            step_flops=(self.lean if fit.checkpointing else self.plain)[1].flops,
            view_macs=self.view,
            kept_bytes=self.cost.activation_bytes,
            items=len(self.table) if self.table is not None else self.asked.items,
            epoch=epoch,
            batch=batch,
            per_device=per_device,
            lr=t.lr * scale,
            min_lr=t.min_lr * scale,
            warmup_steps=clock.warmup_steps if clock else None,
            steps=clock.total_steps if clock else None,
            samples=samples,
            precision=t.precision,
            memory=memory,
            fit=fit,
            decoding=self.decoding,
            time=self._time(batch, per_device, samples, fit, memory),
            checkpoint_bytes=state + ema + memory.optimizer,
            checkpoints=t.keep,
            model_bytes=state + (state if t.ema else 0),
        )

    def _clock(self) -> tuple[Plan | None, int | None]:
        """The run's steps and the clips of an epoch; None where they are not known."""
        items, t = len(self.table) if self.table is not None else self.asked.items, self.s.train
        epoch = None if items is None else items * self.s.data.clips_per_video * self.s.data.repeats
        if epoch is None and (t.steps is None or (t.warmup_steps is None and t.warmup_epochs > 0)):
            return None, None
        return Plan(t, epoch or 1, world=self.machine.count, tokens=self.model.tokens), epoch

    def _memory(self, per_device: int) -> Memory:
        t = self.s.train
        learned = sum(p.nbytes for p in self.model.parameters())
        gradients = round(learned * self.cost.trained / max(1, self.cost.parameters))
        clip = sum(stream.data.nbytes for stream in self.batch.streams.values()) // len(self.batch)
        base, each = self._line(self.plain, self.cost.activation_bytes)
        base_lean, each_lean = self._line(self.lean)
        return Memory(
            weights=learned + sum(b.nbytes for b in self.model.buffers()),
            gradients=gradients,
            optimizer=gradients * (2 if t.optimizer == "adamw" else 1),
            average=learned if t.ema else 0,
            buckets=gradients if self.machine.count > 1 else 0,
            clips=per_device * clip,
            working=base,
            per_clip=each,
            working_checkpointed=base_lean,
            per_clip_checkpointed=each_lean,
            checkpointing=t.activation_checkpointing,
        )

    def _line(self, found: Sequence[cost.Rehearsal], least: int = 0) -> tuple[int, int]:
        """What a micro-batch takes, as bytes that are always there and bytes of each clip, through two rehearsals of it. ``least``: what a
        clip takes for sure; in very small models a gradient on its way outweighs it at first."""
        n = len(self.batch)
        half, whole = (r.peak_bytes for r in found)
        each = max((whole - half) // (n - n // 2), least)
        return max(0, whole - n * each), each

    def _time(self, batch: int, per_device: int, samples: int | None, fit: Fit, memory: Memory) -> Time:
        m, d = self.machine, self.decoding
        clip, basis, mfu = self._clip_seconds(per_device, fit, memory)
        compute = None if clip is None else clip * batch / m.count
        decode = needed = limit = None
        if d is not None and self.s.data.cache != "device":
            alone = batch / m.count / d.rate  # on one core
            decode = alone / max(1, m.cores)
            needed = None if compute is None else alone / compute
        step = compute
        if compute is not None and decode is not None:
            step = compute + decode if m.cores == 0 else max(compute, decode)
            limit = "decoding" if decode > compute else "compute"
        total = None if step is None or samples is None else step * samples / batch
        if m.cpu and (total or 0) > LONG_ON_CPU:
            self.notes.append(f"this is a plan for the CPU of this machine; name the GPU that you have with --gpu: {', '.join(GPUS)}")
        return Time(compute, decode, step, total, limit, basis, mfu, needed)

    def _clip_seconds(self, per_device: int, fit: Fit, memory: Memory) -> tuple[float | None, str, float | None]:
        """Seconds of computing that a clip takes on one device, what they rest on, and the share of the peak that they are."""
        m, micro = self.machine, fit.micro or 1
        flops = (self.lean if fit.checkpointing else self.plain)[1].flops
        peak = m.peak
        if self.asked.measure:
            device = pick_device(self.s.train.device)
            least = 0.0 if peak is None else flops / peak[1]
            each, basis = _trial.timed_steps(
                self.s, self.batch, device, min(micro, per_device), need=memory.total(1, fit.checkpointing), clip_seconds=least
            )
            mfu = None if peak is None else flops / each / peak[1]
            return each, basis + (f", {mfu:.0%} of {peak[0]} ({peak[1] / 1e12:.3g} TFLOP/s)" if peak and mfu else ""), mfu
        if peak is None:
            return None, f"the peak of {m.title} at {self.s.train.precision} is not known, so no time can be given", None
        assumed = f"assuming {self.asked.mfu:.0%} of {peak[0]} ({peak[1] / 1e12:.3g} TFLOP/s); --mfu changes that"
        return flops / (peak[1] * self.asked.mfu), assumed + (", --measure times it" if m.cpu else ""), self.asked.mfu


def _fit(memory: Memory, machine: Machine, per_device: int, micro: int | None, prefix: str) -> Fit:
    """The settings' own micro-batch where it fits, else the fewest passes of equal size that do, at last with checkpointing."""
    on, own = memory.checkpointing, min(micro or per_device, per_device)
    limit = float("inf") if machine.memory is None else machine.memory * GIB * (1 - SPARE)
    if memory.total(own) <= limit:
        return Fit(own, math.ceil(per_device / own), on)
    for checkpointing in sorted({on, True}):
        for passes in range(1, per_device + 1):
            size = math.ceil(per_device / passes)
            if memory.total(size, checkpointing) <= limit:
                change = (f"{prefix}micro={size}", *([f"{prefix}activation_checkpointing=true"] if checkpointing and not on else []))
                return Fit(size, math.ceil(per_device / size), checkpointing, change)
    return Fit(None, 0, True)
