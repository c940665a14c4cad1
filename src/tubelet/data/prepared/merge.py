"""From the journals of all parts to the index, the manifest and the head: after this a set can be read."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.exclude import list_keys
from tubelet.data.prepared.alone import alone
from tubelet.data.prepared.journal import read_journal
from tubelet.data.prepared.layout import BAD, FORMAT, HEAD, INDEX, MANIFEST, ORIGIN, PACKET, PIECE, SHARDS, SIDE
from tubelet.data.prepared.make import WORK, told, write_whole
from tubelet.errors import DataError


@dataclass(frozen=True)
class Made:
    """What a set holds. ``bad``: (key, reason) of items without any frame; ``partial``: of those that lack some."""

    items: int
    origins: int
    pieces: int
    frames: int
    seconds: float
    bytes: int
    shards: int
    bad: tuple[tuple[str, str], ...]
    partial: tuple[tuple[str, str], ...]


def merge(out: Path, sources: str = "") -> Made:
    """Write the index of a set whose parts are all done. Raises DataError naming those that are missing, or where no item could be
    prepared: then there is only the list of bad ones."""
    with told(out):
        about = _begun(out)
        with alone(out / WORK / "set.lock"):
            return _merge(out, about, sources)


def _merge(out: Path, about: dict[str, Any], sources: str) -> Made:
    problems, damage = _problems(out, int(about["parts"]))
    pieces, shards = _pieces(out)
    items = [json.loads(line) for line in (out / WORK / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    classes, items = items[0]["classes"], items[1:]
    rows = _arrays(out, pieces)
    known = {int(origin) for origin in {p["origin"] for p in pieces}}
    numbers = {origin: i for i, origin in enumerate(sorted(known))}
    good = [i for i in items if i["origin"] in known and _covered(i, rows[i["origin"]])]
    kept = {i["key"] for i in good}
    bad = [(i["key"], problems.get(i["origin"]) or _nothing(i)) for i in items if i["key"] not in kept]
    partial = [(i["key"], text) for i in good if (text := problems.get(i["origin"]) or _cut_short(i, damage))]
    lines = [json.dumps({**i, "origin": numbers[i["origin"]]}, ensure_ascii=True) for i in sorted(good, key=lambda i: i["key"])]
    write_whole(out / INDEX / "items.jsonl", "".join(line + "\n" for line in lines))
    write_whole(out / MANIFEST, "".join(json.dumps(_shown(p), ensure_ascii=False) + "\n" for p in pieces))
    title = f"tubelet prepare: {len(bad)} of {len(items)} items could not be prepared; use: --exclude @{BAD}"
    write_whole(out / BAD, list_keys(bad, title))
    if not good:
        (out / HEAD).unlink(missing_ok=True)
        raise DataError(f"none of the {len(bad)} items could be prepared, {bad[0][0]} for example: {bad[0][1]}; {out / BAD} lists them all")
    listed = [{"name": path.name, "bytes": size} for path, size in shards]
    made = Made(
        items=len(good),
        origins=len(known),
        pieces=len(pieces),
        frames=sum(p["frames"] for p in pieces),
        seconds=sum(p["end"] - p["start"] for p in pieces),
        bytes=sum(size for _, size in shards),
        shards=len(shards),
        bad=tuple(bad),
        partial=tuple(partial),
    )
    head = {
        "format": FORMAT,
        "tubelet": version("tubelet"),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": sources or _before(out).get("sources", ""),
        "settings": about["settings"],
        "table": about["table"],
        "classes": classes,
        "items": made.items,
        "origins": made.origins,
        "pieces": made.pieces,
        "frames": made.frames,
        "seconds": round(made.seconds, 3),
        "bad": len(bad),
        "partial": [list(p) for p in partial],
        "shards": listed,
    }
    write_whole(out / HEAD, json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    return made


def _begun(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / WORK / "set.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{out}: holds nothing that tubelet prepare has begun ({WORK}/set.json is missing)") from None


def _before(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / HEAD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _nothing(item: dict[str, Any]) -> str:
    """Why nothing is there of an item whose video could be prepared."""
    end = "its end" if item["end"] is None else f"{item['end']:g} s"
    return f"no frame of the video lies between {item['start'] or 0:g} s and {end}"


def _cut_short(item: dict[str, Any], damage: dict[int, tuple[str, float]]) -> str | None:
    """What is missing of an item that reaches the place where its file is damaged."""
    text, end = damage.get(item["origin"], (None, 0.0))
    return None if text is None or (item["end"] is not None and item["end"] <= end) else text


def _problems(out: Path, parts: int) -> tuple[dict[int, str], dict[int, tuple[str, float]]]:
    """Why frames of an origin are missing, and (what, seconds) is missing at the end of damaged ones. Raises DataError where parts are not
    done."""
    found: dict[int, str] = {}
    damage: dict[int, tuple[str, float]] = {}
    missing = []
    for number in range(1, parts + 1):
        path = out / WORK / f"done-{number}.json"
        if not path.exists():
            missing.append(number)
            continue
        noted = json.loads(path.read_text(encoding="utf-8"))
        found |= {int(n): text for n, text in noted["problems"].items()}
        damage |= {int(n): (text, end) for n, (text, end) in noted["damage"].items()}
    if missing:
        shown = ", ".join(f"{n}/{parts}" for n in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise DataError(f"{out}: {len(missing)} of {parts} parts are not done: --part {shown}")
    last: dict[tuple[int, int], str | None] = {}  # of a task that was tried again the last try counts
    for path in sorted((out / SHARDS).glob("*.jsonl")):
        for line in read_journal(path)[0]:
            if "done" in line:
                last[line["done"][0], line["done"][1]] = line["problem"]
            elif line.get("problem"):  # of a piece that was finished before the run was killed, too
                found.setdefault(line["origin"], line["problem"])
    for (origin, _), problem in last.items():
        if problem:
            found.setdefault(origin, problem)
    return found, damage


def _pieces(out: Path) -> tuple[list[dict[str, Any]], list[tuple[Path, int]]]:
    """All pieces in the order of origins and time, each with its ``shard``; the shards and their bytes. Raises DataError."""
    pieces: list[dict[str, Any]] = []
    shards: list[tuple[Path, int]] = []
    for path in sorted((out / SHARDS).glob("*.jsonl")):
        lines, closed = read_journal(path)
        here = [line for line in lines if "key" in line]
        tar = path.with_suffix(".tar")
        if closed is None or not tar.exists() or tar.stat().st_size != closed:
            raise DataError(f"{tar}: is not finished, or not all of it is here; run the same tubelet prepare again, or copy it again")
        if here:
            pieces += [{**line, "shard": len(shards), "file": tar.name} for line in here]
            shards.append((tar, closed))
    return sorted(pieces, key=lambda p: (p["origin"], p["number"])), shards


def _arrays(out: Path, pieces: list[dict[str, Any]]) -> dict[int, list[np.ndarray]]:
    """Write the arrays of the index; the times of every origin's pieces."""
    (out / INDEX).mkdir(exist_ok=True)
    setups: dict[str, int] = {}
    numbers: dict[int, int] = {}
    origins: list[tuple[int, int, int, int]] = []
    table = np.zeros(len(pieces), PIECE)
    times: defaultdict[int, list[np.ndarray]] = defaultdict(list)
    frame = 0
    for i, p in enumerate(pieces):
        if p["origin"] not in numbers:
            numbers[p["origin"]] = len(origins)
            origins.append((i, 0, *p["source"]))
        first, count, *size = origins[-1]
        origins[-1] = (first, count + 1, *size)  # type: ignore[assignment]  # two sides
        setup = setups.setdefault(p["setup"], len(setups))
        place = (p["shard"], p["offset"], p["bytes"], frame, p["frames"], p["number"])
        table[i] = (numbers[p["origin"]], *place, setup, p["height"], p["width"])
        times[p["origin"]].append(np.array(p["times"], np.float64))
        frame += p["frames"]
    packets = np.array([tuple(row) for p in pieces for row in p["packets"]], PACKET)
    flat = np.concatenate([t for parts in times.values() for t in parts]) if pieces else np.zeros(0)
    arrays = {"origins": np.array(origins, ORIGIN), "pieces": table, "packets": packets, "times": flat}
    for name in sorted({name for p in pieces for name in p["side"]}):
        rows = [tuple(p["side"].get(name, (0, 0))) for p in pieces]
        arrays[f"side-{name.rpartition('.')[0]}"] = np.array(rows, SIDE)
    for name, array in arrays.items():
        _save(out / INDEX / f"{name}.npy", array)
    write_whole(out / INDEX / "extradata.json", json.dumps(list(setups)))
    assert all(base64.b64decode(s) for s in setups)
    return times


def _save(path: Path, array: np.ndarray) -> None:
    with io.BytesIO() as memory:
        np.save(memory, array)
        write_whole(path, memory.getvalue())


def _covered(item: dict[str, Any], times: list[np.ndarray]) -> bool:
    """Whether frames of an item are there."""
    start = -np.inf if item["start"] is None else item["start"] - 1e-6
    end = np.inf if item["end"] is None else item["end"] - 1e-6
    return any(bool(((t >= start) & (t < end)).any()) for t in times)


def _shown(piece: dict[str, Any]) -> dict[str, Any]:
    """A line of the manifest."""
    first = ("key", "file", "start", "end", "frames", "fps", "height", "width", "rotation", "sound", "sha256")
    hidden = {"packets", "setup", "times", "origin", "number", "shard", "offset", "bytes", "side", "end_of_entry", "source", "items"}
    hidden.add("problem")
    line = {("shard" if k == "file" else k): piece[k] for k in first}
    line["seconds"] = round(piece["end"] - piece["start"], 6)
    line |= {k: v for k, v in piece.items() if k not in hidden and k not in first}
    return {**line, "items": [i["key"] for i in piece["items"]]}
