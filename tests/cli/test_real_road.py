"""The commands on the real functions: rendered clips, a tiny model, a few steps."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tubelet.cli import run
from tubelet.tasks.embed import Embeddings

RECIPE = """
about: a few steps of a very small model
method: {kind: videomae, dim: 48, depth: 1, heads: 3, patch: [2, 8, 8], decoder: {dim: 48, depth: 1, heads: 3}}
masking: {kind: tube, ratio: 0.75}
data: {frames: 4, stride: 1, size: 16, workers: 0}
train: {steps: 3, batch: 8, device: cpu}
"""


def quick(place: Path) -> list[str]:
    """Options of a run that takes seconds."""
    return ["--recipe", str(place / "recipe.yaml"), "--quiet"]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rendered clips of two motions (videos/manifest.csv) and a short run on them (run/)."""
    place = tmp_path_factory.mktemp("road")
    (place / "recipe.yaml").write_text(RECIPE)
    assert run(["playground", str(place / "videos"), "--clips", "60", "--scene", "easy", "--size", "16", "--frames", "4"]) == 0
    assert run(["pretrain", str(place / "videos/manifest.csv"), "--out", str(place / "run"), *quick(place)]) == 0
    return place


def test_pretrain_says_where_the_run_is_and_refuses_to_overwrite_it(cli, road: Path):
    assert (road / "run/model.safetensors").is_file()
    again = cli("pretrain", str(road / "videos/manifest.csv"), "--out", str(road / "run"), *quick(road))
    assert again.code == 1
    assert "--resume" in again.err


@pytest.mark.parametrize(("pool", "width"), [("mean", 48), ("slots", 96)])
def test_embed(cli, road: Path, tmp_path: Path, pool: str, width: int):
    out = tmp_path / "e.npz"
    args = [
        "embed",
        str(road / "run"),
        str(road / "videos/manifest.csv"),
        "--out",
        str(out),
        "--pool",
        pool,
        "--set",
        "workers=0",
        "--device",
        "cpu",
    ]
    got = cli(*args)
    assert (got.code, got.out) == (0, f"60 / 60 embedded, {width} numbers each ({pool}) -> {out}\n")
    first = Embeddings.load(out)
    assert first.vectors.shape == (60, width)
    assert len(first.classes) == 8
    refused = cli(*args)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert cli(*args, "--overwrite", "--batch", "5").code == 0
    assert np.allclose(Embeddings.load(out).vectors, first.vectors, atol=1e-5)


def test_unreadable_videos_are_listed(cli, road: Path, tmp_path: Path):
    videos = tmp_path / "mixed"
    videos.mkdir()
    (videos / "good.mp4").symlink_to(sorted((road / "videos/clips").glob("*.mp4"))[0])
    (videos / "bad.mp4").write_bytes(b"this is no video")
    got = cli("embed", str(road / "run"), str(videos), "--out", str(tmp_path / "e.npz"), "--set", "workers=0", "--device", "cpu")
    assert got.code == 0
    assert got.out.startswith("1 / 2 embedded")
    assert "1 of 2 items could not be read:\n  bad.mp4: " in got.err


@pytest.mark.parametrize("command", ["knn", "probe"])
def test_scores_with_json_and_control(cli, road: Path, tmp_path: Path, command: str):
    args = [command, str(road / "run"), str(road / "videos/manifest.csv"), "--pool", "slots", "--set", "workers=0", "--device", "cpu"]
    got = cli(*args, "--json", str(tmp_path / "s.json"))
    assert got.code == 0, got.err
    kept = json.loads((tmp_path / "s.json").read_text())
    assert kept["n_scored"] == kept["n_total"] == len(kept["predictions"]) > 0
    assert f"{kept['n_scored']} / {kept['n_total']} scored, 8 classes, chance 12.5 %" in got.out
    control = cli(*args, "--random")
    assert control.code == 0
    assert control.out.startswith(got.out.split(":")[0])


MINE = """
from tubelet.methods import videomae


class Config(videomae.Config):
    kind: str = "my_method"
    dim: int = 24
"""


