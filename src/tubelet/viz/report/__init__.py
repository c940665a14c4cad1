"""A run folder as one HTML page that needs nothing else: no network, no other file, scripts only to read figures off the curves.

The page forbids itself everything but its own style, its own script (both by their hash) and inlined pictures, so that nothing that comes
from a file name or a setting could run or be fetched even if it were not escaped, which it is.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from tubelet.viz.report import details, figures, folder, images, scores
from tubelet.viz.report.folder import Part, Run, is_run

__all__ = ["is_run", "render"]

STATES = {"complete": "complete", "stopped": "stopped", "failed": "failed", "unfinished": "not finished", "waiting": "not started"}


def render(run: Path) -> str:
    """The page of a run folder (see :func:`is_run`); what is missing or damaged in it is said to be."""
    found = folder.read(run)
    budget = images.BUDGET // max(1, sum(bool(p.pictures) for p in found.parts))
    parts = [_part(f"s{i}", part, found, budget) for i, part in enumerate(found.parts)]
    style, script = _file("page.css"), _file("page.js")
    template = _templates().get_template("page.html")
    return template.render(
        title=found.folder.resolve().name,
        folder=str(found.folder.resolve()),
        state=found.ended,
        said=STATES,
        book=details.book(found.book),
        recipe=_recipe(found),
        several=len(parts) > 1,
        parts=parts,
        commands=details.commands(found),
        environment=details.environment(found.facts),
        unrecorded=not any(p.facts for p in found.parts),
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("tubelet"),
    )


def _part(name: str, part: Part, run: Run, budget: int) -> dict[str, Any]:
    """What the page shows of a stage."""
    pictures, broken = images.inline(images.choose(part.pictures), budget)
    matrix = part.folder / "confusion.png"
    confusion, unreadable = images.inline([(0, matrix)] if matrix.is_file() else [], images.MATRIX)
    chosen, rest = details.settings(part)
    bad, more = details.faults(part.bad)
    return {
        "id": name,
        "name": part.name or "run",
        "state": part.ended,
        "sentence": figures.sentence(part, run.sources),
        "ending": figures.ending(part),
        "tiles": figures.tiles(part),
        "charts": figures.curves(part),
        "table": figures.table(part),
        "probes": figures.probe_curves(part),
        "probe_note": figures.probe_note(part),
        "probe_table": figures.probe_table(part),
        "pictures": pictures,
        "pictures_total": len(part.pictures),
        "damaged": [*part.damaged, *(f"{p}: not a readable picture" for p in [*broken, *unreadable])],
        "trouble": details.trouble(part),
        "results": scores.results(part.scores),
        "confusion": confusion,
        "mistakes": scores.mistakes(part.scores),
        "hardest": scores.hardest(part.scores),
        "chosen": chosen,
        "rest": rest,
        "recorded": bool(part.origins),
        "cost": figures.cost(part),
        "environment": details.environment(part.facts) if part.facts is not run.facts else [],
        "bad": bad,
        "bad_more": more,
        "bad_total": len(part.bad),
        "item_count": part.items,
        "classifier": "classifier" in part.config,
    }


def _recipe(run: Run) -> str:
    """What the settings were read from: ``recipe NAME`` or ``file PATH``."""
    told = [o for p in run.parts for o in p.origins.values() if o.startswith(("recipe ", "file "))]
    return f"{told[0][0].upper()}{told[0][1:]}" if told else ""


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("tubelet.viz", "report")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _file(name: str) -> str:
    return (resources.files("tubelet.viz.report") / name).read_text(encoding="utf-8")


def _hash(code: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(code.encode('utf-8')).digest()).decode('ascii')}"
