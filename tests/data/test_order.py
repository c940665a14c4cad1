"""Sample number -> place: an epoch is a permutation, at random access."""

from __future__ import annotations

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
