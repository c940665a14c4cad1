"""Which items a source leaves out: patterns of keys, and files that list keys letter by letter (``@bad.txt``)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tubelet.errors import DataError


@dataclass(frozen=True)
class Exclusion:
    """What ``exclude`` asks for, its files read. ``listed``: for each file its name and the keys it names."""

    patterns: tuple[str, ...] = ()
    listed: tuple[tuple[str, frozenset[str]], ...] = ()

    @classmethod
    def read(cls, exclude: Sequence[str]) -> Exclusion:
        """``@FILE`` is a file of keys, anything else a glob pattern. Raises DataError for a file that cannot be used."""
        patterns = tuple(e for e in exclude if not e.startswith("@"))
        return cls(patterns, tuple((e, read_keys(e[1:])) for e in exclude if e.startswith("@")))

    def covers(self, key: str) -> bool:
        """Whether an item is left out."""
        return any(key in keys for _, keys in self.listed) or any(fnmatch(key, pattern) for pattern in self.patterns)

    def notes(self, keys: Collection[str]) -> list[str]:
        """What a user may want to know of the files, given the keys of all items."""
        out = []
        for name, listed in self.listed:
            if unknown := sorted(listed - set(keys)):
                few = ", ".join(key if key.isprintable() else repr(key) for key in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
                out.append(f"exclude {name}: {len(unknown)} of its {len(listed)} keys name no item here: {few}")
            elif not listed:
                out.append(f"exclude {name}: it names no item, so nothing is left out by it")
        return out


def read_keys(path: str) -> frozenset[str]:
    """The keys that a file names: a list as :func:`list_keys` writes it, or JSON lines with ``key`` such as a run's bad_videos.jsonl.

    A list that holds only comments names nothing. Raises DataError for a file that is missing, empty or no such list.
    """
    where = f"exclude @{path}"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{where}: {reason}; give a file that tubelet check --bad wrote, or a run's bad_videos.jsonl") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None
    lines = [(number, line.rstrip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{where}: the file is empty; a list without keys holds at least a comment line (# ...)")
    if path.lower().endswith(".jsonl"):
        return frozenset(_records(lines, where))
    return frozenset(_unquoted(line, f"{where}, line {number}") for number, line in lines if not line.startswith("#"))


def _records(lines: Sequence[tuple[int, str]], where: str) -> Iterable[str]:
    for number, line in lines:
        try:
            key = json.loads(line)["key"]
        except (ValueError, KeyError, TypeError):
            if number == lines[-1][0] and number > lines[0][0]:
                return  # a run that was killed leaves its last line half written
            key = None
        if not isinstance(key, str):
            raise DataError(f'{where}, line {number}: must be an object with a key, such as {{"key": "a.mp4"}}')
        yield key


def _unquoted(line: str, where: str) -> str:
    if not line.startswith('"'):
        return line
    try:
        key = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: a line that begins with a quote must be a JSON string: {error}") from None
    return key


def list_keys(items: Iterable[tuple[str, str]], head: str) -> str:
    """The text of a list: ``head`` and each item's reason as comment lines, one key a line, all ASCII where a key is no plain text."""
    lines = [f"# {head}"]
    for key, reason in items:
        lines += [f"# {' '.join(reason.split())}", key if _is_plain(key) else json.dumps(key)]
    return "\n".join(lines) + "\n"


def _is_plain(key: str) -> bool:
    """Whether a key can stand on a line as it is; others are written as JSON strings."""
    return key == key.strip() and key.isprintable() and not key.startswith(("#", '"'))
