"""What a step of any :class:`~tubelet.core.Trainable` costs: counted while it computes its losses once, not looked up."""

from __future__ import annotations

import contextlib
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tubelet.core import Batch, Frozen, Losses, Masker, Step, Trainable
from tubelet.train.optim import default_groups

NEEDS_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def _missing() -> dict[Any, Any]:
    """What torch's formulas of FLOPs lack before 2.15: the fused attention of the CPU, which costs what that of a GPU does."""
    aten, found = torch.ops.aten, {}
    for ours, theirs in (
        (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward, aten._scaled_dot_product_flash_attention_backward),
    ):
        if ours not in flop_registry:
            found[ours] = partial(flop_registry[theirs])
            found[ours]._get_raw = True  # it takes tensors, as those of the registry do
    return found


MISSING = _missing()
FORMULAS = {**flop_registry, **MISSING}


@dataclass(frozen=True)
class Cost:
    """``parameters``: all, each once. ``trained``: those with an optimiser. ``forward_flops``: per sample, matrix products and
    attention, 2 per multiply-add, over all phases of a step. ``activation_bytes``: per sample, what autograd keeps from the forward to
    the backward pass in the hungriest phase. ``cast_bytes``: copies of weights in lower precision that autocast keeps until the backward
    pass, whatever the batch.
    """

    parameters: int
    trained: int
    forward_flops: float
    activation_bytes: int
    cast_bytes: int = 0


@dataclass(frozen=True)
class Rehearsal:
    """``flops``: per sample, forward and backward passes of all phases, recomputation included, counted as in :class:`Cost`.
    ``peak_bytes``: the most memory that the tensors of a whole micro-batch take at once, without the clips, the weights, their gradients
    and the optimisers' state."""

    flops: float
    peak_bytes: int


def measure(trainable: Trainable, batch: Batch, at: Step, *, precision: str = "fp32") -> Cost:
    """Count one pass of ``trainable.losses`` over ``batch`` for every phase of a step. Neither the model nor torch's random state is
    changed, and no gradient is computed.

    A model on the meta device is counted with stand-ins that have shapes and no values: nothing of its size is allocated, so any model
    can be counted anywhere. Losses that look at values (``.item()``, boolean indexing) then raise ValueError; count those on a real
    device. There one real forward pass is made; with several processes all must make it, for losses may talk to each other.
    ``precision``: "fp32" or "bf16" (autocast). ``batch`` may lie on any device; a sample or two are enough.
    """
    flops, kept, casts = 0.0, 0, 0
    with _stage(trainable, batch) as stage:
        for phase, here in stage.turns(at):
            saved = _Saved(stage.own_storages())
            hooks = torch.autograd.graph.saved_tensors_hooks(saved.keep, saved.never_used)
            with _eager(), FlopCounterMode(display=False, custom_mapping=MISSING) as counter, hooks:
                stage.losses(phase, here, precision)
            flops += counter.get_total_flops()
            kept, casts = max(kept, saved.activations), max(casts, saved.casts)
        trained = {p for params in stage.params.values() for p in params}
        return Cost(
            parameters=sum(p.numel() for p in trainable.parameters()),
            trained=sum(p.numel() for p in trained),
            forward_flops=flops / len(batch),
            activation_bytes=round(kept / len(batch)),
            cast_bytes=casts,
        )


def rehearse(trainable: Trainable, batch: Batch, at: Step, *, precision: str = "fp32") -> Rehearsal:
    """Go through the forward and backward passes of a step over one micro-batch without computing anything. The model must be on the meta
    device, and stays as it is; ``batch`` may lie anywhere.

    Every tensor is followed from its making to its end, so short-lived ones count, and activation checkpointing is seen as it works. The
    kernels are those of the CPU: fused attention takes as much on a GPU, compiled blocks take less there. Raises ValueError as
    :func:`measure` does.
    """
    flops, peak = 0.0, 0
    with _stage(trainable, batch) as stage:
        assert stage.meta, "a rehearsal needs a model on the meta device"
        for phase, here in stage.turns(at):
            for p in stage.params[phase]:
                p.grad = torch.zeros_like(p)  # in place beforehand, as where micro-batches accumulate
            live = _Live(stage.own_storages())
            with _eager(), live:
                stage.losses(phase, here, precision).total.backward()
            flops, peak = flops + live.flops, max(peak, live.peak)
    return Rehearsal(flops / len(batch), peak)


