"""Experiments: every claim says what it expects, results are kept by seed, and the page is what the results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import claims  # noqa: E402 - found in the folder of experiments


def test_every_experiment_has_a_whole_claim() -> None:
    assert len(claims.names()) > 5
    for name in claims.names():
        claim = claims.load(name).CLAIM
        assert claim.paper
        assert claim.claim
        assert claim.expected
        assert claim.minutes > 0
        path = claims.RESULTS / f"{name}.json"
        if path.exists():
            figures = [s["figures"] for s in json.loads(path.read_text())["seeds"].values()]
            assert set(claim.shown) <= set(figures[0]), name
            assert claim.holds(figures) in (True, False)


@pytest.mark.parametrize("script", ["table", "results_page"])
def test_the_pages_are_up_to_date(script: str) -> None:
    done = subprocess.run([sys.executable, f"experiments/{script}.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_seeds_are_measured_once(tmp_path: Path) -> None:
    for name in ("claims", "run", "study"):
        (tmp_path / f"{name}.py").write_text((ROOT / "experiments" / f"{name}.py").read_text())
    (tmp_path / "toy.py").write_text(
        "from claims import Claim\n\n\ndef measure(seed):\n    print('measured', seed)\n    return {'x': seed}\n\n\n"
        "CLAIM = Claim('P', 'c', 'x below 2', measure, lambda s: max(f['x'] for f in s) < 2, {'x': '.1f'}, 0.1)\n"
    )

    def run(*words: str) -> str:
        return subprocess.run([sys.executable, "run.py", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "toy" in run()
    first = run("toy", "--seeds", "0", "1")
    assert first.count("measured") == 2
    assert "toy: holds" in first
    second = run("toy")
    assert second.count("measured") == 1
    assert "toy: DOES NOT HOLD" in second
    assert set(json.loads((tmp_path / "results" / "toy.json").read_text())["seeds"]) == {"0", "1", "2"}
