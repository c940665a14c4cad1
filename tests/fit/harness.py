"""Runs a toy through the loop twice: straight, and killed and resumed in pieces; the results must be the same bits."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.core import Batch, CounterDraw, Step, Stream, Trainable
from tubelet.train.checkpoint import read_tensors
from tubelet.train.loop import Hook, Result, fit
from tubelet.train.settings import TrainSettings


class ToyFeed:
    """Samples made from their numbers: ``make(draw, n)`` returns the streams and labels of n samples."""

    def __init__(self, make: Callable[[CounterDraw, int], tuple[dict[str, Stream], dict[str, Any]]], size: int = 40) -> None:
        self.make, self.size = make, size
        self.seen: list[int] = []

    def __len__(self) -> int:
        return self.size

    def fingerprint(self) -> Mapping[str, Any]:
        return {"toy": self.size}

    def keys(self) -> Sequence[str]:
        return [f"item {i}" for i in range(self.size)]

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        for numbers in schedule:
            self.seen += numbers
            sample = torch.tensor(list(numbers), dtype=torch.int64)
            streams, labels = self.make(CounterDraw(99, sample), len(numbers))
            yield Batch(streams, labels, sample, tuple(map(str, numbers)))

    def report(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def stop_after(step: int) -> Callable[[Batch, Step], Batch]:
    """A ``prepare`` that asks the run to stop, as a signal would, while it makes a step: it ends once that step is done."""

    def prepare(batch: Batch, at: Step) -> Batch:
        if at.index == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    return prepare


def train(
    build: Callable[[], Trainable], feed: ToyFeed, out: Path, stops: Sequence[int] = (), hooks: Sequence[Hook] = (), **settings: Any
) -> tuple[Result, dict[str, Tensor]]:
    """Train to the end, stopping and resuming at every step of ``stops``. Returns the last result and the final checkpoint's tensors."""
    config = TrainSettings(
        **({"steps": 12, "batch": 8, "lr": 1e-2, "min_lr": 0.0, "lr_batch": None, "device": "cpu", "log_every": 1} | settings)
    )
    for i, stop in enumerate([*stops, -1]):
        torch.manual_seed(0)
        result = fit(build(), feed, config, out, prepare=stop_after(stop), hooks=hooks, resume=i > 0, quiet=True)
        assert (result.stopped_by == "SIGTERM") == (stop >= 0)
    last = max((out / "checkpoints").glob("step-*.safetensors"))
    return result, read_tensors(last)


def losses(out: Path) -> list[float]:
    """The losses of a run's metrics.jsonl."""
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_resumes(build: Callable[[], Trainable], make: Any, **settings: Any) -> tuple[Result, dict[str, Tensor], list[int]]:
    """The straight run and the one stopped at steps 3 and 7 end in the same bits. Returns the straight run's outcome."""
    with tempfile.TemporaryDirectory() as folder:
        straight, broken = ToyFeed(make), ToyFeed(make)
        result, once = train(build, straight, Path(folder, "straight"), **settings)
        _, pieces = train(build, broken, Path(folder, "pieces"), stops=(3, 7), **settings)
    assert once.keys() == pieces.keys()
    different = [k for k in once if not torch.equal(once[k], pieces[k])]
    assert not different, f"not resumed exactly: {different}"
    assert straight.seen == broken.seen
    torch.manual_seed(0)
    start = build()
    assert any(not torch.equal(once[f"model/{k}"], v) for k, v in start.named_parameters()), "nothing was trained"
    return result, once, straight.seen
