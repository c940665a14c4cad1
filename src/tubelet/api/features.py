"""What a frozen encoder says about videos: vectors, neighbours, probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.api._common import Sources, shown
from tubelet.api.loading import Loaded, load
from tubelet.config import did_you_mean, overlay, parse
from tubelet.data.evaluation import EvalFeed, windows
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table_for
from tubelet.data.table import Table
from tubelet.errors import ConfigError, DataError
from tubelet.tasks import Score
from tubelet.tasks.attentive import score_attentive
from tubelet.tasks.embed import Embeddings, writable
from tubelet.tasks.embed import embed as embed_table
from tubelet.tasks.knn import score_knn
from tubelet.tasks.probe import score_probe
from tubelet.tasks.tokens import GIB, keep_tokens
from tubelet.train.checkpoint import atomic
from tubelet.viz.confusion import confusion

PROBES = ("linear", "attentive")
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
Progress = Callable[[int, int], None] | None


def encoder_of(
    run: str | Path | Loaded,
    settings: Sequence[str],
    *,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    sha256: str | None = None,
    download: bool = False,
) -> tuple[Loaded, list[str]]:
    """The encoder of a call, and its settings of data and views: those of the model (``method.heads=6``) are for outside weights."""
    of_model = [text for text in settings if text.startswith("method.")]
    rest = [text for text in settings if text not in of_model]
    if isinstance(run, Loaded):
        if of_model:
            raise ConfigError(f"{', '.join(of_model)}: this model is loaded already; give method.* to tubelet.load")
        if sha256 is not None:
            raise ConfigError("sha256: this model is loaded already; give it to tubelet.load")
        return run, rest
    of_data = [text for text in rest if not text.startswith("views.")]
    return load(run, device=device, random=random, imports=imports, settings=[*of_model, *of_data], sha256=sha256, download=download), rest


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
    sha256: str | None = None,
    download: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
) -> Embeddings:
    """One vector for each video (or for each window of ``seconds``, every ``hop``), with key and time stamps.

    ``pool``: mean | slots | class. ``out``: .npz or .parquet. ``settings``: data settings and ``views.clips=4`` ... ``sha256``: what the
    file of weights must have. ``download``: fetch ``hf://`` weights that the local cache lacks. Videos that cannot be read are
    listed in ``failures``, never replaced. Raises ConfigError, DataError, CheckpointError.
    """
    if out is not None:
        writable(out, overwrite=overwrite)
    loaded, rest = encoder_of(run, settings, device=device, random=random, imports=imports, sha256=sha256, download=download)
    data, views = evaluation_data(loaded, rest, split)
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


@dataclass(frozen=True)
class _Half:
    """The training or the test items of an evaluation, with how they are read."""

    table: Table
    feed: EvalFeed
    before: int
    total: int

    def progress(self, progress: Progress) -> Progress:
        """The same report, counted over both halves."""
        return None if progress is None else lambda done, _: progress(self.before + done, self.total)


def _halves(
    loaded: Loaded, sources: Sources, settings: Sequence[str], *, train: str, test: str, test_sources: Sources | None, batch: int
) -> tuple[_Half, _Half]:
    """The training and the test items: two splits of one source, or two sources with the same classes."""
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

    def half(table: Table, before: int) -> _Half:
        return _Half(table, EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device)), before, total)

    return half(first, 0), half(second, len(first))


def _vectors(loaded: Loaded, halves: tuple[_Half, _Half], pool: str, progress: Progress) -> tuple[Embeddings, Embeddings]:
    train, test = (
        embed_table(loaded.model, h.feed, h.table, pool=pool, device=loaded.device, progress=h.progress(progress)) for h in halves
    )
    return train, test


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
    sha256: str | None = None,
    download: bool = False,
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    picture: str | Path | None = None,
    progress: Progress = None,
) -> Score:
    """Top-1 of a weighted ``k``-nearest-neighbour vote on frozen features; nothing is fitted.

    ``train`` and ``test`` name splits of ``sources``; or give ``test_sources``, and all of ``sources`` is the training set. ``pool``:
    mean | slots | class. ``random``: the control with random weights. ``sha256``: what the file of weights must have. ``download``: fetch
    ``hf://`` weights. ``json_out``: a file for :meth:`Score.to_json`; ``picture``: one for the confusion matrix (.png).
    Raises ConfigError, DataError, CheckpointError.
    """
    if problems := _picture_problems(picture):
        raise ConfigError(problems)
    loaded, rest = encoder_of(run, settings, device=device, random=random, imports=imports, sha256=sha256, download=download)
    halves = _halves(loaded, sources, rest, train=train, test=test, test_sources=test_sources, batch=batch)
    return _delivered(score_knn(*_vectors(loaded, halves, pool, progress), k=k), json_out, picture)


def probe(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    kind: str = "linear",
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    sha256: str | None = None,
    download: bool = False,
    seed: int = 0,
    groups: str | None = None,
    memory: float = 4.0,
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    picture: str | Path | None = None,
    progress: Progress = None,
) -> Score:
    """Top-1 of a probe on frozen features; its settings are chosen on a seeded split of the training set.

    ``kind``: linear, on pooled vectors; attentive, where one learned query reads all tokens. Those are computed once and kept: up to
    ``memory`` GiB in main memory, more in a temporary file. Other parameters as for :func:`knn`; ``seed``: of the inner split and of an
    attentive probe's start and order. ``groups``: a column of the manifest (source_video, subject) whose items stay on one side of the
    inner split, so that settings are chosen on films or persons that were not fitted on. Raises ConfigError, DataError, CheckpointError.
    """
    problems = _picture_problems(picture)
    if kind not in PROBES:
        problems.append(f"--kind {kind}: unknown{did_you_mean(kind, PROBES)}; there are {', '.join(PROBES)}")
    if kind == "attentive" and pool != "mean":
        problems.append(f"--pool {pool}: an attentive probe reads all tokens, without pooling; leave it out")
    if not memory >= 0:
        problems.append(f"--memory {memory}: must be 0 or more GiB")
    if problems:
        raise ConfigError(problems)
    loaded, rest = encoder_of(run, settings, device=device, random=random, imports=imports, sha256=sha256, download=download)
    halves = _halves(loaded, sources, rest, train=train, test=test, test_sources=test_sources, batch=batch)
    together = None if groups is None else halves[0].table.groups(groups)
    if kind == "linear":
        return _delivered(score_probe(*_vectors(loaded, halves, pool, progress), seed=seed, groups=together), json_out, picture)
    kept = []
    for half in halves:
        room = int(memory * GIB) - sum(k.in_memory for k in kept)
        step = half.progress(progress)
        kept.append(keep_tokens(loaded.model, half.feed, half.table, limit=room, device=loaded.device, progress=step))
    return _delivered(score_attentive(*kept, seed=seed, device=loaded.device, progress=progress, groups=together), json_out, picture)


def _picture_problems(path: str | Path | None) -> list[str]:
    """Why a picture cannot be written there; asked before embedding for hours."""
    if path is None:
        return []
    if Path(path).is_dir():
        return [f"--picture {path} is a folder; give a file such as {Path(path) / 'confusion.png'}"]
    if Path(path).suffix.lower() not in PICTURES:
        return [f"--picture {path}: pictures are written as {', '.join(PICTURES)}"]
    return []


def _delivered(score: Score, json_out: str | Path | None, picture: str | Path | None) -> Score:
    if json_out is not None:
        score.save_json(Path(json_out))
    if picture is not None:
        save_confusion(score, picture)
    return score


def save_confusion(score: Score, path: str | Path) -> None:
    """Draw a score's confusion matrix into a picture file, whole or not at all. Raises ConfigError, CheckpointError."""
    path = Path(path)
    if problems := _picture_problems(path):
        raise ConfigError(problems)
    image = confusion(score.confusion(), score.classes, title=str(score))
    with atomic(path) as temporary:
        image.save(temporary, format=PICTURES[path.suffix.lower()])
