"""Sources -> one indexed table: folders, class folders, manifests, lists, single files, local or behind an fsspec URL."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tubelet.config import did_you_mean
from tubelet.data.exclude import Exclusion
from tubelet.data.manifest import IMAGE, LIST, MANIFEST, VIDEO, Entry, decode_text, parse, suffix
from tubelet.data.places import Place, is_url, open_place
from tubelet.data.prepared.layout import BEGUN, HEAD
from tubelet.data.prepared.paths import is_prepared, item_path, split_path
from tubelet.data.table import Kind, Row, Table
from tubelet.errors import DataError

if TYPE_CHECKING:
    from tubelet.data.settings import DataSettings

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
Images = Literal["ignore", "items", "frames"]


def open_table(
    sources: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    labels: str = "auto",
    images: Images = "ignore",
    exclude: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    missing: Literal["refuse", "keep"] = "refuse",
) -> Table:
    """One table of all items of the sources, sorted by key.

    A source is a folder (searched to the bottom), a prepared set (or one of its origins, ``OUT#17``), a manifest (.csv, .tsv, .jsonl
    with a header), a list (.txt, one path or ``path label`` a line), one file, or an fsspec URL of any of these. ``split``, ``labels``,
    ``images``: see DataSettings. ``exclude``: items to leave out: glob patterns of keys, or ``@FILE`` with keys (see
    :mod:`tubelet.data.exclude`). ``classes``: the class names to number by, default those of the whole source (before the split filter),
    sorted. ``missing``: what to do with files that a manifest names and that do not exist. Raises DataError for whatever cannot be used,
    naming the place.
    """
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise DataError("no data source given: name a folder, a manifest or a video")
    leave_out = Exclusion.read(exclude)
    ask = _Ask(split, labels, images)
    parts = [_read(_text(source), ask) for source in listed]
    rows = _unique_keys([part.rows for part in parts], [_text(s) for s in listed])
    kept = [r for r in rows if not leave_out.covers(r.key)]
    if not kept:
        raise DataError(f"exclude = {', '.join(exclude)} leaves no item of {len(rows)}")
    if missing == "refuse":
        _check_missing(kept, frozenset().union(*(part.missing for part in parts)))
    _check_duplicates(kept)
    notes = [note for part in parts for note in part.notes] + leave_out.notes([r.key for r in rows])
    return Table(sorted(kept, key=lambda r: r.key), _class_names(kept, parts, classes), notes)


def open_table_for(sources: str | Path | Sequence[str | Path], settings: DataSettings, *, classes: Sequence[str] | None = None) -> Table:
    """:func:`open_table` with the split, labels and images that the settings ask for."""
    return open_table(sources, split=settings.split, labels=settings.labels, images=settings.images, classes=classes)


@dataclass(frozen=True)
class _Ask:
    split: str | None
    labels: str
    images: Images


@dataclass(frozen=True)
class _Part:
    """What one source gave: rows of the wanted split, the class names of all its rows, and which paths do not exist."""

    rows: list[Row]
    names: frozenset[str]
    notes: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()


def _text(source: str | Path) -> str:
    return os.fspath(source)


def _read(source: str, ask: _Ask) -> _Part:
    one = split_path(source)
    if one is not None and is_prepared(source):
        return _prepared(open_place(one[0]), ask, one[1])
    place = open_place(source)
    if place.is_folder and place.has(HEAD):
        return _prepared(place, ask)
    if place.is_folder and place.has(BEGUN):
        raise DataError(
            f"{source}: a prepared set that is not finished: run the same tubelet prepare again or, when all its parts are done, "
            f"tubelet prepare {source} --merge"
        )
    if place.is_folder:
        return _folder(place, ask)
    kind = suffix(source)
    if kind in MANIFEST or kind in LIST:
        return _manifest(place, ask)
    if ask.split is not None:
        raise DataError(f"{source}: a single file has no split, but split = {ask.split!r} was asked for")
    if kind not in VIDEO | IMAGE:
        raise DataError(f"{source}: unknown kind of file {kind or '(no extension)'}; known are {_known()}; a manifest may name any file")
    return _Part(
        [Row(source, source.replace(os.sep, "/").rsplit("/", 1)[-1], "image" if kind in IMAGE else "video", where=source)], frozenset()
    )


def _known() -> str:
    return f"videos ({' '.join(sorted(VIDEO))}), pictures ({' '.join(sorted(IMAGE))}), {' '.join(MANIFEST + LIST)}"


def _folder(place: Place, ask: _Ask) -> _Part:
    found = sorted(place.find(), key=lambda f: f[1])
    videos = [f for f in found if suffix(f[1]) in VIDEO]
    pictures = [f for f in found if suffix(f[1]) in IMAGE]
    rows = [Row(path, key, where=path) for path, key in videos]
    if ask.images == "items":
        rows += [Row(path, key, "image", where=path) for path, key in pictures]
    elif ask.images == "frames":
        folders = {path.rsplit("/", 1)[0]: key.rpartition("/")[0] or "." for path, key in pictures}
        rows += [Row(path, key, "frames", where=path) for path, key in folders.items()]
    if not rows:
        hint = (
            f"; it holds {len(pictures)} pictures: set images = items (each one an item) or frames (each folder one clip)"
            if pictures
            else ""
        )
        raise DataError(f"{place.name} holds no video (looked in all sub-folders for {' '.join(sorted(VIDEO))}){hint}")
    notes = (f"{place.name}: {len(pictures)} pictures left out (images = ignore)",) if pictures and ask.images == "ignore" else ()
    first = {r.key.split("/")[0] if "/" in r.key else "" for r in rows}
    depth = 1 if first <= SPLITS else 0
    labelled = _folder_labels(rows, depth, ask, place.name)
    manifests = [name for name in ("manifest.csv", "manifest.jsonl") if place.has(name)]
    if ask.split is None:
        found = frozenset(r.label for r in labelled if r.label is not None)
        if manifests and not found and ask.labels != "none":
            notes += (f"{place.name} holds {manifests[0]}, which is not read: give that file to use its labels and splits",)
        return _Part(labelled, found, notes)
    names = frozenset(r.label for r in labelled if r.label is not None)
    inside = [r for r in labelled if r.key.startswith(ask.split + "/")]
    if not inside:
        there = sorted(first - {""})
        hint = f". Its splits may be in {manifests[0]}: give that file instead of the folder" if manifests else ""
        raise DataError(
            f"{place.name} has no sub-folder {ask.split!r}{did_you_mean(ask.split, there)}; it has {', '.join(there) or 'none'}{hint}"
        )
    return _Part(inside, names, notes)


def _prepared(place: Place, ask: _Ask, only: int | None = None) -> _Part:
    """A prepared set: the items that its sources had, but for those that could not be prepared. ``only``: those of this origin."""
    from tubelet.data.prepared.items import read_items

    found = read_items(place.name, place.read_in)
    where = [f"{place.name}, {e.path}" for e in found.entries]
    rows = [
        Row(item_path(place.name, origin), e.path, "prepared", e.start, e.end, None, w, e.columns)
        for e, origin, w in zip(found.entries, found.origins, where, strict=True)
    ]
    by_folder = not any(e.columns for e in found.entries)
    entries = found.entries
    if ask.labels not in ("auto", "none", "folder"):
        known = {name for e in entries for name in e.columns}
        if ask.labels not in known:
            near = did_you_mean(ask.labels, known)
            raise DataError(
                f"{place.name}: its items have no column {ask.labels!r} for the labels{near}; they have {', '.join(sorted(known))}"
            )
        entries = [replace(e, label=e.columns.get(ask.labels) or None) for e in entries]
    elif ask.labels == "folder" and by_folder:
        depth = 1 if {r.key.split("/")[0] if "/" in r.key else "" for r in rows} <= SPLITS else 0
        named = _folder_labels(rows, depth, ask, place.name)
        entries = [replace(e, label=r.label) for e, r in zip(entries, named, strict=True)]
        ask = replace(ask, labels="auto")
    if ask.split is not None and all(e.split is None for e in entries):
        entries = [replace(e, split=e.path.split("/")[0] if "/" in e.path else None) for e in entries]
    chosen, label = _chosen(entries, place.name, ask)
    kept = {e.line for e in chosen}
    rows = [replace(r, label=label(e)) for r, e in zip(rows, entries, strict=True) if e.line in kept]
    if only is not None:
        rows = [r for r in rows if r.path == item_path(place.name, only)]
        if not rows:
            raise DataError(f"{item_path(place.name, only)}: the set has no such origin, or none of the wanted split")
    names = frozenset(name for e in entries if (name := label(e)) is not None)
    return _Part(
        rows, names | frozenset(found.classes if ask.labels == "auto" and names else ()), found.notes + _held_out(place.name, ask, entries)
    )


def _folder_labels(rows: list[Row], depth: int, ask: _Ask, name: str) -> list[Row]:
    """Class folders: with ``auto`` only where every item lies in one of at least two sub-folders (below train/, test/ if there are)."""
    if ask.labels not in ("auto", "folder", "none"):
        raise DataError(f"{name} is a folder and has no column {ask.labels!r}; labels = folder takes the names of its sub-folders")
    if ask.split is not None and depth == 0:
        depth = 1
    parts = [r.key.split("/") for r in rows]
    names = [p[depth] if len(p) > depth + 1 else None for p in parts]
    if ask.labels == "none" or (ask.labels == "auto" and (None in names or len(set(names)) < 2)):
        return rows
    if None in names:
        bad = [r.key for r, n in zip(rows, names, strict=True) if n is None]
        raise DataError(f"{name}: labels = folder, but {len(bad)} items lie in no class folder, e.g. {bad[0]}")
    return [replace(r, label=n) for r, n in zip(rows, names, strict=True)]


def _manifest(place: Place, ask: _Ask) -> _Part:
    column = ask.labels if ask.labels not in ("auto", "none", "folder") else None
    entries = parse(decode_text(place.read(), place.name), place.name, label_column=column)
    chosen, label = _chosen(entries, place.name, ask)
    paths = [place.resolve(e.path) for e in chosen]
    kinds, missing = _kinds_of(paths, [f"{place.name}, line {e.line}" for e in chosen])
    rows = [
        Row(path, _key(e), kind, e.start, e.end, label(e), f"{place.name}, line {e.line}", e.columns, place.resolve(""))
        for e, path, kind in zip(chosen, paths, kinds, strict=True)
    ]
    if any(e.columns.get("key") for e in chosen):
        _check_keys(rows)
    names = frozenset(name for e in entries if (name := label(e)) is not None)
    return _Part(rows, names, _held_out(place.name, ask, entries), missing)


def _chosen(entries: list[Entry], name: str, ask: _Ask) -> tuple[list[Entry], Callable[[Entry], str | None]]:
    """The entries of the wanted split, and what gives the label of an entry. Raises DataError where labels or the split are missing."""
    chosen = entries
    if ask.split is not None:
        counts = Counter(e.split for e in entries if e.split is not None)
        if not counts:
            raise DataError(f"{name} has no split column, but split = {ask.split!r} was asked for")
        chosen = [e for e in entries if e.split == ask.split]
        if not chosen:
            there = ", ".join(f"{value} ({n})" for value, n in sorted(counts.items()))
            raise DataError(f"{name}: no row has split = {ask.split!r}{did_you_mean(ask.split, counts)}; there are {there}")

    def label(entry: Entry) -> str | None:
        if ask.labels == "none":
            return None
        return (
            entry.path.split("/")[-2] if ask.labels == "folder" and "/" in entry.path else None if ask.labels == "folder" else entry.label
        )

    without = [e.line for e in chosen if label(e) is None]
    if without and (len(without) < len(chosen) or ask.labels not in ("auto", "none")):
        lines = ", ".join(map(str, without[:5])) + (", ..." if len(without) > 5 else "")
        raise DataError(f"{name}: {len(without)} of {len(chosen)} rows have no label (line {lines}); fill them in, or set labels = none")
    return chosen, label


def _held_out(where: str, ask: _Ask, entries: list[Entry]) -> tuple[str, ...]:
    """A note where all splits are read together: scores on videos that the encoder has seen say less."""
    splits = Counter(e.split for e in entries if e.split)
    if ask.split is not None or len(splits) < 2 or not {s.lower() for s in splits} & SPLITS:
        return ()
    counts = ", ".join(f"{name} ({n})" for name, n in sorted(splits.items()))
    return (f"{where}: all splits are used: {counts}; data.split = {min(splits, key=lambda s: 'train' not in s.lower())} keeps to one",)


def _key(entry: Entry) -> str:
    """What the manifest's ``key`` column says, else the path as it is written, with the segment behind ``#``."""
    if entry.columns.get("key"):
        return entry.columns["key"]
    if entry.start is None and entry.end is None:
        return entry.path
    start, end = ("" if v is None else f"{v:.6f}".rstrip("0").rstrip(".") for v in (entry.start, entry.end))
    return f"{entry.path}#{start}-{end}"


