"""Embeddings: one vector for each item, or for each window of a long one."""

from __future__ import annotations

import importlib.util
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tubelet.config import did_you_mean
from tubelet.core import Batch, Method, Tokens
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.nn import pool as pools
from tubelet.train.checkpoint import atomic

if TYPE_CHECKING:
    from tubelet.data.evaluation import EvalFeed
    from tubelet.data.table import Table

POOLS = ("mean", "slots", "class")
ENDINGS = (".npz", ".parquet")
A = TypeVar("A")


@dataclass(frozen=True)
class Embeddings:
    """Vectors with what they are of, in the table's order; items that could not be read are in ``failures`` and have no row.

    ``start``, ``end`` (n,) float64: seconds in the source, of the segment, else of the first and the last frame shown; NaN = unknown.
    ``vectors`` (n, D) float32. ``labels`` (n,) int64 into ``classes``, -1 = none. ``failures``: (key, reason). ``n_total``: items that
    were asked for. ``pool``: how tokens became a vector.
    """

    keys: tuple[str, ...]
    start: np.ndarray
    end: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    n_total: int
    pool: str = "mean"

    def __post_init__(self) -> None:
        n = len(self.keys)
        for name in ("start", "end", "vectors", "labels"):
            assert len(getattr(self, name)) == n, f"{name} has {len(getattr(self, name))} rows for {n} keys"

    def __len__(self) -> int:
        return len(self.keys)

    def __str__(self) -> str:
        return f"{len(self)} / {self.n_total} embedded, {self.vectors.shape[1]} numbers each ({self.pool})"

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a .npz (NumPy, no pickle) or .parquet file, whole or not at all. Raises ConfigError as :func:`writable`."""
        path = writable(path, overwrite=overwrite)
        with atomic(path) as temporary:
            (_save_npz if path.suffix == ".npz" else _save_parquet)(self, temporary)
        return path

    @staticmethod
    def load(path: str | Path) -> Embeddings:
        """Read what :meth:`save` wrote. Raises DataError for a file that is missing, damaged or something else."""
        path = Path(path)
        _check_ending(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        try:
            return (_load_npz if path.suffix == ".npz" else _load_parquet)(path)
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # pyarrow's are among these
            raise DataError(f"{path} does not hold embeddings written by Tubelet ({type(error).__name__}: {error})") from None


def writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, once it is sure that embeddings can be written there; ask before embedding for hours.

    Raises ConfigError for another ending, a missing pyarrow, a folder, or a file that is there already.
    """
    path = Path(path)
    _check_ending(path)
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; give a file such as {path / 'embeddings.npz'}")
    if path.exists() and not overwrite:
        raise ConfigError(f"--out {path} exists already; add --overwrite to replace it, or choose another name")
    return path


def _check_ending(path: Path) -> None:
    if path.suffix not in ENDINGS:
        wrong = f"ending {path.suffix!r}{did_you_mean(path.suffix, ENDINGS)}" if path.suffix else "no ending"
        raise ConfigError(f"--out {path}: {wrong}; embeddings are written as {' or '.join(ENDINGS)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{path}: Parquet needs pyarrow; install it with: pip install 'tubelet[parquet]' (or use .npz)")


def pool_tokens(tokens: Tokens, kind: str) -> Tensor:
    """(B, D): ``mean`` over tokens, ``slots``: the means of all time slots one after the other, ``class``: the class token.

    Raises ConfigError for an unknown kind or a class token that the encoder does not have.
    """
    if kind not in POOLS:
        raise ConfigError(f"--pool {kind}: unknown{did_you_mean(kind, POOLS)}; there are {', '.join(POOLS)}")
    if kind == "mean":
        return pools.mean(tokens)
    if kind == "slots":
        return pools.slots(tokens).flatten(1)
    if bool((tokens.index[:, 0] >= 0).any()):
        raise ConfigError("--pool class: this encoder has no class token; use mean or slots")
    return pools.class_token(tokens)


@torch.no_grad()
def answered(
    model: Method,
    feed: EvalFeed,
    ask: Callable[[Batch], A],
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[list[tuple[int, np.ndarray]], A]]:
    """Batch by batch: (table row, which rows of the batch are its views) of every item in the batch's order, and what ``ask`` made of the
    batch on the device.

    The model runs in eval mode and in its own precision, and gets its mode back at the end. ``progress(done, total)`` counts items.
    Raises DataError where nothing can be read.
    """
    was_training = model.training
    model.to(device).eval()
    done = 0
    try:
        for batch in feed:
            items = batch.labels["item"]
            assert isinstance(items, Tensor)
            numbers = items.numpy()
            order = list(dict.fromkeys(numbers.tolist()))
            done += len(order)
            yield [(int(i), np.flatnonzero(numbers == i)) for i in order], ask(batch.to(device))
            if progress is not None:
                progress(min(done + len(feed.failures), feed.n_total), feed.n_total)
    finally:
        model.train(was_training)
    if not done:
        failures = [(str(key), str(reason)) for key, reason in feed.failures]
        raise DataError(f"none of the {feed.n_total} items could be read{_first(failures)}")
    if progress is not None:
        progress(feed.n_total, feed.n_total)


def encoded(
    model: Method, feed: EvalFeed, *, device: torch.device | str = "cpu", progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[list[tuple[int, np.ndarray]], Tokens]]:
    """The tokens of every batch with whose they are, as :func:`answered` gives them."""
    return answered(model, feed, lambda batch: _tokens(model, batch), device=device, progress=progress)


