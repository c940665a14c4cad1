"""When bad videos stop a run: at once where they are many, not by an early accident where they are few."""

from __future__ import annotations

import numpy as np
import pytest

from tubelet.data.faults import BadVideos, Fault
from tubelet.errors import DataError


def stopped(bad: np.ndarray, limit: float = 0.1) -> int | None:
    """Samples seen when a run with these bad samples stops, 20 samples a batch; None = never."""
    videos = BadVideos(None, limit)
    for i in range(0, len(bad), 20):
        faults = [Fault(int(k), f"{k}.mp4", f"{k}.mp4", "broken", int(k), True) for k in np.flatnonzero(bad[i : i + 20]) + i]
        try:
            videos.add(20, faults)
        except DataError:
            return videos.seen
    return None


def test_a_set_within_the_limit_is_not_stopped_by_chance():
    stops = [stopped(np.random.default_rng(seed).random(1000) < 0.07) for seed in range(100)]
    assert sum(s is not None for s in stops) <= 2


@pytest.mark.parametrize(("share", "within"), [(1.0, 20), (0.5, 60), (0.2, 1000)])
def test_a_set_above_the_limit_is(share: float, within: int):
    for seed in range(20):
        found = stopped(np.random.default_rng(seed).random(2000) < share)
        assert found is not None
        assert found <= within


def test_a_limit_of_zero_allows_none():
    assert stopped(np.arange(40) == 25, limit=0.0) == 40
