"""A training set and a test set of embeddings that fit together."""

from __future__ import annotations

import numpy as np

from tubelet.config import did_you_mean
from tubelet.errors import DataError
from tubelet.tasks.embed import Embeddings


def check_pair(train: Embeddings, test: Embeddings) -> np.ndarray:
    """The test labels, numbered by the classes of ``train``: (n,) int64. Raises DataError that lists all that does not fit."""
    problems = [*_alone("training", train), *_alone("test", test)]
    if not problems and train.vectors.shape[1] != test.vectors.shape[1]:
        problems.append(f"training vectors have {train.vectors.shape[1]} numbers, test vectors {test.vectors.shape[1]}: use the same run and pool")
    if not problems and len(set(train.labels.tolist())) < 2:
        problems.append(f"all {len(train)} training items are of one class, {train.classes[train.labels[0]]!r}; there must be at least two")
    labels = np.zeros(0, np.int64)
    if not problems:
        seen = {train.classes[i]: i for i in sorted(set(train.labels.tolist()))}
        named = [test.classes[i] for i in test.labels]
        for name in sorted(set(named) - seen.keys()):
            near = did_you_mean(name, seen)
            problems.append(f"class {name!r} of {named.count(name)} test items does not occur in the training set{near}")
        labels = np.array([seen.get(name, -1) for name in named], np.int64)
    both = 0 if problems else _same_items(train, test)
    if both:
        problems.append(f"{both} test items are also training items (same key, same vector); give disjoint splits")
    if problems:
        raise DataError(problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems:", *problems]))
    return labels


def _alone(name: str, e: Embeddings) -> list[str]:
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
