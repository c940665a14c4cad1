"""What a frozen encoder says about videos: vectors, neighbours, a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tubelet.api._common import Sources, shown
from tubelet.api.loading import Loaded, load
from tubelet.config import overlay, parse
from tubelet.data.evaluation import EvalFeed, windows
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table_for
from tubelet.errors import ConfigError, DataError
from tubelet.tasks import Score
from tubelet.tasks.embed import Embeddings, writable
from tubelet.tasks.embed import embed as embed_table
from tubelet.tasks.knn import score_knn
from tubelet.tasks.probe import score_probe


def evaluation_data(loaded: Loaded, settings: Sequence[str], split: str | None) -> tuple[DataSettings, Views]:
    """Data settings of an evaluation: the run's own, centre crop, no cache; ``views.*`` and data settings can be overridden."""
    base = loaded.data.model_dump(mode="json") | {"crop": "centre", "cache": "none", "clips_per_video": 1, "split": split, "augment": {}}
    plain = overlay({"data": base, "views": {}}, [t if t.startswith(("views.", "data.")) else f"data.{t}" for t in settings])
    return parse(DataSettings, plain["data"], where="--set"), parse(Views, plain["views"], where="--set")


def embed(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    out: str | Path | None = None,
    pool: str = "mean",
    seconds: float | None = None,
    hop: float | None = None,
    batch: int = 8,
    device: str = "auto",
    split: str | None = None,
    settings: Sequence[str] = (),
    random: bool = False,
    imports: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """One vector for each video (or for each window of ``seconds``, every ``hop``), with key and time stamps.

    ``pool``: mean | slots | class. ``out``: .npz or .parquet. ``settings``: data settings and ``views.clips=4`` ... Videos that cannot
    be read are listed in ``failures``, never replaced. Raises ConfigError, DataError, CheckpointError.
    """
    if out is not None:
        writable(out, overwrite=overwrite)
    loaded = run if isinstance(run, Loaded) else load(run, device=device, random=random, imports=imports)
    data, views = evaluation_data(loaded, settings, split)
    table = open_table_for(sources, data)
    for name, value in (("seconds", seconds), ("hop", hop)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be more than 0, got {value:g}")
    if seconds is not None:
        table = windows(table, seconds=seconds, hop=hop, settings=data)
    elif hop is not None:
        raise ConfigError("hop needs seconds: the length of a window")
    feed = EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device))
    result = embed_table(loaded.model, feed, table, pool=pool, device=loaded.device, progress=progress)
    if out is not None:
        result.save(Path(out), overwrite=overwrite)
    return result


def _labelled(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    pool: str,
    train: str,
    test: str,
    test_sources: Sources | None,
    batch: int,
    device: str,
    random: bool,
    imports: Sequence[str | Path],
    settings: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[Embeddings, Embeddings]:
    """Vectors of the training and the test items: two splits of one source, or two sources with the same classes."""
    loaded = run if isinstance(run, Loaded) else load(run, device=device, random=random, imports=imports)
    apart = test_sources is not None
    data, views = evaluation_data(loaded, settings, None if apart else train)
    first = open_table_for(sources, data)
    if apart:
        second = open_table_for(test_sources, data, classes=first.classes)
    else:
        second = open_table_for(sources, data.model_copy(update={"split": test}))
    for table, where in ((first, sources), (second, test_sources or sources)):
        if not table.classes:
            raise DataError(
                f"{shown(where)}: no labels found; a probe needs a folder per class or a manifest with a label column (data.labels)"
            )
    total = len(first) + len(second)
    halves = []
    for table, before in ((first, 0), (second, len(first))):
        feed = EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device))
        step = None if progress is None else lambda done, _, before=before: progress(before + done, total)
        halves.append(embed_table(loaded.model, feed, table, pool=pool, device=loaded.device, progress=step))
    return halves[0], halves[1]


def knn(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    k: int = 20,
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Top-1 of a weighted ``k``-nearest-neighbour vote on frozen features; nothing is fitted.

    ``train`` and ``test`` name splits of ``sources``; or give ``test_sources``, and all of ``sources`` is the training set. ``pool``:
    mean | slots | class. ``random``: the control with random weights. Raises ConfigError, DataError, CheckpointError.
    """
    pair = _labelled(
        run, sources, pool=pool, train=train, test=test, test_sources=test_sources, batch=batch, device=device, random=random,
        imports=imports, settings=settings, progress=progress,
    )  # fmt: skip
    return _saved(score_knn(*pair, k=k), json_out)


def probe(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    seed: int = 0,
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Top-1 of a linear probe on frozen features; its strength is chosen on a seeded split of the training set.

    Parameters as for :func:`knn`; ``seed``: of that split. Raises ConfigError, DataError, CheckpointError.
    """
    pair = _labelled(
        run, sources, pool=pool, train=train, test=test, test_sources=test_sources, batch=batch, device=device, random=random,
        imports=imports, settings=settings, progress=progress,
    )  # fmt: skip
    return _saved(score_probe(*pair, seed=seed), json_out)


def _saved(score: Score, path: str | Path | None) -> Score:
    if path is not None:
        score.save_json(Path(path))
    return score
