"""What a planned run looks like: its figures, their table, and the lines that start it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
PER_NODE = 8  # GPUs of one machine, at most
SPARE = 0.1  # of a GPU's memory: CUDA's own, kernels' workspace, fragmentation


@dataclass(frozen=True)
class Machine:
    """What a run is planned for: ``count`` x ``title``. ``memory``: GiB of one, None = not known. ``peak``: its name and FLOP/s, None = not
    known. ``cores``: CPU cores for each, and ``cores_from`` where that number comes from. ``cpu``: training runs on the CPU itself."""

    title: str
    count: int
    memory: float | None
    peak: tuple[str, float] | None
    cores: int
    cores_from: str
    cpu: bool = False

    @property
    def nodes(self) -> int:
        """How many machines that makes."""
        return math.ceil(self.count / PER_NODE)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. ``clips``: those of a whole step, which wait there. ``buckets``: the copies of the gradients that
    DistributedDataParallel sends. ``working`` and ``per_clip``: what a micro-batch takes at its peak is working + micro x per_clip; the
    ``_checkpointed`` ones: with activation checkpointing. ``checkpointing``: whether the settings ask for it. Gradients count all the time,
    as where micro-batches accumulate."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    buckets: int
    clips: int
    working: int
    per_clip: int
    working_checkpointed: int
    per_clip_checkpointed: int
    checkpointing: bool

    @property
    def state(self) -> int:
        """What is there whatever the micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.average + self.buckets + self.clips

    def total(self, micro: int, checkpointed: bool | None = None) -> int:
        """With ``micro`` clips in a forward pass; ``checkpointed`` None = as the settings say."""
        if self.checkpointing if checkpointed is None else checkpointed:
            return self.state + self.working_checkpointed + micro * self.per_clip_checkpointed
        return self.state + self.working + micro * self.per_clip


@dataclass(frozen=True)
class Fit:
    """Whether a stage fits: ``micro`` clips a pass in ``passes`` passes, with ``checkpointing``; None = it does not fit at all.
    ``settings``: what has to be changed for that, as --set takes it."""

    micro: int | None
    passes: int
    checkpointing: bool
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """Measured on a sample. ``rate``: clips a second of one core's time. ``waited``: share of the time in which it waited (for a disk, for
    other programs). ``bad``: videos of the sample that cannot be read. ``fill``: seconds of one core to decode everything into the cache,
    and ``cache_bytes`` it will take; None = the settings ask for no cache."""

    rate: float
    clips: int
    videos: int
    seconds: float
    waited: float
    bad: int
    decoder: str
    fill: float | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Time:
    """Seconds. ``compute`` and ``decode``: of a step, were the other free; None = not known. ``step``: of a step. ``total``: of the stage.
    ``limit``: "compute" or "decoding". ``basis``: what the computing time rests on. ``mfu``: the share of the peak that this is, None = no
    peak known."""

    compute: float | None
    decode: float | None
    step: float | None
    total: float | None
    limit: str | None
    basis: str
    mfu: float | None
    cores_needed: float | None


@dataclass(frozen=True)
class StagePlan:
    """One stage. FLOPs: 2 per multiply-add, matrix products and attention. ``forward_flops``, ``step_flops``: a clip's, forward alone, and
    forward and backward. ``view_macs``: multiply-adds of the encoder reading all tokens of a clip, the figure of papers' tables; None = it
    has no encoder. ``steps`` and what follows from them None = the number of items is not known."""

    name: str
    machine: Machine
    method: str
    masking: str
    clip: tuple[int, int, int]
    parameters: int
    trained: int
    encoder_parameters: int
    forward_flops: float
    step_flops: float
    view_macs: float | None
    kept_bytes: int
    items: int | None
    epoch: int | None
    batch: int
    per_device: int
    lr: float
    min_lr: float
    warmup_steps: int | None
    steps: int | None
    samples: int | None
    precision: str
    memory: Memory
    fit: Fit
    decoding: Decoding | None
    time: Time
    checkpoint_bytes: int
    checkpoints: int
    model_bytes: int

    @property
    def disk_bytes(self) -> int:
        """At its fullest: the checkpoints that are kept, one more while it is written, and the model."""
        return (self.checkpoints + 1) * self.checkpoint_bytes + self.model_bytes

    def micros(self) -> list[int]:
        """Micro-batches for a table: powers of two up to a step's clips on one device, and the one that is used."""
        powers = {2**i for i in range(self.per_device.bit_length())}
        return sorted(powers | {self.per_device} | ({self.fit.micro} if self.fit.micro else set()))


