"""Errors, signals and broken pipes: what is said and which exit code follows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tubelet.cli import faults
from tubelet.config import import_file
from tubelet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from tubelet.train.loop import Result

STOPPED = Result(step=120, samples=7680, total_steps=1500, seconds=61.0, stopped_by="SIGTERM", report={})


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("clips.csv: no such file"), 1, "error: clips.csv: no such file\n"),
        (CheckpointError("runs/a holds no checkpoint"), 1, "error: runs/a holds no checkpoint\n"),
        (NonFiniteError("step 3"), 1, "error: step 3\n"),
        (ConfigError("--hop needs --seconds"), 2, "error: --hop needs --seconds\n"),
        (PermissionError(13, "Permission denied", "/root/x"), 1, "error: /root/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device; free some space"),
        (MemoryError(), 1, "error: this machine ran out of memory"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            1,
            "error: the GPU ran out of memory. pretrain: lower --set train.micro",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "error: this machine ran out of memory"),
        (ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet"), 1, "pip install pyarrow\n"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None,
)
def test_errors_are_told_without_a_traceback(cli, public, error, code, said, tmp_path):
    public("knn", gives=error)
    got = cli("knn", "run", "v")
    assert (got.code, got.out) == (code, "")
    assert said in got.err
    assert "Traceback" not in got.err
    assert not list(tmp_path.glob("tubelet-error-*"))


def test_a_mistake_in_an_imported_file_is_told_with_its_line(cli, public, tmp_path):
    """Also where it surfaces in what the file called; not where the file's own call of Tubelet breaks inside Tubelet."""
    path = tmp_path / "half.py"
    path.write_text(
        "from tubelet.config import Settings, import_file\n"
        "class Config(Settings):\n"
        "    def build(self):\n"
        "        return {}['ratio']\n"
        "def deep():\n"
        "    import json\n"
        "    json.loads('{')\n"
        "def ours():\n"
        "    import_file(3)\n"
    )
    import_file(path)
    half = sys.modules["tubelet_user_half"]
    for call, said in ((half.Config().build, "line 4, in build: KeyError: 'ratio'"), (half.deep, "line 7, in deep: JSONDecodeError")):
        with pytest.raises((KeyError, ValueError)) as caught:
            call()
        public("demo", gives=caught.value)
        got = cli("demo")
        assert got.code == 1
        assert f"error: {path}, {said}" in got.err
        assert "bug in Tubelet" not in got.err
    with pytest.raises(TypeError) as wrong:
        half.ours()
    public("demo", gives=wrong.value)
    assert "bug in Tubelet" in cli("demo").err


def test_a_bug_is_kept_in_a_file(cli, public, tmp_path, monkeypatch):
    public("demo", gives=ZeroDivisionError("division by zero"))
    got = cli("demo")
    assert got.code == 1
    assert "unexpected ZeroDivisionError: division by zero" in got.err
    assert "Traceback" not in got.err
    (kept,) = tmp_path.glob("tubelet-error-*.txt")
    assert str(kept) in got.err
    assert "Traceback" in kept.read_text()
    monkeypatch.setenv("TUBELET_DEBUG", "1")
    again = cli("demo")
    assert "Traceback (most recent call last)" in again.err
    assert len(list(tmp_path.glob("tubelet-error-*"))) == 1


def test_interrupted(cli, public):
    public("knn", gives=KeyboardInterrupt())
    got = cli("knn", "run", "v")
    assert (got.code, got.out, got.err) == (130, "", "")


def test_a_broken_pipe_of_our_own_is_an_error_not_a_silence(cli, public):
    public("knn", gives=BrokenPipeError(32, "Broken pipe"))
    got = cli("knn", "run", "v")
    assert got.code == 1
    assert "Broken pipe" in got.err


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_stopped_by_a_signal(cli, public, resume: list[str]):
    public("pretrain", gives=STOPPED)
    args = ["pretrain", "my videos", "--out", "runs/a", "--set", "epochs=5", *resume]
    got = cli(*args)
    assert got.code == 128 + 15
    first, second = got.err.splitlines()
    assert first == "stopped by SIGTERM: saved at step 120 of 1500; continue with:"
    assert shlex.split(second) == ["tubelet", "pretrain", "my videos", "--out", "runs/a", "--set", "epochs=5", "--resume"]


def test_torchrun_says_everything_once(cli, public, monkeypatch):
    public("pretrain", gives=DataError("no videos here"))
    said = []
    for rank in ("1", "0", "2"):
        monkeypatch.setenv("RANK", rank)
        got = cli("pretrain", "v", "--out", "x")
        assert got.code == 1
        said.append(got.err)
    assert sorted(said) == ["", "", "error: no videos here\n"]
    public("pretrain", gives=DataError("only on this rank"))
    assert "only on this rank" in cli("pretrain", "v", "--out", "x").err


def test_a_new_launch_speaks_again(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "0")
    faults.say("x")
    (mark,) = tmp_path.glob("tubelet-said-*")
    faults.say("x")
    os.utime(mark, (0, 0))
    faults.say("x")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    faults.say("x")
    assert capsys.readouterr().err == "x\nx\nx\n"


def test_only_the_first_process_prints_results(cli, public, monkeypatch):
    done = Result(step=5, samples=40, total_steps=5, seconds=3661.0, stopped_by=None, report={})
    public("pretrain", gives=done)
    assert cli("pretrain", "v", "--out", "x").out == "done: 5 steps, 40 clips in 1 h 01 min; the run is in x\n"
    monkeypatch.setenv("RANK", "1")
    assert cli("pretrain", "v", "--out", "x").out == ""
    monkeypatch.setenv("RANK", "0")
    assert "done" in cli("pretrain", "v", "--out", "x").out
    public("pretrain", gives=STOPPED)
    assert "torchrun with the same options -m tubelet pretrain" in cli("pretrain", "v", "--out", "x").err


def test_a_reader_that_went_away(tmp_path: Path):
    script = tmp_path / "long.py"
    lines = (
        "import sys, tubelet.cli",
        "vars(tubelet)['show_recipe'] = lambda name: 'y' * 2_000_000",
        "sys.exit(tubelet.cli.run(['recipes', 'show', 'x']))",
    )
    script.write_text("\n".join(lines))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # without its buffer Python overlooks a write that was cut short
    read, write = os.pipe()
    child = subprocess.Popen([sys.executable, str(script)], stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (faults.BROKEN_PIPE, b"")
