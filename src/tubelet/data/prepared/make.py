"""From a table of videos to a prepared set: plan, encode in many processes, write; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tubelet.config import differences
from tubelet.data.guarded import Lost, run_guarded
from tubelet.data.prepared.alone import alone
from tubelet.data.prepared.encode import Answer, encode_task
from tubelet.data.prepared.journal import Shards
from tubelet.data.prepared.layout import FORMAT
from tubelet.data.prepared.options import PrepareSettings
from tubelet.data.prepared.plan import Origin, Survey, Task, origins_of, patience, survey, tasks_of
from tubelet.data.table import Table
from tubelet.errors import ConfigError, DataError

Engine = Literal["processes", "ray"]
Progress = Callable[[str, int, int], None]
WORK = "work"  # in the set's folder: what is needed until it is merged
BITS = 0.28  # a pixel at the default quality, measured on action clips; still scenes take 0.1, noise 0.5
GROWN = 2.0  # what re-encoding can make of a file that was small for its pixels
FRAME, PIECE = 50, 3000  # bytes in journal and index, and around the frames of a piece
SOUND = 128_000  # bits a second
REMOTE = 2**34  # bytes that a file behind a URL may have before its size is known
SLOWEST = 3.0  # frames a second: a task that encodes more slowly counts as stuck


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 1) of ``count``."""

    number: int = 1
    count: int = 1

    @staticmethod
    def read(text: str) -> Part:
        """``3/16``. Raises ConfigError."""
        left, slash, right = text.partition("/")
        if not (slash and left.isdigit() and right.isdigit() and 1 <= int(left) <= int(right) <= 9999):
            raise ConfigError(f"part must be i/n with 1 <= i <= n, such as 3/16, got {text!r}")
        return Part(int(left), int(right))

    @property
    def prefix(self) -> str:
        """Of the names of its shards."""
        return "" if self.count == 1 else f"{self.number:04d}-"


