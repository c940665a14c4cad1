"""Retrieval: ranks by hand, captions that several videos share, ties, chance, and vectors of an aligned model."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from known_feed import Feed, Reader, table
from torch import Tensor, nn

from tubelet.core import Aligned, Batch
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.tasks.aligned import TEXTS, aligned, text_vectors, video_vectors
from tubelet.tasks.metrics import wilson
from tubelet.tasks.retrieve import Retrieval, score_retrieval


def scored(videos, texts: Sequence[str], rows: Sequence[int], vectors, **more) -> Retrieval:
    videos = np.asarray(videos, float)
    given = {"n_total": len(videos), **more}
    return score_retrieval(videos, [f"v{i}" for i in range(len(videos))], texts, rows, np.asarray(vectors, float), **given)


def towards(*degrees: float) -> np.ndarray:
    """Vectors in the plane: the smaller the angle between two, the nearer."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


def test_ranks_by_hand():
    found = scored(towards(0, 20, 50), ["a", "b", "c"], [0, 1, 2], towards(1, 4, 12))
    # a (1 degree): v0, v1, v2. b (4): v0, v1, v2. c (12): v1, v0, v2.
    assert found.text_to_video.ranks.tolist() == [1, 2, 3]
    assert found.text_to_video.first == ("v0", "v0", "v1")
    # v0: a, b, c. v1 (20): c, b, a. v2 (50): c, b, a.
    assert found.video_to_text.ranks.tolist() == [1, 2, 1]
    assert found.video_to_text.queries == ("v0", "v1", "v2")
    assert found.video_to_text.first == ("a", "c", "c")
    one = found.text_to_video.at(1)
    assert (one.value, one.low, one.high) == (1 / 3, *wilson(1, 3))
    assert one.chance == pytest.approx(1 / 3)
    assert found.text_to_video.median == 2
    assert found.video_to_text.at(1).value == pytest.approx(2 / 3)


def test_lengths_of_vectors_do_not_matter():
    videos, texts = towards(0, 20, 50), towards(1, 4, 12)
    plain = scored(videos, ["a", "b", "c"], [0, 1, 2], texts)
    scaled = scored(videos * [[3.0], [0.1], [50.0]], ["a", "b", "c"], [0, 1, 2], texts * [[9.0], [1.0], [0.01]])
    assert plain.text_to_video.ranks.tolist() == scaled.text_to_video.ranks.tolist()
    assert plain.video_to_text.ranks.tolist() == scaled.video_to_text.ranks.tolist()


def test_a_video_with_several_captions_is_found_by_its_best_and_asked_by_each():
    found = scored(towards(0, 60), ["near", "far", "other"], [0, 0, 1], towards(2, 70, 59))
    assert found.text_to_video.queries == ("near", "far", "other")
    assert found.text_to_video.ranks.tolist() == [1, 2, 1]
    assert found.text_to_video.right.tolist() == [1, 1, 1]
    assert found.video_to_text.ranks.tolist() == [1, 1]
    assert found.video_to_text.right.tolist() == [2, 1]
    # v0 has 2 right of 3 captions, v1 has 1 of 3
    assert found.video_to_text.chance(1) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.video_to_text.chance(2) == pytest.approx((1 + 2 / 3) / 2)


def test_videos_with_the_same_caption_are_equally_right_and_the_caption_is_one():
    found = scored(towards(0, 40, 90), ["red", "red", "blue"], [0, 1, 2], towards(30, 30, 85))
    assert found.text_to_video.queries == ("red", "blue")
    assert found.text_to_video.ranks.tolist() == [1, 1]
    assert found.text_to_video.right.tolist() == [2, 1]
    assert found.text_to_video.chance(1) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.video_to_text.candidates == 2
    assert found.video_to_text.ranks.tolist() == [1, 1, 1]
    # the right video that is nearest counts, and the other right one is not in its way
    assert scored(towards(0, 10, 90), ["red", "red", "blue"], [0, 1, 2], towards(12, 12, 90)).text_to_video.ranks.tolist() == [1, 1]


