"""The attentive probe: its arithmetic, what it can read that a mean cannot, and what it keeps where."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_embeddings import embeddings
from known_feed import Feed, Reader, table

from tubelet.core import TokenGrid, Tokens
from tubelet.errors import CheckpointError, DataError
from tubelet.tasks import attentive
from tubelet.tasks.attentive import Setting, choose, head_count, logits, make_readout, probabilities, score_attentive
from tubelet.tasks.probe import score_probe
from tubelet.tasks.tokens import KeptTokens, keep_tokens

WIDTH, PLACES = 16, 12


def kept(x: np.ndarray, labels: np.ndarray, classes: int, *, prefix: str, valid: np.ndarray | None = None) -> KeptTokens:
    """(n, V, K, D) tokens, standardised as they are kept."""
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    items = embeddings(x.mean((1, 2)), labels, [f"c{i}" for i in range(classes)], prefix=prefix)
    return KeptTokens(x.astype(np.float16), valid, replace(items, pool="all tokens"), False)


def hidden_word(n: int, *, seed: int, prefix: str, views: int = 1, strength: float = 1.0) -> KeptTokens:
    """One token, at a random place, carries a mark and the class; the others carry other classes without the mark."""
    rng = np.random.default_rng(seed)
    words = np.random.default_rng(77).standard_normal((4, WIDTH))
    labels = np.arange(n) % 4
    said = rng.integers(0, 4, (n, views, PLACES))
    place = rng.integers(0, PLACES, (n, views))
    np.put_along_axis(said, place[..., None], labels[:, None, None], 2)
    x = strength * words[said] + 0.3 * rng.standard_normal((n, views, PLACES, WIDTH))
    mark = np.zeros((n, views, PLACES, 1))
    np.put_along_axis(mark, place[..., None, None], 1.0, 2)
    return kept(x + mark * 4 * np.random.default_rng(78).standard_normal(WIDTH), labels, 4, prefix=prefix)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentive, "SETTINGS", (Setting(3e-4, 0.01), Setting(1e-2, 0.01)))
    monkeypatch.setattr(attentive, "STEPS", 20)
    monkeypatch.setattr(attentive, "EPOCHS", 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([8, 12, 64, 96]), st.booleans(), st.integers(0, 999))
def test_it_computes_what_the_attentive_pool_computes(b: int, k: int, dim: int, padded: bool, seed: int):
    """Applying the maps to the query and to the mean instead of to every token changes the order of sums, nothing else."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(b, k, dim, generator=draw, dtype=torch.float64) * 3 + 1
    readout = make_readout(dim, 5, seed).double()
    for p in readout.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=draw, dtype=torch.float64)
    valid = torch.rand(b, k, generator=draw) < 0.6
    valid[:, 0] = True
    tokens = Tokens(x, torch.arange(k).expand(b, -1), TokenGrid(("t", "h", "w"), (k, 1, 1), (1, 1, 1)), valid if padded else None)
    z = torch.nn.functional.layer_norm(x, (dim,), eps=1e-6)
    assert torch.allclose(logits(readout, z, tokens.valid), readout(tokens), atol=1e-9)


def test_heads_by_width():
    assert [head_count(d) for d in (192, 384, 768, 1024, 1408, 96, 48, 24, 20)] == [3, 6, 12, 16, 22, 3, 3, 3, 1]


def test_it_finds_the_token_that_the_mean_drowns(quick: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attentive, "STEPS", 120)
    train, test = hidden_word(200, seed=0, prefix="v"), hidden_word(100, seed=1, prefix="t")
    score = score_attentive(train, test)
    assert score.value > 0.9
    assert score_probe(train.items, test.items).high < score.low
    assert str(score).startswith("attentive probe (all tokens): ")
    assert (score.details["lr"], score.details["heads"], score.details["tokens"]) == (1e-2, 1, PLACES)
    assert set(score.details["tried"]) == {"lr 0.0003, decay 0.01", "lr 0.01, decay 0.01"}
    assert json.loads(score.to_json())["predictions"][0]["key"] == "t0"
    assert all(0 <= p <= 1 for p in score.probabilities.values())


