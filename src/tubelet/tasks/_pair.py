"""A training set and a test set of embeddings that fit together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelet.config import did_you_mean
from tubelet.errors import DataError
from tubelet.tasks.embed import Embeddings


@dataclass(frozen=True)
class Pair:
    """Labels of both sets, (n,) int64, numbered by ``classes``: those that occur in the training set, in its order."""

    train_labels: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def check_pair(train: Embeddings, test: Embeddings) -> Pair:
    """Number the labels of two sets alike. Raises DataError that lists all that does not fit."""
    problems = [*unlabelled("training", train), *unlabelled("test", test)]
    if not problems and train.vectors.shape[1] != test.vectors.shape[1]:
        problems.append(
            f"training vectors have {train.vectors.shape[1]} numbers, test vectors {test.vectors.shape[1]}: use the same run and pool"
        )
    if not problems and len(set(train.labels.tolist())) < 2:
        problems.append(f"all {len(train)} training items are of one class, {train.classes[train.labels[0]]!r}; there must be at least two")
    numbers: dict[str, int] = {}
    if not problems:
        numbers = {train.classes[old]: new for new, old in enumerate(sorted(set(train.labels.tolist())))}
        named = [test.classes[i] for i in test.labels]
        for name in sorted(set(named) - numbers.keys()):
            near = did_you_mean(name, numbers)
            problems.append(f"class {name!r} of {named.count(name)} test items does not occur in the training set{near}")
    if not problems and (both := _same_items(train, test)):
        problems.append(f"{both} test items are also training items (same key, same vector); give disjoint splits")
    if problems:
        raise DataError(problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems:", *problems]))

    def numbered(e: Embeddings) -> np.ndarray:
        return np.array([numbers[e.classes[i]] for i in e.labels], np.int64)

    return Pair(numbered(train), numbered(test), tuple(numbers))


def unlabelled(name: str, e: Embeddings) -> list[str]:
    """Why a set cannot be scored by its labels."""
    if len(e) == 0:
        return [f"the {name} set is empty"]
    if not e.classes or bool((e.labels < 0).all()):
        return [f"the {name} set has no labels; give a manifest with a label column, or class folders"]
    bare = int((e.labels < 0).sum())
    return [f"{bare} of {len(e)} {name} items have no label"] if bare else []


def _same_items(train: Embeddings, test: Embeddings) -> int:
    """Items that are the same in both, not only named alike: two sources may use one name for two videos."""
    row = {key: i for i, key in enumerate(train.keys)}
    return sum(key in row and np.array_equal(train.vectors[row[key]], test.vectors[i]) for i, key in enumerate(test.keys))


def about_training(train: Embeddings) -> dict[str, Any]:
    """What a Score says of its training set."""
    return {"n_train": len(train), "n_train_total": train.n_total, "train_failures": [list(f) for f in train.failures]}
