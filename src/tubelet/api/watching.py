"""What a run shows of itself while it trains: pictures of fixed clips, a probe on a few of its training items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tubelet.config import parse
from tubelet.core import Batch, CounterDraw, Method, Step, Trainable
from tubelet.data.beside import Beside
from tubelet.data.evaluation import ViewMaker
from tubelet.data.loader import ItemReader
from tubelet.data.manifest import ALIASES
from tubelet.data.settings import DataSettings, Views
from tubelet.data.table import Table
from tubelet.data.workers import auto_workers, run_jobs
from tubelet.errors import DataError
from tubelet.recipe import StageSettings
from tubelet.tasks.embed import Embeddings, pool_tokens
from tubelet.tasks.online import choose, online_scores
from tubelet.train.checkpoint import atomic
from tubelet.train.distributed import Ranks
from tubelet.train.hooks import Hook
from tubelet.viz.pictures import figure, sheet

KEEP = 2**30  # bytes of decoded clips that are kept in memory; more are decoded at every look
BATCH = 8
FRAMES, CELL = 6, 96  # of a picture: small, for there will be many
HELD_BACK = frozenset({"val", "valid", "validation", "test", "testing", "eval", "dev"})
TRAINING = frozenset({"train", "training"})


def make_hooks(stage: StageSettings, model: Trainable, table: Table, folder: Path, say: Callable[[str], None]) -> list[Hook]:
    """The hooks that a stage's ``watch`` settings ask for and its method can serve."""
    watch, seed = stage.watch, stage.train.seed
    hooks: list[Hook] = []
    if watch.pictures and hasattr(model, "reconstruct"):
        chosen = choose(np.full(len(table), -1), watch.pictures, seed)
        hooks.append(Pictures(Clips(table, stage.data, chosen, needs=model.needs), folder / "pictures", seed=seed))
    if watch.probe and isinstance(model, Method):
        rows = training_rows(table)
        if not len(rows):
            say("no online probe: none of the items is marked as one of the training set (split = train)")
            return hooks
        chosen = rows[choose(table.labels[rows], watch.probe, seed)]
        hooks.append(Probe(Clips(table, stage.data, chosen), seed=seed))
    return hooks


def training_rows(table: Table) -> np.ndarray:
    """Rows of a table that are not held back: where a manifest has a split column, those of ``train``; elsewhere those that lie in no
    folder called test or val."""
    column = next((values for name, values in table.extra.items() if name.lower() in ALIASES["split"]), None)
    if column is not None and any(column):
        keep = [value.lower() in TRAINING for value in column]
    else:
        keep = [not HELD_BACK & {part.lower() for part in key.split("/")[:-1]} for key in table.keys]
    return np.flatnonzero(keep)


