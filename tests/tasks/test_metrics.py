"""Intervals and tests against textbook values and simulation."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tubelet.errors import ConfigError
from tubelet.tasks import Score
from tubelet.tasks.details import tables
from tubelet.tasks.metrics import classification, mcnemar, paired_interval, per_class, top_k, wilson


def test_wilson_textbook_values():
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400), st.data())
def test_wilson_encloses_the_share_and_mirrors(n: int, data: st.DataObject):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_wilson_covers_about_95_percent(p: float):
    n = 120  # exact: sum the binomial probabilities of all counts whose interval holds p
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(c for k, c in enumerate(chance) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert 0.93 < covered < 0.97


def test_wilson_of_nothing_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert 0 <= mcnemar(0, 5000) < 1e-300 or mcnemar(0, 5000) == 0.0


def test_paired_interval_published_example():
    # Newcombe 1998, Improved confidence intervals for the difference between binomial proportions based on paired data,
    # table III, method 10, all with n = 50: (both, only first, only second, neither)
    assert paired_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-4)
    assert paired_interval(18, 14, 2, 16)[0] > 0
    assert paired_interval(0, 0, 0, 0) == (-1.0, 1.0)


def test_paired_interval_covers_and_uses_the_pairing():
    rng = np.random.default_rng(0)
    chances = np.array([0.4, 0.2, 0.1, 0.3])
    inside = 0
    for counts in rng.multinomial(150, chances, size=800):
        low, high = paired_interval(*counts.tolist())
        inside += low <= 0.1 <= high
    assert 0.93 < inside / 800 < 0.975
    agree, against = paired_interval(50, 10, 0, 40), paired_interval(20, 40, 30, 10)  # both differ by 0.1
    assert agree[1] - agree[0] < 0.6 * (against[1] - against[0])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_paired_interval_mirrors(a: int, b: int, c: int, d: int):
    low, high = paired_interval(a, b, c, d)
    assert -1 <= low <= high <= 1
    assert paired_interval(a, c, b, d) == pytest.approx((-high, -low), abs=1e-9)
    if a + b + c + d:
        assert low - 1e-9 <= (b - c) / (a + b + c + d) <= high + 1e-9


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 1000))
def test_top_1_is_argmax_even_with_ties(n: int, classes: int, seed: int):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 3, (n, classes)).astype(float), rng.integers(0, classes, n)
    assert (top_k(scores, labels) == (scores.argmax(1) == labels)).all()
    assert top_k(scores, labels, classes).all()


def test_per_class_leaves_out_absent_classes():
    found = per_class(np.array([True, False, True]), np.array([0, 0, 2]), ("a", "b", "c"))
    assert found == {"a": 0.5, "c": 1.0}


def scored(right: list[bool], *, classes: int = 3, name: str = "probe", **details: object) -> Score:
    labels = np.arange(len(right)) % classes
    scores = np.eye(classes)[np.where(right, labels, (labels + 1) % classes)]
    names = [f"c{i}" for i in range(classes)]
    keys = [f"v{i}" for i in range(len(right))]
    return classification(
        name, scores, labels, keys, names, n_total=len(right) + 1, failures=[("bad.mp4", "empty file")], details={"pool": "mean", **details}
    )


def test_score_says_what_was_measured():
    score = scored([True, True, False, True, False, False])
    assert (score.value, score.n_scored, score.n_total) == (0.5, 6, 7)
    assert (score.low, score.high) == wilson(3, 6)
    assert str(score) == "probe (mean): 50.0 % top-1 [18.8, 81.2], 6 / 7 scored, 3 classes, chance 33.3 %"
    assert score.predictions["v2"] == ("c2", "c0")
    assert score.details["per_class"] == {"c0": 1.0, "c1": 0.5, "c2": 0.0}


def test_top_5_with_ten_classes_and_the_commonest_class():
    assert "top5" in scored([True] * 20, classes=10).details
    labels = np.array([0] * 9 + [1])
    score = classification(
        "x", np.tile([1.0, 0.0], (10, 1)), labels, [str(i) for i in range(10)], ("a", "b"), n_total=10, details={"pool": "mean"}
    )
    assert "commonest class 90.0 %" in str(score)
    assert score.details["mean_class"] == 0.5


def test_score_is_json(tmp_path):
    score = scored([True, False])
    score.save_json(tmp_path / "s.json")
    back = json.loads((tmp_path / "s.json").read_text())
    assert back["failures"] == [["bad.mp4", "empty file"]]
    assert back["predictions"][1] == {"key": "v1", "class": "c1", "predicted": "c2", "probability": 0.0}
    assert back["value"] == score.value
    assert back["classes"] == ["c0", "c1", "c2"]
    assert back["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert back["recalls"] == [{"name": "c0", "right": 1, "n": 1}, {"name": "c1", "right": 0, "n": 1}]
    assert back["confused"] == [{"true": "c1", "predicted": "c2", "n": 1, "of": 1}]
    assert back["hardest"][0] == {"key": "v1", "true": "c1", "predicted": "c2", "probability": 0.0}
    assert "\n  [ 0, 0, 1 ],\n" in score.to_json()


def test_names_that_are_no_text_can_be_written(tmp_path):
    score = classification("x", np.eye(2), np.arange(2), ["a\udcff.mp4", "[\n 1\n]"], ("a", "b"), n_total=2, details={"pool": "mean"})
    score.save_json(tmp_path / "s.json")
    assert [p["key"] for p in json.loads((tmp_path / "s.json").read_text())["predictions"]] == ["a\ufffd.mp4", "[\n 1\n]"]


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 1000))
def test_the_details_agree_with_each_other_and_with_a_plain_count(n: int, classes: int, seed: int):
    rng = np.random.default_rng(seed)
    scores, labels = rng.random((n, classes)), rng.integers(0, classes, n)
    names = [f"c{i}" for i in range(classes)]
    score = classification("x", scores, labels, [f"v{i}" for i in range(n)], names, n_total=n, details={"pool": "mean"})
    found = score.confusion()
    said = list(zip(labels.tolist(), scores.argmax(1).tolist(), strict=True))
    assert found.tolist() == [[said.count((i, j)) for j in range(classes)] for i in range(classes)]
    assert found.trace() == round(score.value * n)
    assert [(r.name, r.n) for r in score.recalls()] == [(names[i], int((labels == i).sum())) for i in range(classes) if (labels == i).any()]
    assert {r.name: pytest.approx(r.share) for r in score.recalls()} == score.details["per_class"]
    pairs = score.confused(100)
    assert sum(p.n for p in pairs) == n - found.trace()
    assert all(p.true != p.predicted and found[names.index(p.true), names.index(p.predicted)] == p.n for p in pairs)
    assert [p.n for p in pairs] == sorted((p.n for p in pairs), reverse=True)
    clips = score.hardest(n)
    given_true = scores[np.arange(n), labels] / scores.sum(1)
    assert [c.probability for c in clips] == pytest.approx(sorted(given_true))
    assert {c.key: (c.true, c.predicted) for c in clips} == dict(score.predictions)
    assert len(score.hardest(3)) == min(3, n)


def test_a_class_without_test_items_has_a_row_but_no_recall():
    score = classification("x", np.eye(3)[[0, 0, 2]], np.array([0, 0, 2]), list("xyz"), ("a", "b", "c"), n_total=3)
    assert score.confusion().tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert [r.name for r in score.recalls()] == ["a", "c"]
    assert score.confused() == []


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_logits_are_no_probabilities(bad: float):
    with pytest.raises(ValueError, match="softmax of logits"):
        classification("x", np.array([[1.0, bad]]), np.zeros(1, int), ["v"], ("a", "b"), n_total=1)


def test_tables_for_a_terminal():
    console = Console(width=100, record=True, file=io.StringIO())
    labels = np.array([0, 0, 0, 1, 1, 2])
    scores = np.array([[0.1, 0.9, 0], [0.2, 0.8, 0], [1, 0, 0], [0, 1, 0], [0, 0.7, 0.3], [0, 0, 1.0]])
    keys = ["[bold]a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4"]
    console.print(tables(classification("x", scores, labels, keys, ("a", "b", "c"), n_total=6, details={"pool": "mean"})))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert any(line.startswith("a 1 3 33 %") and line.endswith("a b 2 3") for line in lines)
    assert "[bold]a.mp4 a b 0.100" in lines
    assert lines.index("[bold]a.mp4 a b 0.100") < lines.index("b.mp4 a b 0.200") < lines.index("e.mp4 b b 0.700")


def test_compare_is_paired():
    good, bad = scored([True] * 18 + [False] * 2), scored([True] * 9 + [False] * 11)
    found = good.compare(bad, names=("trained", "random weights"))
    assert found.difference == pytest.approx(0.45)
    assert found.p == pytest.approx(2 / 2**9)
    assert 0 < found.low < 0.45 < found.high
    assert str(found).startswith("trained minus random weights: +45.0 points [+")
    assert str(found).endswith("p = 0.004 (McNemar, 20 paired items)")
    with pytest.raises(ConfigError, match="same test items"):
        good.compare(scored([True] * 5))
