"""The indexed table of items: compact columns, sorted, the same on every machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from tubelet.config import did_you_mean
from tubelet.errors import DataError

Kind = Literal["video", "image", "frames", "prepared"]
KINDS: tuple[Kind, ...] = ("video", "image", "frames", "prepared")


class Strings(Sequence[str]):
    """Many strings in two arrays: no object per string, so processes that fork share them and pickling is quick."""

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [v.encode("utf-8", "surrogateescape") for v in values]
        self._end = np.cumsum([len(v) for v in encoded], dtype=np.int64) if encoded else np.zeros(0, np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._end)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._end[index - 1]) if index else 0
        return self._bytes[start : self._end[index]].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # compares by content like a list

    def digest(self) -> bytes:
        """16 bytes that identify the content."""
        return hashlib.blake2b(self._end.tobytes() + self._bytes.tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Item:
    """One video, segment, picture or folder of frames, or what a prepared set holds of it.

    ``path``: local path or URL; of a prepared set with the number of the origin, ``OUT#17``. ``start``, ``end``: seconds of a segment,
    None = open. ``label``: index into the table's classes, -1 = none.
    """

    path: str
    kind: Kind
    start: float | None
    end: float | None
    key: str
    label: int


@dataclass(frozen=True)
class Row:
    """An item on its way into a table. ``where``: file and line for messages. ``label``: the class name. ``folder``: what relative paths
    in its other columns start with."""

    path: str
    key: str
    kind: Kind = "video"
    start: float | None = None
    end: float | None = None
    label: str | None = None
    where: str = ""
    extra: Mapping[str, str] | None = None
    folder: str = ""


class Table:
    """Items in a fixed order (sorted by key). Immutable; made by :func:`tubelet.data.source.open_table`.

    ``keys``: unique names. ``labels``: (n,) int64, -1 = none. ``classes``: sorted names, () = unlabelled. ``extra``: a manifest's
    other columns. ``notes``: what a user may want to know about how the table came about.
    """

    def __init__(self, rows: Sequence[Row], classes: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
        index = {name: i for i, name in enumerate(classes)}
        self.paths = Strings(r.path for r in rows)
        self.keys: Sequence[str] = Strings(r.key for r in rows)
        self.kinds = np.array([KINDS.index(r.kind) for r in rows], np.uint8)
        self.spans = np.array([[math.nan if v is None else v for v in (r.start, r.end)] for r in rows], np.float64).reshape(-1, 2)
        self.labels = np.array([-1 if r.label is None else index[r.label] for r in rows], np.int64)
        self.classes = tuple(classes)
        names = sorted({name for r in rows for name in (r.extra or {})})
        self.extra: dict[str, Sequence[str]] = {name: Strings((r.extra or {}).get(name, "") for r in rows) for name in names}
        self.notes = tuple(notes)
        folders = sorted({r.folder for r in rows})
        number = {folder: i for i, folder in enumerate(folders)}
        self._folders, self._folder = tuple(folders), np.array([number[r.folder] for r in rows], np.uint32)

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, row: int) -> Item:
        """One row, 0-based."""
        start, end = (None if math.isnan(v) else float(v) for v in self.spans[row])
        return Item(self.paths[row], KINDS[self.kinds[row]], start, end, self.keys[row], int(self.labels[row]))

    def folder(self, row: int) -> str:
        """What relative paths in an item's other columns start with: the manifest's folder with a slash, or nothing."""
        return self._folders[self._folder[row]]

    def groups(self, column: str) -> dict[str, str]:
        """Key -> what a manifest's other column says: a film, a person. Raises DataError where the column is missing or empty."""
        found = self.extra.get(column, ())
        if not any(found):
            near = did_you_mean(column, list(self.extra))
            raise DataError(
                f"groups: the items have no column {column!r}{near}, or nothing in it; they have {', '.join(self.extra) or 'none'}"
            )
        return dict(zip(self.keys, found, strict=True))

    def rows(self) -> list[Row]:
        """All rows, from which :class:`Table` makes an equal table."""
        out = []
        for i in range(len(self)):
            item = self.item(i)
            label = self.classes[item.label] if item.label >= 0 else None
            extra = {name: column[i] for name, column in self.extra.items()}
            out.append(Row(item.path, item.key, item.kind, item.start, item.end, label, "", extra, self.folder(i)))
        return out

    def select(self, rows: Sequence[int] | np.ndarray) -> Table:
        """A subset in the given order, with the same classes."""
        everything = self.rows()
        return Table([everything[int(i)] for i in rows], self.classes, self.notes)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the items: their number and a hash of keys, segments and labels. Not of file contents or places."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (Strings(self.keys).digest(), self.spans.tobytes(), self.labels.tobytes(), Strings(self.classes).digest()):
            digest.update(part)
        return {"items": len(self), "hash": digest.hexdigest()}
