"""tubelet retrieve and zeroshot: what reaches the public functions, what is printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tubelet.errors import ConfigError
from tubelet.tasks.metrics import classification
from tubelet.tasks.retrieve import score_retrieval

FOUND = score_retrieval(
    np.eye(2), ["a.mp4", "b.mp4"], ["one", "two"], [0, 1], np.eye(2), n_total=3, failures=[("c.mp4", "is empty")], uncaptioned=1
)  # fmt: skip
SCORE = classification(
    "zero-shot", np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]), ["a", "b", "c"], ["x", "y"], n_total=4, failures=[("d", "is empty")],
    details={"pool": "3 prompts"},
)  # fmt: skip


def test_options_of_retrieve_reach_the_function(cli, public):
    recorder = public("retrieve", gives=FOUND)
    line = "retrieve runs/a x.csv y --split test --limit 9 --exclude *bad* --batch 4 --device cpu --import m.py --random"
    got = cli(*line.split(), "--set", "views.clips=2", "--json", "r.json")
    ((args, given),) = recorder.calls
    assert args == ("runs/a", ["x.csv", "y"])
    assert given == {
        "split": "test", "limit": 9, "exclude": ["*bad*"], "batch": 4, "device": "cpu", "imports": ["m.py"], "random": True,
        "settings": ["views.clips=2"], "json_out": Path("r.json"), "progress": None,
    }  # fmt: skip
    assert got.code == 0
    assert got.out == f"{FOUND}\n"
    assert got.out.startswith("captions -> videos: R@1 100.0 % [34.2, 100.0] (chance 50.0 %)")
    assert "2 / 3 videos scored, 1 without caption left out" in got.out
    assert got.err == "1 of 3 videos could not be read:\n  c.mp4: is empty\n"


def test_options_of_zeroshot_reach_the_function(cli, public):
    recorder = public("zeroshot", gives=SCORE)
    got = cli("zeroshot", "r", "v", "--prompt", "a video of {}", "--prompt", "{}", "--details", "--picture", "p.png", "--split", "val")
    ((args, given),) = recorder.calls
    assert args == ("r", ["v"])
    assert (given["prompts"], given["picture"], given["split"]) == (["a video of {}", "{}"], Path("p.png"), "val")
    assert got.out.startswith(f"{SCORE}\n")
    assert "hardest clips" in got.out
    assert got.err == "1 of 4 videos could not be read:\n  d: is empty\n"


def test_without_prompt_the_functions_own_are_used(cli, public):
    recorder = public("zeroshot", gives=SCORE)
    got = cli("zeroshot", "r", "v")
    assert "prompts" not in recorder.calls[0][1]
    assert got.out == f"{SCORE}\n"


def test_mistakes(cli, public):
    got = cli("retrieve", "r", "v", "--limt", "3", "--promt", "x")
    assert got.code != 0
    assert "--limt: unknown option (did you mean '--limit'?)" in got.err
    public("zeroshot", gives=ConfigError("this model is not aligned with text"))
    got = cli("zeroshot", "r", "v")
    assert (got.code, got.err) == (2, "error: this model is not aligned with text\n")
    assert "--frames" in cli("zeroshot", "r", "v", "--frames", "8").err


def test_a_prompt_without_a_place_for_the_name_is_told_before_anything_is_loaded(cli):
    got = cli("zeroshot", "no/such/run", "v", "--prompt", "a video")
    assert got.err == "error: --prompt 'a video': has no {} where the class's name goes, as in 'a video of {}'\n"
