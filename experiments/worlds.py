"""Clips of small worlds in memory, and the training and probing that experiments on them share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet import playground
from tubelet.core import Batch, CounterDraw, Step, Stream, Trainable, permutation
from tubelet.train.loop import fit
from tubelet.train.settings import TrainSettings


@dataclass(frozen=True)
class World:
    """n clips: ``video`` (n, 3, T, H, W) uint8, ``label`` (n,) motion class, ``objects`` (n, T, H, W) uint8 object numbers (1 = the main
    one), ``flow`` (n, 2, T - 1, H, W) pixels to the next frame, ``captions``, and for each clip its objects in words."""

    video: Tensor
    label: Tensor
    objects: Tensor
    flow: Tensor
    captions: tuple[str, ...]
    things: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.video)


@lru_cache(maxsize=8)
def world(kind: str, seed: int, first: int, n: int, **settings: Any) -> World:
    """Clips ``first`` .. ``first + n`` of a scene."""
    scene = playground.build(kind, **settings)
    clips = [scene.render(seed, i) for i in range(first, first + n)]
    return World(
        torch.from_numpy(np.stack([c.frames for c in clips])).permute(0, 4, 1, 2, 3).contiguous(),
        torch.tensor([c.label for c in clips]),
        torch.from_numpy(np.stack([c.masks for c in clips])),
        torch.from_numpy(np.stack([c.flow for c in clips])).permute(0, 4, 1, 2, 3).contiguous(),
        tuple(c.caption for c in clips),
        tuple(c.objects for c in clips),
    )


class Feed:
    """A world's clips in counted order, with captions and, as stream "map", what ``beside`` (rows) -> (B, C, T', H', W') says of them."""

    def __init__(self, clips: World, seed: int, beside: Callable[[Tensor], Tensor] | None = None) -> None:
        self.clips, self.seed, self.beside = clips, seed, beside

    def __len__(self) -> int:
        return len(self.clips)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"clips": len(self)}

    def keys(self) -> Sequence[str]:
        return []

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        orders: dict[int, Tensor] = {}
        for numbers in schedule:
            for epoch in {k // len(self) for k in numbers} - orders.keys():
                orders[epoch] = permutation(self.seed, epoch, len(self))
            rows = torch.stack([orders[k // len(self)][k % len(self)] for k in numbers])
            yield batch_of(self.clips, rows, torch.tensor(list(numbers)), self.beside)

    def report(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def batch_of(clips: World, rows: Tensor, sample: Tensor | None = None, beside: Callable[[Tensor], Tensor] | None = None) -> Batch:
    """Some clips of a world."""
    streams = {"video": Stream(clips.video[rows])}
    if beside is not None:
        streams["map"] = Stream(beside(rows), kind="flow")
    text = tuple(clips.captions[int(i)] for i in rows)
    return Batch(streams, {"class": clips.label[rows]}, rows if sample is None else sample, text=text)


def step(batch: Batch, seed: int = 0) -> Step:
    """A step for looking at a batch."""
    return Step(0, 0, 0.0, 1.0, CounterDraw(seed, batch.sample))


def train(model: Trainable, feed: Feed, *, steps: int, batch: int = 64, lr: float = 2e-3, seed: int = 0, **more: Any) -> None:
    """In place, by the package's own loop, with a warm-up of a tenth and a cosine."""
    settings = TrainSettings.model_validate(
        {"steps": steps, "batch": batch, "lr": lr, "lr_batch": None, "min_lr": 1e-5, "warmup_steps": steps // 10, "seed": seed}
        | {"device": "cpu", "checkpoint_minutes": None}
        | more
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(model, feed, settings, Path(folder), quiet=True)
    model.eval()


@torch.no_grad()
def masked_error(model: Any, clips: World, *, seed: int = 5, beside: Callable[[Tensor], Tensor] | None = None) -> float:
    """The model's loss on hidden cubes of clips that it was not trained on, under its own masking."""
    model.eval()
    total = 0.0
    for rows in torch.arange(len(clips)).split(64):
        batch = batch_of(clips, rows, beside=beside)
        total += float(model.losses("main", batch, step(batch, seed)).terms["pixels"][0]) * len(rows)
    return total / len(clips)


@torch.no_grad()
def features(model: Any, clips: World, pool: Callable[[Any], Tensor]) -> np.ndarray:
    """(n, D) pooled tokens of whole clips."""
    model.eval()
    parts = [pool(model.encode(batch_of(clips, rows))).flatten(1) for rows in torch.arange(len(clips)).split(200)]
    return torch.cat(parts).numpy()


def probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy of a logistic regression whose strength is chosen on the last fifth of the training clips."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(train_x)
    x, y, half = scale.transform(train_x), scale.transform(test_x), len(train_x) * 4 // 5

    def score(strength: float) -> float:
        part = LogisticRegression(C=strength, max_iter=300).fit(x[:half], train_y[:half])
        return float((part.predict(x[half:]) == train_y[half:]).mean())

    best = max((1e-3, 1e-2, 1e-1), key=score)
    return float((LogisticRegression(C=best, max_iter=300).fit(x, train_y).predict(y) == test_y).mean())