def test_noise_stays_at_chance_and_the_same_seed_gives_the_same_numbers(quick: None):
    train, test = hidden_word(80, seed=0, prefix="v", strength=0.0), hidden_word(200, seed=1, prefix="t", strength=0.0)
    state = torch.get_rng_state()
    one, two, other = score_attentive(train, test, seed=3), score_attentive(train, test, seed=3), score_attentive(train, test, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.low < 0.25 < one.high
    assert (one.predictions, one.probabilities) == (two.predictions, two.probabilities)
    assert one.probabilities != other.probabilities


def test_the_test_set_changes_neither_choice_nor_fit(quick: None):
    train, test = hidden_word(80, seed=0, prefix="v"), hidden_word(40, seed=1, prefix="t")
    whole = score_attentive(train, test)
    half = replace(test, x=test.x[:20], items=embeddings(test.items.vectors[:20], test.items.labels[:20], test.items.classes, prefix="t"))
    part = score_attentive(train, half)
    assert part.details["tried"] == whole.details["tried"]
    assert all(part.probabilities[key] == pytest.approx(whole.probabilities[key], abs=1e-6) for key in part.predictions)


def test_probabilities_are_averaged_over_views():
    two = hidden_word(10, seed=0, prefix="v", views=2)
    readout = make_readout(WIDTH, 4, 0).eval()
    everything = np.ones(10, bool)
    single = [probabilities(readout, replace(two, x=two.x[:, [i]]), everything) for i in range(2)]
    assert np.allclose(probabilities(readout, two, everything), (single[0] + single[1]) / 2)
    assert not np.allclose(single[0], single[1])


def test_padding_is_not_read(quick: None):
    plain = hidden_word(12, seed=0, prefix="v")
    valid = np.ones(plain.x.shape[:3], bool)
    valid[:, :, -3:] = False
    spoilt = plain.x.copy()
    spoilt[:, :, -3:] = 9
    readout, use = make_readout(WIDTH, 4, 0), np.ones(12, bool)
    one, two = (probabilities(readout, replace(plain, x=x, valid=valid), use) for x in (plain.x, spoilt))
    assert np.array_equal(one, two)


def test_nothing_to_choose_by():
    one_each = hidden_word(4, seed=0, prefix="v")
    assert choose(one_each, np.arange(4), 4, seed=0) == (Setting(), {})


def test_sets_that_do_not_fit():
    train = hidden_word(8, seed=0, prefix="v")
    fewer = hidden_word(8, seed=1, prefix="t")
    with pytest.raises(DataError, match="use the same settings"):
        score_attentive(train, replace(fewer, x=fewer.x[:, :, :4]))
    with pytest.raises(DataError, match="8 test items are also training items"):
        score_attentive(train, train)


def test_tokens_are_kept_standardised_in_the_tables_order():
    found = keep_tokens(Reader(), Feed(5, bad=[1]), table(5))  # type: ignore[arg-type]  # the parts of EvalFeed that are used
    assert found.items.keys == ("clip0.mp4", "clip2.mp4", "clip3.mp4", "clip4.mp4")
    assert found.items.failures == (("clip1.mp4", "no video stream"),)
    assert (found.items.pool, found.items.n_total) == ("all tokens", 5)
    assert found.x.shape == (4, 2, 4, 3)
    assert found.x.dtype == np.float16
    assert not found.x.any()  # the reader's channels are equal, so nothing is left of a token without its mean
    assert np.allclose(found.items.vectors[:, 0], [10 * i + 0.5 + 1.5 for i in (0, 2, 3, 4)])


class Uneven(Reader):
    """Channels that differ."""

    def encode(self, batch, stream="video", *, layers=()):
        tokens = super().encode(batch, stream, layers=layers)
        return replace(tokens, x=tokens.x.sin() + torch.arange(3.0))


def test_what_is_larger_than_the_limit_goes_into_a_file_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    size = 2 * 5 * 2 * 4 * 3
    here, there = (keep_tokens(Uneven(), Feed(5), table(5), limit=limit) for limit in (size, size - 1))  # type: ignore[arg-type]  # as above
    assert (here.spilled, there.spilled) == (False, True)
    assert isinstance(there.x, np.memmap)
    assert (here.in_memory, there.in_memory) == (size, 0)
    assert np.array_equal(here.x, there.x)
    assert here.x.any()
    assert np.allclose(here.x.astype(float).mean(-1), 0, atol=2e-3)
    assert np.allclose(here.x.astype(float).std(-1), 1, atol=2e-3)
    del there
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_room_it_says_so_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))
    with pytest.raises(DataError, match=r"the tokens of 5 items \(2 views of 4 tokens of 3 numbers\) take .* TMPDIR"):
        keep_tokens(Reader(), Feed(5), table(5), limit=0)  # type: ignore[arg-type]  # as above


def test_tokens_that_are_not_finite_name_the_item():
    with pytest.raises(CheckpointError, match=r"clip2\.mp4 is not finite"):
        keep_tokens(Reader(spoil=21.0), Feed(3), table(3))  # type: ignore[arg-type]  # as above
