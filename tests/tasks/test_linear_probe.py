"""The linear probe on features with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_embeddings import blobs, embeddings

from tubelet.errors import DataError
from tubelet.tasks.probe import LinearProbe, choose_strength, held_out, score_probe


def test_separable_clouds_and_pure_noise():
    score = score_probe(blobs(80, 4, apart=12), blobs(60, 4, apart=12, seed=1, prefix="t"))
    assert score.value > 0.95
    assert str(score).startswith("linear probe (mean): ")
    noise = score_probe(blobs(200, 4, apart=0), blobs(400, 4, apart=0, seed=1, prefix="t"))
    assert noise.low < 0.25 < noise.high


def test_a_hyperplane_cannot_read_exclusive_or():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    score = score_probe(embeddings(x[:300], y[:300], ["a", "b"]), embeddings(x[300:], y[300:], ["a", "b"], prefix="t"))
    assert 0.35 < score.value < 0.65


def test_the_penalty_is_strong_where_features_are_noise_and_chosen_in_training_only():
    rng = np.random.default_rng(1)
    y = np.arange(120) % 2
    x = rng.standard_normal((120, 300))
    x[:, 0] += 1.5 * y
    train = embeddings(x[:60], y[:60], ["a", "b"])
    first = score_probe(train, embeddings(x[60:], y[60:], ["a", "b"], prefix="t"))
    shuffled = score_probe(train, embeddings(x[60:][::-1], y[60:], ["a", "b"], prefix="t"))
    assert first.details["C"] == shuffled.details["C"]
    assert first.details["C_tried"] == shuffled.details["C_tried"]
    assert set(first.details["C_tried"]) == {"0.0001", "0.001", "0.01", "0.1", "1", "10", "100"}


def test_standardised_so_units_do_not_matter():
    a, b = blobs(60, 3, apart=3), blobs(90, 3, apart=3, seed=1, prefix="t")
    scale, shift = np.logspace(-3, 3, 8), np.linspace(-50, 50, 8)
    plain, scaled = (
        score_probe(a, b),
        score_probe(
            embeddings(a.vectors * scale + shift, a.labels, a.classes),
            embeddings(b.vectors * scale + shift, b.labels, b.classes, prefix="t"),
        ),
    )
    assert abs(plain.value - scaled.value) <= 2 / 90


def test_a_constant_column_counts_for_nothing():
    a = blobs(40, 2, apart=8)
    with_constant = np.concatenate([a.vectors, np.full((40, 1), 3.0)], 1)
    model = LinearProbe(with_constant, a.labels, strength=1.0, classes=2)
    shifted = with_constant.copy()
    shifted[:, -1] = 1e6  # a value that training never saw
    assert np.array_equal(model.scores(with_constant), model.scores(shifted))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 50))
def test_held_out_is_stratified(sizes: list[int], seed: int):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    out = held_out(labels, seed)
    for label, size in enumerate(sizes):
        taken = int(out[labels == label].sum())
        assert taken == (0 if size == 1 else max(1, round(0.25 * size)))
        assert taken < size
    assert np.array_equal(out, held_out(labels, seed))


def test_another_seed_holds_out_others():
    labels = np.zeros(100, int)
    assert not np.array_equal(held_out(labels, 0), held_out(labels, 1))


def test_few_samples_per_class():
    one_each = blobs(3, 3, apart=20)
    assert choose_strength(one_each.vectors, one_each.labels, 3, 0) == (1.0, {})
    assert score_probe(one_each, blobs(30, 3, apart=20, seed=1, prefix="t")).value > 0.8
    uneven = embeddings(blobs(11, 2, apart=20).vectors[:9], [0, 1, 0, 0, 0, 0, 0, 0, 0], ["a", "b"])
    assert score_probe(uneven, embeddings(uneven.vectors + 0.1, uneven.labels, ["a", "b"], prefix="t")).n_scored == 9


def test_sets_that_do_not_fit():
    with pytest.raises(DataError, match="does not occur in the training set"):
        score_probe(blobs(10, 2), blobs(10, 3, seed=1, prefix="t"))


def test_the_same_twice_and_the_test_set_does_not_change_the_fit():
    a, b = blobs(60, 3, apart=2), blobs(30, 3, apart=2, seed=1, prefix="t")
    one, two = score_probe(a, b), score_probe(a, b)
    assert one.predictions == two.predictions
    half = embeddings(b.vectors[:15], b.labels[:15], b.classes, prefix="t")
    assert all(one.predictions[k] == v for k, v in score_probe(a, half).predictions.items())


def test_groups_stay_on_one_side_and_every_class_keeps_some() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    groups = [f"film{g}" for g in rng.integers(0, 60, 300)]
    out = held_out(labels, 0, groups_N=groups)
    assert not {g for g, held in zip(groups, out, strict=True) if held} & {g for g, held in zip(groups, out, strict=True) if not held}
    assert 0.2 < out.mean() < 0.3
    for label in range(5):
        assert 0.1 < out[labels == label].mean() < 0.4
    assert (out == held_out(labels, 0, groups_N=groups)).all()
    assert (out != held_out(labels, 1, groups_N=groups)).any()
    assert not held_out(np.array([0, 0, 1, 1]), 0, groups_N=["a", "a", "b", "b"]).any()  # no class would keep an item
    two = held_out(np.repeat([0, 1], 20), 0, groups_N=[*"ab"] * 20)  # two subjects, each half of every class
    assert two.sum() == 20
    assert len(set(np.array([*"ab"] * 20)[two])) == 1


def test_a_penalty_chosen_by_groups_does_not_reward_knowing_the_film() -> None:
    """A class is weak, a film strong and many columns wide: an inner split across films asks for more shrinkage than one across clips."""
    rng = np.random.default_rng(1)
    films, each, width = 40, 8, 60
    label_of = np.arange(films) % 4
    film = np.repeat(np.arange(films), each)
    x = 4.0 * rng.normal(size=(films, width))[film] + 0.3 * rng.normal(size=(films * each, width))
    x[:, :4] += 6.0 * np.eye(4)[label_of[film]]
    y = label_of[film]
    alone, tried_alone = choose_strength(x, y, 4, 0)
    together, tried_together = choose_strength(x, y, 4, 0, [f"film{f}" for f in film])
    assert max(tried_alone.values()) > 0.99  # films are known again
    assert max(tried_together.values()) < 0.95  # new films are harder
    assert together <= alone
