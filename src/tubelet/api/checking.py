"""Look at videos before training on them: what can be read, what is odd, and a list of what to leave out."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tubelet.api._common import Sources, shown
from tubelet.config import did_you_mean
from tubelet.data.check import PROBLEMS, WARNINGS, Check, Checked, check_table, count, duplicates, size_of
from tubelet.data.exclude import list_keys
from tubelet.data.reader import choose_decoder
from tubelet.data.source import Images, open_table
from tubelet.data.workers import auto_workers
from tubelet.errors import ConfigError
from tubelet.train.checkpoint import write_text


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    ``items``: one :class:`~tubelet.data.check.Checked` for each item, in table order. ``duplicates``: groups of keys with the same content.
    ``notes``: about the sources. ``seconds``: how long it took, with ``workers`` processes.
    """

    sources: str
    items: Sequence[Checked]
    duplicates: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    seconds: float = 0.0
    workers: int = 0
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def n_total(self) -> int:
        """All items."""
        return len(self.items)

    @property
    def bad(self) -> list[Checked]:
        """Items that training cannot read, or only a part of."""
        return [item for item in self.items if item.bad]

    @property
    def n_bad(self) -> int:
        """How many are bad."""
        return len(self.bad)

    @property
    def warned(self) -> list[Checked]:
        """Items that training reads but that may not be what you want."""
        return [item for item in self.items if item.warnings and not item.bad]

    @property
    def counts(self) -> dict[str, int]:
        """How many items have each problem and each warning; those that none has are left out."""
        found = Counter(item.problem.code for item in self.bad if item.problem)
        found.update(w.code for item in self.items for w in item.warnings)
        return {code: found[code] for code in (*PROBLEMS, *WARNINGS) if found[code]}

    def overview(self) -> list[tuple[str, str]]:
        """(what, text) lines: how many, how long, which rates, codecs and sizes, sound. Of the items that could be read."""
        read = [item for item in self.items if item.frames is not None]
        videos = [item for item in read if item.kind in ("video", "prepared")]
        clean = self.n_total - self.n_bad - len(self.warned)
        kinds = Counter(item.kind for item in self.items)
        named = ", ".join(
            count(n, {"video": "video", "image": "picture", "frames": "folder", "prepared": "prepared video"}[k]) for k, n in kinds.items()
        )
        rows = [("items", f"{self.n_total:,}: {clean:,} fine, {len(self.warned):,} with warnings, {self.n_bad:,} bad ({named})")]
        seconds = [item.seconds for item in read if item.seconds is not None]
        if seconds:
            low, mid, high = _clock(min(seconds)), _clock(float(np.median(seconds))), _clock(max(seconds))
            rows.append(("duration", f"{_clock(sum(seconds))} in all; shortest {low}, median {mid}, longest {high}"))
            frames = [item.frames or 0 for item in read if item.seconds is not None]
            rows.append(
                ("frames", f"{sum(frames):,} in all; fewest {min(frames):,}, median {np.median(frames):,.0f}, most {max(frames):,}")
            )
        rows += [
            ("fps", _commonest(f"{item.fps:.4g}" for item in read if item.fps is not None)),
            ("codecs", _commonest(item.codec for item in read if item.codec)),
            ("sizes", _commonest(f"{item.width}x{item.height}" for item in read)),
            ("sound", f"{sum(bool(item.has_audio) for item in videos):,} of {count(len(videos), 'video')}" if videos else ""),
            ("storage", size_of(stored) if (stored := sum({item.path: item.file_bytes or 0 for item in read}.values())) else ""),
            ("checked in", f"{_clock(self.seconds)}, {60 * self.n_total / max(self.seconds, 1e-9):,.0f} items a minute"),
        ]
        return [(name, text) for name, text in rows if text]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {
            "sources": self.sources,
            **self.asked,
            "n_total": self.n_total,
            "n_warned": len(self.warned),
            "n_bad": self.n_bad,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "notes": list(self.notes),
            "duplicates": [list(keys) for keys in self.duplicates],
            "items": [{"status": _status(item), **asdict(item)} for item in self.items],
        }

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`as_dict`, atomically."""
        write_text(Path(path), json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")

    def write_bad(self, path: str | Path) -> None:
        """Write the keys of the bad items, one a line below its reason, as ``pretrain(exclude=["@PATH"])`` reads them."""
        head = f"tubelet check {self.sources}: {self.n_bad} of {self.n_total} items are bad; use: tubelet pretrain ... --exclude @{path}"
        items = [(item.key, f"{PROBLEMS[item.problem.code]}: {item.problem.text}") for item in self.items if item.problem]
        write_text(Path(path), list_keys(items, head))

    def __str__(self) -> str:
        lines = [f"{name:>10}  {text}" for name, text in self.overview()]
        return "\n".join(lines + [f"{item.key}: {item.problem.text}" for item in self.bad if item.problem])


def check(
    sources: Sources,
    *,
    split: str | None = None,
    frames: int | None = None,
    images: Images = "ignore",
    workers: int | Literal["auto"] = "auto",
    timeout: float = 30.0,
    exclude: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decode the first, middle and last frame of every item with the reader that training uses, and report what is bad or odd.

    ``sources``, ``split``, ``images``, ``exclude``: as for training; labels are not looked at. ``frames``: frames that an item should
    have, e.g. 64 for clips of 16 at stride 4; fewer give a warning. ``workers``: processes, 0 = none, without a guard against files that
    hang the decoder itself. ``timeout``: seconds for one item. ``progress(done, total)``. A file that cannot be read, or does not exist
    though a manifest names it, is no error but a bad item of the report. Raises DataError for sources that cannot be listed, ConfigError.
    """
    wrong = []
    if frames is not None and frames < 1:
        wrong.append(f"frames must be at least 1, got {frames}")
    if workers != "auto" and not (isinstance(workers, int) and 0 <= workers <= 512):
        wrong.append(f"workers must be auto or 0..512, got {workers!r}")
    if not (math.isfinite(timeout) and timeout > 0):
        wrong.append(f"timeout must be more than 0 seconds, got {timeout:g}")
    if images not in (known := ("ignore", "items", "frames")):
        wrong.append(f"images must be one of {', '.join(known)}, got {images!r}{did_you_mean(str(images), known)}")
    if wrong:
        raise ConfigError(wrong, where="check")
    table = open_table(sources, split=split, labels="none", images=images, exclude=exclude, missing="keep")
    # The process that waits for the others needs no core of its own.
    processes = min(auto_workers() + 1 if workers == "auto" else workers, len(table))
    begin = time.monotonic()
    items = check_table(table, Check(frames, timeout, choose_decoder("auto")), workers=processes, progress=progress)
    same = duplicates(items)
    asked = {"split": split, "frames": frames, "timeout": timeout, "exclude": list(exclude)}
    return Report(shown(sources), items, same, table.notes, time.monotonic() - begin, processes, asked)


def _status(item: Checked) -> str:
    return "bad" if item.bad else "warning" if item.warnings else "fine"


def _clock(seconds: float) -> str:
    """``0.04 s``, ``58.4 s``, ``12 min 5 s``, ``3 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = int(seconds // 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60)} s"


def _commonest(values: Any, shown: int = 5) -> str:
    """``h264 (40), hevc (3), 2 others (4)``."""
    found = Counter(values).most_common()
    rest = found[shown:]
    few = [f"{value} ({n:,})" for value, n in found[:shown]]
    return ", ".join(few + ([f"{count(len(rest), 'other')} ({sum(n for _, n in rest):,})"] if rest else []))
