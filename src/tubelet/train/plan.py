"""The clock of a run: which samples make which step. A function of the settings alone, so that a run resumes by two counters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tubelet.errors import ConfigError
from tubelet.train.settings import TrainSettings


@dataclass(frozen=True)
class Position:
    """Where a run is: optimiser steps done and samples seen."""

    step: int = 0
    samples: int = 0


class Plan:
    """Batch sizes, progress and learning-rate time of every step.

    ``epoch_size``: samples in one pass. ``tokens``: tokens per sample at a progress, for a token budget.
    Raises ConfigError where the batch does not fit the number of processes.
    """

    def __init__(
        self, settings: TrainSettings, epoch_size: int, *, world: int = 1, tokens: Callable[[float], int | None] = lambda progress: None
    ) -> None:
        if epoch_size < 1:
            raise ConfigError("there is nothing to train on: the data source holds no samples")
        self.settings, self.epoch_size, self.world, self.tokens = settings, epoch_size, world, tokens
        self.constant = not settings.batch_schedule and settings.token_budget is None
        if self.constant:
            steps = settings.steps or max(1, round((settings.epochs or 0) * epoch_size / settings.batch))
            self.total_steps, self.total_samples = steps, steps * settings.batch
        elif settings.steps is not None:
            self.total_steps, self.total_samples = settings.steps, 0
            self.total_samples = self._walk().samples
        else:
            self.total_steps, self.total_samples = 0, max(1, round((settings.epochs or 0) * epoch_size))
            self.total_steps = self._walk().step
        least = min([settings.batch, *(b for _, b in settings.batch_schedule)])
        if least < world:
            raise ConfigError(f"train.batch (or batch_schedule) has {least} samples for {world} processes; each needs at least one")

    def _walk(self) -> Position:
        at = Position()
        while not self.done(at):
            at = self.after(at)
        return at

    def progress(self, at: Position) -> float:
        """Share of the run done, 0..1: by samples, or by steps where only their number is set."""
        if self.settings.steps is not None:
            return at.step / self.settings.steps
        return min(1.0, at.samples / self.total_samples)

    def batch(self, at: Position) -> int:
        """Samples of the step at ``at``, over all processes."""
        s, progress = self.settings, self.progress(at)
        if s.token_budget is not None:
            each = self.tokens(progress)
            if each is None:
                raise ConfigError("train.token_budget is set, but this method does not say how many tokens a sample has; use train.batch")
            return max(self.world, s.token_budget // each)
        return [b for start, b in ((0.0, s.batch), *s.batch_schedule) if start <= progress][-1]

    def after(self, at: Position) -> Position:
        """The position after one step."""
        return Position(at.step + 1, at.samples + self.batch(at))

    def done(self, at: Position) -> bool:
        """Whether the run is complete."""
        if self.constant or self.settings.steps is not None:
            return at.step >= self.total_steps
        return at.samples >= self.total_samples

    def epoch(self, at: Position) -> float:
        """Passes over the data, as a fraction."""
        return at.samples / self.epoch_size

    def micro_batches(self, at: Position, rank: int = 0) -> list[tuple[range, float]]:
        """This process's micro-batches of a step: global sample numbers, and the share of the step that the micro-batch is.

        The step's samples are consecutive numbers; each micro-batch is a consecutive run of them over all processes, each process
        takes a consecutive part. So the same samples make the same step for any number of processes.
        """
        total = self.batch(at)
        per_process = math.ceil(total / self.world)
        passes = math.ceil(per_process / min(self.settings.micro or per_process, per_process))
        if total < passes * self.world:
            passes = total // self.world
        out = []
        for m in range(passes):
            start, stop = total * m // passes, total * (m + 1) // passes
            n = stop - start
            mine = range(at.samples + start + n * rank // self.world, at.samples + start + n * (rank + 1) // self.world)
            out.append((mine, n / total))
        return out

    def walk(self, at: Position) -> Iterator[Position]:
        """All positions from ``at`` to the end of the run."""
        while not self.done(at):
            yield at
            at = self.after(at)

    @property
    def warmup_steps(self) -> int:
        """Length of the warm-up in steps."""
        if self.settings.warmup_steps is not None:
            return min(self.settings.warmup_steps, self.total_steps)
        return self.total_steps // 10 if self.warmup_shortened else self._warmup_asked

    @property
    def warmup_shortened(self) -> bool:
        """Whether the warm-up in epochs would last to the end of the run; a tenth of the steps is taken instead."""
        return self.settings.warmup_steps is None and self._warmup_asked >= self.total_steps

    @property
    def _warmup_asked(self) -> int:
        return round(self.settings.warmup_epochs * self.epoch_size / self.total_samples * self.total_steps)

    def lr_time(self, at: Position) -> float:
        """The schedule's time in steps: the step itself for a constant batch, progress x steps where the batch changes."""
        return float(at.step) if self.constant or self.settings.steps is not None else self.progress(at) * self.total_steps
