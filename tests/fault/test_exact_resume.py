"""A run that is killed and resumed ends in the same bits; two processes make the same run as one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tubelet.train.checkpoint import read_tensors

DRIVE = Path(__file__).with_name("drive.py")
SETTINGS = {
    "method.dim": 32, "method.depth": 1, "method.heads": 2, "method.patch": "[2,8,8]", "method.drop_path": 0.2,
    "method.decoder": "{dim: 16, depth: 1, heads: 2}", "masking.ratio": 0.5,
    "data.frames": 4, "data.stride": 1, "data.size": 32, "data.cache": "none", "data.clips_per_video": 2, "data.augment.flip": 0.5,
    "train.epochs": "null", "train.steps": 30, "train.batch": 8, "train.lr": 0.001, "train.warmup_epochs": 0, "train.log_every": 1,
    "train.checkpoint_every": 5, "train.keep": 3, "train.device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """24 short real mp4 files."""
    import tubelet

    out = tmp_path_factory.mktemp("data") / "clips"
    tubelet.make_playground(out, clips=24, seed=1, scene="easy", size=32, frames=8)
    return out


def arguments(clips: Path, out: Path, resume: bool = False, **more: object) -> list[str]:
    settings = SETTINGS | {k.replace("__", "."): v for k, v in more.items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [str(clips), "--recipe", "tiny-cpu", "--out", str(out), "--quiet", *sets, *(["--resume"] if resume else [])]


def command(args: list[str], mode: tuple[str, ...] = ("plain",), processes: int = 1, signals: str = "SIGTERM") -> list[str]:
    """``signals``: what torchrun passes on."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--signals-to-handle={signals}"]
    return [*launcher, str(DRIVE), *mode, *args]


def run(args: list[str], mode: tuple[str, ...] = ("plain",), processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(args, mode, processes), capture_output=True, text=True, timeout=300)


def finish(clips: Path, out: Path, processes: int = 1, **more: object) -> None:
    done = run(arguments(clips, out, resume=True, **more), processes=processes)
    assert done.returncode == 0, done.stderr


def outcome(out: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The last checkpoint (weights and optimiser) and all losses."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "loss" in r]  # the others are what hooks found
    assert [r["step"] for r in rows] == list(range(1, 31))
    return read_tensors(out / "checkpoints" / "step-00000030.safetensors"), [r["loss"] for r in rows]


def same(a: Path, b: Path) -> None:
    (tensors_a, losses_a), (tensors_b, losses_b) = outcome(a), outcome(b)
    assert losses_a == losses_b
    assert tensors_a.keys() == tensors_b.keys()
    different = [k for k in tensors_a if not torch.equal(tensors_a[k], tensors_b[k])]
    assert not different, f"not the same bits: {different[:5]}"


@pytest.fixture(scope="module")
def straight(clips, tmp_path_factory) -> dict[int, Path]:
    """Uninterrupted runs of 30 steps with 1 and 2 processes."""
    out = {}
    for processes in (1, 2):
        out[processes] = tmp_path_factory.mktemp("straight") / f"p{processes}"
        done = run(arguments(clips, out[processes], data__workers=0), processes=processes)
        assert done.returncode == 0, done.stderr
    return out


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    metrics = out / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"the run did not reach step {step}: {process.poll()}")


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state not in "ZX"


