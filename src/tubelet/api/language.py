"""What a model that aligns videos with texts is for: retrieval, and classification by the names of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.api._common import Sources, shown
from tubelet.api.features import _delivered, _picture_problems, encoder_of, evaluation_data
from tubelet.api.loading import Loaded
from tubelet.data.captions import COLUMN, captions
from tubelet.data.evaluation import EvalFeed
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.errors import ConfigError, DataError
from tubelet.tasks import Score
from tubelet.tasks.aligned import aligned, text_vectors, video_vectors
from tubelet.tasks.embed import Embeddings
from tubelet.tasks.retrieve import Retrieval, score_retrieval
from tubelet.tasks.zeroshot import PROMPTS, check_prompts, class_vectors, score_zeroshot

Progress = Callable[[int, int], None] | None


@dataclass(frozen=True)
class _Asked:
    """An aligned model and the items that it is asked about."""

    loaded: Loaded
    table: Table
    data: DataSettings
    views: Views
    batch: int

    def videos(self, progress: Progress) -> Embeddings:
        """A vector of every item that can be read."""
        device = self.loaded.device
        feed = EvalFeed(self.table, self.data, views=self.views, batch=self.batch, device=str(device))
        return video_vectors(self.loaded.model, feed, self.table, device=device, progress=progress)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D)."""
        return text_vectors(self.loaded.model, texts, device=self.loaded.device)

    @property
    def details(self) -> dict[str, Any]:
        return {"run": str(self.loaded.path), "views": self.views.model_dump()}


def retrieve(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    split: str | None = None,
    settings: Sequence[str] = (),
    limit: int | None = None,
    device: str = "auto",
    exclude: Sequence[str] = (),
    batch: int = 8,
    random: bool = False,
    imports: Sequence[str | Path] = (),
    json_out: str | Path | None = None,
    progress: Progress = None,
) -> Retrieval:
    """Rank videos for captions and captions for videos: R@1, R@5, R@10 and the median rank, by :func:`tubelet.tasks.retrieve`.

    Captions come from the column ``caption`` of the sources' manifests: a text, or a JSON list of several; items without one are left out
    and counted. ``split``: only this one. ``settings``: data settings and ``views.clips=4`` ..., whose vectors are averaged. ``limit``: at
    most so many captioned videos, spread evenly over all by name; recalls of pools of different size do not compare. ``exclude``: as for
    :func:`pretrain`. ``random``: the control with random weights. ``json_out``: a file for every rank. Videos that cannot be read are
    listed in ``failures``, never replaced. Raises ConfigError, also for a model that is not aligned with text, DataError, CheckpointError.
    """
    loaded, rest = _speaking(run, settings, device=device, random=random, imports=imports)
    everything, data, views = _open(loaded, sources, rest, split, exclude)
    said = _captions(everything, sources)
    captioned = [row for row, texts in enumerate(said) if texts]
    chosen = _spread(captioned, limit)
    asked = _Asked(loaded, everything.select(chosen), data, views, batch)
    by_key = {asked.table.keys[i]: said[row] for i, row in enumerate(chosen)}
    vectors = asked.texts(distinct := list(dict.fromkeys(text for texts in by_key.values() for text in texts)))
    videos = asked.videos(progress)
    number = {text: i for i, text in enumerate(distinct)}
    pairs = [(text, row) for row, key in enumerate(videos.keys) for text in by_key[key]]
    found = score_retrieval(
        videos.vectors,
        videos.keys,
        [text for text, _ in pairs],
        [row for _, row in pairs],
        vectors[[number[text] for text, _ in pairs]],
        n_total=videos.n_total,
        failures=videos.failures,
        uncaptioned=len(everything) - len(captioned),
        details=asked.details,
    )
    if json_out is not None:
        found.save_json(json_out)
    return found


def zeroshot(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    prompts: str | Sequence[str] = PROMPTS,
    split: str | None = None,
    settings: Sequence[str] = (),
    limit: int | None = None,
    device: str = "auto",
    exclude: Sequence[str] = (),
    batch: int = 8,
    random: bool = False,
    imports: Sequence[str | Path] = (),
    json_out: str | Path | None = None,
    picture: str | Path | None = None,
    progress: Progress = None,
) -> Score:
    """Top-1 of a classifier that is made of the classes' names: nothing is fitted, and no labelled video is needed but to score.

    ``prompts``: templates with ``{}`` where the name goes, its underscores and CamelCase as spaces; the vectors of all are averaged.
    Classes are those of the whole source, before ``split``. ``json_out``: a file for :meth:`Score.to_json`; ``picture``: one for the
    confusion matrix (.png). Other parameters as for :func:`retrieve`. Raises ConfigError, also for a model that is not aligned with text,
    DataError, CheckpointError.
    """
    templates = check_prompts(prompts)
    if problems := _picture_problems(picture):
        raise ConfigError(problems)
    loaded, rest = _speaking(run, settings, device=device, random=random, imports=imports)
    table, data, views = _open(loaded, sources, rest, split, exclude)
    if not table.classes:
        raise DataError(
            f"{shown(sources)}: no labels found; classification needs a folder per class or a manifest with a label column (data.labels)"
        )
    asked = _Asked(loaded, table.select(_spread(range(len(table)), limit)), data, views, batch)
    classes = class_vectors(asked.texts, table.classes, templates)
    return _delivered(score_zeroshot(asked.videos(progress), classes, templates, **asked.details), json_out, picture)


def _speaking(
    run: str | Path | Loaded, settings: Sequence[str], *, device: str, random: bool, imports: Sequence[str | Path]
) -> tuple[Loaded, list[str]]:
    """The model and the settings of data and views. Raises ConfigError for a model that is not aligned with text."""
    loaded, rest = encoder_of(run, settings, device=device, random=random, imports=imports)
    aligned(loaded.model, f"the model of {loaded.path}")
    return loaded, rest


def _open(
    loaded: Loaded, sources: Sources, settings: Sequence[str], split: str | None, exclude: Sequence[str]
) -> tuple[Table, DataSettings, Views]:
    data, views = evaluation_data(loaded, settings, split)
    return open_table(sources, split=data.split, labels=data.labels, images=data.images, exclude=exclude), data, views


def _spread(rows: Sequence[int], limit: int | None) -> list[int]:
    """At most ``limit`` of the rows, evenly over all: neighbours by name are often of one class. Raises ConfigError."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _captions(table: Table, sources: Sources) -> list[tuple[str, ...]]:
    """What is said of every item. Raises DataError where nothing is said of any, and for a list that cannot be read."""
    said = [tuple(captions(value, key)) for key, value in zip(table.keys, table.extra.get(COLUMN, [""] * len(table)), strict=True)]
    if not any(said):
        raise DataError(
            f"{shown(sources)}: none of the {len(table)} items has a caption; captions come from a manifest's column {COLUMN!r} "
            "(a text, or a JSON list of several), and `tubelet caption` writes one"
        )
    return said
