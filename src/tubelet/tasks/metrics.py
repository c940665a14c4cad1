"""Figures of merit with their uncertainty, and what an evaluation returns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.errors import ConfigError
from tubelet.tasks import confusion as mistakes

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927): shares in [0, 1], ``(0, 1)`` for n = 0. Raises ValueError for impossible counts."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def top_k(scores_NC: np.ndarray, labels_N: np.ndarray, k: int = 1) -> np.ndarray:
    """(N,) bool: whether the true class is among the ``k`` highest scores. Classes that tie with it count as above it where their
    number is smaller, so that top-1 is what ``argmax`` predicts."""
    true = np.take_along_axis(scores_NC, labels_N[:, None], 1)
    before = np.arange(scores_NC.shape[1])[None] < labels_N[:, None]
    rank = ((scores_NC > true) | ((scores_NC == true) & before)).sum(1)
    return rank < k


def json_text(value: Mapping[str, Any]) -> str:
    """A result as JSON, rows of whole numbers on one line each. Bytes of file names that are no text are replaced."""
    text = json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return re.sub(r"\[\n[\d,\s]+\]", lambda row: " ".join(row[0].split()), text) + "\n"  # no string holds a bare newline


def per_class(correct_N: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Accuracy of every class that occurs, as a share."""
    return {name: float(correct_N[labels_N == i].mean()) for i, name in enumerate(classes) if (labels_N == i).any()}


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: the chance of so uneven a split of the items that only one of two models got right."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(x) for x in logs))


def paired_interval(both: int, only_first: int, only_second: int, neither: int, z: float = Z95) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same items (Newcombe 1998, Statistics in Medicine 17:2635, method 10)."""
    n = both + only_first + only_second + neither
    if n == 0:
        return -1.0, 1.0
    p, q = (both + only_first) / n, (both + only_second) / n
    (l1, u1), (l2, u2) = wilson(both + only_first, n, z), wilson(both + only_second, n, z)
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    lead = both * neither - only_first * only_second
    lead = max(lead - n / 2, 0.0) if lead > 0 else lead
    phi = lead / math.sqrt(product) if product else 0.0
    low = math.sqrt(max(0.0, (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2))
    high = math.sqrt(max(0.0, (q - l2) ** 2 - 2 * phi * (q - l2) * (u1 - p) + (u1 - p) ** 2))
    return max(-1.0, p - q - low), min(1.0, p - q + high)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same test items. ``difference``, ``low``, ``high``: top-1 of the first minus the second, as shares."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        named = f"{self.first} minus {self.second}: " if self.first and self.second else ""
        return f"{named}{100 * self.difference:+.1f} points {interval}, {p} (McNemar, {self.n} paired items)"


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    ``value``, ``low``, ``high``: top-1 accuracy and its 95 % Wilson interval, shares in [0, 1], over the ``n_scored`` test items that
    could be read of ``n_total``. ``failures``: (key, reason) of the others. ``details``: settings that were chosen, figures, and what
    became of the training items. ``predictions``: test key -> (true class, predicted class). ``probabilities``: test key -> what the true
    class was given, in [0, 1]. ``classes``: all that could be predicted.
    """

    name: str
    value: float
    low: float
    high: float
    n_scored: int
    n_total: int
    failures: Sequence[tuple[str, str]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    probabilities: Mapping[str, float] = field(default_factory=dict, repr=False)
    classes: Sequence[str] = field(default=(), repr=False)

    def __str__(self) -> str:
        classes = int(self.details["classes"])
        top5 = f", {100 * self.details['top5']:.1f} % top-5" if "top5" in self.details else ""
        if bounds := self.details.get("top5_interval"):
            top5 += f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
        commonest = self.details.get("commonest", 0.0)
        trivial = f", commonest class {100 * commonest:.1f} %" if commonest > 1.2 / classes else ""
        interval = f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return (
            f"{self.name} ({self.details.get('pool', '')}): {100 * self.value:.1f} % top-1 {interval}{top5}, "
            f"{self.n_scored} / {self.n_total} scored, {classes} classes, chance {100 / classes:.1f} %{trivial}"
        )

    def confusion(self) -> np.ndarray:
        """(C, C) int64 counts: rows are true classes, columns predicted ones, in the order of ``classes``."""
        return mistakes.counts(self.predictions, self.classes)

    def recalls(self) -> list[mistakes.Recall]:
        """How many items of each class were found, of how many; classes that the test set lacks are left out."""
        return mistakes.recalls(self.confusion(), self.classes)

    def confused(self, most: int = 10) -> list[mistakes.Confused]:
        """The ``most`` frequent mistakes, by true and predicted class."""
        return mistakes.confused(self.confusion(), self.classes)[:most]

    def hardest(self, most: int = 10) -> list[mistakes.Hard]:
        """The test items whose true class was given the lowest probability, lowest first."""
        return mistakes.hardest(self.predictions, self.probabilities)[:most]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n_scored": self.n_scored,
            "n_total": self.n_total,
            "failures": [list(f) for f in self.failures],
            "details": dict(self.details),
            "classes": list(self.classes),
            "confusion": self.confusion().tolist(),
            "recalls": [recall._asdict() for recall in self.recalls()],
            "confused": [pair._asdict() for pair in self.confused()],
            "hardest": [item._asdict() for item in self.hardest()],
            "predictions": [
                {"key": key, "class": true, "predicted": said, "probability": self.probabilities.get(key)}
                for key, (true, said) in self.predictions.items()
            ],
        }

    def to_json(self) -> str:
        """The dictionary as JSON text, a row of the confusion matrix on each line. Bytes of file names that are no text are replaced."""
        return json_text(self.as_dict())

    def save_json(self, path: Path | str) -> None:
        """Write :meth:`to_json`, atomically."""
        from tubelet.train.checkpoint import write_text  # here: it imports torch

        write_text(Path(path), self.to_json())

    def compare(self, other: Score, *, names: tuple[str, str] = ("", "")) -> Comparison:
        """Paired comparison on the same test items; ``names`` such as ("trained", "random weights").

        Raises ConfigError where the two did not score the same items.
        """
        if self.predictions.keys() != other.predictions.keys() or not self.predictions:
            shared = len(self.predictions.keys() & other.predictions.keys())
            raise ConfigError(
                f"the two scores do not cover the same test items ({len(self.predictions)} and {len(other.predictions)}, {shared} shared); "
                "score both on the same sources and splits"
            )
        keys = list(self.predictions)
        mine = np.array([len(set(self.predictions[k])) == 1 for k in keys])
        theirs = np.array([len(set(other.predictions[k])) == 1 for k in keys])
        table = [int(x.sum()) for x in (mine & theirs, mine & ~theirs, ~mine & theirs, ~mine & ~theirs)]
        low, high = paired_interval(*table)
        return Comparison(*names, (table[1] - table[2]) / len(keys), low, high, mcnemar(table[1], table[2]), len(keys))


