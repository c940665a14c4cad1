"""tubelet bench data: its options reach the public function, its output, its mistakes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tubelet.errors import DataError


class Found(SimpleNamespace):
    """Stands for what was measured."""

    def __str__(self) -> str:
        return "the figures"


def test_options_reach_the_function(cli, public, tmp_path: Path):
    bench = public("bench_data", gives=Found(failures=(), items=3))
    file = str(tmp_path / "pace.json")
    got = cli(
        "bench", "data", "a.csv", "b/", "--recipe", "videomae", "--size", "giant", "--set", "data.split=train", "--gpu", "h100", "--mfu",
        "0.4", "--workers", "8", "--seconds", "2", "--no-prepared", "--exclude", "*bad*", "--json", file, "--overwrite",
    )  # fmt: skip
    assert (got.code, got.out) == (0, f"the figures\nwritten: {file}\n")
    ((sources,), asked) = bench.calls[0]
    assert sources == ["a.csv", "b/"]
    progress = asked.pop("progress")
    assert progress is None or callable(progress)
    assert asked == {
        "recipe": "videomae", "size": "giant", "settings": ["data.split=train"], "gpu": "h100", "mfu": 0.4, "workers": 8, "seconds": 2.0,
        "prepared": False, "exclude": ["*bad*"], "imports": [], "json_out": Path(file), "overwrite": True,
    }  # fmt: skip


def test_bad_files_are_listed(cli, public):
    public("bench_data", gives=Found(failures=(("x.mp4", "holds text"),), items=3))
    got = cli("bench", "data", "videos/")
    assert (got.code, got.out) == (1, "the figures\n")
    assert "1 of 3 items could not be read" in got.err
    assert "x.mp4: holds text" in got.err


def test_mistakes(cli, public):
    got = cli("bench", "data", "videos/", "--workres", "2", "--seconds", "none", "--recipe", "tinycpu")
    assert got.code == 2
    for part in ("did you mean '--workers'", "--seconds", "did you mean 'tiny-cpu'"):
        assert part in got.err
    assert "did you mean 'data'" in cli("bench", "dat", "videos/").err
    assert "data" in cli("bench").out
    public("bench_data", gives=DataError("no such folder"))
    assert cli("bench", "data", "nowhere/").code == 1