def pass_seconds(trainable: Trainable, batch: Batch, at: Step, *, precision: str = "fp32", again: Callable[[float], bool]) -> float:
    """Seconds that one sample of ``batch`` takes in the forward and backward passes of all phases, without the optimisers. Neither the
    model nor torch's random state is changed, but gradients are left to be cleared.

    Passes over the batch are made, the first one to warm up, until ``again(seconds of the last one)`` says no; the last one counts. With
    several processes all must call this, and ``again`` must say the same to all, for losses may talk to each other.
    """
    device = next((p.device for p in trainable.parameters()), torch.device("cpu"))
    with _stage(trainable, batch) as stage:
        while True:
            began = time.monotonic()
            for phase, here in stage.turns(at):
                with _eager():
                    stage.losses(phase, here, precision).total.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.monotonic() - began
            if not again(seconds):
                return seconds / len(batch)


class _Stage:
    """A trainable and a batch, ready to be counted. ``params``: those of each phase, as they are meanwhile."""

    def __init__(self, trainable: Trainable, batch: Batch, params: Mapping[str, Sequence[Tensor]], device: torch.device) -> None:
        self.trainable, self.batch, self.params = trainable, batch, params
        self.meta = device.type == "meta"
        self.device = "cpu" if self.meta else device.type

    def turns(self, at: Step) -> Iterator[tuple[str, Step]]:
        """The phases of a step as training goes through them, and their clocks. Meanwhile only the phase's own parameters learn."""
        order = list(self.trainable.phase_order(at))
        for turn, phase in enumerate(order):
            for p in self.trainable.parameters():
                p.requires_grad_(False)
            for p in self.params[phase]:
                p.requires_grad_(True)
            again = order[:turn].count(phase)
            draw = at.draw.child(f"again{again}") if again else at.draw
            yield phase, replace(at, draw=draw.bind(self.batch.sample, at.index))

    def losses(self, phase: str, at: Step, precision: str) -> Losses:
        with torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16"):
            try:
                return self.trainable.losses(phase, self.batch, at)
            except NEEDS_VALUES as error:
                raise ValueError(
                    f"the losses of phase {phase!r} depend on values ({error}), and a model on the meta device has none; "
                    "count this model on a real device"
                ) from None

    def own_storages(self) -> list[torch.UntypedStorage]:
        """Weights, gradients, buffers and the batch: what is there before a step."""
        tensors = [t for m in _all_modules(self.trainable) for t in [*m.parameters(recurse=False), *m.buffers(recurse=False)]]
        tensors += [t.grad for t in tensors if t.grad is not None]
        tensors += [s.data for s in self.batch.streams.values()]
        return [t.untyped_storage() for t in tensors]


@contextlib.contextmanager
def _stage(trainable: Trainable, batch: Batch) -> Iterator[_Stage]:
    phases = {name: trainable.groups(name) or default_groups(module) for name, module in trainable.phases().items()}
    device = next((p.device for p in trainable.parameters()), torch.device("cpu"))
    meta = device.type == "meta"
    batch = _with_values(batch) if meta else batch.to(device)
    with _unchanged(trainable), _stand_ins(trainable) if meta else contextlib.nullcontext({}) as stand_in:
        params = {name: [stand_in.get(p, p) for group in groups for p in group.params] for name, groups in phases.items()}
        yield _Stage(trainable, batch, params, device)