def test_the_same_caption_twice_of_one_video_counts_once():
    once, twice = (scored(towards(0, 90), ["a", "b", "a"][:n], [0, 1, 0][:n], towards(0, 90, 0)[:n]) for n in (2, 3))
    assert once.as_dict() == twice.as_dict()


def test_a_video_without_a_caption_is_in_the_way_and_not_asked():
    found = scored(towards(0, 5, 90), ["a", "b"], [0, 2], towards(4, 90))
    assert found.text_to_video.ranks.tolist() == [2, 1]
    assert found.text_to_video.candidates == 3
    assert found.video_to_text.queries == ("v0", "v2")


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_constant_model_finds_nothing(noise):
    rng = np.random.default_rng(0)
    videos, texts = (np.ones((40, 16)) + noise * rng.standard_normal((40, 16)) for _ in range(2))
    found = scored(videos, [f"t{i}" for i in range(40)], range(40), texts)
    for direction in (found.text_to_video, found.video_to_text):
        assert direction.ranks.tolist() == [40] * 40
        assert direction.at(10).value == 0
    assert scored(np.zeros((3, 2)), ["a", "b", "c"], range(3), np.zeros((3, 2))).text_to_video.ranks.tolist() == [3, 3, 3]


def test_a_tie_with_one_wrong_video_counts_it_as_before():
    assert scored(towards(0, 0, 90), ["a", "b", "c"], [0, 1, 2], towards(0, 0, 90)).text_to_video.ranks.tolist() == [2, 2, 1]


def test_a_perfect_model_finds_all():
    x = np.random.default_rng(1).standard_normal((1500, 8))  # more than are compared at once
    found = scored(x, [f"t{i}" for i in range(1500)], range(1500), x)
    for direction in (found.text_to_video, found.video_to_text):
        assert direction.at(1).value == 1
        assert direction.at(1).high == 1
        assert direction.median == 1


