"""The linear probe: how much of the classes a hyperplane can read from frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tubelet.core.draw import hash_uniform, name_key
from tubelet.tasks._pair import about_training, check_pair
from tubelet.tasks.embed import Embeddings
from tubelet.tasks.metrics import Score, classification, top_k

STRENGTHS = tuple(float(10.0**e) for e in range(-4, 3))  # sklearn's C, the inverse of the L2 penalty
HELD_OUT = 0.25


def held_out(labels_N: np.ndarray, seed: int, share: float = HELD_OUT, groups_N: Sequence[str] | None = None) -> np.ndarray:
    """(N,) bool: a stratified part of the training set, for choosing settings. A class of one item stays whole on the fitting side.

    ``groups_N``: items of one name (clips of one film, of one person) stay on one side, as near to that share of every class as whole
    groups allow; what is chosen then holds for films that were not seen.
    """
    if groups_N is not None:
        return _held_groups(labels_N, seed, share, groups_N)
    order = hash_uniform(name_key(seed, "probe/held_out"), torch.arange(len(labels_N)), 1)[:, 0].numpy()
    out = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        out[rows[np.argsort(order[rows], kind="stable")[:count]]] = True
    return out


def _held_groups(labels_N: np.ndarray, seed: int, share: float, groups_N: Sequence[str]) -> np.ndarray:
    """Groups in a seeded order; each is held out where that brings the classes nearer to ``share`` and leaves some of each to fit on.

    One at least, where one leaves some of each.
    """
    names, group_N = np.unique(np.asarray(groups_N, dtype=str), return_inverse=True)
    whole = np.bincount(labels_N)
    wanted = np.where(whole > 1, np.maximum(1, np.round(share * whole)), 0)
    order = np.argsort(hash_uniform(name_key(seed, "probe/held_out/groups"), torch.arange(len(names)), 1)[:, 0].numpy(), kind="stable")
    sizes = {int(g): np.bincount(labels_N[group_N == g], minlength=len(whole)) for g in order}
    taken, held = np.zeros_like(whole), list[int]()

    def leaves_some(more_C: np.ndarray) -> bool:
        return bool((more_C < whole)[more_C > 0].all())

    for group, size in sizes.items():
        if np.abs(wanted - taken - size).sum() < np.abs(wanted - taken).sum() and leaves_some(taken + size):
            taken, held = taken + size, [*held, group]
    if not held:  # few and large ones: that which overshoots least
        fit = [group for group, size in sizes.items() if leaves_some(size)]
        held = sorted(fit, key=lambda group: np.abs(wanted - sizes[group]).sum())[:1]
    return np.isin(group_N, held)


def grouped(groups: Mapping[str, str] | None, keys: Sequence[str]) -> list[str] | None:
    """The group of every item; an item without one is a group of its own."""
    return None if groups is None else [groups.get(key) or f"\0{key}" for key in keys]


class LinearProbe:
    """Standardised features -> multinomial logistic regression with an L2 penalty. Columns that do not vary count for nothing.

    ``classes``: the number of columns of :meth:`scores`; classes that were not in training score 0.
    """

    def __init__(self, x_ND: np.ndarray, y_N: np.ndarray, *, strength: float, classes: int) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        x = x_ND.astype(np.float64)
        self.mean, std = x.mean(0), x.std(0)
        self.scale = np.where(std > 1e-8 * max(1e-30, np.abs(x).max()), std, np.inf)
        self.classes = classes
        self.model: Any = LogisticRegression(C=strength, max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said in the details instead
            self.model.fit((x - self.mean) / self.scale, y_N)
        self.converged = bool((np.asarray(self.model.n_iter_) < 2000).all())

    def scores(self, x_ND: np.ndarray) -> np.ndarray:
        """Class probabilities (N, classes) float64."""
        out = np.zeros((len(x_ND), self.classes))
        out[:, self.model.classes_] = self.model.predict_proba((x_ND.astype(np.float64) - self.mean) / self.scale)
        return out


def judge(scores_NC: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    """What settings are chosen by: accuracy, and where that is equal, the mean log probability of the true class."""
    given = scores_NC[np.arange(len(scores_NC)), labels_N]
    return float(top_k(scores_NC, labels_N).mean()), float(np.log(np.maximum(given, 1e-12)).mean())


def choose_strength(
    x_ND: np.ndarray, y_N: np.ndarray, classes: int, seed: int, groups_N: Sequence[str] | None = None
) -> tuple[float, dict[str, float]]:
    """The strength with the best accuracy on a seeded held-out part of the training set, and what each reached.

    Equal accuracies are told apart by the probability given to the true class. Where no class has two items, or the rest is of one
    class, there is nothing to choose by: strength 1.
    """
    out = held_out(y_N, seed, groups_N=groups_N)
    if not out.any() or len(np.unique(y_N[~out])) < 2:
        return 1.0, {}
    judged = {}
    for strength in STRENGTHS:
        scores = LinearProbe(x_ND[~out], y_N[~out], strength=strength, classes=classes).scores(x_ND[out])
        judged[strength] = judge(scores, y_N[out])
    return max(judged, key=judged.__getitem__), {f"{strength:g}": accuracy for strength, (accuracy, _) in judged.items()}


def score_probe(train: Embeddings, test: Embeddings, *, seed: int = 0, groups: Mapping[str, str] | None = None) -> Score:
    """Fit on the training embeddings with a penalty chosen inside them, refit on all of them, read the test set once.

    ``groups``: training key -> the film or person that it is of; the penalty is chosen on such as were not fitted on. Raises DataError for
    sets that do not fit together.
    """
    pair = check_pair(train, test)
    classes = len(pair.classes)
    strength, tried = choose_strength(train.vectors, pair.train_labels, classes, seed, grouped(groups, train.keys))
    fitted = LinearProbe(train.vectors, pair.train_labels, strength=strength, classes=classes)
    details = {"pool": test.pool, "C": strength, "C_tried": tried, "converged": fitted.converged, "seed": seed}
    return classification(
        "linear probe",
        fitted.scores(test.vectors),
        pair.test_labels,
        test.keys,
        pair.classes,
        n_total=test.n_total,
        failures=test.failures,
        details={**details, **about_training(train)},
    )
