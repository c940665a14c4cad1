"""What a run folder holds, read without trusting it: whatever is missing or damaged is left out and named.

No model is loaded and nothing of the folder is executed; of a weights file only the header is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import yaml

from tubelet.viz.report.words import figure, mapping, plural, text

Ended = Literal["complete", "stopped", "failed", "unfinished", "waiting"]
BOOK = ("about", "table", "deviations")  # of a recipe: what is no setting
MARKS = ("config.yaml", "metrics.jsonl", "run.json", "model.safetensors", "checkpoints")
_PICTURE = re.compile(r"step_(\d{1,15})\.(?:png|jpg|jpeg|webp)")
_SOURCES = re.compile(r"^#.*; sources: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """One stage of a run. ``facts``: run.json; ``header``: of the newest weights; ``bad``: key, reason, times; ``damaged``: files that
    could not be read, with the reason. ``scores``: results.json and validation.json, of a fine-tuned run."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    origins: Mapping[str, str]
    facts: Mapping[str, Any]
    header: Mapping[str, Any]
    rows: list[dict[str, Any]]
    pictures: list[tuple[int, Path]]
    bad: list[tuple[str, str, int]]
    items: int | None
    scores: list[Any]
    ended: Ended
    checkpoint: int | None
    damaged: list[str] = field(default_factory=list)

    def points(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of a figure; a value that is not finite leaves a gap (nan)."""
        found = []
        for row in self.rows:
            step, value = figure(row.get("step")), row.get(key)
            if step is not None and value is not None:
                number = figure(value)
                found.append((step, float("nan") if number is None else number))
        return sorted(found, key=lambda p: p[0])

    def last(self, key: str) -> float | None:
        """The newest finite value of a figure."""
        return next((y for _, y in reversed(self.points(key)) if y == y), None)

    @property
    def step(self) -> int | None:
        """Optimiser steps that were done, as far as the folder shows."""
        known = [self.header.get("step"), self.checkpoint, self.facts.get("steps"), *(row.get("step") for row in self.rows)]
        return max((int(n) for n in map(figure, known) if n is not None), default=None)

    @property
    def total(self) -> int | None:
        """Steps of the whole plan."""
        if self.ended == "complete":
            return self.step
        train = mapping(self.config.get("train"))
        for value in (self.facts.get("total_steps"), self.header.get("total_steps"), train.get("steps")):
            if (number := figure(value)) is not None:
                return int(number)
        return None

    @property
    def samples(self) -> int | None:
        """Clips seen."""
        known = [self.header.get("samples"), self.facts.get("samples"), self.last("samples")]
        return max((int(n) for n in map(figure, known) if n is not None), default=None)

    @property
    def seconds(self) -> tuple[float, bool] | None:
        """How long it took, and whether that is worked out from clips/s because the run did not record it."""
        if (known := figure(self.facts.get("seconds"))) is not None and known >= 0:
            return known, False
        speed, spent, before = dict(self.points("clips_per_s")), 0.0, 0.0
        for step, samples in self.points("samples"):
            if speed.get(step, 0.0) > 0 and samples > before:
                spent += (samples - before) / speed[step]
                before = samples
        return (spent, True) if spent else None


@dataclass(frozen=True)
class Run:
    """A run folder. ``facts``: its run.json; ``book``: about, table and deviations of the recipe."""

    folder: Path
    book: Mapping[str, Any]
    facts: Mapping[str, Any]
    sources: list[str]
    parts: list[Part]

    @property
    def ended(self) -> Ended:
        """How the whole run ended: as the first stage that is not complete."""
        for part in self.parts:
            if part.ended != "complete":
                return "unfinished" if part.ended == "waiting" else part.ended
        return "complete"


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run, or like one of several stages."""
    return any((folder / name).exists() for name in MARKS)


def read(folder: Path) -> Run:
    """The run of a folder; a part for each stage of its recipe, one where there is a single stage or no recipe to tell."""
    damaged: list[str] = []
    book = _yaml(folder / "config.yaml", damaged)
    facts = mapping(_json(folder / "run.json", damaged))
    stages = [s for s in book.get("stages") or [] if isinstance(s, dict)] if isinstance(book.get("stages"), list) else []
    if len(stages) < 2:
        config = stages[0] if stages else {k: v for k, v in book.items() if k not in BOOK and k != "stages"}
        parts = [_part(text(config.get("name", "")), folder, config, facts, damaged)]
    else:
        places = [_place(folder, text(s.get("name", ""))) for s in stages]
        told = [mapping(_json(place / "run.json", damaged)) for place in places]
        known = next((f["origins"] for f in (facts, *told) if "origins" in f), {})  # each holds those of all stages
        parts = [_stage(p, s, {"origins": known, **f}, []) for p, s, f in zip(places, stages, told, strict=True)]
        parts[0].damaged.extend(damaged)
    return Run(folder, {k: book[k] for k in BOOK if k in book}, facts, _sources(folder, parts, facts), parts)


def _place(root: Path, name: str) -> Path:
    """The folder of a stage; one that cannot exist for a name that is no folder's."""
    return root / (name if Path(name).name == name and name not in ("", ".", "..") else "-")


def _stage(folder: Path, stage: Mapping[str, Any], facts: Mapping[str, Any], damaged: list[str]) -> Part:
    """A stage of several, in its own folder, which says best what it was trained with."""
    saved = _yaml(folder / "config.yaml", damaged).get("stages")
    own = saved[0] if isinstance(saved, list) and saved and isinstance(saved[0], dict) else stage
    return _part(text(stage.get("name", "")), folder, own, facts, damaged)


def _part(name: str, folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any], damaged: list[str]) -> Part:
    newest, checkpoint = _newest(folder)
    rows, cut = _lines(folder / "metrics.jsonl", damaged)
    bad, _ = _lines(folder / "bad_videos.jsonl", damaged)
    header = _header(newest, damaged) if newest else {}
    if cut > 1:  # one line cut short is what a kill leaves behind
        damaged.append(f"metrics.jsonl: {plural(cut, 'line is', 'lines are')} damaged and left out")
    known = config or mapping(header.get("config"))
    scores = [found for file in ("results.json", "validation.json") if (found := _json(folder / file, damaged)) is not None]
    return Part(
        name, folder, known, _origins(facts, name), facts, header, rows, _pictures(folder), _faults(bad), _count(folder / "items.txt"),
        scores, _ended(folder, facts, bool(rows) or checkpoint is not None), checkpoint, damaged,
    )  # fmt: skip


