"""The queue of a study: what is done stays done, what waits waits, two processes do not do the same."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import study as study_module
from results_page import interval, page
from study import Entry, Stopped, Study

from tubelet.errors import DataError


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, list[str]]:
    monkeypatch.setattr(study_module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study_module, "WORK", tmp_path / "work")
    done: list[str] = []

    def measure(name: str) -> Any:
        def call(needed: Mapping[str, Any]) -> dict[str, Any]:
            done.append(name)
            return {"value": 1 + sum(found["value"] for found in needed.values())}

        return call

    entries = [
        Entry("late", "needs both", 1, measure("late"), ("a/0", "b/0")),
        Entry("a/0", "first", 1, measure("a/0")),
        Entry("b/0", "second", 1, measure("b/0"), ("a/0",)),
    ]
    return Study("toy", "a toy", entries), done


def test_entries_wait_for_what_they_need_and_are_done_once(queue: tuple[Study, list[str]], tmp_path: Path) -> None:
    toy, done = queue
    toy.run()
    assert done == ["a/0", "b/0", "late"]
    found = toy.result("late")
    assert found is not None
    assert found["value"] == 1 + 1 + 2
    assert {"minutes", "cpu_minutes", "machine", "torch", "date"} <= found.keys()
    toy.run()
    assert len(done) == 3
    (tmp_path / "work" / "toy" / "b-0-run").mkdir()
    toy.run(["b/*"], again=True)
    assert done[3:] == ["b/0"]
    assert toy.result("late") is None  # it was built on what is forgotten
    assert not (tmp_path / "work" / "toy" / "b-0-run").exists()


def test_what_is_open_is_said(queue: tuple[Study, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    toy, done = queue
    toy.run(["late"])
    assert not done
    assert "open: late, which needs a/0, b/0" in capsys.readouterr().out


def test_an_entry_in_other_hands_is_passed_over(queue: tuple[Study, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toy, done = queue
    lock = tmp_path / "work" / "toy" / "locks" / "a-0.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        toy.run()
        assert not done
        assert "another process has in hand" in capsys.readouterr().out
    toy.run()
    assert done == ["a/0", "b/0", "late"]


def test_a_stopped_entry_is_not_done(queue: tuple[Study, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(needed: Mapping[str, Any]) -> dict[str, Any]:
        raise Stopped("SIGTERM")

    toy, done = queue
    Study(toy.name, "", [Entry("a/0", "", 1, stopped), *toy.entries[2:]]).run()
    assert "stopped by SIGTERM" in capsys.readouterr().out
    assert toy.result("a/0") is None
    toy.run()
    assert done == ["a/0", "b/0", "late"]


def test_an_entry_that_fails_does_not_hold_up_the_others(queue: tuple[Study, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    def fail(needed: Mapping[str, Any]) -> dict[str, Any]:
        raise DataError("no such clip")

    toy, done = queue
    Study(toy.name, "", [Entry("z/0", "", 1, fail), *toy.entries]).run()
    assert done == ["a/0", "b/0", "late"]
    assert "z/0 failed: no such clip" in capsys.readouterr().out
    assert toy.result("z/0") is None


def test_intervals_are_wider_where_items_go_together() -> None:
    right = np.repeat([0.0, 1.0] * 20, 10)
    _, low, high = interval(right, np.arange(400))
    mean, wide_low, wide_high = interval(right, np.repeat(np.arange(40), 10))
    assert mean == 0.5
    assert wide_high - wide_low > 2.5 * (high - low)  # sqrt(10) = 3.2 in theory
    assert 0.44 < low < 0.46


def test_the_page_names_what_did_not_run() -> None:
    text = page()
    assert "**Not run:**" in text
    assert "python experiments/run.py real_video" in text