class _Saved:
    """Adds up what autograd saves: every storage once, without what is there anyway. It keeps no tensor alive, and so there is nothing
    left for a backward pass."""

    def __init__(self, own: Iterable[torch.UntypedStorage]) -> None:
        self.seen = {ref.cdata: ref for ref in map(StorageWeakRef, own)}  # weak, yet their addresses are not used again
        self.activations = self.casts = 0

    def keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        ref = StorageWeakRef(storage)
        if ref.cdata in self.seen:
            return
        self.seen[ref.cdata] = ref
        if _is_cast_weight(tensor):
            self.casts += storage.nbytes()
        else:
            self.activations += storage.nbytes()

    @staticmethod
    def never_used(kept: None) -> Tensor:
        raise AssertionError("a pass that is only counted has no backward pass")


class _Live(TorchDispatchMode):
    """Follows the storages that operations make: ``now`` and ``peak`` in bytes, without those that were there before. ``flops`` adds up
    by the formulas of torch's FlopCounterMode, whose own hooks on modules would keep recomputed tensors alive."""

    def __init__(self, own: Iterable[torch.UntypedStorage]) -> None:
        super().__init__()
        self.known = {storage._cdata for storage in own}
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        weakref.finalize(storage, self._end, storage._cdata, storage.nbytes()).atexit = False
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _end(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def _is_cast_weight(tensor: Tensor) -> bool:
    """Whether nothing but a parameter was changed in type or shape to make it: its size does not grow with the batch."""
    node = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is not None and type(node).__name__ == "AccumulateGrad"


def _with_values(batch: Batch) -> Batch:
    """A batch on the CPU; what lies on the meta device becomes zeros, its sample numbers 0, 1, ..."""

    def real(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return [real(v) for v in x] if isinstance(x, list | tuple) else x
        return torch.zeros_like(x, device="cpu") if x.is_meta else x.cpu()

    streams = {k: s.map(real) for k, s in batch.streams.items()}
    sample = torch.arange(len(batch)) if batch.sample.is_meta else batch.sample.cpu()
    return Batch(streams, {k: real(v) for k, v in batch.labels.items()}, sample, batch.key, batch.text)


def _all_modules(trainable: nn.Module) -> list[nn.Module]:
    """All modules, also those of the outside models that the trainable hides from torch."""
    hidden = [m.inner for m in trainable.modules() if isinstance(m, Frozen) and isinstance(m.inner, nn.Module)]
    return [m for root in (trainable, *hidden) for m in root.modules()]


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Compiled blocks run as written: what is inside a compiled kernel cannot be counted."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and it takes seconds to import
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def _unchanged(trainable: Trainable) -> Iterator[None]:
    """Put back what a forward pass may change: who needs gradients, buffers, torch's generators, whether a masker's first mask was seen."""
    wanted = [(p, p.requires_grad) for p in trainable.parameters()]
    buffers = [(b, b.clone()) for m in _all_modules(trainable) for b in m.buffers(recurse=False) if not b.is_meta]
    maskers = [(m, m._checked) for m in trainable.modules() if isinstance(m, Masker)]
    devices = sorted({p.device.index for p in trainable.parameters() if p.device.type == "cuda"})
    for m, _ in maskers:
        m._checked = True  # a mask of stand-ins has no values to check; the run's own first mask will be checked
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for b, before in buffers:
                    b.copy_(before)
            for p, needed in wanted:
                p.requires_grad_(needed)
            for m, checked in maskers:
                m._checked = checked


@contextlib.contextmanager
def _stand_ins(trainable: Trainable) -> Iterator[dict[Tensor, Tensor]]:
    """Meanwhile, CPU tensors without memory in the place of all that lies on the meta device; yields which stands for which.

    Unlike the meta device they take part in autocast and in fused attention. What is real stays real: the numbers that masks are drawn
    from, and so most masks.
    """
    mode, stand_in = FakeTensorMode(allow_non_fake_inputs=True), {}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in _all_modules(trainable):
        for slots in (module._parameters, module._buffers):
            places += [(slots, name, t) for name, t in slots.items() if t is not None and t.is_meta]
    with mode:
        for _, _, t in places:
            if t not in stand_in:
                stand_in[t] = torch.empty(t.shape, dtype=t.dtype, device="cpu")
    try:
        for slots, name, t in places:
            slots[name] = stand_in[t]
        yield stand_in
    finally:
        for slots, name, t in places:
            slots[name] = t