def _origins(facts: Mapping[str, Any], name: str) -> dict[str, str]:
    """Those of a stage, without its name where the run has several."""
    found = {k: v for k, v in mapping(facts.get("origins")).items() if isinstance(v, str)}
    if f"{name}.name" not in found:
        return found
    return {k.removeprefix(f"{name}."): v for k, v in found.items() if k.startswith(f"{name}.")}


def _ended(folder: Path, facts: Mapping[str, Any], begun: bool) -> Ended:
    if (folder / "model.safetensors").is_file():
        return "complete"
    if why := facts.get("stopped_by"):
        return "stopped" if str(why).startswith("SIG") or why == "KeyboardInterrupt" else "failed"
    return "unfinished" if begun or is_run(folder) else "waiting"


def _newest(folder: Path) -> tuple[Path | None, int | None]:
    """The file whose header says most about where the run is, and the newest checkpoint's step."""
    steps = {}
    for path in _glob(folder / "checkpoints", "step-*.safetensors"):
        if path.stem.removeprefix("step-").isdecimal():
            steps[int(path.stem.removeprefix("step-"))] = path
    newest = max(steps, default=None)
    model = folder / "model.safetensors"
    return (model if model.is_file() else steps[newest] if newest is not None else None), newest


def _header(path: Path, damaged: list[str]) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return mapping(json.loads((file.metadata() or {}).get("tubelet", "{}")))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        damaged.append(f"{path.name}: {error}")
        return {}


def _yaml(path: Path, damaged: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return mapping(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        damaged.append(f"{path.name}: {' '.join(str(error).split())}")
        return {}


def _json(path: Path, damaged: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        damaged.append(f"{path.name}: {error}")
        return None


def _lines(path: Path, damaged: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON-lines file, and how many lines hold none."""
    if not path.is_file():
        return [], 0
    rows, cut = [], 0
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            row = _object(line)
            if row:
                rows.append(row)
            else:
                cut += bool(line.strip())
    except OSError as error:
        damaged.append(f"{path.name}: {error}")
    return rows, cut


def _object(line: str) -> dict[str, Any]:
    try:
        return mapping(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _glob(folder: Path, pattern: str) -> Iterator[Path]:
    return iter(sorted(folder.glob(pattern)) if folder.is_dir() else [])


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(m[1]), p) for p in _glob(folder / "pictures", "step_*") if (m := _PICTURE.fullmatch(p.name))]
    return sorted(found)


def _faults(rows: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Key, reason and times, the most frequent first."""
    times: dict[tuple[str, str], int] = {}
    for row in rows:
        at = text(row.get("key", row.get("path", "?"))), text(row.get("reason", "no reason was recorded"))
        count = figure(row.get("count"))
        times[at] = times.get(at, 0) + (1 if count is None else int(count))
    return sorted(((key, reason, n) for (key, reason), n in times.items()), key=lambda f: -f[2])


def _count(path: Path) -> int | None:
    try:
        return len(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return None


def _sources(folder: Path, parts: list[Part], facts: Mapping[str, Any]) -> list[str]:
    """What it was trained on: of run.json, else of the first line of config.yaml."""
    for known in (facts.get("sources"), *(p.facts.get("sources") for p in parts)):
        if isinstance(known, str) and known:
            return [known]
        if isinstance(known, list) and known:
            return [text(s) for s in known]
    for path in (folder / "config.yaml", *(p.folder / "config.yaml" for p in parts)):
        if path.is_file() and (found := _SOURCES.search(path.read_text(encoding="utf-8", errors="replace"))):
            return [s for s in found[1].split(", ") if s]
    return []
