"""Shared fixtures: where the goldens and real clips are, and one thread so that sums do not vary."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; also for the processes that tests start

import pytest
from hypothesis import HealthCheck, settings

# Timings say nothing on a busy machine; what is checked does.
settings.register_profile("tubelet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tubelet")

SHARED = Path(os.environ.get("TUBELET_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """``shared("data/actions")``: a path under TUBELET_SHARED, or a skip that says what is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{path} is not there; set TUBELET_SHARED to the folder that holds {name}")
        return path

    return find


@pytest.fixture(autouse=True)
def _own_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test imports with ``--import`` is not there for the next one."""
    monkeypatch.setattr("tubelet.config._user_kinds", {})
