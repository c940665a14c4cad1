"""Learning-rate schedules, parameter groups, optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tubelet.core import Group
from tubelet.errors import ConfigError
from tubelet.train.plan import Plan, Position
from tubelet.train.settings import TrainSettings


def cosine_lr(step: float, *, base: float, final: float, warmup_steps: int, total_steps: int, start: float = 0.0) -> float:
    """Linear warm-up that reaches ``base`` on its last step, then half a cosine to ``final`` (VideoMAE, per step).

    ``step`` counts from 0; the cosine's last value, at ``total_steps`` - 1, is one step short of ``final``.
    """
    if step < warmup_steps:
        return start + (base - start) * step / max(1, warmup_steps - 1)
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * min(1.0, share)))


def learning_rate(settings: TrainSettings, plan: Plan, at: Position, schedule: str | None = None) -> float:
    """The rate of a step: base rate scaled to the step's batch, on its schedule ("cosine" (default) | "constant" | "linear")."""
    scale = plan.batch(at) / settings.lr_batch if settings.lr_batch else 1.0
    base, final, t = settings.lr * scale, settings.min_lr * scale, plan.lr_time(at)
    if schedule in (None, "cosine"):
        return cosine_lr(t, base=base, final=min(final, base), warmup_steps=plan.warmup_steps, total_steps=plan.total_steps)
    if schedule == "constant":
        return base
    if schedule == "linear":
        return base + (min(final, base) - base) * t / max(1, plan.total_steps)
    raise ConfigError(f"a parameter group asks for an unknown learning-rate schedule {schedule!r}; there are cosine, constant, linear")


def default_groups(module: nn.Module) -> list[Group]:
    """One rate; no weight decay on parameters of fewer than two dimensions. What a method froze stays frozen."""
    params = [p for p in module.parameters() if p.requires_grad]
    flat = [p for p in params if p.ndim < 2]
    return [Group([p for p in params if p.ndim >= 2]), Group(flat, decay=0.0)]


def make_optimizer(groups: Sequence[Group], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, fused where the device has it (it then skips a step without asking the host), or SGD.

    Each parameter group keeps ``scale`` and ``schedule`` of its :class:`Group`; the loop sets ``lr`` before every step.
    """
    params = [
        {
            "params": list(g.params),
            "weight_decay": settings.weight_decay if g.decay is None else g.decay,
            "scale": g.lr,
            "schedule": g.schedule,
        }
        for g in groups
        if len(g.params)
    ]
    if not params:
        raise ConfigError("a training phase has no parameters")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(params, lr=settings.lr, momentum=settings.betas[0])
    fused = {p.device.type for g in groups for p in g.params} <= {"cpu", "cuda", "mps", "xpu"}
    return torch.optim.AdamW(params, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def check_groups(phases: Mapping[str, Sequence[Group]], owner: nn.Module) -> None:
    """Every parameter that is not frozen in exactly one group of one phase (assertion: a method's own mistake)."""
    names = {id(p): n for n, p in owner.named_parameters()}
    seen: dict[int, str] = {}
    for phase, groups in phases.items():
        for p in (p for g in groups for p in g.params):
            assert p.requires_grad, f"parameter {names.get(id(p))} is frozen, but in a group of phase {phase!r}"
            assert id(p) not in seen, f"parameter {names.get(id(p))} is in phases/groups {seen[id(p)]!r} and {phase!r}"
            seen[id(p)] = phase
    missing = [n for n, p in owner.named_parameters() if p.requires_grad and id(p) not in seen]
    assert not missing, f"parameters in no optimiser group: {', '.join(missing)}"
