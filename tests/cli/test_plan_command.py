"""tubelet plan: its options reach the public function, its output, its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest


class Found(SimpleNamespace):
    """Stands for a plan."""

    def to_dict(self) -> dict[str, object]:
        return {"seconds": 5}

    def __str__(self) -> str:
        return "the report"


def test_options_reach_the_function(cli, public, tmp_path: Path):
    plan = public("plan", gives=Found())
    script, figures = str(tmp_path / "run.sh"), str(tmp_path / "plan.json")
    got = cli(
        "plan", "a.csv", "b.csv", "--recipe", "videomae", "--size", "giant", "--set", "batch=64", "--gpus", "16", "--gpu", "h100",
        "--cores", "12", "--mfu", "0.4", "--out", "runs/x", "--sbatch", script, "--hours", "12", "--json", figures,
        "--exclude", "*bad*", "--overwrite",
    )  # fmt: skip
    assert got.code == 0
    assert got.out == f"the report\nwritten: {script}\nwritten: {figures}\n"
    ((sources,), asked) = plan.calls[0]
    assert sources == ["a.csv", "b.csv"]
    assert asked == {
        "recipe": "videomae", "size": "giant", "settings": ["batch=64"], "gpus": 16, "gpu": "h100", "items": None, "cores": 12, "mfu": 0.4,
        "measure": False, "out": "runs/x", "sbatch": Path(script), "hours": 12.0, "json_out": figures, "overwrite": True, "imports": [],
        "exclude": ["*bad*"],
    }  # fmt: skip


def test_no_sources_are_none(cli, public):
    plan = public("plan", gives=Found())
    assert cli("plan", "--items", "100", "--measure").code == 0
    ((sources,), asked) = plan.calls[0]
    assert sources is None
    assert (asked["items"], asked["measure"], asked["recipe"]) == (100, True, None)


def test_json_to_the_terminal_is_json_alone(cli, public):
    plan = public("plan", gives=Found())
    got = cli("plan", "--items", "100", "--json", "-")
    assert json.loads(got.out) == {"seconds": 5}
    assert plan.calls[0][1]["json_out"] is None


def test_mistakes_of_the_call_and_of_the_recipe_come_together(cli):
    got = cli("plan", "--recpie", "vidoemae", "--coers", "2", "--epochs", "8", "--items", "many")
    assert got.code == 2
    for part in ("did you mean '--recipe'", "did you mean '--cores'", "--set epochs=8", "did you mean 'videomae'", "--items: "):
        assert part in got.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--recipe", "vidoemae", "--gpus", "0"], ["did you mean 'videomae'", "gpus must be at least 1, got 0"]),
        (["--items", "9", "--recipe", "tiny-cpu", "--gpu", "rtx409"], ["did you mean 'rtx4090'"]),
        (["--items", "9", "--recipe", "tiny-cpu", "--set", "masking.ratoi=0.5"], ["did you mean"]),
    ],
)
def test_wrong_values_are_explained(cli, args: list[str], said: list[str]):
    got = cli("plan", *args)
    assert got.code == 2
    assert all(part in got.err for part in said)
    assert "Traceback" not in got.err


def test_sources_that_are_not_there(cli, tmp_path: Path):
    got = cli("plan", str(tmp_path / "nowhere"), "--recipe", "tiny-cpu", "--set", "device=cpu")
    assert got.code == 1
    assert "nowhere" in got.err
    assert "Traceback" not in got.err