def _check_keys(rows: list[Row]) -> None:
    """Raises DataError where a manifest's column ``key`` gives two items one name."""
    first: dict[str, Row] = {}
    for row in rows:
        if (other := first.setdefault(row.key, row)) is not row:
            raise DataError(
                f"{row.where}: the key {row.key!r} is that of {other.where} already; the column `key` names the items, each one otherwise: "
                "call the column something else if yours means something else"
            )


def _kinds_of(paths: list[str], where: list[str]) -> tuple[list[Kind], frozenset[str]]:
    """What the named files are, and which do not exist. Raises DataError for those that are no regular files. URLs are not looked up, but
    for those of prepared sets.

    Folders that hold many of them are listed once: a stat for each file takes minutes on a network file system.
    """
    crowd = Counter(os.path.dirname(p) for p in paths if not is_url(p))
    listing: dict[str, dict[str, Any]] = {}
    missing: set[str] = set()
    kinds: list[Kind] = []
    sets: dict[str, bool] = {}

    def in_a_set(path: str) -> bool:
        if (one := split_path(path)) is not None and one[0] not in sets:
            sets[one[0]] = is_prepared(path)
        return one is not None and sets[one[0]]

    for i, path in enumerate(paths):
        kind: Kind = "image" if suffix(path) in IMAGE else "video"
        folder, name = os.path.split(path)
        if is_url(path):
            kind = "prepared" if in_a_set(path) else kind
        else:
            if crowd[folder] >= 8 and folder not in listing:
                try:
                    with os.scandir(folder or ".") as entries:
                        listing[folder] = {e.name: e for e in entries}
                except OSError:
                    listing[folder] = {}
            entry = listing.get(folder, {}).get(name)
            if entry is not None and entry.is_file():
                pass
            elif os.path.isdir(path):
                kind = "frames"
            elif not os.path.exists(path):
                if in_a_set(path):
                    kind = "prepared"
                else:
                    missing.add(path)
            elif not os.path.isfile(path):
                raise DataError(f"{where[i]}: {path} is a pipe, socket or device; give a regular file")
        kinds.append(kind)
    return kinds, frozenset(missing)


