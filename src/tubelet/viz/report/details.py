"""The rest of a stage for the page: settings and their origins, results, environment, the commands that come next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tubelet.viz.report.figures import PROBES
from tubelet.viz.report.folder import Part, Run
from tubelet.viz.report.words import mapping, setting, text

LABELLED = "labelled.csv"
SHOWN = 100  # bad videos that are listed


def leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value) of nested settings; lists and empty mappings are values."""
    out: list[tuple[str, Any]] = []
    for key, child in value.items():
        out += leaves(child, f"{prefix}{key}.") if isinstance(child, dict) and child else [(f"{prefix}{key}", child)]
    return out


def settings(part: Part) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(path, value, origin) of what somebody chose, and of the defaults. Without recorded origins all are in the second list."""
    chosen, rest = [], []
    for path, value in leaves(part.config):
        origin = part.origins.get(path, "")
        (chosen if origin not in ("", "default") else rest).append((path, setting(value), origin or "not recorded"))
    chosen.sort(key=lambda row: not row[2].startswith("--"))  # what the command line said comes first
    return chosen, rest


ENVIRONMENT = {"tubelet": "Tubelet", "torch": "torch", "python": "Python", "started": "Started", "ended": "Ended", "sessions": "Sessions",
               "command": "Command", "folder": "In the folder", "imports": "Imported", "exclude": "Left out"}  # fmt: skip


MACHINE = {"system": "System", "cpu": "CPU", "cores": "Cores", "threads": "Threads", "gpu": "GPU", "device": "Device",
           "processes": "Processes"}  # fmt: skip


def book(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of itself; empty where it says nothing."""
    deviations = found.get("deviations")
    return {
        **{key: text(found[key]) if found.get(key) else "" for key in ("about", "table")},
        "deviations": [text(line) for line in deviations] if isinstance(deviations, list) else [],
    }


def environment(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run ran on, as recorded."""
    said = {"command": typed, "started": when, "ended": when}
    rows = [(label, said.get(key, text)(facts[key])) for key, label in ENVIRONMENT.items() if facts.get(key)]
    if why := mapping(facts.get("supply")).get("why"):
        rows.append(("Supply of clips", text(why)))
    machine = facts.get("machine")
    if isinstance(machine, dict):
        return rows + [(MACHINE.get(str(key), str(key)), text(value)) for key, value in machine.items() if value not in (None, "")]
    return [*rows, ("Machine", text(machine))] if machine else rows


def when(moment: object) -> str:
    """``2025-03-01 09:00:00 UTC``."""
    try:
        at = datetime.fromisoformat(text(moment))
    except ValueError:
        return text(moment)
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at.tzinfo else text(moment)


def typed(command: object) -> str:
    """A command line as it can be typed."""
    return shlex.join(map(text, command)) if isinstance(command, list) else text(command)


def trouble(part: Part) -> list[str]:
    """What went wrong without ending the run."""
    failed = mapping(mapping(part.facts.get("report")).get("hooks_failed"))
    return [f"{name} failed {text(times)} times while the run went on" for name, times in failed.items()]


def commands(run: Run) -> list[tuple[str, str]]:
    """(what for, command) of the two or three things that come next."""
    out, last = [], run.parts[-1]
    if run.ended != "complete":
        out += _again(run)
    ready = next((p for p in reversed(run.parts) if p.ended == "complete" or p.checkpoint is not None), None)
    if ready is None:
        return out
    folder, sources = str(ready.folder), run.sources or ["videos/"]
    if "classifier" in last.config:
        return [*out, ("Test it on other labelled videos", _line("evaluate", folder, LABELLED))]
    out.append(("One vector for each video, for search and clustering", _line("embed", folder, *sources, "--out", f"{_name(folder)}.npz")))
    probed = any(ready.points(key) for key in PROBES) and bool(mapping(ready.config.get("data")).get("split"))
    labelled = sources if probed else [LABELLED]
    words = "What its features know about your classes" + ("" if probed else f" ({LABELLED}: videos with labels and splits)")
    out.append((words, _line("probe", folder, *labelled, "--pool", "slots")))
    out.append(("The control: the same with random weights", _line("probe", folder, *labelled, "--pool", "slots", "--random")))
    return out


def _name(folder: str) -> str:
    return Path(folder).resolve().name


def _again(run: Run) -> list[tuple[str, str]]:
    """How a run goes on, and what shows why it failed."""
    part = next(p for p in run.parts if p.ended != "complete")
    told = next((p.facts for p in run.parts if p.facts), {})
    out = []
    replayed = "classifier" not in part.config  # replay does the steps of pre-training only
    if replayed and part.facts.get("stopped_by") == "NonFiniteError" and (found := re.search(r"step (\d+)", text(part.facts.get("error")))):
        out.append(("Where it went wrong, and in which videos", _line("replay", str(part.folder), found[1])))
    known, sources = told.get("command"), run.sources or ["SOURCES"]
    where = f" (in {text(told['folder'])})" if told.get("folder") else ""
    if isinstance(known, list) and len(known) > 2 and known[0] == "tubelet":
        words = [text(word) for word in known]
        line = shlex.join(words if "--resume" in words else [*words, "--resume"])
    elif "classifier" in part.config:
        start = mapping(told.get("start")) or mapping(mapping(part.header.get("config")).get("start"))
        line, where = _line("finetune", text(start.get("path", "RUN")), *sources, "--out", str(run.folder), "--resume"), ""
    else:
        given = [(option, told.get(key)) for option, key in (("--import", "imports"), ("--exclude", "exclude"))]
        more = [word for option, values in given if isinstance(values, list) for value in values for word in (option, text(value))]
        line, where = _line("pretrain", *sources, "--out", str(run.folder), *more, "--resume"), ""
    return [*out, (f"Continue from the newest checkpoint{where}" if part.checkpoint is not None else f"Start it again{where}", line)]


def _line(*words: str) -> str:
    return shlex.join(["tubelet", *words])


def faults(bad: Sequence[tuple[str, str, int]]) -> tuple[list[tuple[str, str, int]], int]:
    """Those that are listed, and how many more there are."""
    return list(bad[:SHOWN]), max(0, len(bad) - SHOWN)
