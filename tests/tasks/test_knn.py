"""Nearest neighbours against a plain loop, and sets that do not fit together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_embeddings import blobs, embeddings

from tubelet.errors import ConfigError, DataError
from tubelet.tasks.knn import neighbour_votes, score_knn


def by_hand(train: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int, temperature: float) -> list[float]:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))

    near = sorted(((cosine(t, query), int(y)) for t, y in zip(train, labels, strict=True)), key=lambda pair: -pair[0])[:k]
    votes = [0.0] * classes
    for similarity, label in near:
        votes[label] += math.exp(similarity / temperature)
    return [v / math.exp(near[0][0] / temperature) for v in votes]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 10_000), st.sampled_from([0.07, 0.5]))
def test_votes_equal_a_plain_loop(n: int, k: int, seed: int, temperature: float):
    rng = np.random.default_rng(seed)
    train, test, labels = rng.standard_normal((n, 5)), rng.standard_normal((4, 5)), rng.integers(0, 3, n)
    votes = neighbour_votes(train, labels, test, 3, k=k, temperature=temperature, batch=3)
    for row, query in zip(votes, test, strict=True):
        assert row == pytest.approx(by_hand(train, labels, query, 3, k, temperature), rel=1e-9, abs=1e-12)


def test_batches_change_nothing_and_scale_does_not_matter():
    a, b = blobs(40, 3), blobs(17, 3, seed=1)
    whole = neighbour_votes(a.vectors, a.labels, b.vectors, 3, k=7)
    assert np.allclose(whole, neighbour_votes(a.vectors, a.labels, b.vectors, 3, k=7, batch=1))
    assert np.allclose(whole, neighbour_votes(a.vectors * 1000, a.labels, b.vectors * 0.01, 3, k=7), atol=1e-6)


def test_separate_clouds_are_told_apart_and_noise_is_not():
    score = score_knn(blobs(120, 4, apart=12), blobs(60, 4, apart=12, seed=1, prefix="t"), k=10)
    assert score.value > 0.95
    assert (score.details["k"], score.details["pool"], score.details["n_train"]) == (10, "mean", 120)
    noise = score_knn(blobs(400, 4, apart=0), blobs(400, 4, apart=0, seed=1, prefix="t"))
    assert noise.low < 0.25 < noise.high


def test_k_is_capped_by_the_training_set():
    assert score_knn(blobs(6, 2), blobs(4, 2, seed=1, prefix="t"), k=20).details["k"] == 6


@pytest.mark.parametrize("given_k", [0, -3])
def test_impossible_k(given_k: int):
    with pytest.raises(ConfigError, match="at least 1"):
        score_knn(blobs(6, 2), blobs(4, 2, seed=1), k=given_k)


def test_failures_are_counted_not_replaced():
    test = embeddings(blobs(4, 2, seed=1).vectors, [0, 1, 0, 1], ["c0", "c1"], prefix="t", failures=(("x.mp4", "broken"),), n_total=5)
    score = score_knn(blobs(6, 2), test)
    assert (score.n_scored, score.n_total, score.failures) == (4, 5, (("x.mp4", "broken"),))


V = np.eye(4)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (embeddings(V, [-1] * 4, []), embeddings(V, [0, 1, 0, 1], ["a", "b"]), "training set has no labels"),
        (embeddings(V, [0, 1, 0, 1], ["a", "b"]), embeddings(V[:0], [], ["a"]), "test set is empty"),
        (
            embeddings(V, [0, 1, -1, 1], ["a", "b"]),
            embeddings(V, [0, 1, 0, 1], ["a", "b"], prefix="t"),
            "1 of 4 training items have no label",
        ),
        (embeddings(V, [1] * 4, ["a", "b"]), embeddings(V, [1] * 4, ["a", "b"], prefix="t"), "one class, 'b'"),
        (embeddings(V, [0, 1, 0, 1], ["run", "walk"]), embeddings(V, [0, 1, 0, 1], ["runs", "walk"], prefix="t"), "did you mean 'run'"),
        (embeddings(V, [0, 1, 0, 1], ["a", "b"]), embeddings(V[:, :3], [0, 1, 0, 1], ["a", "b"], prefix="t"), "same run and pool"),
        (embeddings(V, [0, 1, 0, 1], ["a", "b"]), embeddings(V, [0, 1, 0, 1], ["a", "b"]), "4 test items are also training items"),
    ],
)
def test_sets_that_do_not_fit(train, test, said: str):
    with pytest.raises(DataError, match=said):
        score_knn(train, test)


def test_all_problems_at_once():
    with pytest.raises(DataError) as error:
        score_knn(embeddings(V[:0], [], []), embeddings(V, [-1] * 4, []))
    assert "training set is empty" in str(error.value)
    assert "test set has no labels" in str(error.value)


def test_classes_are_matched_by_name():
    train, test = embeddings(V, [0, 1, 2, 2], ["a", "b", "c"]), embeddings(V[:2] * 0.5, [1, 0], ["b", "a"], prefix="t")
    assert score_knn(train, test, k=1).value == 1.0
    assert score_knn(train, test, k=1).predictions == {"t0": ("a", "a"), "t1": ("b", "b")}


def test_classes_without_a_training_item_do_not_count():
    train = embeddings(V, [0, 2, 0, 2], ["a", "b", "c"])
    score = score_knn(train, embeddings(V[:2] * 0.5, [0, 2], ["a", "b", "c"], prefix="t"), k=1)
    assert score.details["classes"] == 2
    assert score.value == 1.0