def _unique_keys(parts: list[list[Row]], sources: list[str]) -> list[Row]:
    """All rows; where sources share keys, each key starts with its source's name (and number, if names repeat too)."""
    seen = Counter(key for rows in parts for key in {r.key for r in rows})
    if len(parts) == 1 or max(seen.values()) == 1:
        return [r for rows in parts for r in rows]
    names = [s.replace(os.sep, "/").rstrip("/").rsplit("/", 1)[-1] for s in sources]
    if len(set(names)) < len(names):
        names = [f"{i}-{name}" for i, name in enumerate(names)]
    return [replace(r, key=f"{name}/{r.key}") for name, rows in zip(names, parts, strict=True) for r in rows]


def _check_missing(rows: list[Row], missing: frozenset[str]) -> None:
    lost: dict[str, str] = {}
    for row in rows:
        if row.path in missing:
            lost.setdefault(row.path, row.where)
    if lost:
        first = [f"{where}: {path}" for path, where in list(lost.items())[:3]]
        more = "" if len(lost) <= 3 else f" and {len(lost) - 3} more"
        raise DataError(f"{len(lost)} files do not exist: {'; '.join(first)}{more}. Relative paths start at the manifest's folder")


def _check_duplicates(rows: list[Row]) -> None:
    first: dict[tuple[str, float | None, float | None], Row] = {}
    for row in rows:
        path = row.path if is_url(row.path) else os.path.normpath(os.path.abspath(row.path))
        other = first.setdefault((path, row.start, row.end), row)
        if other is not row:
            raise DataError(f"the same item twice: {row.key} ({other.where}; {row.where}); remove one, or give them different segments")


def _class_names(rows: list[Row], parts: list[_Part], given: Sequence[str] | None) -> list[str]:
    labelled = [r for r in rows if r.label is not None]
    if labelled and len(labelled) < len(rows):
        bad = next(r for r in rows if r.label is None)
        missing = f"{len(rows) - len(labelled)} of {len(rows)} items have no label"
        raise DataError(f"{missing}, e.g. {bad.key} ({bad.where}); set labels = none to ignore all labels")
    if not labelled:
        return list(given or ())
    names = frozenset().union(*(part.names for part in parts))
    if given is None:
        numbers = all(name.isdecimal() for name in names)
        return sorted(names, key=lambda n: (int(n), n) if numbers else (0, n))
    for row in labelled:
        if row.label not in given:
            raise DataError(
                f"{row.where or row.key}: label {row.label!r} is not one of the {len(given)} classes{did_you_mean(str(row.label), given)}"
            )
    return list(given)
