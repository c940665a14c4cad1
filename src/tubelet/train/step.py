"""One optimiser step of any :class:`~tubelet.core.Trainable`: phases, accumulation, clipping, averaging. No files, no data order."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tubelet.core import Batch, Losses, Step, Trainable
from tubelet.core.draw import name_key
from tubelet.train.optim import check_groups, default_groups, make_optimizer
from tubelet.train.settings import TrainSettings


class _Phase(nn.Module):
    """A phase's losses as a forward pass, the shape in which DistributedDataParallel wants them."""

    def __init__(self, trainable: Trainable, phase: str) -> None:
        super().__init__()
        self.trainable, self.phase = trainable, phase

    def forward(self, batch: Batch, at: Step) -> Losses:
        return self.trainable.losses(self.phase, batch, at)


@dataclass(frozen=True)
class Snapshot:
    """All state of a Stepper, as host tensors by readable names."""

    tensors: dict[str, Tensor]


class Stepper:
    """Owns the optimisers of a trainable's phases.

    ``rate(at, schedule)`` gives the learning rate of a step. With a process group, gradients are averaged over processes; the losses'
    global denominators (``objectives.reduce``) make that the gradient of the global batch.
    """

    def __init__(
        self,
        trainable: Trainable,
        settings: TrainSettings,
        rate: Callable[[Step, str | None], float],
        *,
        device: torch.device | None = None,
    ) -> None:
        self.trainable, self.settings, self.rate = trainable, settings, rate
        self.device = device or next((p.device for p in trainable.parameters()), torch.device("cpu"))
        self.distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.distributed else 0
        modules = trainable.phases()
        groups = {name: trainable.groups(name) or default_groups(module) for name, module in modules.items()}
        check_groups(groups, trainable)
        self.params = {name: [p for g in gs for p in g.params] for name, gs in groups.items()}
        self.optimizers = {name: make_optimizer(gs, settings) for name, gs in groups.items()}
        self.ema = {n: p.detach().clone() for n, p in trainable.named_parameters()} if settings.ema else {}
        self.runners: dict[str, nn.Module] = {}
        for name in modules:
            self._only(name)
            runner: nn.Module = _Phase(trainable, name)
            if self.distributed:
                # Unused parameters are legal (a class token that a loss does not read), so DDP must look for them.
                known = inspect.signature(DistributedDataParallel).parameters
                sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in torch 2.13
                options: dict[str, Any] = {sync: False}
                runner = DistributedDataParallel(runner, find_unused_parameters=True, **options)
            self.runners[name] = runner

    def _only(self, phase: str) -> None:
        for name, params in self.params.items():
            for p in params:
                p.requires_grad_(name == phase)

    def step(self, micro: Sequence[Batch], at: Step, shares: Sequence[float] | None = None) -> Losses:
        """All phases of one step. ``shares``: each micro-batch's share of the global batch (default: by their sizes).

        Returns the last pass of each phase: terms averaged over micro-batches, and log entries "grad_norm" and "finite" (1 = every phase
        stepped; a phase whose gradient is not finite changes nothing). All stay on the device.
        """
        if shares is None:
            total = sum(len(b) for b in micro)
            shares = [len(b) / total for b in micro]
        out = Losses({})
        finite = torch.ones((), device=self.device)
        order = self.trainable.phase_order(at)
        for turn, phase in enumerate(order):
            self._only(phase)
            again = list(order[:turn]).count(phase)
            here = replace(at, draw=at.draw.child(f"again{again}")) if again else at  # a repeated phase draws anew
            done = self._accumulate(phase, micro, shares, here, turn)
            norm, ok = self._update(phase, at)
            finite = finite * ok
            prefix = "" if len(self.runners) == 1 else f"{phase}/"
            out.terms |= {prefix + k: v for k, v in done.terms.items()}
            out.log |= {prefix + k: v for k, v in done.log.items()} | {prefix + "grad_norm": norm}
        for params in self.params.values():
            for p in params:
                p.requires_grad_(True)
        self.trainable.after_step(at)
        self._average()
        out.log["finite"] = finite
        return out

    def _accumulate(self, phase: str, micro: Sequence[Batch], shares: Sequence[float], at: Step, turn: int) -> Losses:
        """Forward and backward over the micro-batches of a phase."""
        self.optimizers[phase].zero_grad(set_to_none=True)
        runner, terms, log = self.runners[phase], {}, {}
        for i, (batch, share) in enumerate(zip(micro, shares, strict=True)):
            # Modules that draw from torch's own generator (dropout) are functions of the step too, so that they resume exactly.
            torch.manual_seed(name_key(self.settings.seed, f"torch/{phase}/{turn}/{at.index}/{i}/{self.rank}") & 0x7FFFFFFFFFFFFFFF)
            here = replace(at, draw=at.draw.bind(batch.sample, at.index))
            last = i == len(micro) - 1
            sync = runner.no_sync() if isinstance(runner, DistributedDataParallel) and not last else contextlib.nullcontext()
            with sync:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                    losses: Losses = runner(batch, here)
                (losses.total * share).backward()
            for name, (value, weight) in losses.terms.items():
                before = terms[name][0] if name in terms else 0.0
                terms[name] = (before + value.detach() * share, weight)
            for name, value in losses.log.items():
                log[name] = log.get(name, 0.0) + value.detach() * share
        return Losses(terms, log)

    def _update(self, phase: str, at: Step) -> tuple[Tensor, Tensor]:
        """Clip, set rates, step unless the gradient is not finite. Returns the norm and 1.0 or 0.0."""
        optimizer = self.optimizers[phase]
        grads = [p.grad for p in self.params[phase] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=self.device)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grads_with_norm_([p for p in self.params[phase] if p.grad is not None], self.settings.clip, norm)
        ok = torch.isfinite(norm).to(torch.float32)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(at, group["schedule"]) * group["scale"]
        if optimizer.defaults.get("fused"):
            # Read by the fused kernel, which then skips the step on the device (the interface that torch's GradScaler uses).
            vars(optimizer).update(found_inf=1.0 - ok, grad_scale=None)
            optimizer.step()
        elif bool(ok):
            optimizer.step()
        return norm.detach(), ok

    @torch.no_grad()
    def _average(self) -> None:
        if self.settings.ema:
            now = dict(self.trainable.named_parameters())
            for name, mean in self.ema.items():
                mean.lerp_(now[name], 1.0 - self.settings.ema)

    def snapshot(self) -> Snapshot:
        """Model, optimisers and average, copied to the host under names that say what they are."""
        tensors = {f"model/{k}": v for k, v in self.trainable.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.items()}
        names = {id(p): n for n, p in self.trainable.named_parameters()}
        for phase, optimizer in self.optimizers.items():
            for p, state in optimizer.state.items():
                tensors |= {f"optim/{phase}/{key}/{names[id(p)]}": v for key, v in state.items() if isinstance(v, Tensor)}
        return Snapshot({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()})

    def restore(self, state: Snapshot) -> None:
        """Put a snapshot back, in place. Raises ValueError naming what does not fit."""
        groups = _by_prefix(state.tensors)
        self.trainable.load_state_dict(groups.get("model", {}), strict=True)
        with torch.no_grad():
            for name, value in groups.get("ema", {}).items():
                self.ema[name].copy_(value)
        params = dict(self.trainable.named_parameters())
        for phase, optimizer in self.optimizers.items():
            optimizer.state.clear()
            for path, value in groups.get("optim", {}).items():
                owner, key, name = path.split("/", 2)
                if owner != phase:
                    continue
                slot: dict[str, Any] = optimizer.state[params[name]]
                slot[key] = value.to(params[name].device, copy=True)


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        head, rest = name.split("/", 1)
        out.setdefault(head, {})[rest] = value
    return out
