"""What a classifier says about whole videos: the softmax of every view, averaged over a video's views (VideoMAE, page section 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tubelet.data.evaluation import EvalFeed
from tubelet.data.settings import DataSettings, Views
from tubelet.data.table import Table
from tubelet.errors import CheckpointError, DataError
from tubelet.methods.classifier import Classifier
from tubelet.tasks.metrics import Score, classification
from tubelet.train.distributed import Ranks

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answers:
    """``rows`` (n,) int64: table rows of the items that could be read, rising. ``probabilities`` (n, C) float64: means over views.
    ``failures``: (key, reason) of the others."""

    rows: np.ndarray
    probabilities: np.ndarray
    failures: tuple[tuple[str, str], ...]

    @staticmethod
    def join(parts: Sequence[Answers]) -> Answers:
        """The answers of all parts of a table."""
        rows = np.concatenate([p.rows for p in parts])
        order = np.argsort(rows, kind="stable")
        failures = sorted({f for p in parts for f in p.failures})
        return Answers(rows[order], np.concatenate([p.probabilities for p in parts])[order], tuple(failures))


def average_views(logits_VC: Tensor, item_V: Tensor) -> dict[int, np.ndarray]:
    """Item number -> (C,) float64: the mean of its views' softmax. Items in the order in which they come."""
    probability = logits_VC.double().softmax(1).numpy()
    items = item_V.numpy()
    return {int(i): probability[items == i].mean(0) for i in dict.fromkeys(items.tolist())}


@torch.no_grad()
def _answer(
    model: Classifier, feed: EvalFeed, *, rows: Sequence[int], batch: int, device: torch.device, precision: str, progress: Progress | None
) -> Answers:
    """The answers for a feed whose items are these rows of the whole table."""
    found: dict[int, np.ndarray] = {}
    for part in feed:
        video, item = part.stream("video").data, part.labels["item"]
        assert isinstance(item, Tensor)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and device.type == "cuda"):
            whole = torch.cat([model(views.to(device, non_blocking=True)).float() for views in video.split(batch)]).cpu()
        if not bool(whole.isfinite().all()):
            raise CheckpointError(f"the classifier's answer for {part.key[0]} is not finite: the weights are damaged or diverged")
        found |= {rows[i]: mean for i, mean in average_views(whole, item).items()}
        if progress is not None:
            progress(len(found) + len(feed.failures), feed.n_total)
    numbers = sorted(found)
    stacked = np.stack([found[i] for i in numbers]) if numbers else np.zeros((0, model.classes))
    return Answers(np.array(numbers, np.int64), stacked, tuple((str(k), str(r)) for k, r in feed.failures))


def answers(
    model: Classifier,
    table: Table,
    data: DataSettings,
    views: Views,
    *,
    device: torch.device,
    batch: int = 16,
    precision: str = "fp32",
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Class probabilities of every item of a table; the processes of ``ranks`` share the work and all get the whole.

    ``batch``: views in one forward pass. ``precision``: bf16 = autocast, on CUDA only. The model answers in eval mode and gets its mode
    back. Raises DataError where nothing can be read, CheckpointError where an answer is not finite.
    """
    ranks = ranks or Ranks()
    mine = range(ranks.rank, len(table), ranks.world)

    def work() -> Answers:
        if not len(mine):
            return Answers(np.zeros(0, np.int64), np.zeros((0, model.classes)), ())
        per_item = views.clips * views.crops
        feed = EvalFeed(table.select(mine), data, views=views, batch=max(1, batch // per_item), device=device)
        return _answer(model, feed, rows=mine, batch=batch, device=device, precision=precision, progress=progress)

    was_training = model.training
    model.eval()
    try:
        own = ranks.together(work)
    finally:
        model.train(was_training)
    parts = [own]
    if ranks.world > 1:
        gathered: list[Any] = [None] * ranks.world
        dist.all_gather_object(gathered, own, group=ranks.control)
        parts = gathered
    whole = Answers.join(parts)
    if not len(whole.rows):
        raise DataError(f"none of the {len(table)} items could be read, the first: {': '.join(whole.failures[0])}")
    return whole


def score(name: str, found: Answers, table: Table, *, details: Mapping[str, Any] | None = None) -> Score:
    """Top-1 and top-5 of answers for a labelled table. Items that could not be read count as asked for, not as scored."""
    return classification(
        name,
        found.probabilities,
        table.labels[found.rows],
        [table.keys[int(i)] for i in found.rows],
        table.classes,
        n_total=len(table),
        failures=found.failures,
        details=details,
    )
