"""What became of every tensor of a file that others wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tubelet.nn.video import VideoEncoder

Status = Literal["loaded", "reshaped", "missing", "unexpected", "unused"]
Given = Mapping[str, tuple[Sequence[str], Tensor]]  # our name within the encoder -> (the file's names, the tensor as ours is laid out)


@dataclass(frozen=True)
class Line:
    """One tensor: its name in the file, its shape and dtype there, and those of the parameter that it became. None = there is none.

    ``status``: loaded as it is | reshaped: other numbers, for cubes of another length | missing: of the encoder, left at its random
    start | unexpected: a name that this family does not have | unused: of a part that an encoder lacks (decoder, head).
    """

    name: str
    status: Status
    shape: tuple[int, ...] | None = None
    here: tuple[int, ...] | None = None
    dtype: str | None = None
    dtype_here: str | None = None


@dataclass(frozen=True)
class Report:
    """What became of every tensor, by the file's names without wrapper prefixes. ``notes``: what was made to fit."""

    layout: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def names(self, *status: Status) -> tuple[str, ...]:
        """Of the tensors with one of these fates, in the file's order."""
        return tuple(line.name for line in self.lines if line.status in status)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Everything that the encoder took, reshaped or not."""
        return self.names("loaded", "reshaped")

    @property
    def missing(self) -> tuple[str, ...]:
        return self.names("missing")

    @property
    def unexpected(self) -> tuple[str, ...]:
        return self.names("unexpected")

    @property
    def unused(self) -> tuple[str, ...]:
        return self.names("unused")

    @property
    def reshaped(self) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
        """(name, the file's shape, ours)."""
        return tuple((line.name, line.shape or (), line.here or ()) for line in self.lines if line.status == "reshaped")

    @property
    def converted(self) -> dict[str, int]:
        """How many loaded tensors were stored in another type: type -> count."""
        return dict(Counter(str(line.dtype) for line in self.lines if line.dtype_here is not None and line.dtype != line.dtype_here))

    def table(self) -> str:
        """A line for every tensor: status, name, shape and type there -> here."""
        width = max((len(line.name) for line in self.lines), default=0)
        rows = []
        for line in self.lines:
            there = "" if line.shape is None else f"{by(line.shape)} {line.dtype}"
            here = "" if line.here is None else f" -> {by(line.here)} {line.dtype_here}"
            rows.append(f"{line.status:<10}  {line.name:<{width}}  {there}{here}".rstrip())
        return "\n".join(rows)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors of the encoder loaded", *self.notes]
        parts += [f"{count} tensors converted from {dtype}" for dtype, count in self.converted.items()]
        if self.unused:
            parts.append(f"{len(self.unused)} not used ({', '.join(sorted({name.split('.')[0] for name in self.unused}))})")
        if self.missing:
            parts.append(f"{len(self.missing)} missing and left random ({some(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unknown ({some(self.unexpected)})")
        return f"{self.layout}: {'; '.join(parts)}"


def lines_of(
    state: Mapping[str, Tensor],
    given: Given,
    encoder: VideoEncoder,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    unused: Iterable[str] = (),
    reshaped: Iterable[str] = (),
    random: bool = False,
) -> tuple[Line, ...]:
    """The lines of a report. ``given``: what the encoder takes (nothing, where it is ``random``). ``reshaped``: our names of those whose
    numbers changed."""
    own, changed = encoder.state_dict(), set(reshaped)
    lines = []
    for ours, (names, _) in () if random else given.items():
        status: Status = "reshaped" if ours in changed else "loaded"
        lines += [_line(state, name, status, own[ours]) for name in names]
    lines += [Line(name, "missing") for name in missing]
    lines += [_line(state, name, "unexpected") for name in unexpected]
    return (*lines, *(_line(state, name, "unused") for name in unused))


def _line(state: Mapping[str, Tensor], name: str, status: Status, here: Tensor | None = None) -> Line:
    there = state[name]
    known = () if here is None else (tuple(here.shape), _type(there), _type(here))
    return Line(name, status, tuple(there.shape), *known) if known else Line(name, status, tuple(there.shape), dtype=_type(there))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def some(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by(shape: Sequence[int]) -> str:
    """``8x14x14``."""
    return "x".join(map(str, shape)) or "scalar"