@dataclass(frozen=True)
class Launch:
    """What the lines that start a run are made of. ``settings``: those that were asked for and those that the plan adds. ``hours``: the
    longest job that the cluster takes."""

    sources: tuple[str, ...]
    recipe: str
    size: str | None
    settings: tuple[str, ...]
    imports: tuple[str, ...]
    exclude: tuple[str, ...]
    out: str
    hours: float

    def arguments(self) -> list[str]:
        """Of ``tubelet``."""
        options = [("--size", [self.size] if self.size else []), ("--set", self.settings), ("--import", self.imports)]
        options.append(("--exclude", self.exclude))
        more = [word for name, values in options for value in values for word in (name, value)]
        return ["pretrain", *(self.sources or ("VIDEOS",)), "--out", self.out, "--recipe", self.recipe, *more]

    def command(self, machine: Machine) -> str:
        """For one machine; for several, the line of each."""
        if machine.count == 1:
            return shlex.join(["tubelet", *self.arguments()])
        return f"{self._torchrun(machine, 'HOST')} {shlex.join(self.arguments())}"

    @staticmethod
    def _torchrun(machine: Machine, head: str) -> str:
        nodes, on_node = machine.nodes, machine.count // machine.nodes
        meet = "--standalone" if nodes == 1 else f"--nnodes {nodes} --rdzv-backend c10d --rdzv-id tubelet --rdzv-endpoint {head}:29500"
        return f"torchrun {meet} --nproc-per-node {on_node} -m tubelet"

    def script(self, machine: Machine, seconds: float | None) -> str:
        """For Slurm. A run of ``seconds`` that is longer than a job becomes a chain of jobs; each goes on where the one before stopped."""
        nodes, on_node, name = machine.nodes, machine.count // machine.nodes, Path(self.out).name
        needed = None if seconds is None else seconds * 1.15 / 3600 + 0.25  # a slow start, and the last checkpoint
        jobs = 1 if needed is None else max(1, math.ceil(needed / self.hours))
        limit = self.hours if needed is None or jobs > 1 else min(self.hours, max(1.0, needed))
        head = 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        torchrun = self._torchrun(machine, '"$head"')
        run = f"{'srun ' if nodes > 1 else ''}{torchrun} {shlex.join([*self.arguments(), '--resume'])} &"
        lines = [
            "#!/bin/bash",
            f"#SBATCH --job-name={name}",
            f"#SBATCH --nodes={nodes}",
            "#SBATCH --ntasks-per-node=1",
            *([] if machine.cpu else [f"#SBATCH --gpus-per-node={on_node}"]),
            f"#SBATCH --cpus-per-task={max(1, machine.cores) * on_node}",
            f"#SBATCH --time={math.ceil(limit * 60) // 60}:{math.ceil(limit * 60) % 60:02d}:00",
            "#SBATCH --signal=B:TERM@180",
            f"#SBATCH --output={name}-%A.log",
            "#SBATCH --open-mode=append",
            *([f"#SBATCH --array=1-{jobs}%1"] if jobs > 1 else []),
            "# Add what your cluster asks for: --partition, --account, modules, an environment to activate.",
            "# Three minutes before its time is up a job saves and stops; the next one goes on from there.",
            "set -eu",
            f"if [ -e {shlex.quote(f'{self.out}/model.safetensors')} ]; then exit 0; fi  # the run is complete",
            *([head] if nodes > 1 else []),
            run,
            "run=$!",
            'trap \'kill -TERM "$run"; wait "$run"\' TERM',
            'wait "$run"',
        ]
        return "\n".join([*lines, ""])


