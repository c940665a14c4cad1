"""Zero-shot classification: names, prompts, vectors of classes, scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from known_embeddings import embeddings

from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.tasks.metrics import wilson
from tubelet.tasks.zeroshot import PROMPTS, check_classes, check_prompts, class_vectors, readable, score_zeroshot


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("apply_eye_makeup", "apply eye makeup"),
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("playingGuitar", "playing Guitar"),
        ("Playing_GuitarSolo", "Playing Guitar Solo"),
        ("already two words", "already two words"),
        ("__odd___spaces_ ", "odd spaces"),
        ("TVShow", "TV Show"),
        ("YMCA", "YMCA"),
        ("ÜberÄrger", "Über Ärger"),
        ("360_spin", "360 spin"),
        ("x", "x"),
    ],
)
def test_class_names_become_words(name, words):
    assert readable(name) == words


def test_prompts_need_a_place_for_the_name():
    assert check_prompts("a video of {}") == ("a video of {}",)
    assert check_prompts(["{}", "no, {}, or {}"]) == ("{}", "no, {}, or {}")
    with pytest.raises(ConfigError, match="at least one template"):
        check_prompts([])
    with pytest.raises(ConfigError) as wrong:
        check_prompts(["a video", "{}", "of {name}"])
    assert [p.partition(":")[0] for p in wrong.value.problems] == ["--prompt 'a video'", "--prompt 'of {name}'"]


def test_classes_that_prompts_cannot_tell_apart():
    assert check_classes(["a_b", "ab"]) == ("a b", "ab")
    with pytest.raises(DataError, match="classes 'eye_makeup' and 'EyeMakeup' both read 'Eye Makeup': prompts cannot"):
        check_classes(["eye_makeup", "run", "EyeMakeup"])
    with pytest.raises(DataError, match=r"numbers \(0, 1, 10, \.\.\.\)"):
        check_classes(["0", "1", "10", "2"])
    with pytest.raises(DataError, match="at least two classes, there is 'run'"):
        check_classes(["run"])


def test_vectors_of_classes_are_the_mean_of_their_prompts_renormalised():
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]])

    found = class_vectors(encode, ["RunFast", "sit_down"], ["{}", "a {} of {}"])
    assert asked == ["Run Fast", "a Run Fast of Run Fast", "sit down", "a sit down of sit down"]
    assert found == pytest.approx(np.array([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1.0]]))


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(CheckpointError, match="the class 'b' is not finite"):
        class_vectors(lambda texts: np.array([[1.0, 0], [np.nan, 0]]), ["a", "b"], "{}")
    videos = embeddings(np.array([[1.0, 0], [np.nan, 0]]), [0, 1], ["a", "b"])
    with pytest.raises(CheckpointError, match="v1 is not finite"):
        score_zeroshot(videos, np.eye(2), "{}")


def test_scores_by_hand():
    videos = embeddings(np.array([[1, 0.1], [0.2, 1], [1, 0.9]]), [0, 1, 1], ["a", "b"], n_total=4, failures=(("bad", "is empty"),))
    found = score_zeroshot(videos, np.eye(2), ["{}", "a {}"], run="runs/a")
    assert (found.value, found.low, found.high) == (2 / 3, *wilson(2, 3))
    assert found.predictions == {"v0": ("a", "a"), "v1": ("b", "b"), "v2": ("b", "a")}
    assert found.confusion().tolist() == [[1, 0], [1, 1]]
    assert (found.n_scored, found.n_total, found.failures) == (3, 4, (("bad", "is empty"),))
    assert found.details["prompts"] == ["{}", "a {}"]
    assert found.details["run"] == "runs/a"
    assert str(found).startswith("zero-shot (2 prompts): 66.7 % top-1 [20.8, 93.9], 3 / 4 scored, 2 classes, chance 50.0 %")
    cosines = np.array([1, 0.9]) / np.hypot(1, 0.9) / 0.01
    assert found.probabilities["v2"] == pytest.approx(1 / (1 + np.exp(cosines[0] - cosines[1])), rel=1e-4)


def test_top_5_has_an_interval():
    """Twelve classes on the axes; each video's own class is its second choice."""
    x = np.eye(12) + 2 * np.roll(np.eye(12), 1, 1)
    found = score_zeroshot(embeddings(x, range(12), [f"c{i}" for i in range(12)]), np.eye(12), PROMPTS)
    assert (found.value, found.details["top5"]) == (0, 1)
    assert found.details["top5_interval"] == list(wilson(12, 12))
    assert "0.0 % top-1 [0.0, 24.2], 100.0 % top-5 [75.8, 100.0]" in str(found)


def test_a_random_model_is_near_chance_and_a_perfect_one_finds_all():
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 20
    names = [f"c{i:02d}" for i in range(20)]
    classes = class_vectors(lambda texts: rng.standard_normal((len(texts), 32)), names, PROMPTS)
    found = score_zeroshot(embeddings(rng.standard_normal((2000, 32)), labels, names), classes, PROMPTS)
    assert abs(found.value - 1 / 20) < 4 * np.sqrt(0.05 * 0.95 / 2000)
    assert abs(found.details["top5"] - 5 / 20) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    assert score_zeroshot(embeddings(classes[labels], labels, names), classes, PROMPTS).value == 1


def test_a_constant_model_gets_one_class():
    found = score_zeroshot(embeddings(np.ones((6, 4)), [0, 1, 2] * 2, ["a", "b", "c"]), np.full((3, 4), 0.5), PROMPTS)
    assert found.value == pytest.approx(1 / 3)


def test_videos_without_labels():
    with pytest.raises(DataError, match="the test set has no labels"):
        score_zeroshot(embeddings(np.eye(2), [-1, -1], ["a", "b"]), np.eye(2), "{}")
    with pytest.raises(DataError, match="1 of 2 test items have no label"):
        score_zeroshot(embeddings(np.eye(2), [0, -1], ["a", "b"]), np.eye(2), "{}")
