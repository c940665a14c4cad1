"""Sample number -> place: an epoch is a permutation, at random access."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data.order import Order, Place


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**31))
def test_an_epoch_shows_every_clip_of_every_item_once(items: int, clips: int, epoch: int, seed: int) -> None:
    order = Order(items, seed=seed, clips_per_video=clips)
    places = [order[epoch * len(order) + i] for i in range(len(order))]
    assert sorted((p.row, p.clip) for p in places) == [(r, c) for r in range(items) for c in range(clips)]
    assert {p.epoch for p in places} == {epoch}
    for a in range(0, len(places), clips):
        assert len({(p.visit, p.row) for p in places[a : a + clips]}) == 1, "the clips of a visit follow each other"


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_any_number_in_any_order_is_the_same(numbers: list[int]) -> None:
    one, other = Order(17, seed=3, clips_per_video=2), Order(17, seed=3, clips_per_video=2)
    expected = {k: one[k] for k in numbers}
    assert {k: other[k] for k in reversed(numbers)} == expected


def test_epochs_differ_seeds_differ_and_negative_numbers_are_refused() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        order = Order(50, seed=seed)
        return [order[epoch * 50 + i].row for i in range(50)]

    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 0) != rows(1, 0)
    assert Order(1, seed=0)[5] == Place(epoch=5, visit=5, row=0, clip=0)
    with pytest.raises(ValueError, match="start at 0, got -1"):
        Order(3, seed=0)[-1]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 99))
def test_by_shards_an_epoch_shows_everything_once_and_few_shards_at_a_time(
    shards: list[int], mixed: int, clips: int, epoch: int, seed: int
) -> None:
    order = Order(len(shards), seed=seed, clips_per_video=clips, shards=np.array(shards), mixed=mixed)
    places = [order[epoch * len(order) + i] for i in range(len(order))]
    assert sorted((p.row, p.clip) for p in places) == [(r, c) for r in range(len(shards)) for c in range(clips)]
    assert [p.visit for p in places] == [epoch * len(shards) + i // clips for i in range(len(order))]
    seen: list[int] = []  # shards in the order in which they are first needed
    last: dict[int, int] = {}
    for i, place in enumerate(places):
        if shards[place.row] not in seen:
            seen.append(shards[place.row])
        last[shards[place.row]] = i
    for begin in range(0, len(seen), mixed):
        window = seen[begin : begin + mixed]
        ends = max(last[s] for s in window)
        begins = [next(i for i, p in enumerate(places) if shards[p.row] == s) for s in seen[begin + mixed :]]
        assert not begins or min(begins) > ends, "a window is done before the next one begins"


def test_by_shards_depends_on_seed_epoch_and_choice_alone() -> None:
    shards = np.repeat(np.arange(20), 10)

    def rows(seed: int = 0, epoch: int = 0, mixed: int = 4, numbers: np.ndarray = shards) -> list[int]:
        order = Order(200, seed=seed, shards=numbers, mixed=mixed)
        return [order[k].row for k in reversed(range(epoch * 200, epoch * 200 + 200))]

    assert rows() == rows()
    assert rows() == rows(numbers=shards * 3 + 5), "the numbers of shards are names"
    assert len({tuple(r) for r in (rows(), rows(seed=1), rows(epoch=1), rows(mixed=3))}) == 4
    first = {e: {int(shards[r]) for r in rows(epoch=e)[:40]} for e in range(4)}
    assert len({tuple(sorted(s)) for s in first.values()}) == 4, "other shards come together in every epoch"
    plain = Order(200, seed=0)
    order = Order(200, seed=0, shards=shards, mixed=4)
    for sample in (0, 39, 40, 160, 399):
        now, after = order.shards_from(sample)
        begin = sample // 40 * 40
        assert set(now) == {int(shards[order[k].row]) for k in range(begin, begin + 40)}
        assert set(after) == {int(shards[order[k].row]) for k in range(begin + 40, begin + 80)}
    assert rows(mixed=20) == [plain[k].row for k in reversed(range(200))], "all shards at a time: no difference to items"


def test_the_fingerprint_tells_of_shards() -> None:
    shards = np.repeat(np.arange(4), 3)
    prints = [Order(12, seed=0, shards=s, mixed=m).fingerprint() for s, m in ((shards, 2), (shards, 3), (np.roll(shards, 1), 2))]
    assert len({str(p) for p in prints}) == 3
    assert Order(12, seed=0).fingerprint() == {}, "runs from before there were shards go on"