@dataclass(frozen=True)
class RunPlan:
    """What :func:`tubelet.plan` found. ``notes``: what to know about the figures. ``str()`` is the report."""

    launch: Launch
    machine: Machine
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Of all stages; None where one is not known."""
        times = [stage.time.total for stage in self.stages]
        return None if any(t is None for t in times) else sum(t for t in times if t is not None)

    @property
    def command(self) -> str:
        """The line that starts the run."""
        return self.launch.command(self.machine)

    @property
    def sbatch(self) -> str:
        """A script for Slurm."""
        return self.launch.script(self.machine, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the memory of every micro-batch of the table."""
        out = asdict(self)
        for stage, plan in zip(out["stages"], self.stages, strict=True):
            stage["memory"]["table"] = [
                {"micro": m, "bytes": plan.memory.total(m, False), "bytes_checkpointed": plan.memory.total(m, True)} for m in plan.micros()
            ]
            stage["disk_bytes"] = plan.disk_bytes
        return out | {"seconds": self.seconds, "command": self.command, "sbatch": self.sbatch}

    def __str__(self) -> str:
        blocks = [_text(stage, alone=len(self.stages) == 1) for stage in self.stages]
        if len(self.stages) > 1 and self.seconds is not None:
            blocks.append(_aligned([("in all", period(self.seconds))]))
        if self.notes:
            blocks.append(_aligned([("note", note) for note in self.notes]))
        return "\n\n".join([*blocks, _aligned([("start", self.command)])])


