"""What an experiment is: a claim of a paper, what is expected of it at a size that fits here, and how to measure it for one seed.

Every other file of this folder with a ``CLAIM`` is one. ``python experiments/run.py NAME`` measures it, ``python experiments/table.py``
writes the page of all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """``paper`` and ``claim``: what is said, and where. ``expected``: what must come out here, in numbers, fixed before measuring.
    ``measure``: seed -> figures. ``holds``: the figures of all seeds -> whether it did. ``shown``: figures for the table, with how to print
    them. ``minutes``: declared cost of one seed on one core. ``device``: cpu, or what it needs instead. ``note``: written after
    measuring: how to read what came out."""

    paper: str
    claim: str
    expected: str
    measure: Callable[[int], Figures]
    holds: Callable[[Sequence[Figures]], bool]
    shown: Mapping[str, str]
    minutes: float
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    note: str = ""


def mean(figures: Sequence[Figures], name: str) -> float:
    """Over the seeds."""
    return sum(f[name] for f in figures) / len(figures)


def load(name: str) -> ModuleType:
    """The module of an experiment. Raises SystemExit for a name that there is not."""
    path = HERE / f"{name}.py"
    known = [*names(), *studies()]
    if name not in known:
        sys.exit(f"no experiment {name!r}; there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def names() -> list[str]:
    """All experiments with a claim."""
    return sorted(p.stem for p in HERE.glob("*.py") if "\nCLAIM = " in p.read_text(encoding="utf-8"))


def studies() -> list[str]:
    """All experiments that are a queue of entries."""
    return sorted(p.stem for p in HERE.glob("*.py") if "\nSTUDY = " in p.read_text(encoding="utf-8"))


def publish(page: Path, text: str, about: str | None) -> None:
    """Write a page that is made from results; with ``--check`` on the command line, fail if it is not what stands there."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    if not parser.parse_args().check:
        page.write_text(text, encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        sys.exit(f"docs/{page.name} is not what python experiments/{Path(sys.argv[0]).name} writes")
