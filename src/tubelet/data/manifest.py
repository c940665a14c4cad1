"""Manifests (CSV, TSV, JSONL with named columns) and plain lists of paths, read into rows with line numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tubelet.config import did_you_mean
from tubelet.errors import DataError

VIDEO = frozenset(
    [
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".m2ts", ".mts", ".wmv", ".asf", ".flv", ".f4v"),
        *(
            ".3gp",
            ".3g2",
            ".ogv",
            ".ogg",
            ".vob",
            ".mxf",
            ".gif",
            ".h264",
            ".264",
            ".hevc",
            ".h265",
            ".265",
            ".ivf",
            ".y4m",
            ".divx",
            ".dv",
        ),
        *(".rm", ".rmvb"),
    ]
)
IMAGE = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])
MANIFEST = (".csv", ".tsv", ".jsonl")
LIST = (".txt", ".lst")
SHOWN = 10  # wrong lines that are told at once
ALIASES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "video", "video_path", "clip"),
    "label": ("label", "class", "action", "category", "label_name", "class_name"),
    "start": ("start", "start_time", "start_seconds", "t_start"),
    "end": ("end", "end_time", "end_seconds", "t_end"),
    "split": ("split", "subset", "partition"),
    "caption": ("caption", "text", "sentence", "description"),
}


@dataclass(frozen=True)
class Entry:
    """One line of a manifest or list. ``columns``: everything it says, under the names it uses."""

    path: str
    line: int
    label: str | None = None
    start: float | None = None
    end: float | None = None
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


def suffix(path: str) -> str:
    """The lower-case extension with its dot, of a path or URL."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name[1:] else ""


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 text. Raises DataError naming the line of the first byte that is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{where}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x}); save the file as UTF-8") from None


def parse(text: str, where: str, *, label_column: str | None = None) -> list[Entry]:
    """The entries of a manifest or list. ``label_column``: take labels from this column. Raises DataError with the line."""
    kind = suffix(where)
    if "\0" in text:
        raise DataError(f"{where} holds zero bytes: it is not a text file")
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise DataError(f"{where} is empty")
    if kind in LIST or (kind != ".jsonl" and _is_list_line(first)):
        return list(_list_entries(text))
    records = _jsonl(text, where) if kind == ".jsonl" else _csv(text, where, "\t" if kind == ".tsv" else ",")
    return _entries(list(records), where, label_column)


def _is_list_line(line: str) -> bool:
    """Whether a file with a manifest's extension is a list without header: its first line starts with a media path."""
    return suffix(_split_line(line)[0]) in VIDEO | IMAGE


def _split_line(line: str) -> tuple[str, str | None]:
    """(path, label) of a list line: ``path``, ``path label`` or ``path number ... number``, whose last number is the label (-1 = none)."""
    line = line.strip()
    if suffix(line) in VIDEO | IMAGE:
        return line, None
    numbers = re.fullmatch(r"(.*?)[,\s]\s*((?:-?\d+[,\s]+)*)(-?\d+)", line)
    if numbers and numbers[1]:
        return numbers[1].strip(), None if numbers[3] == "-1" else numbers[3]
    for pattern in (r"(.+?)\s*,\s*(.+)", r"(.+?)\s+(\S+)"):
        match = re.fullmatch(pattern, line)
        if match and suffix(match[1]) in VIDEO | IMAGE:
            return match[1], match[2]
    return line, None


def _list_entries(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            path, label = _split_line(line)
            yield Entry(path, number, label)


def _csv(text: str, where: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if len(set(header)) != len(header):
            raise DataError(f"{where}, line 1: column names repeat: {', '.join(header)}")
        for values in reader:
            if not any(v.strip() for v in values):
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{where}, line {reader.line_num}: {len(values)} fields, the header has {len(header)}; quote fields that hold a comma"
                )
            yield reader.line_num, {k: v.strip() for k, v in zip(header, values, strict=True)}
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: not readable as CSV: {error}") from None


def _jsonl(text: str, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}, line {number}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f'{where}, line {number}: must be an object such as {{"path": "a.mp4"}}, found {type(record).__name__}')
        yield number, {str(k): "" if v is None else v if isinstance(v, str) else json.dumps(v) for k, v in record.items()}


def _find(columns: list[str], role: str) -> str | None:
    """The column that plays a role; upper and lower case count as the same."""
    lower = {c.lower(): c for c in reversed(columns)}
    return next((lower[alias] for alias in ALIASES[role] if alias in lower), None)


def _entries(records: list[tuple[int, dict[str, str]]], where: str, label_column: str | None) -> list[Entry]:
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    if not records:
        raise DataError(f"{where} has a header but no rows")
    path, label, split = _find(columns, "path"), _find(columns, "label"), _find(columns, "split")
    if path is None:
        close = next((hint for name in columns if (hint := did_you_mean(name.lower(), ALIASES["path"]))), "")
        raise DataError(f"{where} has no column that names the file{close}; it has {', '.join(columns)}; call the column 'path'")
    if label_column is not None:
        if label_column not in columns:
            raise DataError(
                f"{where} has no column {label_column!r} for the labels{did_you_mean(label_column, columns)}; it has {', '.join(columns)}"
            )
        label = label_column
    start, end = _find(columns, "start"), _find(columns, "end")
    caption = _find(columns, "caption")
    out: list[Entry] = []
    wrong: list[str] = []
    for number, record in records:
        try:
            a, b = _span(record, path, start, end)
        except ValueError as error:
            wrong.append(f"{where}, line {number}: {error}")
            continue
        rest = {k: v for k, v in record.items() if k not in (path, start, end)}
        if caption is not None:
            rest["caption"] = record.get(caption, "")
        out.append(Entry(record[path], number, _value(record, label), a, b, _value(record, split), rest))
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more lines" if len(wrong) > SHOWN else ""
        raise DataError("\n  ".join(wrong[:SHOWN]) + more)
    return out


def _span(record: dict[str, str], path: str, start: str | None, end: str | None) -> tuple[float | None, float | None]:
    """Seconds of a row's segment. Raises ValueError for a row that cannot be used."""
    if not record.get(path):
        raise ValueError(f"no file in column {path!r}")
    a, b = (_seconds(record, name) for name in (start, end))
    if a is not None and b is not None and a >= b:
        raise ValueError(f"start {a:g} is not before end {b:g}")
    return a, b


def _value(record: dict[str, str], column: str | None) -> str | None:
    return (record.get(column) or None) if column is not None else None


def _seconds(record: dict[str, str], column: str | None) -> float | None:
    text = _value(record, column)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{column} must be seconds from the start of the video, 0 or more, got {text!r}")
    return value
