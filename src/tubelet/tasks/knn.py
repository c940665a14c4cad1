"""Weighted nearest neighbours on frozen features: no training, one number to choose."""

from __future__ import annotations

import numpy as np

from tubelet.errors import ConfigError
from tubelet.tasks._pair import about_training, check_pair
from tubelet.tasks.embed import Embeddings, unit
from tubelet.tasks.metrics import Score, classification


def neighbour_votes(
    train_ND: np.ndarray, labels_N: np.ndarray, test_MD: np.ndarray, classes: int, *, k: int, temperature: float = 0.07, batch: int = 256
) -> np.ndarray:
    """Votes (M, classes) float64: each of the ``k`` most similar training vectors gives exp(cosine / temperature) to its class.

    The rule of Wu et al. 2018 (Unsupervised feature learning via non-parametric instance discrimination, section 3.4) that DINO
    (Caron et al. 2021) made the standard, both with temperature 0.07. Votes are scaled by the most similar neighbour's, which changes
    no prediction. Among equally similar vectors the earlier training item counts as nearer.
    """
    train, test = unit(train_ND), unit(test_MD)
    votes = np.zeros((len(test), classes))
    for start in range(0, len(test), batch):
        similar = test[start : start + batch] @ train.T
        near = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        cosine = np.take_along_axis(similar, near, 1)
        weight = np.exp((cosine - cosine[:, :1]) / temperature)
        rows = np.arange(len(near))[:, None] + start
        np.add.at(votes, (np.broadcast_to(rows, near.shape), labels_N[near]), weight)
    return votes


def score_knn(train: Embeddings, test: Embeddings, *, k: int = 20, temperature: float = 0.07) -> Score:
    """Classify the test items by their ``k`` nearest training items (at most as many as there are).

    Raises ConfigError for impossible settings, DataError for sets that do not fit together.
    """
    if k < 1 or temperature <= 0:
        raise ConfigError([f"--k {k}: must be at least 1"] if k < 1 else f"temperature {temperature}: must be above 0")
    pair = check_pair(train, test)
    used = min(k, len(train))
    votes = neighbour_votes(train.vectors, pair.train_labels, test.vectors, len(pair.classes), k=used, temperature=temperature)
    return classification(
        f"{used}-nearest-neighbour",
        votes,
        pair.test_labels,
        test.keys,
        pair.classes,
        n_total=test.n_total,
        failures=test.failures,
        details={"pool": test.pool, "k": used, "temperature": temperature, **about_training(train)},
    )