def kill_at(step: int, moment: float, clips: Path, out: Path, processes: int, workers: int) -> None:
    """Start a run and SIGKILL its launcher and every training process, ``moment`` seconds after its ``step``-th line of figures."""
    pids = out.with_name(f"{out.name}-pids")
    pids.mkdir()
    victim = subprocess.Popen(
        command(arguments(clips, out, data__workers=workers), processes=processes),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PID_FOLDER": str(pids)},
    )  # fmt: skip
    wait_for_step(out, step, victim)
    time.sleep(moment)
    trained = [int((pids / f"pid.{rank}").read_text()) for rank in range(processes)]
    for pid in {victim.pid, *trained}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    victim.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(alive, trained)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, trained)), "a training process outlived its SIGKILL"


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (1, 0), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_killed_at_a_random_moment(clips, straight, tmp_path, processes, workers):
    """kill -9 to all processes after a random step, then resume to the end. A run that was quicker than the kill is killed earlier."""
    random_ = random.Random(10 * processes + workers)
    last = random_.randint(6, 25)
    for step in (last, (6 + last) // 2, 6):
        out = tmp_path / f"run{step}"
        kill_at(step, random_.uniform(0.0, 0.05), clips, out, processes, workers)
        saved = [p.name for p in (out / "checkpoints").glob("step-*.safetensors")]
        if "step-00000030.safetensors" not in saved:
            break
    assert saved
    assert "step-00000030.safetensors" not in saved, "no kill came before the end of the run"
    finish(clips, out, processes, data__workers=workers)
    same(straight[processes], out)


@pytest.mark.parametrize("write", [1, 3])
def test_killed_inside_a_write(clips, straight, tmp_path, write):
    """The half-written file never gets a checkpoint's name, and the run goes on from the one before."""
    died = run(arguments(clips, tmp_path / "run"), ("die-in-write", str(write)))
    assert died.returncode == -signal.SIGKILL
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert [n for n in names if not n.startswith(".")] == [f"step-{5 * i:08d}.safetensors" for i in range(1, write)]
    assert [n for n in names if n.startswith(".")], "the write was not interrupted"
    finish(clips, tmp_path / "run")
    same(straight[1], tmp_path / "run")


@pytest.mark.parametrize(
    ("processes", "name"),
    [(1, "SIGINT"), (1, "SIGTERM"), (1, "SIGUSR1"), (2, "SIGTERM"), pytest.param(2, "SIGUSR1", marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_exits(clips, straight, tmp_path, processes, name):
    """Once, at the step that all processes agree on; torchrun passes on the signals that it is told to handle."""
    number = getattr(signal, name)
    process = subprocess.Popen(
        command(arguments(clips, tmp_path / "run", train__checkpoint_every="null"), processes=processes, signals=name),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(tmp_path / "run", 6, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    if processes == 1:
        assert process.returncode == 128 + number
        assert "Traceback" not in said
    else:  # torchrun's own exit code and report of the signal that it got
        assert process.returncode != 0
    assert "looks like a bug" not in said
    assert said.count(f"stopped by {name}: saved at step ") == 1
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [p.stem for p in saved] == [f"step-{int(said.partition('saved at step ')[2].split()[0]):08d}"]
    assert saved[0].stem < "step-00000030"
    finish(clips, tmp_path / "run", processes, train__checkpoint_every="null")
    same(straight[processes], tmp_path / "run")


def test_two_processes_are_one(clips, straight, tmp_path):
    """At equal global batch: masks identical, first gradients to 1e-6, 30 losses to 1e-4."""
    for processes in (1, 2):
        more = {"train__steps": 1, "train__checkpoint_every": 1}
        done = run(arguments(clips, tmp_path / f"p{processes}", **more), ("record", str(tmp_path / f"masks{processes}")), processes)
        assert done.returncode == 0, done.stderr
    one = torch.load(tmp_path / "masks1.0", weights_only=True)
    two = [torch.load(tmp_path / f"masks2.{rank}", weights_only=True) for rank in (0, 1)]
    assert not two[0].keys() & two[1].keys(), "the processes share samples"
    assert one == {**two[0], **two[1]}
    # AdamW's first moment after one step is (1 - beta1) times the first gradient.
    a, b = (read_tensors(tmp_path / f"p{p}" / "checkpoints" / "step-00000001.safetensors") for p in (1, 2))
    moments = [k for k in a if "/exp_avg/" in k]
    assert len(moments) > 20
    for k in moments:
        assert (a[k] - b[k]).norm() <= 1e-6 * a[k].norm() + 1e-12, k
    for x, y in zip(outcome(straight[1])[1], outcome(straight[2])[1], strict=True):
        assert abs(x - y) <= 1e-4


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_stops_with_one_message_and_keeps_the_last_checkpoint(clips, tmp_path, processes):
    """The run folder on a file system that holds two checkpoints but not a third."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here (needs root)")
    try:
        stopped = run(arguments(clips, small / "run", train__keep=30), processes=processes)
        assert stopped.returncode == 1, stopped.stderr
        assert stopped.stderr.count("disk is full") == 1
        assert "last good checkpoint is step-" in stopped.stderr
        assert "looks like a bug" not in stopped.stderr
        assert "Traceback" not in stopped.stderr.partition("error: ")[0]
        assert processes > 1 or "Traceback" not in stopped.stderr, "torchrun reports its processes' end in its own way"
        good = sorted((small / "run" / "checkpoints").glob("step-*.safetensors"))
        assert good
        assert all(read_tensors(path) for path in good)
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_failed_write_of_the_first_process_ends_the_other_one_with_the_same_message(clips, tmp_path):
    """Only the first process writes metrics.jsonl; the second must neither wait for it nor report a lost connection."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    stopped = run(arguments(clips, tmp_path / "run"), ("full-metrics", "8"), processes=2)
    assert stopped.returncode == 1
    assert stopped.stderr.count("metrics.jsonl: [Errno 28] No space left on device; free some space, then continue with --resume") == 1
    assert stopped.stderr.count("\nerror: ") == 1, stopped.stderr
    assert "looks like a bug" not in stopped.stderr
