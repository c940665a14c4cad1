"""The labelled sets of the real-video study as manifests: whole training set and test, and the training set split once more.

Settings are chosen on the second kind: a quarter of the training set is held out, by source video (JHMDB) or by subject (hand-washing), as
the test set is apart from the training set. A split that separates single clips would choose by how well clips of a known video are told.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from claims import HERE
from study import WORK

from tubelet.tasks.probe import held_out

SHARED = Path(os.environ.get("TUBELET_SHARED", HERE.parents[1] / "shared"))
DATA = SHARED / "data"
PAD = 0.2  # seconds of a spoken digit's neighbours on each side


@dataclass(frozen=True)
class Labelled:
    """``file``: its list, in shared/data. ``label``, ``group``: columns. ``stride``: frames between those of a
    clip of 8, ``views``: how many clips of a test video are averaged."""

    name: str
    title: str
    file: str
    label: str
    group: str | None
    stride: int
    views: int

    def rows(self) -> list[dict[str, str]]:
        """path, key, label, split (train | test), group, and start and end of a digit, for every item."""
        source = DATA / self.file
        words = _digits(source.with_name("words.csv")) if self.label == "digit" else {}
        out = []
        for row in _read(source):
            item = {"path": str((source.parent / row["file"]).resolve()), "key": f"{self.name}/{row['file']}", "label": row[self.label]}
            item |= {"split": row["split"], "group": row[self.group] if self.group else ""}
            if words:
                start, end = words[row["file"]]
                item |= {"start": f"{max(0.0, start - PAD):.3f}", "end": f"{end + PAD:.3f}"}
            out.append(item)
        return out

    def manifest(self) -> Path:
        """Splits train and test."""
        return _write(WORK / "manifests" / f"{self.name}.csv", self.rows())

    def choosing(self) -> Path:
        """The training set alone, a quarter of it under the split test, seed 0, groups kept whole."""
        rows = [row for row in self.rows() if row["split"] == "train"]
        names = sorted({row["label"] for row in rows})
        groups = [row["group"] or row["key"] for row in rows] if self.group else None
        held = held_out(np.array([names.index(row["label"]) for row in rows]), 0, groups_N=groups)
        for row, out in zip(rows, held, strict=True):
            row["split"] = "test" if out else "train"
        return _write(WORK / "manifests" / f"{self.name}-choosing.csv", rows)


JHMDB = Labelled("jhmdb", "JHMDB, 21 actions", "actions/jhmdb/split.csv", "label", "source_video", stride=3, views=2)
GRID = Labelled("grid", "GRID speaker 1, 10 spoken digits", "faces/grid_s1/split.csv", "digit", None, stride=1, views=3)
HANDWASH = Labelled("handwash", "hand-washing, 12 steps", "actions/handwash/split.csv", "label", "subject", stride=3, views=4)
SETS = {s.name: s for s in (JHMDB, GRID, HANDWASH)}


def unlabelled() -> Path:
    """The training clips of JHMDB, GRID, hand-washing and fights, and the captioned clips: 1,330 videos, without their labels."""
    rows = []
    for name in ("actions/jhmdb", "faces/grid_s1", "actions/handwash", "actions/fights"):
        source = DATA / name / "split.csv"
        rows += [(source, row["file"]) for row in _read(source) if row["split"] == "train"]
    captions = DATA / "captions" / "captions.csv"
    rows += [(captions, row["file"]) for row in _read(captions)]
    items = [
        {"path": str((source.parent / file).resolve()), "key": f"{source.parent.name}/{file}", "split": "train"} for source, file in rows
    ]
    return _write(WORK / "manifests" / "all.csv", items)


def _digits(path: Path) -> dict[str, tuple[float, float]]:
    """File -> start and end of its digit, in seconds. A digit is the fifth word of a sentence."""
    spoken: dict[str, list[tuple[float, float]]] = {}
    for row in _read(path):
        if row["word"] not in ("sil", "sp"):
            spoken.setdefault(row["file"], []).append((float(row["start"]), float(row["end"])))
    return {file: words[4] for file, words in spoken.items()}


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
    return path
