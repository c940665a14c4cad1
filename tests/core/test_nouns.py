"""Grid, mask, tokens, batch: their invariants and what they say when those are broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.core import Batch, Losses, Mask, Stream, TokenGrid, Tokens, flatten_cubes, patchify, to_unit, unflatten_cubes, unpatchify

GRID = TokenGrid(("t", "h", "w"), (2, 2, 3), (2, 4, 4))
grids = st.builds(
    lambda shape, patch: TokenGrid(("t", "h", "w"), shape, patch),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(1, 3)] * 3),
)


@given(grids)
def test_coordinates_name_every_token_once(grid: TokenGrid) -> None:
    index = torch.arange(grid.n)
    t, h, w = (grid.where(axis, index) for axis in grid.axes)
    assert torch.equal((t * grid.shape[1] + h) * grid.shape[2] + w, index)
    assert TokenGrid.of(grid.size, grid.patch) == grid


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenGrid.of((15, 32, 30), (2, 16, 16)), "t: 15 is not a multiple of 2; w: 30 is not a multiple of 16"),
        (lambda: TokenGrid.of((16, 32), (2, 16, 16)), "cannot be cut by a patch of 3"),
        (lambda: TokenGrid(("h", "h"), (2, 2), (1, 1)), "repeat"),
        (lambda: TokenGrid(("h",), (0,), (1,)), "positive"),
        (lambda: GRID.where("freq", torch.arange(2)), "no 'freq'"),
    ],
)
def test_grids_refuse_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@given(grids, st.data())
def test_a_mask_of_hidden_covers_all_once_in_raster_order(grid: TokenGrid, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, grid.n - 1))
    rows = [data.draw(st.permutations(range(grid.n))) for _ in range(2)]
    hidden = torch.zeros(2, grid.n, dtype=torch.bool)
    for row, order in enumerate(rows):
        hidden[row, order[:count]] = True
    mask = Mask.of_hidden(grid, hidden).validate()
    assert torch.equal(mask.hidden().flatten(1), hidden)
    assert torch.equal(torch.cat([mask.visible, mask.target], 1).sort(1).values, torch.arange(grid.n).expand(2, -1))
    assert all(torch.equal(part, part.sort(1).values) for part in (mask.visible, mask.target))


def index(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(GRID, index([0, 1]).float(), index([2])), "int64"),
        (lambda: Mask(GRID, index([0]), index([1], [2])), "1 samples"),
        (lambda: Mask(GRID, torch.zeros(1, 0, dtype=torch.int64), index([1])), "at least one token visible"),
        (lambda: Mask(GRID, index([0]), index([1, 2]), weight=torch.ones(1, 3)), "mask.weight has shape"),
        (lambda: Mask(GRID, index([0]), index([1]), target_valid=torch.ones(1, 1)), "must be bool"),
        (lambda: Mask(GRID, index([0]), index([1]), logp=torch.zeros(1, 5)), r"\(B, 12\)"),
        (lambda: Mask(GRID, index([0, 12]), index([1])).validate(), "outside 0..11"),
        (lambda: Mask(GRID, index([3, 3]), index([1])).validate(), "names a token twice"),
        (lambda: Mask(GRID, index([0]), index([1]), weight=torch.tensor([[-1.0]])).validate(), "finite and >= 0"),
        (lambda: Mask(GRID, index([0]), index([1]), visible_valid=torch.tensor([[False]])).validate(), "no token visible"),
        (lambda: Mask.of_hidden(GRID, torch.eye(2, 12).bool().cumsum(1).bool()), "same number"),
        (lambda: Mask.of_hidden(GRID, torch.zeros(2, 11, dtype=torch.bool)), r"\(B, 12\)"),
    ],
)
def test_masks_refuse_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_padding_may_repeat_an_index_and_counts_as_hidden() -> None:
    mask = Mask(GRID, index([3, 3]), index([1]), visible_valid=torch.tensor([[True, False]])).validate()
    assert mask.hidden().sum() == 11


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=3))
def test_joined_tokens_split_into_the_same_parts(parts: list[tuple[int, bool]]) -> None:
    made = [
        Tokens(torch.randn(2, k, 5), torch.randint(12, (2, k)), GRID, (torch.rand(2, k) > 0.3) if padded else None) for k, padded in parts
    ]
    joined, split = Tokens.join(made)
    assert joined.x.shape[1] == sum(k for k, _ in parts)
    assert (joined.valid is None) == (not any(padded for _, padded in parts))
    for part, again in zip(made, split(Tokens(joined.x, joined.index, joined.grid, joined.valid, (joined.x * 2,))), strict=True):
        assert torch.equal(part.x, again.x)
        assert torch.equal(part.index, again.index)
        assert torch.equal(again.layers[0], part.x * 2)
        expected = torch.ones(part.index.shape, dtype=torch.bool) if part.valid is None else part.valid
        assert again.valid is None or torch.equal(again.valid, expected)
    with pytest.raises(ValueError, match="cannot split"):
        split(Tokens(torch.zeros(2, 99, 5), torch.zeros(2, 99, dtype=torch.int64)))


def test_tokens_take_keeps_places_and_checks_shapes() -> None:
    tokens = Tokens(torch.randn(2, 4, 3), torch.arange(8).view(2, 4), GRID, torch.rand(2, 4) > 0.5)
    which = torch.tensor([[3, 0], [1, 1]])
    taken = tokens.take(which)
    assert torch.equal(taken.index, torch.tensor([[3, 0], [5, 5]]))
    assert torch.equal(taken.x[1, 0], tokens.x[1, 1])
    assert taken.valid is not None
    with pytest.raises(ValueError, match="tokens must be"):
        Tokens(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens\.index has shape"):
        Tokens(torch.zeros(2, 3, 1), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="nothing to join"):
        Tokens.join([])


@given(grids, st.permutations("cthw"), st.data())
def test_cubes_and_their_rows_go_there_and_back(grid: TokenGrid, order: list[str], data: st.DataObject) -> None:
    video = torch.randn(2, 3, *grid.size)
    cubes = patchify(video, grid)
    assert torch.equal(unpatchify(cubes, grid), video)
    rows = flatten_cubes(cubes, grid, "".join(order))
    assert torch.equal(unflatten_cubes(rows, grid, "".join(order)), cubes)
    some = torch.tensor([[data.draw(st.integers(0, grid.n - 1)) for _ in range(3)] for _ in range(2)])
    assert torch.equal(patchify(video, grid, some), torch.stack([cubes[b, some[b]] for b in range(2)]))


def test_element_order_means_what_it_says() -> None:
    grid = TokenGrid.of((2, 2, 2), (2, 2, 2))
    video = torch.arange(24.0).view(1, 3, 2, 2, 2)  # colour slowest
    assert torch.equal(flatten_cubes(patchify(video, grid), grid, "cthw")[0, 0], torch.arange(24.0))
    assert flatten_cubes(patchify(video, grid), grid, "thwc")[0, 0, :4].tolist() == [0, 8, 16, 1]
    picture = TokenGrid.of((2, 2), (2, 2), ("h", "w"))
    assert flatten_cubes(patchify(video[:, :, 0], picture), picture, "thwc")[0, 0, :4].tolist() == [0, 8, 16, 1]
    with pytest.raises(ValueError, match="element order 'thw'"):
        flatten_cubes(patchify(video, grid), grid, "thw")


def test_pixels_of_both_kinds_and_no_other() -> None:
    assert torch.equal(to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 51.0, 255.0]) / 255)
    assert to_unit(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match=r"uint8 in 0..255 .* torch.int64"):
        to_unit(torch.ones(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="does not fit a grid"):
        patchify(torch.zeros(1, 3, 4, 8, 11), GRID)
    with pytest.raises(ValueError, match="do not fill a grid"):
        unpatchify(torch.zeros(1, 11, 3, 2, 4, 4), GRID)


def test_batches_and_losses_check_themselves() -> None:
    stream = Stream(torch.zeros(2, 3, 4, 8, 12))
    batch = Batch({"video": stream}, {"class": torch.zeros(2)}, torch.arange(2))
    assert len(batch.with_stream("frame", stream).streams) == 2
    with pytest.raises(ValueError, match="no stream 'audio', only video"):
        batch.stream("audio")
    with pytest.raises(ValueError, match="has 2 samples, the batch 3"):
        Batch({"video": stream}, {}, torch.arange(3))
    with pytest.raises(ValueError, match="int64"):
        Batch({}, {}, torch.zeros(2))
    assert float(Losses({"a": (torch.tensor(2.0), 0.5), "b": (torch.tensor(1.0), 3.0)}).total) == 4.0
    with pytest.raises(ValueError, match="no loss terms"):
        _ = Losses({}).total