class Clips:
    """The same clips at every look: the central window and crop of some rows of a table. Decoded at the first look and kept where they are
    small. ``needs``: as of VideoFeed, with the first of several captions. ``failures``: (key, reason) of those that could not be read; they
    are left out, never replaced."""

    def __init__(self, table: Table, data: DataSettings, rows: np.ndarray, *, needs: Collection[str] = ("video",)) -> None:
        self.table, self.rows = table, [int(r) for r in rows]
        plain = data.model_dump(mode="json") | {"crop": "centre", "cache": "none", "clips_per_video": 1, "augment": {}}
        self.data = parse(DataSettings, plain)
        self._beside = Beside.of(table, self.data, needs)
        self.failures: list[tuple[str, str]] = []
        self._kept: list[Batch] | None = None

    @property
    def bytes(self) -> int:
        """Size of all clips, decoded."""
        h, w = self.data.hw
        return len(self.rows) * 3 * self.data.frames * h * w

    def __iter__(self) -> Iterator[Batch]:
        """Batches on the CPU; labels["item"] are table rows."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        for batch in self._decode():
            if self.bytes <= KEEP:
                kept.append(batch)
            yield batch
        self._kept = kept if self.bytes <= KEEP else None

    def _decode(self) -> Iterator[Batch]:
        self.failures = []
        maker = ViewMaker(ItemReader(self.table, self.data, self._beside.decoder, beside=self._beside), Views())
        schedule = [self.rows[i : i + BATCH] for i in range(0, len(self.rows), BATCH)]
        workers = auto_workers() if self.data.workers == "auto" else self.data.workers
        workers = min(workers, len(schedule) - 1)  # for one batch, starting a process takes longer than decoding it here
        remote = any("://" in self.table.paths[row] for row in self.rows)
        parcels = run_jobs(maker, schedule, workers=workers, prefetch=self.data.ahead, remote=remote)
        try:
            for parcel in parcels:
                self.failures += [(fault.key, fault.reason) for fault in parcel.faults]
                if parcel.error is not None:
                    raise DataError(parcel.error)
                if parcel.batch is not None:
                    yield parcel.batch
        finally:
            cast(Any, parcels).close()


class Pictures:
    """Draws every clip with its mask and what the model makes of it. The mask of a clip is the same at every look."""

    name = "pictures"

    def __init__(self, clips: Clips, folder: Path, *, seed: int) -> None:
        self.clips, self.folder, self.seed = clips, folder, seed

    def look(self, trainable: Trainable, at: Step, ranks: Ranks) -> Mapping[str, float | Path]:
        """The first process draws ``pictures/step_00000500.png``; the others have nothing to do."""
        if not ranks.first:
            return {}
        device = next(trainable.parameters()).device
        images = []
        for batch in self.clips:
            batch = batch.to(device)
            # Drawn for the table's row and not for the step: pictures of two steps differ by the model alone.
            draw = CounterDraw(self.seed, cast(Tensor, batch.labels["item"]), prefix="watch/")
            now = Step(at.index, at.samples, at.epoch, at.progress, draw)
            images += clip_figures(trainable, batch, now, [f"{key}, after {at.index} steps" for key in batch.key])
        if not images:
            return {}
        path = self.folder / f"step_{at.index:08d}.png"
        with atomic(path) as temporary:
            sheet(images, columns=2 if len(images) > 3 else 1).save(temporary, format="PNG")
        return {"picture": path}


def clip_figures(model: Trainable, batch: Batch, at: Step, titles: Sequence[str]) -> list[Any]:
    """A picture of every clip of a batch with its mask and reconstruction. ``model`` has ``reconstruct``; a picture whose predictions are
    not all finite says so."""
    answer = cast(Any, model).reconstruct(batch, at)
    broken = ~torch.isfinite(answer.rows).flatten(1).all(1)
    answer = replace(answer, rows=answer.rows.float().nan_to_num(0.0, 0.0, 0.0))
    pixels = getattr(getattr(model, "encoder", None), "pixels", None)
    video = batch.stream("video")
    with torch.autocast(video.data.device.type, enabled=False):
        return [
            figure(
                video.data,
                answer,
                sample=i,
                frames=FRAMES,
                cell=CELL,
                time=video.time,
                title=titles[i],
                mean=getattr(pixels, "mean", None),
                std=getattr(pixels, "std", None),
                note="PREDICTIONS THAT ARE NOT FINITE ARE DRAWN AS ZERO." if broken[i] else "",
            )
            for i in range(len(batch))
        ]


class Probe:
    """Linear probe, nearest neighbours and rank of the encoder as it is, on fixed training items."""

    name = "probe"
    pools = ("mean", "slots")

    def __init__(self, clips: Clips, *, seed: int) -> None:
        self.clips, self.seed = clips, seed

    def look(self, trainable: Trainable, at: Step, ranks: Ranks) -> Mapping[str, float]:
        """See :func:`tubelet.tasks.online.online_scores`. The first process encodes and fits; the others have nothing to do."""
        if not ranks.first:
            return {}
        assert isinstance(trainable, Method)
        device = next(trainable.parameters()).device
        rows: list[int] = []
        vectors: dict[str, list[np.ndarray]] = {pool: [] for pool in self.pools}
        for batch in self.clips:
            tokens = trainable.encode(batch.to(device))
            rows += cast(Tensor, batch.labels["item"]).tolist()
            for pool in self.pools:
                vectors[pool].append(pool_tokens(tokens, pool).float().cpu().numpy())
        if not rows:
            raise ValueError(f"none of its {len(self.clips.rows)} items could be read")
        pooled = {pool: self._embeddings(rows, np.concatenate(parts), pool) for pool, parts in vectors.items()}
        if not all(np.isfinite(e.vectors).all() for e in pooled.values()):
            raise ValueError("the encoder's output is not finite")
        return online_scores(pooled, seed=self.seed)

    def _embeddings(self, rows: Sequence[int], vectors: np.ndarray, pool: str) -> Embeddings:
        table, nothing = self.clips.table, np.full(len(rows), np.nan)
        keys, labels = tuple(table.keys[r] for r in rows), table.labels[rows]
        failures = tuple(self.clips.failures)
        return Embeddings(keys, nothing, nothing, vectors, labels, tuple(table.classes), failures, len(self.clips.rows), pool)
