"""tubelet finetune and evaluate: what reaches the public functions, what is printed, mistakes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

import tubelet
from tubelet.errors import DataError
from tubelet.tasks.metrics import classification
from tubelet.train.loop import Result

ENDED = Result(step=90, samples=1440, total_steps=90, seconds=61.0, stopped_by=None, report={})
SCORE = classification(
    "fine-tuned, test, 5 x 3 views", np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]), ["a", "b", "c"], ["x", "y"], n_total=4,
    failures=[("d", "is empty")], details={"pool": "mean"},
)  # fmt: skip


def done(result: Result = ENDED, score=SCORE, validation=None) -> tubelet.Finetuned:
    return tubelet.Finetuned(result, score, validation, Path("runs/b"))


def test_options_reach_the_function(cli, public):
    recorder = public("finetune", gives=done())
    line = "finetune runs/a x.csv y --out runs/b --recipe finetune-k400 --set epochs=3 --random --weights ema --train part --test final"
    got = cli(
        *line.split(),
        "--sha256",
        "abc",
        "--val-share",
        "0.2",
        "--exclude",
        "*bad*",
        "--import",
        "m.py",
        "--device",
        "cpu",
        "--resume",
        "--quiet",
    )
    ((args, given),) = recorder.calls
    assert args == ("runs/a", ["x.csv", "y"])
    assert given == {
        "out": "runs/b", "recipe": "finetune-k400", "settings": ["epochs=3", "train.device=cpu"], "train": "part", "test": "final",
        "test_sources": None, "val_share": 0.2, "random": True, "weights": "ema", "sha256": "abc", "resume": True, "imports": ["m.py"],
        "download": False, "exclude": ["*bad*"], "quiet": True,
    }  # fmt: skip
    assert got.out == f"{SCORE}\n", "quiet still prints the result"
    assert "1 of 4 test items could not be read:\n  d: is empty" in got.err


@pytest.mark.parametrize(
    ("line", "train", "test", "test_sources"),
    [
        ("", None, "test", None),
        ("--no-test", None, None, None),
        ("--test-sources v --test-sources w", None, "test", ["v", "w"]),
        ("--test-sources v --no-test", "all", None, None),
        ("--train all --no-test", "all", None, None),
    ],
)
def test_which_items_are_trained_and_tested_on(cli, public, line, train, test, test_sources):
    recorder = public("finetune", gives=done(score=None))
    cli("finetune", "r", "v", "--out", "o", *line.split())
    ((_, given),) = recorder.calls
    assert (given["train"], given["test"], given["test_sources"]) == (train, test, test_sources)


def test_both_results_are_printed_as_shares_of_what_was_asked(cli, public):
    public("finetune", gives=done(validation=SCORE))
    got = cli("finetune", "r", "v", "--out", "runs/b")
    assert got.code == 0
    assert got.out == f"done: 90 steps, 1440 clips in 1 min 01 s; the run is in runs/b\n{SCORE}\n{SCORE}\n"
    assert "66.7 % top-1" in got.out
    assert "3 / 4 scored" in got.out
    assert "every prediction is in runs/b/results.json" in got.err


def test_a_stopped_run_says_how_to_go_on(cli, public):
    public("finetune", gives=done(Result(40, 640, 90, 30.0, "SIGTERM", {}), score=None))
    got = cli("finetune", "my run", "v", "--out", "runs/b")
    assert (got.code, got.out) == (143, "")
    assert got.err.splitlines()[0] == "stopped by SIGTERM: saved at step 40 of 90; continue with:"
    assert shlex.split(got.err.splitlines()[1]) == ["tubelet", "finetune", "my run", "v", "--out", "runs/b", "--resume"]


def test_only_the_first_process_prints_the_result(cli, public, monkeypatch):
    public("finetune", gives=done())
    public("evaluate", gives=SCORE)
    monkeypatch.setenv("RANK", "1")
    assert cli("finetune", "r", "v", "--out", "o").out == ""
    assert cli("evaluate", "r", "v").out == ""


def test_evaluate(cli, public):
    recorder = public("evaluate", gives=SCORE)
    line = "evaluate runs/b x.csv --test all --weights ema --set views.clips=10 --batch 3 --device cpu --json e.json"
    got = cli(*line.split())
    ((args, given),) = recorder.calls
    assert args == ("runs/b", ["x.csv"])
    progress = given.pop("progress")
    assert progress is None
    assert given == {
        "test": "all", "weights": "ema", "settings": ["views.clips=10"], "batch": 3, "device": "cpu", "imports": [], "exclude": [],
        "json_out": Path("e.json"), "picture": None,
    }  # fmt: skip
    assert got.out == f"{SCORE}\n"
    assert "d: is empty" in got.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("finetune", ["RUN: must be given", "SOURCES: must be given", "--out: must be given"]),
        ("finetune r v --ot x --val-shar 2", ["(did you mean '--out'?)", "(did you mean '--val-share'?)", "'2'"]),
        ("finetune r v --out x --epochs 5 --dropout 0.1", ["it is a setting: --set epochs=5", "it is a setting: --set dropout=0.1"]),
        (
            "finetune r v --otu x --recipe finetune-smal --import no.py",
            ["unknown recipe 'finetune-smal' (did you mean 'finetune-small'?)", "no.py: no such file"],
        ),
        (
            "finetune r v --otu x --set classifier.dropuot=1 --set data.augment.rand=rand-m99 --set views.crops=2",
            [
                "classifier.dropuot: unknown setting (did you mean 'dropout'?)",
                "data.augment.rand: 'rand-m99' is out of range; write it as timm does, such as rand-m7-n4-mstd0.5-inc1",
                "views.crops: must be 1 or 3",
            ],
        ),
        ("finetune r v --out x --weights emma", ["'emma' is not one of auto, ema (did you mean 'ema'?)"]),
        ("evaluate r", ["SOURCES: must be given"]),
        ("evaluate r v --batch 0 --frames 8", ["--batch: ", "it is a setting: --set frames=8"]),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_every_mistake_is_named(cli, public, line, expected):
    calls = [public(name) for name in ("finetune", "evaluate")]
    got = cli(*line.split())
    assert got.code == 2
    assert [e for e in expected if e not in got.err] == []
    assert not any(recorder.calls for recorder in calls)


def test_what_is_wrong_with_the_data_is_told_without_a_traceback(cli, public):
    public("finetune", gives=DataError("videos: no labels found"))
    got = cli("finetune", "r", "v", "--out", "x")
    assert (got.code, got.err) == (1, "error: videos: no labels found\n")


def test_the_real_road(cli, tmp_path):
    """Pre-train, fine-tune, test again, on clips of a few pixels."""
    tubelet.make_playground(tmp_path / "clips", clips=48, scene="easy", size=16, frames=4)
    manifest, tiny = str(tmp_path / "clips" / "manifest.csv"), ["--set", "watch={pictures: 0, probe: 0}", "--quiet"]
    method = "method={kind: videomae, dim: 32, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 16, depth: 1, heads: 2}}"
    sets = [f"--set={text}" for text in (method, "frames=4", "stride=1", "size=16", "workers=0", "epochs=null", "steps=1", "batch=4")]
    assert cli("pretrain", manifest, "--out", str(tmp_path / "a"), "--recipe", "tiny-cpu", "--device", "cpu", *sets, *tiny).code == 0
    again = ["--set=epochs=null", "--set=steps=2", "--set=batch=4", "--set=workers=0", "--device", "cpu", "--recipe", "finetune-tiny-cpu"]
    got = cli("finetune", str(tmp_path / "a"), manifest, "--out", str(tmp_path / "b"), *again, "--val-share", "0.2", "--quiet")
    assert (got.code, got.err) == (0, "")
    held, tested = got.out.splitlines()
    assert "fine-tuned, validation, 5 x 1 views (slots)" in held
    assert "fine-tuned, test, 5 x 1 views (slots)" in tested
    assert "8 / 8 scored, 8 classes, chance 12.5 %" in tested
    assert len(json.loads((tmp_path / "b" / "results.json").read_text())["predictions"]) == 8
    assert (tmp_path / "b" / "confusion.png").exists()
    assert cli("evaluate", str(tmp_path / "b"), manifest, "--device", "cpu").out == f"{tested}\n"
    wrong = cli("embed", str(tmp_path / "b"), manifest, "--out", str(tmp_path / "x.npz"))
    assert wrong.code in (0, 1)
    assert "Traceback" not in wrong.err