def test_a_random_model_is_near_chance():
    """500 videos with two captions each, of 750 texts: every third text is said of two videos."""
    rng = np.random.default_rng(2)
    n = 500
    texts = [f"t{i if i % 3 else i // 3 % 2 + 6 * (i // 6)}" for i in range(2 * n)]
    by_text = {text: rng.standard_normal(64) for text in texts}
    found = scored(rng.standard_normal((n, 64)), texts, [i // 2 for i in range(2 * n)], [by_text[t] for t in texts])
    for direction in (found.text_to_video, found.video_to_text):
        for k in (1, 5, 10):
            at = direction.at(k)
            spread = np.sqrt(at.chance * (1 - at.chance) / len(direction.ranks))
            assert abs(at.value - at.chance) < 4 * spread, (direction.asked, k)
        assert direction.chance(10) > 10 * 0.99 / direction.candidates


def test_chance_is_k_of_n_where_one_answer_is_right():
    found = scored(np.eye(20), [f"t{i}" for i in range(20)], range(20), np.eye(20)).text_to_video
    assert [found.chance(k) for k in (1, 5, 10)] == pytest.approx([0.05, 0.25, 0.5])


def test_one_video_and_more_asked_than_there_are():
    found = scored([[1.0, 0.0]], ["a"], [0], [[0.0, 1.0]])
    assert found.text_to_video.ranks.tolist() == [1]
    assert (found.text_to_video.at(1).value, found.text_to_video.at(1).chance) == (1, 1)
    few = scored(towards(0, 30, 60), ["a", "b", "c"], [0, 1, 2], towards(60, 30, 0)).text_to_video
    assert few.ranks.tolist() == [3, 1, 3]
    assert (few.at(5).value, few.at(5).chance) == (1, 1), "five of three are all"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(bad):
    x = np.eye(3)
    broken = np.eye(3)
    broken[1, 0] = bad
    with pytest.raises(CheckpointError, match="output for v1 is not finite"):
        scored(broken, ["a", "b", "c"], range(3), x)
    with pytest.raises(CheckpointError, match="output for the text 'b' is not finite"):
        scored(x, ["a", "b", "c"], range(3), broken)


def test_what_is_said_and_written(tmp_path):
    found = scored(
        towards(0, 20, 50), ["a", "b", "c"], range(3), towards(1, 4, 12), n_total=4, failures=[("v\udcff", "empty")], uncaptioned=2
    )
    lines = str(found).splitlines()
    assert lines[0].startswith("captions -> videos: R@1 33.3 % [6.1, 79.2] (chance 33.3 %), R@5 100.0 %")
    assert lines[0].endswith("median rank 2 of 3, 3 captions")
    assert lines[2] == "3 / 4 videos scored, 2 without caption left out"
    found.save_json(tmp_path / "r.json")
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["text_to_video"]["ranks"][2] == {"query": "c", "rank": 3, "right": 1, "first": "v1"}
    assert plain["text_to_video"]["recall"][0]["chance"] == pytest.approx(1 / 3)
    assert plain["failures"] == [["v�", "empty"]]


class Speaker(Reader):
    """Videos lie where their first pixel says, in degrees; texts where they say. ``aligned`` as given."""

    def __init__(self, *, aligned: bool = True, broken: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.aligned, self.broken = aligned, broken

    def embed_video(self, batch: Batch, stream: str = "video") -> Tensor:
        self.modes.append(self.training)
        angle = batch.stream(stream).data[:, 0, 0, 0, 0].deg2rad()
        return torch.stack([angle.cos(), angle.sin()], 1) + self.weight

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        self.modes.append(self.training)
        angle = torch.tensor([float("nan") if t == self.broken else float(t) for t in texts]).deg2rad()
        return torch.stack([angle.cos(), angle.sin()], 1) + self.weight


def test_who_is_aligned():
    assert isinstance(Speaker(), Aligned)
    assert not isinstance(Reader(), Aligned)
    for model in (Reader(), Speaker(aligned=False)):
        with pytest.raises(ConfigError, match=r"runs/a is not aligned with text.*method\.align.*recipe tgm.*dual"):
            aligned(model, "runs/a")
    speaker = Speaker()
    assert aligned(speaker) is speaker


def test_vectors_of_videos_average_the_views_and_have_length_1():
    model = Speaker().train()
    found = video_vectors(model, Feed(3, bad=[1]), table(3))  # type: ignore[arg-type]  # the parts of EvalFeed that are used
    assert found.keys == ("clip0.mp4", "clip2.mp4")
    assert found.failures == (("clip1.mp4", "no video stream"),)
    assert np.degrees(np.arctan2(found.vectors[:, 1], found.vectors[:, 0])) == pytest.approx([0.5, 20.5])  # views at 0 and 1, 20 and 21
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx([1, 1])
    assert model.training
    assert not any(model.modes)
    with pytest.raises(DataError, match="none of the 2 items could be read"):
        video_vectors(model, Feed(2, bad=[0, 1]), table(2))  # type: ignore[arg-type]  # as above


def test_vectors_of_more_texts_than_are_encoded_at_once():
    model = Speaker().train()
    found = text_vectors(model, [str(i / 10) for i in range(TEXTS + 3)])
    assert np.degrees(np.arctan2(found[:, 1], found[:, 0])) == pytest.approx(np.arange(TEXTS + 3) / 10, abs=1e-4)
    assert (found.dtype, len(model.modes), any(model.modes), model.training) == (np.float64, 2, False, True)


def test_an_output_that_is_not_finite_names_the_text_or_the_video():
    with pytest.raises(CheckpointError, match="the text '7' is not finite"):
        text_vectors(Speaker(broken="7"), ["6", "7"])
    model = Speaker()
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"clip0\.mp4 is not finite"):
        video_vectors(model, Feed(2), table(2))  # type: ignore[arg-type]  # as above