def classification(
    name: str,
    scores_NC: np.ndarray,
    labels_N: np.ndarray,
    keys: Sequence[str],
    classes: Sequence[str],
    *,
    n_total: int,
    failures: Sequence[tuple[str, str]] = (),
    details: Mapping[str, Any] | None = None,
) -> Score:
    """The Score of class scores (N, C) against labels (N,) int64 in 0..C-1. Top-5 joins where there are at least 10 classes.

    ``scores_NC``: probabilities, or votes, whose share of their row counts as probability. Raises ValueError for negative scores
    (logits: take their softmax first).
    """
    if scores_NC.size and not scores_NC.min() >= 0:
        raise ValueError("class scores must be probabilities or votes, 0 or more; take the softmax of logits first")
    right = top_k(scores_NC, labels_N)
    low, high = wilson(int(right.sum()), len(right))
    by_class = per_class(right, labels_N, classes)
    more: dict[str, Any] = {"classes": len(classes), "mean_class": float(np.mean(list(by_class.values()))), "per_class": by_class}
    if len(classes) >= 10:
        in5 = top_k(scores_NC, labels_N, 5)
        more |= {"top5": float(in5.mean()), "top5_interval": list(wilson(int(in5.sum()), len(in5)))}
    more["commonest"] = float(np.bincount(labels_N, minlength=len(classes)).max() / len(labels_N))
    said = scores_NC.argmax(1)
    given = np.take_along_axis(scores_NC, labels_N[:, None], 1)[:, 0] / np.maximum(scores_NC.sum(1), np.finfo(np.float64).tiny)
    return Score(
        name,
        float(right.mean()),
        low,
        high,
        len(right),
        n_total,
        tuple(failures),
        {**(details or {}), **more},
        {k: (classes[int(t)], classes[int(p)]) for k, t, p in zip(keys, labels_N, said, strict=True)},
        dict(zip(keys, given.tolist(), strict=True)),
        tuple(classes),
    )
