"""Randomness by name: ranges, spread, and that a sample's numbers depend on nothing but seed, name and sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.core import CounterDraw, FixedDraw, permutation
from tubelet.core.draw import hash_uniform

seeds = st.integers(0, 2**31)
samples = st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True)


def draw_of(seed: int, sample: list[int], step: int = 0) -> CounterDraw:
    return CounterDraw(seed, torch.tensor(sample), step)


@given(seeds, samples, st.integers(1, 40))
def test_uniform_is_in_range_and_permutation_permutes(seed: int, sample: list[int], n: int) -> None:
    draw = draw_of(seed, sample)
    u = draw.uniform("a", n, 2)
    assert u.shape == (len(sample), n, 2)
    assert u.dtype == torch.float32
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert torch.equal(draw.permutation("p", n).sort(1).values, torch.arange(n).expand(len(sample), n))
    assert set(draw.integers("i", 3, n).unique().tolist()) <= {0, 1, 2}


@given(seeds, samples, st.integers(0, 5), st.randoms())
def test_a_sample_draws_the_same_in_any_batch(seed: int, sample: list[int], step: int, random) -> None:
    whole = draw_of(seed, sample).normal("noise", 5)
    shuffled = random.sample(sample, len(sample))
    places = [sample.index(s) for s in shuffled]
    assert torch.equal(draw_of(seed, shuffled, step).normal("noise", 5), whole[places])
    assert torch.equal(draw_of(seed, sample[:1], step).normal("noise", 5), whole[:1])


@given(seeds)
def test_names_seeds_children_and_samples_differ(seed: int) -> None:
    draw = draw_of(seed, [3, 4])
    a = draw.uniform("a", 64)
    others = [draw.uniform("b", 64), draw.child("view").uniform("a", 64), draw_of(seed + 1, [3, 4]).uniform("a", 64), a.flip(0)]
    assert all(float((a == other).float().mean()) < 0.05 for other in others)
    assert torch.equal(draw.child("view").uniform("a", 4), draw.uniform("view/a", 4))


def test_batch_draws_follow_the_step_only() -> None:
    one, two = draw_of(7, [1, 2], step=5), draw_of(7, [9], step=5)
    assert torch.equal(one.uniform("x", 6, per="batch"), two.uniform("x", 6, per="batch"))
    assert not torch.equal(one.uniform("x", 6, per="batch"), one.bind(one.sample, 6).uniform("x", 6, per="batch"))
    assert torch.equal(one.bind(torch.tensor([9]), 0).uniform("x", 6), two.uniform("x", 6))
    assert one.uniform("x", per="batch").shape == ()


def test_uniform_and_normal_are_spread_as_they_should() -> None:
    draw = CounterDraw(0, torch.arange(2000))
    u = draw.uniform("u", 50)
    counts = torch.histc(u, 20, 0, 1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 60  # chi-square with 19 degrees of freedom: 60 has p < 1e-5
    assert abs(float(torch.corrcoef(u.T[:2])[0, 1])) < 0.1
    z = draw.normal("z", 50)
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.std()) - 1) < 0.02
    assert torch.isfinite(z).all()


def test_fixed_names_replace_draws_and_check_shapes() -> None:
    given_ = torch.full((2, 3), 0.25)
    fixed = FixedDraw(draw_of(0, [1, 2]), {"mask": given_, "view/mask": given_ * 2})
    assert torch.equal(fixed.uniform("mask", 3), given_)
    assert torch.equal(fixed.child("view").normal("mask", 3), given_ * 2)
    assert torch.equal(fixed.permutation("mask", 3), torch.arange(3).expand(2, 3))
    assert torch.equal(fixed.uniform("other", 3), draw_of(0, [1, 2]).uniform("other", 3))
    assert torch.equal(fixed.bind(torch.tensor([1, 2]), 4).uniform("mask", 3), given_)
    with pytest.raises(ValueError, match="'mask' is fixed at shape"):
        fixed.uniform("mask", 4)


@given(seeds, st.integers(0, 50), st.integers(1, 100))
def test_epoch_orders_are_permutations_of_their_own(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    if n > 30:
        assert not torch.equal(order, permutation(seed, epoch + 1, n))


@pytest.mark.slow
def test_compiled_draws_have_the_same_bits() -> None:
    counter = torch.arange(64) * 977 - 5
    compiled = torch.compile(hash_uniform)
    assert torch.equal(compiled(123456789, counter, 96), hash_uniform(123456789, counter, 96))