@dataclass
class Job:
    """One part of a set, being made. ``say(text)``: what a user wants to know before it takes long."""

    table: Table
    out: Path
    settings: PrepareSettings
    part: Part
    workers: int
    timeout: float
    engine: Engine = "processes"
    progress: Progress = lambda doing, done, total: None
    say: Callable[[str], None] = lambda text: None

    def run(self) -> None:
        """Plan and encode what is not there yet. Raises DataError, ConfigError."""
        origins = origins_of(self.table)
        self._claim(len(origins))
        what = "it" if self.part.count == 1 else f"part {self.part.number}/{self.part.count} of it"
        busy = f"{self.out}: another process is preparing {what}; wait for it, or end it and run the same command again"
        with told(self.out), alone(self.out / WORK / f"part-{self.part.number}.lock", busy):
            self._make([o for o in origins if o.number % self.part.count == self.part.number - 1])

    def _make(self, mine: list[Origin]) -> None:
        with told(self.out):
            shards = Shards(self.out, self.part.prefix, self.settings.shard_mib * 2**20)
            try:
                found = self._plan(mine, {origin for origin, _ in shards.pieces})
                tasks = [t for o in mine if found[o.number].problem is None for t in tasks_of(o, found[o.number], self._maps(o))]
                self._encode(tasks, shards, found)
                shards.close()
            finally:
                shards.leave()
            problems = {str(n): s.problem for n, s in found.items() if s.problem}
            damage = {str(n): [s.damage, s.end] for n, s in found.items() if s.damage}
            self._note("done", {"problems": problems, "damage": damage})

    def _claim(self, origins: int) -> None:
        """Make the folder ours: new or empty, or a set of the same videos and settings that can be continued."""
        mine = {"format": FORMAT, "settings": self.settings.model_dump(mode="json"), "parts": self.part.count}
        mine |= {"table": self.table.fingerprint(), "origins": origins}
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"{self.out} is a file; name a folder for the prepared set")
        file, items = self.out / WORK / "set.json", self.out / WORK / "items.jsonl"
        with told(self.out):
            strangers = sorted(p.name for p in self.out.iterdir() if p.name != WORK) if self.out.is_dir() else []
            if strangers and not file.exists():
                raise DataError(f"{self.out} holds other files ({strangers[0]} ...); name a new or an empty folder")
            with alone(self.out / WORK / "set.lock"):  # parts may begin at the same moment
                if not file.exists():
                    write_whole(items, items_text(self.table))
                    write_whole(file, json.dumps(mine, indent=1) + "\n")
            theirs = json.loads(file.read_text(encoding="utf-8"))
            before = items.read_text(encoding="utf-8")
        if changed := differences(theirs, json.loads(json.dumps(mine))):
            listed = "\n".join(f"  - {path}: the set has {old!r}, this call {new!r}" for path, old, new in changed)
            raise DataError(f"{self.out} was begun with other settings or videos:\n{listed}\nGive the old ones, or name another folder.")
        if (other := _first_other(before, items_text(self.table))) is not None:
            raise DataError(
                f"{self.out} was begun with another place or other columns of some videos, the first of them {other}; give the table as it "
                "was, or name another folder"
            )

    def _note(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.out / WORK / f"{name}-{self.part.number}.json", json.dumps(content) + "\n")

    def _plan(self, origins: Sequence[Origin], begun: set[int]) -> dict[int, Survey]:
        """What is in every source; what an earlier call found in a file that has not changed is taken from it. ``begun``: the origins of
        which there are pieces. Raises DataError where one of those has changed."""
        path = self.out / WORK / f"plan-{self.part.number}.jsonl"
        earlier = _earlier(path, origins)
        found = {o.number: earlier[o.number][1] for o in origins if o.number in earlier and earlier[o.number][0] == _stamp(o.path)}
        todo = [o for o in origins if o.number not in found]
        self.progress("looking", len(found), len(origins))
        look = partial(_survey, todo, self.settings.piece_seconds, self.timeout)
        remote, changed = any("://" in o.path for o in todo), []
        largest = REMOTE if remote else max((stamp[0] for o in todo if (stamp := _stamp(o.path))), default=0)
        limit = 2 * patience(self.timeout, largest) + 60  # only a decoder that hangs is not stopped by its own clock
        with told(self.out), open(path, "a", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")  # behind a line that was cut off
            for i, answer in run_guarded(look, range(len(todo)), workers=self.workers, limit=limit, remote=remote):
                origin = todo[i]
                now, stamp = Survey(problem=answer.reason) if isinstance(answer, Lost) else answer, _stamp(origin.path)
                found[origin.number] = now
                old = earlier.get(origin.number)
                if origin.number in begun and old is not None and (stamp is None or old[0][0] != stamp[0] or old[1] != now):
                    changed.append(origin.path)
                    continue
                file.write(json.dumps({"origin": origin.number, "stamp": stamp, **asdict(now)}, separators=(",", ":")) + "\n")
                file.flush()
                self.progress("looking", len(found), len(origins))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise DataError(
                f"{self.out}: {', '.join(sorted(changed)[:3])}{more} changed after some of it was prepared; put the old file back, or name "
                "another folder"
            )
        return found

    def _encode(self, tasks: list[Task], shards: Shards, found: dict[int, Survey]) -> None:
        todo, frames, total = [], 0, sum(t.frames for t in tasks)
        for task in tasks:
            if (task.origin.number, task.cuts[0][0]) in shards.done:
                frames += task.frames
                continue
            left = tuple(cut for cut in task.cuts if (task.origin.number, cut[0]) not in shards.pieces)
            todo.append((task, replace(task, cuts=left, begun=left != task.cuts)))
        self._announce(tasks, sum(t.frames for _, t in todo), found)
        self.progress("encoding", frames, total)
        for i, answer in self._answers([task for _, task in todo]):
            whole, _ = todo[i]
            if lost := isinstance(answer, Lost):
                answer = Answer([], answer.reason)
            for piece in answer.pieces:
                shards.add(piece, self._columns(whole.origin, piece.about))
            shards.finish(whole.origin.number, whole.cuts[0][0], answer.problem, lost=lost)
            frames += whole.frames
            self.progress("encoding", frames, total)

    def _answers(self, tasks: list[Task]) -> Iterable[tuple[int, Answer | Lost]]:
        limit = self.timeout + max((t.frames for t in tasks), default=0) / SLOWEST
        if self.engine == "ray":
            from tubelet.data.prepared.on_ray import run_on_ray

            return run_on_ray(tasks, self.settings, limit)
        work = partial(_work, tasks, self.settings, limit)
        remote = any("://" in t.origin.path for t in tasks)
        return run_guarded(work, range(len(tasks)), workers=self.workers, limit=limit + 60, remote=remote)

    def _announce(self, tasks: list[Task], left: int, found: dict[int, Survey]) -> None:
        """Say what it will take; refuse where that does not fit on the disk. Raises DataError."""
        need, quality = 0.0, 2 ** ((22 - self.settings.crf) / 6)
        for task in {t.origin.number: t for t in tasks}.values():
            s, stamp = found[task.origin.number], _stamp(task.origin.path)
            scale = min(1.0, self.settings.size / max(1, min(s.height, s.width)))
            picture = s.frames * s.height * s.width * scale**2 * BITS / 8 * quality
            most = GROWN * stamp[0] * max(1.0, quality) if stamp else picture
            need += min(picture, most) + FRAME * s.frames + PIECE * len(s.cuts) + (SOUND / 8 * s.seconds if self.settings.audio else 0)
        total = sum(s.frames for s in found.values())
        need *= left / max(1, total)
        free = shutil.disk_usage(self.out).free
        pieces = sum(len(t.cuts) for t in tasks)
        self.say(f"{total:,} frames of {len(found):,} videos in {pieces:,} pieces; {left:,} frames to encode, about {need / 1e9:.2g} GB "
                 f"({free / 1e9:.3g} GB free)")  # fmt: skip
        if need > free:
            raise DataError(
                f"{self.out}: about {need / 1e9:.2g} GB are needed and {free / 1e9:.2g} GB are free; take a smaller size, a higher crf, "
                "or another disk"
            )

    def _maps(self, origin: Origin) -> list[tuple[str, str]]:
        out = []
        for name in self.settings.maps:
            if name not in self.table.extra:
                raise DataError(f"maps: the videos have no column {name!r}; there are {', '.join(self.table.extra) or 'none'}")
            values = {self.table.extra[name][row] for row in origin.rows} - {""}
            out += [(name, value) for value in sorted(values)[:1]]
        return out

    def _columns(self, origin: Origin, about: dict[str, Any]) -> dict[str, Any]:
        """What a piece's .json says of the items that it belongs to."""
        items = []
        for row in origin.rows:
            item = self.table.item(row)
            if (item.end is None or about["start"] < item.end) and (item.start is None or about["end"] > item.start):
                items.append({"key": item.key, "start": item.start, "end": item.end, **columns_of(self.table, row)})
        same = (
            {k: v for k, v in items[0].items() if k not in ("key", "start", "end") and all(i.get(k) == v for i in items)} if items else {}
        )
        return {"items": items, **{k: v for k, v in same.items() if k not in about}}


def columns_of(table: Table, row: int) -> dict[str, str]:
    """An item's label and its other columns that are not empty."""
    label = int(table.labels[row])
    named = {"label": table.classes[label]} if label >= 0 else {}
    return {**{name: values[row] for name, values in table.extra.items() if values[row]}, **named}


def items_text(table: Table) -> str:
    """The rows of a table, one JSON object a line, as the index holds them."""
    numbers = {o.path: o.number for o in origins_of(table)}
    lines = []
    for row in table.rows():
        line = {"key": row.key, "start": row.start, "end": row.end, "label": row.label, "origin": numbers[row.path]}
        lines.append(json.dumps({**line, "columns": dict(row.extra or {})}, ensure_ascii=True))
    return "\n".join([json.dumps({"classes": list(table.classes)}), *lines]) + "\n"


def _first_other(before: str, now: str) -> str | None:
    """The key of the first row in which two tables differ."""
    for a, b in zip(before.splitlines(), now.splitlines(), strict=False):
        if a != b:
            return str(json.loads(b).get("key", "its classes"))
    return None


def write_whole(path: Path, content: str | bytes) -> None:
    """A file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def told(out: Path) -> Iterator[None]:
    """Errors of the file system in plain words."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space" if full else f"{error.strerror or error}; make it writable"
        where = error.filename or out
        raise DataError(f"{where}: cannot write: {what} and run the same command again, finished pieces are kept") from None


def _survey(origins: Sequence[Origin], piece_seconds: float, timeout: float, i: int) -> Survey:
    return survey(origins[i], piece_seconds=piece_seconds, timeout=timeout)


def _work(tasks: Sequence[Task], settings: PrepareSettings, timeout: float, i: int) -> Answer:
    return encode_task(tasks[i], settings, timeout)


def _stamp(path: str) -> list[int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns]


def _earlier(path: Path, origins: Sequence[Origin]) -> dict[int, tuple[list[int], Survey]]:
    """(size and time of change, what was found) of the files that earlier calls could read; others are looked at again."""
    known = {o.number for o in origins}
    found: dict[int, tuple[list[int], Survey]] = {}
    for number, line in _lines(path) if path.exists() else ():
        stamp, line["cuts"] = line.pop("stamp"), tuple((a, b) for a, b in line["cuts"])
        if number in known and stamp is not None and line["problem"] is None:
            found[number] = stamp, Survey(**line)
    return found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            yield line.pop("origin"), line
        except (ValueError, KeyError):
            continue  # cut off when a run was killed
