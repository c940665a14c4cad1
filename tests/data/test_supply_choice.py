"""The choice of decoding processes: pure arithmetic on what was measured, and a measurement that leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.core import Batch
from tubelet.data import loader
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.supply import Pace, Supply, choose
from tubelet.errors import ConfigError

PLENTY = 2**40
BASE = DataSettings(frames=4, stride=2, size=32, decoder="pyav")


def chosen(clip: float, need: float, *, spread: float = 0.0, batch: int = 32, cores: int = 15, **more: int | None) -> Supply:
    """``clip``: seconds of decoding one. ``spread``: its standard deviation."""
    pace = Pace(1, np.array([clip - spread, clip + spread]))
    given = {"clip_bytes": 10**6, "free": PLENTY, "prefetch": None} | more
    return choose(pace, need, batch=batch, cores=cores, **given)  # type: ignore[arg-type]  # by name


def test_enough_processes_that_decoding_outruns_a_step_by_a_margin() -> None:
    got = chosen(1 / 38, 120)
    assert (got.workers, got.prefetch) == (4, 2)
    assert got.why == "decoding 38 clips/s a core, a step needs 120: 4 workers, 2 batches ahead"
    assert chosen(1 / 100, 80).workers == 1
    assert chosen(1 / 100, 81).workers == 2, "a quarter to spare"
    for need in (5, 50, 300):
        got = chosen(1 / 38, need)
        assert got.workers * 38 >= 1.25 * need > (got.workers - 1) * 38


def test_no_processes_where_they_cannot_gain() -> None:
    got = chosen(1 / 38, 120, cores=0)
    assert got.workers == 0
    assert "no core is left" in got.why
    got = chosen(1 / 5000, 60)
    assert got.workers == 0, "one percent of a step"
    assert "decoded between steps" in got.why
    assert chosen(1 / 5000, 200).workers == 1, "four percent"


def test_too_few_cores_are_all_taken_and_it_is_said() -> None:
    got = chosen(1 / 8, 1900, cores=15)
    assert got.workers == 15
    assert got.why.endswith("15 workers, 2 batches ahead; training will wait for data (5% of what it could take)")
    assert "wait" not in chosen(1 / 10, 100, cores=12).why, "without the whole margin, but fast enough"


def test_times_that_vary_need_more_batches_ahead_within_the_memory() -> None:
    even, uneven = chosen(1 / 38, 120), chosen(1 / 38, 120, spread=1.0)
    assert even.prefetch < uneven.prefetch <= 8
    assert chosen(1 / 38, 120, spread=1.0, prefetch=3).prefetch == 3, "what was asked for"
    room = 4 * 32 * 10**6 * even.workers * 3  # three batches a process in a quarter of it
    assert chosen(1 / 38, 120, spread=1.0, free=room).prefetch == 3
    tight = chosen(1 / 38, 120, spread=1.0, free=4 * 32 * 10**6 * 2)
    assert (tight.workers, tight.prefetch) == (2, 1), "fewer processes where the memory does not hold a batch for each"


def test_pace_of_groups() -> None:
    pace = Pace(4, np.array([0.1, 0.3]))
    assert pace.clip == pytest.approx(0.05)
    assert pace.spread(4) == pytest.approx(0.1)
    assert pace.spread(16) == pytest.approx(0.2), "of independent groups"


def video(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([b.stream("video").data for b in batches])


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_measuring_changes_nothing(numbered_set: Path, tmp_path: Path, cache: str) -> None:
    table = open_table(numbered_set)
    settings = DataSettings.model_validate({**BASE.model_dump(), "cache": cache, "workers": 0, "clips_per_video": 2})
    with VideoFeed(table, settings, seed=5, run_dir=tmp_path) as feed:
        before = feed.report()
        pace = feed.pace(seconds=0.3, batch=4)
        assert pace.group == (2 if cache == "none" else 4)
        assert 0 < pace.clip < 1
        assert feed.report() == before
        assert not list(tmp_path.iterdir())
        feed.use(Supply(1, 3, ""))
        assert {"workers": 1, "prefetch": 3}.items() <= feed.report().items()
        found = video(list(feed.batches([range(6), range(6, 12)])))
    with VideoFeed(table, settings, seed=5) as plain:
        assert torch.equal(found, video(list(plain.batches([range(12)]))))


def test_measuring_stops_in_time(numbered_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = loader.make_clips

    def slow(*given: object) -> object:
        time.sleep(0.2)
        return make(*given)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(loader, "make_clips", slow)
    feed = VideoFeed(open_table(numbered_set), BASE, seed=5)
    for seconds, most in ((0.1, 1.0), (0.5, 1.5)):
        began = time.monotonic()
        assert feed.pace(seconds=seconds, batch=4).clip >= 0.2, "also where every video takes longer than there is time"
        assert time.monotonic() - began < most


def test_prefetch_is_a_number_or_auto() -> None:
    assert (DataSettings().prefetch, DataSettings().ahead, DataSettings(prefetch=5).ahead) == ("auto", 2, 5)
    for wrong in (0, 65):
        with pytest.raises((ConfigError, ValueError), match=r"prefetch must be 1\.\.64 or auto"):
            DataSettings(prefetch=wrong)
