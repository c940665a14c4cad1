"""What looks at a run between steps (pictures, probes): when, and so that the run does not notice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from tubelet.core import Step, Trainable
from tubelet.train.distributed import Ranks
from tubelet.train.plan import Position
from tubelet.train.settings import TrainSettings, WatchSettings

SHARE = 0.05  # of a run's time that looks by the clock may take

Figures = Mapping[str, float | Path]


class Hook(Protocol):
    """Something that looks at a run: before its first step, whenever WatchSettings says, and after its last step.

    It is called on every process at the same steps and may talk to the others, but not write files or speak unless ``ranks.first``. It
    finds the model in eval mode and without gradients, in the run's precision; modes, gradients and torch's random state are put back
    after it. What it draws comes from ``at.draw``. A hook that fails is reported once and counted; the run goes on.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def look(self, trainable: Trainable, at: Step, ranks: Ranks) -> Figures:
        """Figures for metrics.jsonl by name, and under "picture" the file of one. ``at.index``: steps done. Empty: nothing to say."""
        ...


@contextlib.contextmanager
def undisturbed(trainable: nn.Module, device: torch.device, *, compiled: bool = False) -> Iterator[None]:
    """The model in eval mode, without gradients; afterwards its modes, gradients and torch's random state are as they were.

    ``compiled``: run compiled blocks eagerly meanwhile, so that other shapes do not change what they were compiled for.
    """
    modes = [(m, m.training) for m in trainable.modules()]
    grads = [(p, p.requires_grad, p.grad) for p in trainable.parameters()]
    for p, _, _ in grads:
        p.grad = None
    gpus = [device] if device.type == "cuda" else []
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    try:
        with torch.random.fork_rng(devices=gpus), torch.no_grad(), eager:
            trainable.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for p, wanted, grad in grads:
            p.requires_grad_(wanted)
            p.grad = grad


class Watch:
    """The hooks of a run. ``failed``: how often each failed. ``seconds``: the time they took."""

    def __init__(
        self,
        hooks: Sequence[Hook],
        settings: WatchSettings,
        train: TrainSettings,
        trainable: Trainable,
        *,
        ranks: Ranks,
        device: torch.device,
        say: Callable[[str], None],
        doing: Callable[[str], None],
    ) -> None:
        self.hooks, self.settings, self.train, self.trainable = hooks, settings, train, trainable
        self.ranks, self.device, self.say, self.doing = ranks, device, say, doing
        self.failed: dict[str, int] = {}
        self.seconds = self.last_cost = 0.0
        self.last = time.monotonic()

    def due(self, before: Position, after: Position) -> bool:
        """Whether a look is due after the step from ``before`` to ``after``. By the clock: the first process's."""
        s = self.settings
        if not self.hooks or not self.ranks.first:
            return False
        if s.every_samples is not None and before.samples // s.every_samples < after.samples // s.every_samples:
            return True
        if s.every_minutes is None:
            return False
        return time.monotonic() - self.last >= max(60 * s.every_minutes, self.last_cost / SHARE)

    def look(self, at: Step) -> dict[str, float | Path]:
        """The figures of all hooks. They belong to the first process; others may have fewer."""
        began, found = time.monotonic(), {}
        for hook in self.hooks:
            self.doing(hook.name)
            found |= self._one(hook, at)
        self.doing("")
        self.last = time.monotonic()
        self.last_cost = self.last - began
        self.seconds += self.last_cost
        return found

    def _one(self, hook: Hook, at: Step) -> Figures:
        problem, figures = "", {}
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16")
        try:
            with undisturbed(self.trainable, self.device, compiled=self.train.compile), autocast:
                found = hook.look(self.trainable, at, self.ranks)
            figures = {name: value if isinstance(value, Path) else float(value) for name, value in found.items()}
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a picture, it must not end days of training)
            problem = f"{type(error).__name__}: {error}"
        # All wait here for each other, on the CPU: the device's own collectives would time out.
        if self.ranks.agree([int(bool(problem))])[0]:
            if hook.name not in self.failed:
                problem = problem or "it failed on another process"
                self.say(f"watching: {hook.name} failed at step {at.index}, the run goes on ({problem})")
            self.failed[hook.name] = self.failed.get(hook.name, 0) + 1
            return {}
        return figures
