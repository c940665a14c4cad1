"""tubelet.bench_data: figures of a user's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tubelet
from tubelet.errors import ConfigError, DataError

SMALL = ["data.size=32", "data.frames=4", "data.stride=2", "data.decoder=pyav"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    tubelet.make_playground(folder, clips=3, frames=40, size=(48, 64), seed=0)
    (folder / "bad.mp4").write_bytes(b"text")
    return folder


def test_raw_files(videos: Path, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    found = tubelet.bench_data(
        videos, recipe="tiny-cpu", settings=SMALL, gpu="h100", seconds=0.5, workers=1, json_out=tmp_path / "pace.json",
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    assert (found.items, found.source, found.clip, found.decoder) == (4, "raw", (4, 32, 32), "pyav")
    assert [r.clips for r in found.rates] == [1, 4]
    one, four = found.rates
    assert four.rate > one.rate, "four clips share what opening costs"
    for r in found.rates:
        assert 0 < r.low <= r.rate <= r.high
        assert sum(r.shares.values()) == pytest.approx(1, abs=0.02)
        assert r.shares["decoding"] > 0
        assert r.bytes is None or r.bytes > 100
    assert [key for key, _ in found.failures] == ["bad.mp4"]
    assert "holds text" in found.failures[0][1]
    assert [s.workers for s in found.scaling] == [1]
    assert found.sample is not None
    assert (found.sample.items, found.sample.size) == (3, 37)
    assert found.sample.hour > 0
    assert found.need is not None
    assert found.cores()["raw, 1"] == pytest.approx(found.need.rate / one.rate)
    assert found.cores().keys() == {"raw, 1", "raw, 4", "prepared, 1", "prepared, 4"}
    assert json.loads((tmp_path / "pace.json").read_text())["cores"] == found.cores()
    assert {what for what, _, _ in told} == {"one core", "processes", "preparing", "prepared"}
    text = str(found)
    for part in ("clips/s/core", "cores for the GPU", "one H100 SXM trains on", "raw and prepared", "data.cache=memory"):
        assert part in text


def test_a_prepared_set_is_measured_as_it_is(videos: Path, tmp_path: Path):
    good = [path for path in videos.rglob("*.mp4") if path.name != "bad.mp4"]
    tubelet.prepare(good, tmp_path / "set", size=48, workers=1)
    found = tubelet.bench_data(tmp_path / "set", recipe="tiny-cpu", settings=SMALL, gpu="h100", seconds=0.2, workers=1)
    assert (found.source, found.sample, found.failures) == ("prepared", None, ())
    assert "a prepared set" in str(found)
    assert found.cores().keys() == {"prepared, 1", "prepared, 4"}


def test_mistakes(videos: Path, tmp_path: Path):
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        tubelet.bench_data(
            videos, recipe="tinycpu", settings=["data.siez=3"], mfu=2, workers=0, seconds=0, json_out=tmp_path / "there.json"
        )
    said = str(caught.value)
    for part in ("mfu", "workers must be", "seconds must be", "there.json exists already", "did you mean 'tiny-cpu'"):
        assert part in said
    with pytest.raises(ConfigError, match="did you mean"):
        tubelet.bench_data(videos, recipe="tiny-cpu", gpu="h10")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.mp4").write_bytes(b"text")
    with pytest.raises(DataError, match=r"none of the 1 files that were tried can be read, e\.g\. bad\.mp4"):
        tubelet.bench_data(tmp_path / "only", recipe="tiny-cpu", seconds=0.1)