def period(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``, ``5.2 days``, ``3.1 years``."""
    for size, unit in ((31557600, "years"), (86400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def amount(size: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / GIB:,.1f} GiB" if size >= 0.95 * GIB else f"{size / 2**20:,.0f} MiB"


def count(flops: float) -> str:
    """Operations in G or T."""
    return f"{flops / 1e12:,.2f} T" if flops >= 1e12 else f"{flops / 1e9:,.1f} G"


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name if i == 0 else '':>9}  {line}" for name, text in rows for i, line in enumerate(text.split("\n")))


def _text(s: StagePlan, *, alone: bool) -> str:
    """The report of a stage."""
    t, h, w = s.clip
    frozen = "" if s.trained == s.parameters else f", {s.trained / 1e6:.1f} M trained"
    model = f"{s.method}: {s.parameters / 1e6:.1f} M parameters ({s.encoder_parameters / 1e6:.1f} M encoder{frozen}), {s.masking}"
    papers = "multiply-adds (papers' tables call each one FLOP)"
    view = "" if s.view_macs is None else f"\nencoder on all tokens of a clip: {count(s.view_macs)} {papers}"
    clip = f"{t}x{h}x{w}: {count(s.forward_flops)}FLOP forward, {count(s.step_flops)}FLOP with the backward pass (2 per multiply-add)"
    disk = f"{s.checkpoints} + 1 checkpoints of {amount(s.checkpoint_bytes)}, the model {amount(s.model_bytes)}"
    return _aligned(
        [
            *([] if alone else [("stage", s.name)]),
            ("model", model),
            ("clip", clip + view),
            ("length", _length(s)),
            ("batch", _batch(s)),
            ("memory", _memory(s)),
            *([("decoding", _decoding(s.decoding))] if s.decoding is not None else []),
            ("disk", f"{amount(s.disk_bytes)} at most: {disk}"),
            ("time", _time(s)),
        ]
    )


def _length(s: StagePlan) -> str:
    if s.steps is None or s.samples is None:
        return "not known: it follows from the number of items; give sources, or --items N"
    if s.epoch is None:
        return f"{s.steps:,} steps, warm-up {s.warmup_steps:,} steps; how many epochs that is follows from the number of items (--items N)"
    epochs = s.samples / s.epoch
    return f"{s.steps:,} steps = {epochs:,.4g} epochs of {s.epoch:,} clips ({s.items:,} items), warm-up {s.warmup_steps:,} steps"


def _batch(s: StagePlan) -> str:
    machine = s.machine
    share = f" = {machine.count} x {s.per_device}" if machine.count > 1 else ""
    return f"{s.batch}{share} on {machine.count} x {machine.title}, learning rate {s.lr:.3g} falling to {s.min_lr:.2g}, {s.precision}"


def _memory(s: StagePlan) -> str:
    m = s.memory
    parts = [("weights", m.weights), ("gradients", m.gradients), ("optimiser", m.optimizer), ("average", m.average)]
    parts += [("DDP's copy of the gradients", m.buckets), ("clips", m.clips)]
    lines = [f"on each device {amount(m.state)}: " + ", ".join(f"{name} {amount(size)}" for name, size in parts if size)]
    lines.append(f"and for each clip of a micro-batch {amount(m.per_clip)} at the peak, {amount(s.kept_bytes)} of it activations")
    sizes = s.micros()
    lines.append("  micro " + "".join(f"{size:>10}" for size in sizes))
    for name, checkpointed in (("plain ", False), ("recomp", True)):
        lines.append(f"  {name}" + "".join(f"{amount(m.total(size, checkpointed)):>10}" for size in sizes))
    lines.append("  recomp: with activation checkpointing, --set activation_checkpointing=true")
    return "\n".join([*lines, _verdict(s)])


def _verdict(s: StagePlan) -> str:
    machine = s.machine
    if machine.memory is None:
        return "whether it fits is not known: name a GPU with --gpu"
    of = f"{machine.memory:.1f} GiB {'free here' if machine.cpu else f'of {machine.title}'}"
    room = f"{SPARE:.0%} kept free"
    if s.fit.micro is None:
        least = s.memory.total(1, True)
        return f"does not fit: {amount(least)} with micro=1 and activation checkpointing, and there are {of} ({room})"
    how = f"micro={s.fit.micro}" + (f", {s.fit.passes} passes a step" if s.fit.passes > 1 else "")
    how += ", activation checkpointing" if s.fit.checkpointing else ""
    change = f": {' '.join(f'--set {x}' for x in s.fit.settings)}" if s.fit.settings else ""
    word = "fits with" if s.fit.settings else "fits as it is,"
    return f"{word} {how} ({amount(s.memory.total(s.fit.micro, s.fit.checkpointing))} of the {of}, {room}){change}"


def _decoding(d: Decoding) -> str:
    bad = f"; {d.bad} of them cannot be read (tubelet check lists such)" if d.bad else ""
    text = f"{d.rate:,.1f} clips a second on one core of this machine ({d.clips} clips of {d.videos} videos, {d.decoder}){bad}"
    if d.waited > 0.3:
        text += f"\nit waited {d.waited:.0%} of the time, for the disk or for other programs; that is not in the figure"
    if d.fill is not None:
        text += f"\ncut from a cache of {amount(d.cache_bytes or 0)}, which takes one core {period(d.fill)} to fill"
    return text


def _time(s: StagePlan) -> str:
    t, machine = s.time, s.machine
    lines = []
    if t.compute is not None:
        lines.append(f"computing {period(t.compute)} a step, {t.basis}")
    else:
        lines.append(f"computing: {t.basis}")
    if t.cores_needed is not None:
        each = "" if machine.cpu else " for each GPU"
        lines.append(f"decoding needs {t.cores_needed:,.2g} cores{each} to keep up; it has {machine.cores} ({machine.cores_from})")
    if t.limit == "decoding":
        lines.append("decoding is the limit: give it more cores, store smaller videos, or raise clips_per_video")
    elif t.limit == "compute":
        lines.append("computing is the limit")
    if t.total is not None:
        devices = f" = {period(t.total * machine.count)} of GPU time" if machine.count > 1 else ""
        lines.append(f"in all {period(t.total)}{devices}")
    return "\n".join(lines)
