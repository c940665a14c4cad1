"""A run's counters made concrete: the clock, the batches and the noise of every step. The loop walks along it; a replay takes one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tubelet.core import Batch, CounterDraw, Step, Trainable
from tubelet.train.distributed import Ranks
from tubelet.train.optim import learning_rate
from tubelet.train.plan import Plan, Position
from tubelet.train.settings import TrainSettings

Prepare = Callable[[Batch, Step], Batch]


@dataclass(frozen=True)
class Gathered:
    """A step's micro-batches on the device, each one's share of the step, and the seconds spent waiting for them."""

    micro: list[Batch]
    shares: list[float]
    waited: float


class Course:
    """``epoch_size``: samples of one pass. ``prepare``: device-side augmentation. Raises ConfigError where the batch does not fit the
    processes."""

    def __init__(
        self,
        trainable: Trainable,
        epoch_size: int,
        settings: TrainSettings,
        *,
        device: torch.device,
        ranks: Ranks | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        self.settings, self.device, self.prepare = settings, device, prepare
        self.ranks = ranks or Ranks()
        self.plan = Plan(settings, epoch_size, world=self.ranks.world, tokens=trainable.tokens)
        self._draw = CounterDraw(settings.seed, torch.zeros(1, dtype=torch.int64, device=device))

    def position(self, step: int) -> Position:
        """Where the run is after ``step`` steps."""
        at = Position()
        while at.step < step:
            at = self.plan.after(at)
        return at

    def at(self, position: Position) -> Step:
        """The clock. Between micro-batches (phase_order, after_step, hooks) per-sample draws are those of the step's first sample."""
        draw = self._draw.bind(self._draw.sample + position.samples, position.step)
        return Step(position.step, position.samples, self.plan.epoch(position), self.plan.progress(position), draw)

    def rate(self, at: Step, schedule: str | None) -> float:
        """The learning rate of a step."""
        return learning_rate(self.settings, self.plan, Position(at.index, at.samples), schedule)

    def schedule(self, position: Position) -> Iterator[list[int]]:
        """This process's sample numbers, a list for each micro-batch, from ``position`` to the end of the run."""
        return (list(mine) for p in self.plan.walk(position) for mine, _ in self.plan.micro_batches(p, self.ranks.rank))

    def gather(self, batches: Iterator[Batch], position: Position) -> Gathered:
        """The next step's micro-batches, from what the feed makes of :meth:`schedule`."""
        parts = self.plan.micro_batches(position, self.ranks.rank)
        before = time.monotonic()
        found = self.ranks.together(lambda: [next(batches) for _ in parts])
        waited = time.monotonic() - before
        at, micro = self.at(position), []
        for batch, (mine, _) in zip(found, parts, strict=True):
            assert len(batch) == len(mine), f"the feed returned {len(batch)} samples for {len(mine)}"
            batch = batch.to(self.device)
            here = Step(at.index, at.samples, at.epoch, at.progress, at.draw.bind(batch.sample, at.index))
            micro.append(self.prepare(batch, here) if self.prepare else batch)
        return Gathered(micro, [share for _, share in parts], waited)
