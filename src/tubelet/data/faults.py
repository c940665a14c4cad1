"""Videos that cannot be read: counted, written down once, and too many of them stop the run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.errors import DataError

MINIMUM = 20  # samples seen before a share of bad ones means anything


@dataclass(frozen=True)
class Fault:
    """Item ``row`` could not be read for ``sample``; ``first``: it is the item that the order asked for, not a replacement."""

    row: int
    key: str
    path: str
    reason: str
    sample: int
    first: bool


class BadVideos:
    """Counts over samples seen. ``file``: JSON lines with path, key, reason and sample, once for each item, also over resumes."""

    def __init__(self, file: Path | None, max_rate: float) -> None:
        self.file, self.max_rate = file, max_rate
        self.seen = self.bad = 0
        self.reasons: dict[str, str] = {}
        self._written = self._read()

    def _read(self) -> set[str]:
        if self.file is None or not self.file.exists():
            return set()
        written = set()
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                written.add(json.loads(line)["key"])
            except (ValueError, KeyError, TypeError):
                continue  # a line cut by a crash
        return written

    def add(self, samples: int, faults: Iterable[Fault]) -> None:
        """Count a batch of ``samples``. Raises DataError where the share of bad samples is above the limit by more than chance."""
        self.seen += samples
        for fault in faults:
            self.bad += fault.first
            self.reasons.setdefault(fault.key, fault.reason)
            if self.file is not None and fault.key not in self._written:
                self._written.add(fault.key)
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps({"path": fault.path, "key": fault.key, "reason": fault.reason, "sample": fault.sample}) + "\n")
        if self.seen >= MINIMUM and self.bad > self._tolerated:
            where = f"; all are listed in {self.file}" if self.file is not None else ""
            shown = "; ".join(list(self.reasons.values())[:3])
            share = f"{self.bad} of {self.seen} samples came from videos that cannot be read"
            raise DataError(f"{share}, more than max_bad_rate = {self.max_rate:g} allows: {shown}{where}")

    @property
    def _tolerated(self) -> float:
        """Bad samples that the limit allows so far: a random order brings more than its share early on, by three standard deviations."""
        expected = self.max_rate * self.seen
        return expected + 3 * math.sqrt(expected * (1 - self.max_rate))

    def report(self) -> dict[str, Any]:
        """Counts, and the commonest reasons without their paths."""
        kinds = Counter(reason.split(": ", 1)[-1].split(" (")[0] for reason in self.reasons.values())
        return {
            "samples_seen": self.seen,
            "samples_replaced": self.bad,
            "bad_videos": len(self.reasons),
            "reasons": dict(kinds.most_common(5)),
        }