def test_a_method_of_ones_own_is_imported_by_every_command_that_loads_it(cli, road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    labelled, model, own = str(road / "videos/manifest.csv"), str(tmp_path / "run"), ["--import", str(tmp_path / "my_method.py")]
    (tmp_path / "my_method.py").write_text(MINE)
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("kind: videomae, dim: 48", "kind: my_method").replace("steps: 3", "steps: 1"))
    small = ["--device", "cpu", "--set", "workers=0"]

    def fresh() -> None:
        """As in a process of its own, where nothing has been imported yet."""
        monkeypatch.setattr("tubelet.config._user_kinds", {})

    fresh()
    assert cli("pretrain", labelled, "--out", model, "--recipe", str(tmp_path / "mine.yaml"), "--quiet", *own).code == 0
    fresh()
    without = cli("knn", model, labelled, *small)
    assert without.code == 2
    assert "unknown kind 'my_method'" in without.err
    assert "--import" in without.err
    for command in (["embed", "--out", str(tmp_path / "e.npz")], ["knn"], ["probe"]):
        fresh()
        got = cli(command[0], model, labelled, *command[1:], *small, *own)
        assert got.code == 0, got.err
    assert Embeddings.load(tmp_path / "e.npz").vectors.shape == (60, 24)


def test_mistakes_that_only_the_real_functions_know(cli, road: Path, tmp_path: Path):
    labelled, model = str(road / "videos/manifest.csv"), str(road / "run")
    for args, code, said in [
        (["probe", model, labelled, "--test", "tets"], 1, "tets"),
        (["probe", str(tmp_path / "nowhere"), labelled], 1, "nowhere"),
        (["embed", model, str(tmp_path / "nowhere.mp4"), "--out", str(tmp_path / "x.npz")], 1, "nowhere.mp4"),
        (["embed", model, labelled, "--out", str(tmp_path / "x.npy")], 2, "did you mean '.npz'"),
        (["embed", model, labelled, "--out", str(tmp_path / "x.npz"), "--pool", "class"], 2, "no class token"),
        (["knn", model, labelled, "--set", "framse=8"], 2, "did you mean 'frames'"),
        (
            ["pretrain", labelled, "--out", str(tmp_path / "r"), "--recipe", "tiny-cpu", "--set", "masking.rato=1", "--set", "lr=fast"],
            2,
            "masking.rato",
        ),
    ]:
        got = cli(*args)
        assert (got.code, got.out) == (code, ""), (args, got.err)
        assert said in got.err, args
        assert "Traceback" not in got.err
        assert "unexpected" not in got.err


def test_recipes(cli):
    listed = cli("recipes")
    assert listed.code == 0
    assert listed.out == cli("recipes", "list").out
    names = [line.split()[0] for line in listed.out.splitlines()]
    assert "small-data" in names
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in listed.out.splitlines())
    assert "masking" in cli("recipes", "show", "small-data").out
    wrong = cli("recipes", "show", "smal-data")
    assert wrong.code == 2
    assert "did you mean 'small-data'" in wrong.err


def test_terminated_run_prints_the_command_that_continues_it(road: Path, tmp_path: Path):
    out = tmp_path / "long run"
    call = [
        sys.executable,
        "-m",
        "tubelet",
        "pretrain",
        str(road / "videos/manifest.csv"),
        "--out",
        str(out),
        *quick(road),
        "--set",
        "steps=100000",
    ]
    child = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text():
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    words = shlex.split(err.splitlines()[-1])
    assert words[:2] == ["tubelet", "pretrain"]
    assert words[-1] == "--resume"
    step = int(err.partition("saved at step ")[2].split()[0])
    assert step > 0
    assert (out / f"checkpoints/step-{step:08d}.safetensors").is_file()


@pytest.mark.slow
def test_torchrun_reports_a_mistake_once(tmp_path: Path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tubelet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "pretrain", str(tmp_path / "nothing"), "--out", str(tmp_path / "run"), "--recipe", "tiny-cpu"],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )
    assert done.returncode != 0
    assert done.stderr.count("no such file or folder") == 1
    assert 'File "' not in done.stderr.partition("error: ")[0]
