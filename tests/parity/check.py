"""Compare golden files with this code: ``python tests/parity/check.py [--device cuda] FILE...``

The family is the file's stem up to the last "_"; ``tests/parity/<family>.py`` (a hyphen becomes "_") exports
``compare(golden) -> Iterator[(name, ours, reference, kind)]``. Every reference in a file must be compared: what a family's module does
not know is reported and fails. Tolerances: outputs 1e-5 x max(1, largest reference value); gradients 1e-4 x largest reference value
+ 1e-7; tables of rates 1e-6 x largest. Exit code 0 only if every file agrees.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from _golden import Comparison, Golden, GoldenError, Kind  # noqa: E402 - found next to this file


@dataclass(frozen=True)
class Line:
    """The outcome of one comparison. ``error``: largest absolute difference, inf where shapes differ or a number is not finite."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def families() -> list[str]:
    """Families that can be compared."""
    names = (path.stem for path in HERE.glob("*.py"))
    return sorted(n.replace("_", "-") for n in names if not n.startswith(("_", "test_")) and n != "check")


def family_of(path: Path) -> str:
    """``videomae_a.safetensors`` -> ``videomae``."""
    return path.stem.rpartition("_")[0]


def _compare(family: str) -> Callable[[Golden], Iterator[Comparison]]:
    return importlib.import_module(family.replace("-", "_")).compare


def measure(name: str, ours: Tensor, reference: Tensor, kind: Kind) -> Line:
    """The largest error of one tensor against its tolerance."""
    if ours.shape != reference.shape:
        return Line(name, float("inf"), 0.0, f"shape {tuple(ours.shape)}, the reference has {tuple(reference.shape)}")
    largest = float(reference.double().abs().max()) if reference.numel() else 0.0
    tolerance = {"output": 1e-5 * max(1.0, largest), "grad": 1e-4 * largest + 1e-7, "table": 1e-6 * largest}[kind]
    gap = (ours.detach().double().to(reference.device) - reference.double()).abs()
    error = float(gap.max()) if gap.numel() else 0.0
    finite = bool(torch.isfinite(gap).all())
    return Line(name, error if finite else float("inf"), tolerance, "" if finite else "not finite")


def check(path: Path) -> list[Line]:
    """All comparisons of one file. Raises GoldenError for a file that cannot be compared at all."""
    family = family_of(path)
    if family not in families():
        raise GoldenError(f"no comparison for the family {family!r}; there are {', '.join(families())} (tests/parity/<family>.py)")
    golden = Golden.read(path)
    lines = [measure(*comparison) for comparison in _compare(family)(golden)]
    compared = {line.name for line in lines}
    missed = [name for name in golden.references() if name not in compared]
    lines += [Line(name, float("inf"), 0.0, "not compared: this family's module does not know it") for name in missed]
    unread = sorted(set(golden.config) - golden.asked)
    if unread:
        print(f"  options not read: {', '.join(unread)}")
    return lines


def report(path: Path) -> bool:
    """Print a file's comparisons; whether all agree."""
    print(path)
    try:
        lines = check(path)
    except (GoldenError, ValueError, RuntimeError) as error:
        print(f"  FAILED: {path.name}: {error}")
        return False
    for line in lines:
        verdict = "ok  " if line.ok else "FAIL"
        print(
            f"  {verdict} {line.name:<52} error {line.error:9.2e}  tolerance {line.tolerance:8.2e}{'  ' + line.note if line.note else ''}"
        )
    bad = sum(not line.ok for line in lines)
    print(f"  {len(lines) - bad} of {len(lines)} agree")
    return bad == 0 and bool(lines)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--device"] and len(arguments) > 1:
        torch.set_default_device(arguments[1])  # where files are read to and models are built
        arguments = arguments[2:]
    if not arguments:
        print("usage: python tests/parity/check.py [--device cuda] FILE...", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    agree = [report(Path(argument)) for argument in arguments]  # every file is reported, also after a failure
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
