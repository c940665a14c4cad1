"""The comparisons themselves: they agree on every golden there is, on files with other options, and fail on wrong ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from _reference import Options, write
from check import HERE, check, families, family_of, main
from safetensors import safe_open
from safetensors.torch import save_file

VARIANTS = {
    "as_released": Options(),
    "layer_scale": Options(init_values=0.3, eps=1e-5, seed=4),
    "learned_positions": Options(learnable=True, batch=3, classes=4, decay=0.9, seed=5),
    "no_biases_raw_pixels": Options(qv_bias=False, normalise=False, mlp_ratio=48 / 11, seed=6),
    "other_sizes": Options(
        size=(12, 12), square=True, patch=4, tubelet=4, frames=8, batch=1, enc=(32, 3, 4), dec=(20, 2, 5), ratio=0.75, eps=1e-3, seed=7
    ),
}


def rewrite(source: Path, out: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
    """A copy of a golden with some tensors or metadata changed."""
    with safe_open(source, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118 - not a mapping
    change(tensors, metadata)
    save_file(tensors, out, metadata)
    return out


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("golden") / "videomae_z.safetensors", Options())


def test_shared_goldens_of_every_supported_family_agree(shared: Callable[[str], Path]) -> None:
    files = [f for f in sorted(shared("goldens").glob("*.safetensors")) if family_of(f) in families()]
    assert "videomae" in {family_of(f) for f in files}
    wrong = {(f.name, line.name, line.error, line.note) for f in files for line in check(f) if not line.ok}
    assert not wrong


@pytest.mark.parametrize("name", VARIANTS)
def test_any_options_of_the_family_are_understood(name: str, tmp_path: Path) -> None:
    lines = check(write(tmp_path / "videomae_x.safetensors", VARIANTS[name]))
    assert [line for line in lines if not line.ok] == []
    assert sum(line.name.startswith("grad/") for line in lines) > 20


@pytest.mark.parametrize("name", ["weight/encoder.blocks.1.attn.v_bias", "ft_weight/fc_norm.weight", "input/mask", "recipe/cosine_lr"])
def test_a_changed_tensor_fails(golden: Path, tmp_path: Path, name: str) -> None:
    def corrupt(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        value = tensors[name]
        tensors[name] = value.flip(1) if name == "input/mask" else value * 1.001

    assert main([str(rewrite(golden, tmp_path / "videomae_y.safetensors", corrupt))]) == 1


@pytest.mark.parametrize("name", ["output/surprise", "grad/encoder.blocks.0.unknown", "ft_output/attention", "recipe/other", "extra/thing"])
def test_what_the_family_does_not_know_fails(golden: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = rewrite(golden, tmp_path / "videomae_y.safetensors", lambda tensors, _: tensors.update({name: torch.zeros(2)}))
    assert main([str(file)]) == 1
    assert f"{name} " in capsys.readouterr().out


def test_fewer_outputs_are_enough(golden: Path, tmp_path: Path) -> None:
    def thin(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        for name in [n for n in tensors if n.startswith(("ft_", "recipe/", "output/target", "output/loss_pixel"))]:
            del tensors[name]
        for key in [k for k in metadata if k != "config"]:
            del metadata[key]

    assert main([str(rewrite(golden, tmp_path / "videomae_y.safetensors", thin))]) == 0


def test_command_line_reports_every_file(golden: Path, tmp_path: Path) -> None:
    broken = tmp_path / "videomae_b.safetensors"
    broken.write_bytes(b"not a golden")
    other = tmp_path / "nobody-knows_a.safetensors"
    other.write_bytes(golden.read_bytes())
    files = [broken, other, tmp_path / "videomae_missing.safetensors", golden]
    done = subprocess.run([sys.executable, str(HERE / "check.py"), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count("cannot read it") == 2
    assert "no comparison for the family 'nobody-knows'" in done.stdout
    assert done.stdout.rstrip().endswith("agree")
    assert "Traceback" not in done.stderr
    assert main([str(golden)]) == 0
    assert main([]) == 2
