"""Which classes are taken for which, and which clips were hardest: read off a list of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Said = Mapping[str, tuple[str, str]]  # key -> (true class, predicted class)


class Recall(NamedTuple):
    """How many of the ``n`` test items of one class were found; ``share`` = right / n."""

    name: str
    right: int
    n: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.right / self.n


class Confused(NamedTuple):
    """``n`` of the ``of`` test items of class ``true`` were taken for class ``predicted``."""

    true: str
    predicted: str
    n: int
    of: int


class Hard(NamedTuple):
    """A test item and the probability that its true class was given."""

    key: str
    true: str
    predicted: str
    probability: float


def counts(said: Said, classes: Sequence[str]) -> np.ndarray:
    """(C, C) int64: rows are true classes, columns predicted ones, both in the order of ``classes``."""
    number = {name: i for i, name in enumerate(classes)}
    found = np.zeros((len(classes), len(classes)), np.int64)
    for true, predicted in said.values():
        found[number[true], number[predicted]] += 1
    return found


def recalls(counts_CC: np.ndarray, classes: Sequence[str]) -> list[Recall]:
    """One for each class that occurs in the test set, in the order of ``classes``."""
    rows = zip(classes, counts_CC.diagonal().tolist(), counts_CC.sum(1).tolist(), strict=True)
    return [Recall(name, right, n) for name, right, n in rows if n]


def confused(counts_CC: np.ndarray, classes: Sequence[str]) -> list[Confused]:
    """All mistakes by pair of classes, the most frequent first, then those with the larger share of their class."""
    of = counts_CC.sum(1).tolist()
    cells = np.argwhere(counts_CC).tolist()
    wrong = [Confused(classes[i], classes[j], int(counts_CC[i, j]), of[i]) for i, j in cells if i != j]
    return sorted(wrong, key=lambda pair: (-pair.n, pair.of))


def hardest(said: Said, probability: Mapping[str, float]) -> list[Hard]:
    """All items, the least probable true class first; equal ones in the order of ``said``."""
    items = [Hard(key, *pair, probability[key]) for key, pair in said.items() if key in probability]
    return sorted(items, key=lambda item: item.probability)
