"""Checkpoints: whole or not there, never a pickle, damaged ones named."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tubelet.errors import CheckpointError
from tubelet.train.checkpoint import Checkpoints, atomic, explain_mismatch, read_meta, read_tensors, write_tensors, write_text

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def test_round_trip_and_shared_memory(tmp_path):
    shared = {**TENSORS, "tied": TENSORS["a"], "view": TENSORS["a"].T}
    write_tensors(tmp_path / "x.safetensors", shared, {"step": 3, "config": {"lr": 1e-4}})
    assert read_meta(tmp_path / "x.safetensors") == {"step": 3, "config": {"lr": 1e-4}}
    back = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[k], v) for k, v in shared.items())


def test_keeps_the_last_ones_and_finds_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, TENSORS, {"samples": step})
    assert [c.step for c in checkpoints.all()] == [10, 15]
    newest = checkpoints.latest(pytest.fail)
    assert newest is not None
    assert newest.step == 15


def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    paths = [checkpoints.save(step, TENSORS, {}) for step in (5, 10)]
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[: len(data) // 2])
    said: list[str] = []
    found = checkpoints.latest(said.append)
    assert found is not None
    assert found.step == 5
    assert "step-00000010" in said[0]
    assert "damaged" in said[0]
    paths[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoints.latest(said.append)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    write_text(tmp_path / "x", "old")

    def fail_half_way() -> None:
        with atomic(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert (tmp_path / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    (tmp_path / ".x.0badc0de.tmp").write_text("half")
    write_text(tmp_path / "x", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_full_disk_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, TENSORS, {})

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"disk is full .*last good checkpoint is step-00000005"):
        checkpoints.save(10, TENSORS, {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005.safetensors"]


def test_a_really_full_disk(tmp_path):
    """A file system of 256 KiB: the second checkpoint does not fit, the first one stays readable."""
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here (needs root)")
    try:
        checkpoints = Checkpoints(tmp_path, keep=2)
        big = {"w": torch.randn(40_000)}
        path = checkpoints.save(5, big, {})
        with pytest.raises(CheckpointError, match=r"disk is full .*last good checkpoint is step-00000005"):
            checkpoints.save(10, big, {})
        assert torch.equal(read_tensors(path)["w"], big["w"])
        assert [c.step for c in checkpoints.all()] == [5]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=False)


class Evil:
    def __reduce__(self):
        return (Path("/tmp/tubelet-was-here").touch, ())


@pytest.mark.parametrize(
    "content", [pickle.dumps(Evil()), b"", b"not a checkpoint", bytes(range(64))], ids=["pickle", "empty", "text", "noise"]
)
def test_foreign_files_are_refused_and_nothing_runs(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        read_tensors(path)
    assert not Path("/tmp/tubelet-was-here").exists()


def test_a_pickle_that_torch_saved_is_refused(tmp_path):
    torch.save({"model": Evil()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_tensors(tmp_path / "x.pth")
    assert not Path("/tmp/tubelet-was-here").exists()


def test_mismatches_are_explained_field_by_field():
    old = {"config": {"train": {"lr": 1.0, "micro": 4}, "data": {"size": 96}}, "data": {"items": 570}}
    new = {"config": {"train": {"lr": 2.0, "micro": 8}, "data": {"size": 96, "fps": 5}}, "data": {"items": 569}}
    assert explain_mismatch(old, new, ["config.train.micro"]) == [
        "config.train.lr: the checkpoint has 1.0, this call 2.0",
        "config.data.fps: the checkpoint has nothing, this call 5",
        "data.items: the checkpoint has 570, this call 569",
    ]


def test_a_setting_that_the_checkpoint_does_not_know_agrees_at_its_default():
    old = {"config": {"train": {"lr": 1.0}, "init": None}}
    new = {"config": {"train": {"lr": 1.0, "loops": 3}, "init": {"x": 1}, "watch": {"pictures": 4}}}
    paths = ["config.train.loops", "config.train.lr", "config.init", "config.watch", "config.watch.pictures"]
    told = "config.init: the checkpoint has nothing, this call {'x': 1}"  # it was null there, and is something else by default now
    assert explain_mismatch(old, new, [], paths) == [told]
    assert explain_mismatch(old, new, [], ["config.watch"]) == ["config.train.loops: the checkpoint has nothing, this call 3", told]