def pieces(batch: Batch) -> list[Batch]:
    """How a batch is best encoded: at once, or on the CPU clip by clip. What a clip makes on its way fits into the processor's caches, that
    of several does not (a third less time for a small encoder, 16x224x224; benchmarks/embed.py)."""
    if batch.sample.device.type != "cpu" or len(batch) == 1:
        return [batch]
    return [batch.rows(i, i + 1) for i in range(len(batch))]


def _tokens(model: Method, batch: Batch) -> Tokens:
    parts = [model.encode(piece) for piece in pieces(batch)]
    if len(parts) == 1:
        return parts[0]
    valid = None if parts[0].valid is None else torch.cat([p.valid for p in parts if p.valid is not None])
    return replace(parts[0], x=torch.cat([p.x for p in parts]), index=torch.cat([p.index for p in parts]), valid=valid)


def embed(
    model: Method,
    feed: EvalFeed,
    table: Table,
    *,
    pool: str = "mean",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """Encode every item of ``feed``, which reads ``table``. The vectors of an item's views (clips x crops) are averaged.

    ``progress(done, total)`` is called after every batch, in items. The model runs in eval mode and in its own precision.
    Raises ConfigError for a pool that does not fit, CheckpointError for a vector that is not finite, DataError where nothing can be read.
    """
    found: dict[int, np.ndarray] = {}
    for items, tokens in encoded(model, feed, device=device, progress=progress):
        vectors = pool_tokens(tokens, pool).double().cpu().numpy()
        for item, views in items:
            assert item not in found, "the views of an item must come in one batch"
            found[item] = finite(vectors[views].mean(0), table.keys[item])
    return collect(found, table, feed, pool)


def finite(values: np.ndarray, key: str) -> np.ndarray:
    """The same numbers. Raises CheckpointError where one is not finite."""
    if not np.isfinite(values).all():
        raise CheckpointError(f"the encoder's output for {key} is not finite: the weights are damaged or diverged")
    return values


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zeros stay zeros."""
    x = x_ND.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def collect(found: Mapping[int, np.ndarray], table: Table, feed: EvalFeed, pool: str) -> Embeddings:
    """The vectors of table rows, after ``feed`` has been read to its end."""
    rows = sorted(found)
    items = [table.item(row) for row in rows]

    unknown = (np.nan, np.nan)
    seen = [feed.seen.get(row, unknown) for row in rows]

    def seconds(values: Sequence[float | None], side: int) -> np.ndarray:
        return np.array([s[side] if v is None else v for v, s in zip(values, seen, strict=True)], np.float64)

    return Embeddings(
        keys=tuple(i.key for i in items),
        start=seconds([i.start for i in items], 0),
        end=seconds([i.end for i in items], 1),
        vectors=np.stack([found[row] for row in rows]).astype(np.float32),
        labels=np.array([i.label for i in items], np.int64),
        classes=tuple(table.classes),
        failures=tuple((str(key), str(reason)) for key, reason in feed.failures),
        n_total=feed.n_total,
        pool=pool,
    )


def _first(failures: Sequence[tuple[str, str]]) -> str:
    return f", e.g. {failures[0][0]}: {failures[0][1]}" if failures else ""


def _text(value: str) -> str:
    """A name that UTF-8 can hold: bytes of a file name that are no text become a replacement character."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _about(e: Embeddings) -> dict[str, Any]:
    return {"classes": e.classes, "failures": [[_text(k), _text(r)] for k, r in e.failures], "n_total": e.n_total, "pool": e.pool}


def _save_npz(e: Embeddings, path: Path) -> None:
    keys, about = np.array([_text(k) for k in e.keys], np.str_), np.array(json.dumps(_about(e)))
    with open(path, "wb") as file:  # given a name, NumPy would add its own ending
        np.savez(file, keys=keys, about=about, start=e.start, end=e.end, vectors=e.vectors, labels=e.labels)


def _load_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as data:
        keys = tuple(str(k) for k in data["keys"])
        return _from(keys, data["start"], data["end"], data["vectors"], data["labels"], json.loads(str(data["about"])))


def _save_parquet(e: Embeddings, path: Path) -> None:
    """Columns key, start, end, label (number), class (name), vector (list of float32); the rest in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = e.vectors.shape[1]
    names = [e.classes[i] if i >= 0 else None for i in e.labels]
    columns = {
        "key": pa.array([_text(k) for k in e.keys], pa.string()),
        "start": pa.array(e.start, pa.float64()),
        "end": pa.array(e.end, pa.float64()),
        "label": pa.array(e.labels, pa.int64()),
        "class": pa.array(names, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(e.vectors.reshape(-1), pa.float32()), width),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"tubelet": json.dumps(_about(e))}), path)


def _load_parquet(path: Path) -> Embeddings:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    about = json.loads((table.schema.metadata or {})[b"tubelet"])
    vectors = table["vector"].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    start, end, label = (table[name].to_numpy() for name in ("start", "end", "label"))
    return _from(tuple(table["key"].to_pylist()), start, end, flat.reshape(len(table), -1), label, about)


def _from(keys: tuple[str, ...], start: Any, end: Any, vectors: Any, labels: Any, about: dict[str, Any]) -> Embeddings:
    failures = tuple((str(k), str(r)) for k, r in about["failures"])
    return Embeddings(keys, start, end, vectors, labels, tuple(about["classes"]), failures, int(about["n_total"]), str(about["pool"]))
