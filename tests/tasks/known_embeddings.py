"""Embeddings with known structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tubelet.tasks.embed import Embeddings


def embeddings(
    vectors: np.ndarray, labels: Sequence[int] | np.ndarray, classes: Sequence[str], *, prefix: str = "v", **more: object
) -> Embeddings:
    n = len(vectors)
    given = {"failures": (), "n_total": n, **more}
    keys = tuple(f"{prefix}{i}" for i in range(n))
    empty = np.full(n, np.nan)
    return Embeddings(keys, empty, empty, np.asarray(vectors, np.float32), np.asarray(labels, np.int64), tuple(classes), **given)  # type: ignore[arg-type]  # given by name


def blobs(
    n: int, classes: int, *, dim: int = 8, apart: float = 6.0, seed: int = 0, prefix: str = "v", centres_seed: int = 99
) -> Embeddings:
    """Gaussian clouds around class centres ``apart`` from each other, about."""
    centres = np.random.default_rng(centres_seed).standard_normal((classes, dim)) * apart / np.sqrt(2 * dim)
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return embeddings(centres[labels] + rng.standard_normal((n, dim)), labels, [f"c{i}" for i in range(classes)], prefix=prefix)
