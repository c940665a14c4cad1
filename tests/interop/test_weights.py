"""Files of weights that others wrote: what is read, and that nothing in them is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tubelet import weights
from tubelet.errors import CheckpointError
from tubelet.weights import PASSED, prefix_of, read_weights, without_prefix

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "half": torch.full((4,), 0.5, dtype=torch.float16)}


class Evil:
    """A pickle of this runs a shell command when it is opened the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


class Sneaky(Evil):
    """The same through a function whose name sounds harmless."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.target)!r}, 'w').close()",)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], v) for k, v in STATE.items())


@pytest.mark.parametrize("key", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dicts_under_their_usual_keys(tmp_path: Path, key: str | None, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    held = OrderedDict(STATE) if key is None else {"epoch": 3, key: STATE, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    assert same(read_weights(path))


def test_what_official_files_hold_beside_tensors(tmp_path: Path) -> None:
    numbers = {"lr": np.float64(1e-3), "seed": np.int64(3), "flag": np.bool_(True)}
    args = argparse.Namespace(**numbers, betas=[0.9, 0.95], name="vit", size=(16, 224), none=None)
    scaler = {"scale": np.float32(65536.0), "dtype": np.dtype("float32")}
    torch.save({"model": STATE, "args": args, "scaler": scaler, "epoch": 7}, tmp_path / "x.pth")
    assert same(read_weights(tmp_path / "x.pth"))


def test_numpy_scalars_under_their_name_before_numpy_2(tmp_path: Path) -> None:
    torch.save({"model": STATE, "best": np.float64(0.5)}, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "new.pth").read_bytes()
    assert b"numpy._core.multiarray" in raw
    (tmp_path / "old.pth").write_bytes(raw.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    assert same(read_weights(tmp_path / "old.pth"))


def test_safetensors_of_others(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    assert same(read_weights(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kind", [Evil, Sneaky])
@pytest.mark.parametrize("place", ["whole", "args", "model"])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_malicious_file_is_named_and_runs_nothing(tmp_path: Path, kind: type[Evil], place: str, how: str) -> None:
    harmful, harmless = kind(tmp_path / "harm"), tmp_path / "x.pth"
    held = {"whole": harmful, "args": {"model": STATE, "args": harmful}, "model": {"model": {**STATE, "b": harmful}}}[place]
    if how == "pickle":
        harmless.write_bytes(pickle.dumps(held, protocol=2))
    else:
        torch.save(held, harmless, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_weights(harmless)
    said = str(caught.value)
    assert said.count("\n") == 0
    if how != "pickle":
        assert "posix.system" in said or "eval" in said
        assert "nothing of it was run" in said
    assert not (tmp_path / "harm").exists()
    if how == "pickle":
        with open(harmless, "rb") as file:
            pickle.load(file)
    else:
        torch.load(harmless, weights_only=False)
    assert (tmp_path / "harm").exists(), "opened the ordinary way it would have run"


def test_what_other_code_allowed_is_not_allowed_here_and_stays_allowed_there(tmp_path: Path) -> None:
    torch.save({"model": STATE, "where": Path("x")}, tmp_path / "x.pth")
    kind = type(Path("x"))
    with torch.serialization.safe_globals([kind]):
        with pytest.raises(CheckpointError, match=r"pathlib\S*PosixPath"):
            read_weights(tmp_path / "x.pth")
        assert kind in torch.serialization.get_safe_globals()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_only_four_names_are_let_through_and_none_of_them_is_the_real_one() -> None:
    assert set(PASSED) == {"argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
    with weights._nothing_else():
        allowed = torch.serialization.get_safe_globals()
    assert {name for _, name in allowed} == set(PASSED)  # type: ignore[misc]  # all are pairs
    assert {stand_in for stand_in, _ in allowed} == {weights._Passed}  # type: ignore[misc]  # as above


def test_the_environment_cannot_switch_the_protection_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Evil(tmp_path / "harm"), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read_weights(tmp_path / "x.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.pth", b"", "is empty"),
        ("x.safetensors", b"", "is empty"),
        ("x.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "looks like text"),
        ("x.pt", b"<!DOCTYPE html><html>not found</html>", "web page"),
        ("x.pth", b"\x00\x01\x02\x03 no checkpoint at all", "neither torch's zip format nor a pickle"),
        ("x.safetensors", b"just some text, longer than eight bytes", "damaged or not a safetensors file"),
        ("x.pth", b"PK\x03\x04 and then nothing of a zip file", "damaged or cut short"),
        ("x.pth", b"\x80\x02}q\x00.", "damaged or cut short"),
        ("x.txt", b"words", r"weights are read from \.safetensors and \.pth"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_weights(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_and_a_file_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "gone.pth")
    for held, said in [({"weights": STATE, "epoch": 1}, "holds the keys epoch, weights"), ([1, 2], "holds a list"), ({}, "empty dict")]:
        torch.save(held, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=f"no state dict under model, module, state_dict or at its top; it .*{said}"):
            read_weights(tmp_path / "x.pth")


def test_a_script_is_no_file_of_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "x.safetensors"])
def test_damage_anywhere_gives_one_clear_error_or_whole_weights(tmp_path: Path, name: str) -> None:
    """Cut at many places, and with bytes changed at random: a CheckpointError or a result, never anything else."""
    whole = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(STATE, whole)
    else:
        held = {"model": STATE, "args": argparse.Namespace(lr=np.float64(1e-3))}
        torch.save(held, whole, _use_new_zipfile_serialization=name.startswith("zip"))
    raw = whole.read_bytes()
    rng = random.Random(0)
    damaged = [raw[: len(raw) * i // 25] for i in range(1, 25)]
    for _ in range(60):
        some = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            some[rng.randrange(min(len(some), 1500))] = rng.randrange(256)
        damaged.append(bytes(some))
    refused: list[str] = []
    for i, content in enumerate(damaged):
        path = tmp_path / f"{i}{whole.suffix}"
        path.write_bytes(content)
        try:
            read_weights(path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) >= 24  # whatever is cut
    assert not any("\n" in said for said in refused)


def test_prefixes_of_wrappers() -> None:
    marker = "embed.weight"
    for prefix in ("", "module.", "_orig_mod.", "module.encoder.", "_orig_mod.module.backbone."):
        assert prefix_of({f"{prefix}{marker}": torch.zeros(1), "other": torch.zeros(1)}, marker) == prefix
    assert prefix_of({"student.embed.weight": torch.zeros(1)}, marker) is None
    assert prefix_of({"reembed.weight": torch.zeros(1)}, marker) is None
    assert list(without_prefix({"module.a": torch.zeros(1), "b": torch.zeros(1)}, "module.", "x")) == ["a", "b"]
    with pytest.raises(CheckpointError, match=r"module\.a and a: two models"):
        without_prefix({"module.a": torch.zeros(1), "a": torch.zeros(1)}, "module.", "x")
