"""The clock: every sample once, in order, for any batch size, accumulation and number of processes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import ConfigError
from tubelet.train.optim import cosine_lr, learning_rate
from tubelet.train.plan import Plan, Position
from tubelet.train.settings import TrainSettings

sizes = st.integers(1, 40)


@given(batch=sizes, micro=st.none() | sizes, world=st.integers(1, 5), steps=st.integers(1, 6), epoch=sizes)
def test_processes_share_each_step_without_gap_or_overlap(batch, micro, world, steps, epoch):
    settings = TrainSettings(steps=steps, batch=batch, micro=micro)
    if batch < world:
        with pytest.raises(ConfigError, match="processes"):
            Plan(settings, epoch, world=world)
        return
    plan = Plan(settings, epoch, world=world)
    for at in plan.walk(Position()):
        parts = [plan.micro_batches(at, rank) for rank in range(world)]
        assert len({len(p) for p in parts}) == 1, "every process needs the same number of passes"
        seen = [k for m in range(len(parts[0])) for p in parts for k in p[m][0]]
        assert seen == list(range(at.samples, at.samples + batch))
        assert all(len(mine) > 0 for p in parts for mine, _ in p)
        assert sum(share for _, share in parts[0]) == pytest.approx(1)
        if micro is not None and batch >= math.ceil(batch / world / micro) * world:
            assert max(len(mine) for p in parts for mine, _ in p) <= micro + 1


@given(epochs=st.floats(0.5, 5), n=st.integers(8, 60), first=sizes, second=sizes)
def test_a_plan_resumes_from_its_counters(epochs, n, first, second):
    plan = Plan(TrainSettings(epochs=epochs, batch=first, batch_schedule=((0.5, second),)), n)
    walked = list(plan.walk(Position()))
    assert len(walked) == plan.total_steps
    middle = walked[len(walked) // 2]
    assert list(plan.walk(middle)) == walked[len(walked) // 2 :]
    assert plan.done(plan.after(walked[-1]))
    assert all(0 <= plan.progress(p) < 1 for p in walked)


def test_rates_follow_the_batch_and_end_near_the_minimum():
    settings = TrainSettings(steps=100, batch=512, lr=1e-3, lr_batch=256, min_lr=1e-5, warmup_steps=10)
    plan = Plan(settings, 1000)
    rates = [learning_rate(settings, plan, p) for p in plan.walk(Position())]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(2e-3)
    assert rates[9] == pytest.approx(2e-3)
    assert all(b < a for a, b in itertools.pairwise(rates[11:]))
    assert 2e-5 < rates[-1] < 3e-5
    with pytest.raises(ConfigError, match="unknown learning-rate schedule 'cosin'"):
        learning_rate(settings, plan, Position(), "cosin")


def test_cosine_without_warm_up_starts_at_the_base():
    assert cosine_lr(0, base=1.0, final=0.0, warmup_steps=0, total_steps=10) == 1.0
    assert cosine_lr(5, base=1.0, final=0.0, warmup_steps=0, total_steps=10) == pytest.approx(0.5)


def test_mistakes_in_the_length_are_explained():
    with pytest.raises(ValueError, match="either epochs or steps"):
        TrainSettings()
    with pytest.raises(ValueError, match="either epochs or steps"):
        TrainSettings(epochs=1, steps=1)
    with pytest.raises(ValueError, match="rise in progress"):
        TrainSettings(steps=1, batch_schedule=((0.5, 2), (0.2, 4)))
    with pytest.raises(ConfigError, match="no samples"):
        Plan(TrainSettings(steps=1), 0)
    with pytest.raises(ConfigError, match="token_budget"):
        Plan(TrainSettings(steps=1, token_budget=100), 10)


def test_a_warm_up_longer_than_the_run_is_shortened_and_told():
    short = Plan(TrainSettings(epochs=2, batch=8, warmup_epochs=5), 40)
    assert (short.total_steps, short.warmup_steps, short.warmup_shortened) == (10, 1, True)
    whole = Plan(TrainSettings(epochs=20, batch=8, warmup_epochs=5), 40)
    assert (whole.warmup_steps, whole.warmup_shortened) == (25, False)
    one = Plan(TrainSettings(epochs=1, batch=40, warmup_epochs=5), 40)
    assert learning_rate(one.settings, one, Position()) == pytest.approx(one.settings.lr * 40 / 256), "a run of one step trains"
    asked = Plan(TrainSettings(epochs=2, batch=8, warmup_steps=10), 40)
    assert (asked.warmup_steps, asked.warmup_shortened) == (10, False), "steps are taken as they are given"
