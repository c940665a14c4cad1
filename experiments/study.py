"""A study: many measurements that build on each other, as one queue that can be stopped, continued, and shared by several processes.

``python experiments/run.py NAME`` works through the entries of a study, the most valuable first. An entry that is done is a file in
experiments/results/NAME/; one that another process has in hand is passed over; one whose needs are not there yet waits for them.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from claims import HERE, RESULTS

from tubelet.errors import TubeletError

WORK = Path(os.environ.get("TUBELET_STUDY", HERE.parent / "runs" / "study"))  # runs and manifests: hundreds of MB, not committed
Found = Mapping[str, Any]


class Stopped(Exception):
    """A signal asked an entry to stop; it is not done, and goes on at the next call."""


@dataclass(frozen=True)
class Entry:
    """``minutes``: declared cost on one core, or on the GPU. ``needs``: entries that must be done before. ``measure``: what the needed
    entries found, by name -> what this one found, plain data. ``what``: one line for lists."""

    name: str
    what: str
    minutes: float
    measure: Callable[[Mapping[str, Found]], Found]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """``entries`` in the order of their value. ``device``: cpu or cuda."""

    name: str
    about: str
    entries: Sequence[Entry]
    device: str = "cpu"

    def path(self, name: str) -> Path:
        """Where an entry's result is kept."""
        return RESULTS / self.name / f"{name.replace('/', '-')}.json"

    def result(self, name: str) -> dict[str, Any] | None:
        """What an entry found, with ``minutes``, ``machine``, ``torch`` and ``date``; None while it is not done."""
        path = self.path(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def run(self, only: Sequence[str] = ("*",), again: bool = False) -> None:
        """Everything that is open, matches one of the patterns ``only`` and is not in another process's hands."""
        if self.device == "cuda" and not torch.cuda.is_available():
            print(f"{self.name} needs a GPU; nothing was run")
            return
        chosen = [e for e in self.entries if any(fnmatch(e.name, pattern) for pattern in only)]
        if again:
            self._forget(chosen)
        failed: set[str] = set()
        try:
            while self._next([e for e in chosen if e.name not in failed], failed):
                pass
        except Stopped as stopped:
            print(f"stopped by {stopped}; what was in hand goes on at the next call", flush=True)
            return
        for e in chosen:
            if self.result(e.name) is None:
                waits = [n for n in e.needs if self.result(n) is None]
                print(
                    f"open: {e.name}" + (f", which needs {', '.join(waits)}" if waits else ", which failed or another process has in hand")
                )

    def _forget(self, chosen: Sequence[Entry]) -> None:
        """Results and runs of entries, and of all that was built on them."""
        gone: set[str] = set()
        names = {e.name for e in chosen}
        while names - gone:
            gone |= names
            names |= {e.name for e in self.entries if gone & set(e.needs)}
        for name in sorted(gone):
            self.path(name).unlink(missing_ok=True)
            for folder in (WORK / self.name).glob(f"{name.replace('/', '-')}*"):
                shutil.rmtree(folder)
        print(f"forgotten: {', '.join(sorted(gone))}", flush=True)

    def _next(self, chosen: Sequence[Entry], failed: set[str]) -> bool:
        """Do the first entry that can be done; False where there is none. One that fails is said, and left for the next call."""
        for entry in chosen:
            if self.result(entry.name) is not None:
                continue
            needed = {name: self.result(name) for name in entry.needs}
            if any(found is None for found in needed.values()):
                continue
            with _held(entry.name, self.name) as mine:
                if not mine or self.result(entry.name) is not None:
                    continue
                try:
                    self._measure(entry, {name: found for name, found in needed.items() if found is not None})
                except TubeletError as error:
                    print(f"{entry.name} failed: {error}", flush=True)
                    failed.add(entry.name)
                return True
        return False

    def _measure(self, entry: Entry, needed: Mapping[str, Found]) -> None:
        print(f"{entry.name}: {entry.what} (about {entry.minutes:g} minutes)", flush=True)
        began, busy = time.monotonic(), time.process_time()
        found = dict(entry.measure(needed))
        found |= {
            "minutes": round((time.monotonic() - began) / 60, 2),
            "cpu_minutes": round((time.process_time() - busy) / 60, 2),
            "machine": machine(),
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        } | {key: found[key] for key in ("minutes", "cpu_minutes") if key in found}  # fmt: skip
        path = self.path(entry.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        print(f"{entry.name}: done in {found['minutes']} minutes", flush=True)


@contextmanager
def _held(name: str, study: str) -> Iterator[bool]:
    """Whether an entry is this process's for the length of the block; a process that dies lets go of it."""
    path = WORK / study / "locks" / f"{name.replace('/', '-')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def machine() -> str:
    """In words."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
