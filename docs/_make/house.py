"""Pictures of the architecture as SVG: the house (rooms and what they stand on) and the way of the data.

The floors are the layers of the import contract in pyproject.toml, so the picture cannot promise what is not checked. Each picture
brings its own light ground, so that it reads the same on a light and a dark page. No fonts are loaded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tubelet.config import kinds

ROOT = Path(__file__).parents[2]
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, FAINT, GROUND, LINE, BODY = "#1f2733", "#566070", "#f6f7f9", "#c9ced6", "#4a5568"
ROOF, FLOORS, WING, BASE = "#b3512f", ("#fbe3d6", "#fdf0e3", "#eef3e2", "#e0eef0", "#e3e8f7"), "#ece7f3", "#d9dee7"
SAYS = {
    "cli": "commands: thin faces of functions",
    "first_run": "tubelet demo",
    "api": "the public functions, one file a concern",
    "recipe": "YAML → stages",
    "finetune_recipe": "YAML → classifiers",
    "app": "the web page",
    "tasks": "uses",
    "interop": "weights",
    "viz": "pictures",
    "guides": "where to look",
    "nn": "tensors in, tensors out",
    "objectives": "targets, errors, one mean",
    "core": "the nouns: TokenGrid, Batch, Tokens, Mask, Draw, Step, Trainable",
    "data": "videos → batches",
    "train": "the loop",
    "playground": "small worlds",
}
FLOW = (
    ("in the decoding processes", ("Source", "frame sampling", "decode", "crop, resize", "Batch")),
    ("on the device, the method", ("flip, colour, mixing", "tokenise", "mask", "encode", "decode")),
    ("in the loop", ("objectives", "one mean", "optimiser step", "checkpoint")),
)


def layers() -> list[list[str]]:
    """Rooms of the tower, roof first, as the import contract has them; those in brackets may be missing."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    found = next(c["layers"] for c in contracts if c["type"] == "layers")
    floors = [[room.strip(" ()") for room in layer.split("|")] for layer in found if layer != "__main__"]
    return [there for floor in floors if (there := [room for room in floor if _exists(room)])]


def _exists(room: str) -> bool:
    source = ROOT / "src" / "tubelet"
    return (source / room / "__init__.py").exists() or (source / f"{room}.py").exists()


def says(room: str) -> str:
    """A few words about a room: its kinds, where it is a family."""
    if room in ("masking", "methods"):
        return ", ".join(kinds(f"tubelet.{room}", own=False))
    return SAYS.get(room, "")


def draw() -> str:
    """The house: every room stands on what it may import."""
    *floors, ground, base = layers()
    roof, *floors = floors
    high, left, width = 54, 216, 300
    top = 30 + 84
    bottom = top + high * len(floors)
    parts = [_roof(left - 22, top, width + 44, roof)]
    for i, floor in enumerate(floors):
        parts += _floor(left, top + i * high, width, high, floor, FLOORS[i % len(FLOORS)])
    for x, w, rooms in ((24, 172, ["data"]), (left + width + 20, 220, ["train", "playground"])):
        parts += _floor(x, bottom - 84, w, 84, rooms, WING)
        y = bottom - 84
        parts.append(_shape(((x - 10, y), (x + 34, y - 30), (x + w - 34, y - 30), (x + w + 10, y)), ROOF))
    parts += _floor(24, bottom, 732, high, ground, "#d7e4e6")
    parts += _floor(24, bottom + high, 732, high, base, BASE)
    told = (
        "Rooms of the package from the roof down: " + "; ".join(", ".join(f) for f in layers()) + "; beside them data, train, playground."
    )
    return _svg(780, bottom + 2 * high + 24, "The house", told, parts)


def draw_flow() -> str:
    """The way of the data, from a source to the loop."""
    parts: list[str] = []
    high, gap, width = 46, 26, 740
    y = 24
    for (title, steps), fill in zip(FLOW, (FLOORS[4], FLOORS[0], FLOORS[2]), strict=True):
        parts.append(_text(24, y + 14, title, 13, FAINT, anchor="start"))
        x, y = 24.0, y + 26
        for step in steps:
            w = 34 + 7.6 * len(step)
            parts += [_rect(x, y, w, high, fill, radius=8), _text(x + w / 2, y + 28, step, 14, INK)]
            x += w
            parts.append(_arrow(x + 3, y + high / 2, x + gap - 3))
            x += gap
        y += high + 18
    parts.pop()
    told = " → ".join(step for _, steps in FLOW for step in steps)
    return _svg(width, y + 6, "The way of the data", told, parts)


def _floor(x: float, y: float, width: float, high: float, rooms: Sequence[str], fill: str) -> list[str]:
    """Rooms side by side, each with its name and a few words."""
    parts: list[str] = []
    w = width / len(rooms)
    for i, room in enumerate(rooms):
        words = _fit(says(room), w - 12)
        middle = x + (i + 0.5) * w
        parts += [_rect(x + i * w, y, w, high, fill), _text(middle, y + high / 2 - (2 if words else -5), room, 15, INK, bold=True)]
        parts += [_text(middle, y + high / 2 + 16, words, 12, FAINT)] if words else []
    return parts


def _roof(x: float, y: float, width: float, rooms: Sequence[str]) -> str:
    middle = x + width / 2
    shape = _shape(((x, y), (middle, y - 84), (x + width, y)), ROOF)
    return shape + _text(middle, y - 30, ", ".join(rooms), 16, "#ffffff", bold=True) + _text(middle, y - 12, says(rooms[0]), 12, "#ffffff")


def _fit(words: str, width: float) -> str:
    """Words shortened to a width at 12 pixels."""
    if len(words) * 6.2 <= width:
        return words
    kept: list[str] = []
    for word in words.split(", "):
        if len(", ".join([*kept, word, "…"])) * 6.2 > width:
            break
        kept.append(word)
    return ", ".join([*kept, "…"]) if kept else ""


def _rect(x: float, y: float, w: float, h: float, fill: str, radius: int = 0) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}" fill="{fill}" stroke="{LINE}"/>'


def _shape(points: Sequence[tuple[float, float]], fill: str) -> str:
    return f'<polygon points="{" ".join(f"{x:g},{y:g}" for x, y in points)}" fill="{fill}"/>'


def _arrow(x: float, y: float, to: float) -> str:
    head = _shape(((to, y), (to - 7, y - 4.5), (to - 7, y + 4.5)), BODY)
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to - 6:g}" y2="{y:g}" stroke="{BODY}" stroke-width="1.6"/>{head}'


def _text(x: float, y: float, words: str, size: int, fill: str, *, bold: bool = False, anchor: str = "middle") -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight} fill="{fill}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: float, height: float, title: str, told: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="title told"'
    lines = [
        f'{head} font-family="{SANS}">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="told">{escape(told)}</desc>',
        f'<rect width="{width:g}" height="{height:g}" rx="12" fill="{GROUND}"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
