"""The items of a prepared set: what index/items.jsonl says, as rows of a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tubelet.data.manifest import ALIASES, Entry
from tubelet.data.prepared.index import Home, check_shards, forget, index_sizes, read_head
from tubelet.data.prepared.layout import BAD, HEAD, INDEX
from tubelet.errors import DataError

ITEMS = "items.jsonl"


@dataclass(frozen=True)
class Items:
    """``entries``: one for each item, its key as path. ``origins``: their numbers. ``classes``: all class names that the sources had.
    ``notes``: what is not there."""

    entries: list[Entry]
    origins: list[int]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def read_items(name: str, read: Callable[[str], bytes | None]) -> Items:
    """The items of the set at a folder or URL, after a check of its head, index and shards. ``read``: path in the set -> content, None
    where there is no such file. Raises DataError."""
    place = Home(name)
    forget(place.name)
    head = read(HEAD)
    if head is None:
        raise DataError(f"{name}: holds no {HEAD}, so it is no prepared set")
    about = read_head(place, head)
    index_sizes(place)
    check_shards(place, about)
    text = read(f"{INDEX}/{ITEMS}")
    if text is None:
        raise DataError(f"{name}: its index lacks {ITEMS}; write the index with: tubelet prepare {name} --merge")
    entries, origins = [], []
    for number, line in enumerate(text.splitlines(), 1):
        entry, origin = _entry(line, number, f"{name}/{INDEX}/{ITEMS}, line {number}")
        entries.append(entry)
        origins.append(origin)
    if not entries:
        raise DataError(f"{name}: no item of its sources could be prepared; {BAD} says why")
    return Items(entries, origins, tuple(about.get("classes") or ()), _notes(name, read(BAD)))


def _entry(line: bytes, number: int, where: str) -> tuple[Entry, int]:
    try:
        item: dict[str, Any] = json.loads(line)
        columns = {str(k): str(v) for k, v in (item.get("columns") or {}).items()}
        lower = {k.lower(): v for k, v in reversed(columns.items())}
        split = next((lower[alias] for alias in ALIASES["split"] if alias in lower), None)
        entry = Entry(item["key"], number, item.get("label"), item.get("start"), item.get("end"), split or None, columns)
        return entry, int(item["origin"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: not an item of a prepared set; write the index again with: tubelet prepare OUT --merge") from None


def _notes(name: str, bad: bytes | None) -> tuple[str, ...]:
    if bad is None:
        return ()
    count = sum(bool(line.strip()) and not line.startswith(b"#") for line in bad.splitlines())
    return (f"{name}: {count} items are absent because they could not be prepared; {BAD} says why",) if count else ()
