"""What captioning writes: a journal of what is done, and the manifest in the place of the sources."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tubelet.data.captions import COLUMN
from tubelet.data.manifest import ALIASES, parse
from tubelet.data.source import SPLITS
from tubelet.data.table import Table
from tubelet.errors import CheckpointError, ConfigError, DataError

OWN = ("path", "key", "label", "start", "end", "split", COLUMN)
BEFORE = "caption_before"


class Journal:
    """What is done, line by line, beside the manifest that is to be: ``.NAME.part.jsonl``. Its first line says how. A context manager.

    ``done``: key -> sentences. ``about``: what the sentences depend on; a journal of something else is refused, and begun anew with
    ``overwrite``. Raises ConfigError for that, CheckpointError for a damaged journal and where it cannot be written.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path, self.about = out.with_name(f".{out.name}.part.jsonl"), dict(about)
        self.done: dict[str, list[str]] = {}
        self._overwrite = overwrite
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            begun = self._read()
            self._file = open(self.path, "ab" if begun else "wb")
            if not begun:
                self._write(self.about)
        except OSError as error:
            raise self._explained(error) from None
        return self

    def _read(self) -> bool:
        """Whether there is a journal to go on with; what it holds is then done, and a line that was cut off is gone."""
        if not self.path.exists():
            return False
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            changed = [name for name in {**self.about, **lines[0]} if lines[0].get(name) != self.about.get(name)] if lines else []
            self.done = {str(line["key"]): [str(text) for text in line["captions"]] for line in lines[1:]}
        except (ValueError, KeyError, TypeError, AttributeError):
            if self._overwrite:
                return False
            raise CheckpointError(f"{self.path} is damaged; remove it, or use --overwrite, to begin anew") from None
        if changed and not self._overwrite:
            was = ", ".join(
                f"another {name}" if name == "model" else "other sources" if name == "sources" else f"{name} = {lines[0].get(name)}"
                for name in changed
            )
            raise ConfigError(
                f"{self.path} is of a call that was stopped, with {was}: say the same to go on ({len(self.done)} videos are done), "
                "--overwrite to begin anew, or another --out"
            )
        if changed or not lines:
            self.done = {}
            return False
        os.truncate(self.path, len(whole))
        return True

    def add(self, key: str, captions: Sequence[str]) -> None:
        """Kept from now on, whatever happens. Raises CheckpointError where the disk is full; what was there before stays."""
        try:
            self._write({"key": key, "captions": list(captions)})
        except OSError as error:
            raise self._explained(error) from None
        self.done[key] = list(captions)

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _explained(self, error: OSError) -> CheckpointError:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk is full ({shutil.disk_usage(self.path.parent).free / 2**20:.0f} MiB free)"
        kept = f"; {len(self.done)} videos are done: run the same command again when that is mended" if self.done else ""
        return CheckpointError(f"cannot write {self.path}: {why}{kept}")

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a full disk, which has been told
            if self._file is not None:
                self._file.close()

    def remove(self) -> None:
        """The manifest is there."""
        self.path.unlink(missing_ok=True)


def manifest(
    table: Table, captions: Mapping[str, Sequence[str]], out: Path, *, captioned: Collection[str], split: str | None, labels: bool
) -> str:
    """The items of a table as CSV, in its order, with what is said of them.

    ``captions``: key -> sentences; ``captioned``: keys of the items that were to be captioned: those without sentences get an empty
    field, all others keep the captions that they have. ``split``: of the captioned items, where the sources name none. ``labels``: the
    table's labels are all that there is to say about them. Captions that are replaced move to ``caption_before``. Raises DataError for
    names that a CSV file cannot hold.
    """
    before = table.extra.get(COLUMN, [""] * len(table))
    replaced = any(before[row] and key in captions for row, key in enumerate(table.keys))
    splits = _splits(table, captioned, split)
    absent = [] if labels and table.classes else ["label"]
    absent += [] if any(splits) else ["split"]
    own = [name for name in OWN if name not in absent]
    others = {name: _moved(column, table, out) for name, column in table.extra.items() if name not in own}
    more = [BEFORE] * replaced + list(others)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns := list(dict.fromkeys(own + more)))
    for row, key in enumerate(table.keys):
        item = table.item(row)
        values = {BEFORE: before[row] if key in captions else ""} | {name: column[row] for name, column in others.items()}
        values |= {"path": _path(item.path, out), "key": key, "start": _seconds(item.start), "end": _seconds(item.end)}
        if "label" in own:
            values["label"] = table.classes[item.label]
        if "split" in own:
            values["split"] = splits[row]
        values[COLUMN] = json.dumps(list(captions[key]), ensure_ascii=False) if key in captions else "" if key in captioned else before[row]
        writer.writerow([values[name] for name in columns])
    return _readable(text.getvalue(), table, out)


def _moved(column: Sequence[str], table: Table, out: Path) -> Sequence[str]:
    """A column's values; where they name files (score maps ...) beside the old manifest, as the new one's folder sees them."""
    first = next(((row, value) for row, value in enumerate(column) if value), None)
    if first is None or not _names_file(first[1], table.folder(first[0])):
        return column
    folders = [table.folder(row) for row in range(len(table))]
    return [_path(folder + value, out) if _names_file(value, folder) else value for value, folder in zip(column, folders, strict=True)]


def _names_file(value: str, folder: str) -> bool:
    """Whether a value is the path of a file, relative to a folder."""
    local = value and not os.path.isabs(value) and "://" not in folder + value and "\0" not in value and len(value) < 1000
    return bool(local) and os.path.isfile(folder + value)


def _splits(table: Table, captioned: Collection[str], split: str | None) -> list[str]:
    """Of every item: what its manifest says, else the split that was asked for, else the first folder of its key, where all have one that
    is called like a split; "" = none."""
    column = next((table.extra[name] for alias in ALIASES["split"] for name in table.extra if name.lower() == alias), None)
    folders = [key.split("/")[0] if "/" in key else "" for key in table.keys]
    if column is None:
        column = folders if set(folders) <= SPLITS and not table.extra else [""] * len(table)
    return [value or (split if split is not None and key in captioned else "") for value, key in zip(column, table.keys, strict=True)]


def _readable(text: str, table: Table, out: Path) -> str:
    """The text, once it is sure that it says what it should: no names were changed by writing and reading them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        bad = next(key for row, key in enumerate(table.keys) if any(0xD800 <= ord(c) < 0xE000 for c in key + table.paths[row]))
        raise DataError(f"{bad!a}: its name is not UTF-8 text, so that no manifest can hold it; rename the file") from None
    for row, entry in enumerate(parse(text, out.name)):
        path, key = _path(table.paths[row], out), table.keys[row]
        if (entry.path, entry.columns["key"]) != (path, key):
            raise DataError(f"{key!r}: a manifest cannot hold its name (blanks at its ends, line breaks ...); rename the file")
    return text


def _seconds(value: float | None) -> str:
    return "" if value is None else repr(value)


def _path(path: str, out: Path) -> str:
    """As the manifest's folder sees it: relative where the file lies below it."""
    if "://" in path:
        return path
    whole, folder = os.path.abspath(path), os.path.join(os.path.abspath(out.parent), "")
    return whole.removeprefix(folder).replace(os.sep, "/") if whole.startswith(folder) else whole
