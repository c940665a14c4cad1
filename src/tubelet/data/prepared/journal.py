"""Shards that grow: what is in the journal is in the tar, whatever happens in between."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.data.prepared.encode import Encoded
from tubelet.data.prepared.layout import SHARDS
from tubelet.errors import DataError

_END = bytes(1024)  # two empty blocks


class Shards:
    """The shards of one part of a set. A piece counts once its journal line is on the disk; what a killed run left behind it is cut off.

    ``pieces``: (origin, number) of those that are there. ``done``: (origin, number) of the tasks that are, with what went wrong; a task
    whose process was lost is not, for another try may go well.
    """

    def __init__(self, out: Path, prefix: str, limit: int) -> None:
        self.folder, self.prefix, self.limit = out / SHARDS, prefix, limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pieces: set[tuple[int, int]] = set()
        self.done: dict[tuple[int, int], str | None] = {}
        self._open_files: tuple[Any, Any] | None = None  # of the shard that grows: the tar and its journal
        self._count = 0
        names = sorted(p for p in self.folder.glob(f"{prefix}*.jsonl"))
        for path in names:
            lines, closed = read_journal(path)
            self.pieces |= {(line["origin"], line["number"]) for line in lines if "key" in line}
            self.done |= {(line["done"][0], line["done"][1]): line["problem"] for line in lines if "done" in line and not line.get("lost")}
            self._count += 1
            if not closed:
                if path != names[-1]:
                    raise DataError(f"{path}: this shard was never finished, and later ones exist; remove {out} and prepare it again")
                self._continue(path, lines)

    def _continue(self, path: Path, lines: list[dict[str, Any]]) -> None:
        end = max((line["end_of_entry"] for line in lines if "key" in line), default=0)
        tar = path.with_suffix(".tar")
        size = tar.stat().st_size if tar.exists() else 0
        if size < end:
            raise DataError(f"{tar}: has {size:,} of the {end:,} bytes in its journal; remove it and {path.name}, and run again")
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)  # a line that was cut off goes
        self._open(path)
        self._tar.truncate(end)
        self._tar.seek(end)

    def _open(self, path: Path) -> None:
        tar = path.with_suffix(".tar")
        mode = "r+b" if tar.exists() else "w+b"
        self._open_files = (open(tar, mode), open(path, "a", encoding="utf-8"))  # noqa: SIM115 - open as long as the shard grows
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the names of new files, too, must outlast a power cut
        finally:
            os.close(folder)

    def _next(self) -> None:
        """Begin a shard where none grows."""
        if not self._growing:
            self._open(self.folder / f"{self.prefix}{self._count:05d}.jsonl")
            self._count += 1

    def add(self, piece: Encoded, columns: Mapping[str, Any]) -> int:
        """Append a piece; its bytes in the tar. ``columns``: what its .json says besides. Read back from the tar before it counts."""
        if self._growing and self._tar.tell() >= self.limit:  # not sooner: what is done with its last piece belongs to its journal
            self.close()
        self._next()
        key = piece.about["key"]
        shown = {k: v for k, v in piece.about.items() if k not in ("packets", "setup", "times", "origin", "number", "problem")}
        members = {"mp4": piece.video, "json": json.dumps({**shown, **columns}, ensure_ascii=False).encode(), **piece.side}
        begin, places = self._tar.tell(), {}
        for name, data in members.items():
            places[name] = [self._write(f"{key}.{name}", data), len(data)]
        end = self._tar.tell()
        self._tar.flush()
        os.fsync(self._tar.fileno())
        offset = places["mp4"][0]
        if hashlib.sha256(os.pread(self._tar.fileno(), len(piece.video), offset)).hexdigest() != piece.about["sha256"]:
            raise DataError(f"{self._tar.name}: what was written at {offset:,} reads back differently; the disk is damaged")
        side = {name: place for name, place in places.items() if name not in ("mp4", "json")}
        self._note({**piece.about, **columns, "offset": offset, "side": side, "end_of_entry": end})
        self.pieces.add((piece.about["origin"], piece.about["number"]))
        return end - begin

    def finish(self, origin: int, number: int, problem: str | None, *, lost: bool = False) -> None:
        """A task is done, or its process was ``lost``."""
        self._next()
        self._note({"done": [origin, number], "problem": problem, "lost": lost})

    @property
    def _growing(self) -> bool:
        return self._open_files is not None

    @property
    def _tar(self) -> Any:
        assert self._open_files is not None
        return self._open_files[0]

    def _write(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        head = info.tobuf(tarfile.PAX_FORMAT)
        self._tar.write(head)
        at = self._tar.tell()
        self._tar.write(data)
        self._tar.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return at

    def _note(self, line: Mapping[str, Any]) -> None:
        assert self._open_files is not None
        journal = self._open_files[1]
        journal.write(json.dumps(line, separators=(",", ":")) + "\n")
        journal.flush()
        os.fsync(journal.fileno())

    def close(self) -> None:
        """Finish the shard that grows."""
        if not self._growing:
            return
        self._tar.write(_END)
        self._tar.flush()
        os.fsync(self._tar.fileno())
        self._note({"closed": self._tar.tell()})
        self.leave()

    def leave(self) -> None:
        """Let go of the files; a shard that is not closed is continued by the next run."""
        for file in self._open_files or ():
            with contextlib.suppress(OSError):  # of a full disk, which has been told
                file.close()
        self._open_files = None


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The whole lines of a journal, and the size of its shard if it was closed. A last line that was cut off does not count.

    Raises DataError for a damaged one.
    """
    lines: list[dict[str, Any]] = []
    data = path.read_bytes()
    for raw in io.BytesIO(data):
        if not raw.endswith(b"\n"):
            break
        try:
            lines.append(json.loads(raw))
        except ValueError:
            raise DataError(f"{path}, line {len(lines) + 1}: damaged; remove the set and prepare it again") from None
    closed = next((line["closed"] for line in lines if "closed" in line), None)
    return lines, closed
