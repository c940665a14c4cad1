"""The benchmarks' own parts, on a few small files: all contenders make the same clips, and the figures become tables."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import tubelet
from tubelet.data.prepared.reader import PreparedReader

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """A file of benchmarks/ by name; its neighbours are imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("playground")
    tubelet.make_playground(folder, clips=2, frames=80, size=(48, 64), seed=0)
    return sorted(folder.rglob("*.mp4"))


def test_contenders_make_the_same_clips(module, clips: list[Path], tmp_path: Path):
    contenders = module("contenders")
    tubelet.prepare(clips, tmp_path / "set", size=48, workers=1)
    file = contenders.look(str(clips[0]), {32: f"{tmp_path / 'set'}#0"})
    chosen = contenders.windows(len(file.times), 3, np.random.default_rng(0))
    made = {c.name: c.clips(file, chosen, 32) for c in contenders.contenders() if c.missing is None}
    assert {"PyAV loop", "Tubelet, raw", "Tubelet, shards"} <= made.keys()
    want = made["PyAV loop"].float()
    for name, got in made.items():
        assert got.shape == (3, 16, 32, 32, 3), name
        assert got.dtype == torch.uint8
        assert got.is_contiguous(), name
        limit = 12.0 if name == "Tubelet, shards" else 3.0  # encoded again
        assert (got.float() - want).abs().mean() < limit, name
    with PreparedReader(file.prepared[32]) as reader:
        keys = contenders.keys_of(reader)
    assert keys.tolist() == list(range(0, 80, 16))


def test_windows_of_short_videos_and_frames_to_decode(module):
    contenders = module("contenders")
    (short,) = contenders.windows(20, 1, np.random.default_rng(0))
    assert short.tolist() == [0, 4, 8, 12, 16, *[19] * 11]
    keys = np.array([0, 50, 100])
    assert contenders.frames_to_decode(keys, [np.array([60, 70])]) == 21
    assert contenders.frames_to_decode(keys, [np.array([60, 70]), np.array([65, 80])]) == 31
    assert contenders.frames_to_decode(keys, [np.array([60, 70]), np.array([120, 121])]) == 21 + 22


def test_a_small_run_becomes_tables(module, tmp_path: Path):
    data, tables = module("data"), module("tables")
    found = data.run(
        argparse.Namespace(
            sets=["playground", "jhmdb"], sizes=[32], clips=[1, 2], rounds=2, files=1, seconds=0.0, shared=tmp_path / "nothing"
        ),
        tmp_path / "work",
    )
    assert found["skipped"]["jhmdb"].endswith("lacks its videos")
    measured = found["sets"]["playground"]["32"]
    assert measured.keys() == {"1", "2"}
    for by_name in measured.values():
        assert {"PyAV loop", "Tubelet, raw", "Tubelet, shards"} <= by_name["rates"].keys()
        for rate in by_name["rates"].values():
            assert 0 < rate["low"] <= rate["median"] <= rate["high"]
        assert by_name["bytes"]["Tubelet, shards"] < by_name["bytes"]["Tubelet, raw"]
    json.dumps(found)
    page = "a\n<!-- measured: targets -->\nold\n<!-- end -->\nb\n<!-- measured: data -->\nold\n<!-- end -->\nc\n"
    filled = tables.filled(page, {"data": found})
    assert "old" not in filled
    assert "| raw files, k = 1: 1.3 times decord | not measured |" in filled
    assert "| Tubelet, shards |" in filled
    assert tables.filled(filled, {"data": found}) == filled
    assert tables.filled(page, {}) == page
    with pytest.raises(SystemExit, match="places for targets"):
        tables.filled("nothing", {"data": found})


def test_the_page_has_a_place_for_every_table(module):
    tables, page = module("tables"), (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    data = {"machine": "m", "torch": "t", "date": "d", "rounds": 1, "skipped": {}, "scaling": {"gop250": {"rates": {}, "ratio": spread}}}
    rates = {"rates": {"Tubelet, raw": spread}, "files": 1, "bytes": {}, "ratios": {"Tubelet, raw / decord": spread}}
    data["sets"] = {"gop250": {"112": {"1": rates, "4": rates}}}
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    probes = {"steps": 5, "runs": {"clips 1, seed 0": dict.fromkeys(("trained", "random"), score)}}
    filled = tables.filled(page, {"data": data, "clips_per_video": probes})
    assert "| raw files, k = 1: 1.3 times decord | 2.00 (1.00-3.00) at 112 px | reached |" in filled
    assert "| raw files, k = 4: 3 times decord | 2.00 (1.00-3.00) at 112 px | not reached |" in filled
    assert "| clips 1, seed 0 | 50.0 % [40.0, 60.0] |" in filled
