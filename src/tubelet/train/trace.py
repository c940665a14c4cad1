"""Where a step stops being finite: watches every module and every gradient of one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Spot:
    """The first module whose output is not finite. ``bad`` of ``total`` values; ``input_finite``: what it was given was sound, so that it
    happened here; ``input_largest``: the largest magnitude of that."""

    name: str
    kind: str
    bad: int
    total: int
    input_finite: bool
    input_largest: float

    def __str__(self) -> str:
        given = f"finite, up to {self.input_largest:.3g}" if self.input_finite else "not finite either"
        where = f"{self.name or 'the model itself'} ({self.kind})"
        return f"{where}: {self.bad} of {self.total} values of its output are not finite; its input was {given}"


def floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of an argument or result: in tuples, mappings and dataclasses such as Tokens, too."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from floats(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from floats(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from floats(getattr(value, field.name))


def not_finite(value: Any) -> tuple[int, int]:
    """(values that are not finite, all values)."""
    counts = [(int((~torch.isfinite(t)).sum()), t.numel()) for t in floats(value)]
    return sum(bad for bad, _ in counts), sum(n for _, n in counts)


class Trace:
    """Watches a model while it is a context. ``module``: the first in order of the forward pass, innermost first, None = all finite.
    ``parameter``: the first whose gradient is not finite, in order of the backward pass, from the loss to the input. ``norms``: of every
    parameter's gradient as it was last."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.module: Spot | None = None
        self.parameter: str | None = None
        self.norms: dict[str, float] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Trace:
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_hook(self._forward(name), with_kwargs=True))
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                self._handles.append(p.register_post_accumulate_grad_hook(self._backward(name)))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.module is not None:
                return
            bad, total = not_finite(output)
            if bad:
                given = [t.detach() for t in floats((args, kwargs)) if t.numel()]
                largest = max((float(t.abs().max()) for t in given), default=0.0)
                self.module = Spot(name, type(module).__name__, bad, total, not_finite(given)[0] == 0, largest)

        return look

    def _backward(self, name: str) -> Any:
        def look(p: Tensor) -> None:
            assert p.grad is not None
            norm = float(torch.linalg.vector_norm(p.grad.float()))
            self.norms[name] = norm
            if self.parameter is None and not bool(torch.isfinite(p.grad).all()):
                self.parameter = name

        return look
