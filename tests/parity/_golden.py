"""One golden file: tensors of a reference implementation and, as metadata, the options it ran with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Kind = Literal["output", "grad", "table"]
Comparison = tuple[str, Tensor, Tensor, Kind]  # name, ours, reference, which tolerance


class GoldenError(ValueError):
    """A file that cannot be compared: unreadable, or without what the comparison needs."""


@dataclass
class Golden:
    """``tensors`` and ``metadata`` of a file; options that were asked for are remembered, so that the others can be named."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    asked: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Raises GoldenError for a file that is missing or no safetensors file."""
        try:
            with safe_open(path, "pt", device=str(torch.get_default_device())) as file:
                return cls(path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise GoldenError(f"cannot read it: {error}") from None

    @property
    def config(self) -> dict[str, Any]:
        """The options of the reference run."""
        try:
            return json.loads(self.metadata["config"])
        except (KeyError, ValueError):
            raise GoldenError("its metadata holds no readable 'config'") from None

    def option(self, name: str, *default: Any) -> Any:
        """An option by name. Raises GoldenError where it is missing and has no default."""
        self.asked.add(name)
        if name not in self.config and not default:
            raise GoldenError(f"its config has no option {name!r}")
        return self.config.get(name, *default)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix/``, by the rest of their names."""
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(prefix + "/")}

    def need(self, name: str) -> Tensor:
        """A tensor by name. Raises GoldenError where it is missing."""
        if name not in self.tensors:
            raise GoldenError(f"it has no tensor {name!r}")
        return self.tensors[name]

    def references(self) -> list[str]:
        """What an implementation has to answer for: every tensor that is no input and no weight, and tables kept as metadata."""
        given = re.compile(r"(\w+_)?(weight|input)/")
        tables = [f"metadata/{key}" for key in self.metadata if key.startswith("layer_decay")]
        return sorted(name for name in self.tensors if not given.match(name)) + tables


def numbers(text: str) -> dict[str, float]:
    """``name=number`` pairs of a line such as "cosine_scheduler(base=1e-3, epochs=10)"."""
    return {name: float(value) for name, value in re.findall(r"(\w+)=([-+.\deE]+)", text)}


def first(ours: Tensor, reference: Tensor) -> Tensor:
    """Ours cut to as many samples as a reference kept."""
    return ours[: reference.shape[0]]


def named(references: dict[str, Tensor], pattern: str) -> Iterator[tuple[str, Tensor, tuple[str, ...]]]:
    """(name, reference, captured groups) of every reference whose whole name matches."""
    for name, value in references.items():
        if match := re.fullmatch(pattern, name):
            yield name, value, match.groups()
