"""Line curves of a run's figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tubelet.errors import DataError
from tubelet.viz import _text as text

COLOURS = ((38, 99, 176), (214, 107, 37), (52, 140, 92), (150, 76, 160), (120, 120, 120))
FINE = 3  # lines are drawn this much larger, then shrunk: smooth edges without another library
Points = Sequence[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]


def curves(
    series: Mapping[str, Points], *, title: str = "", x: str = "step", y: str = "", size: tuple[int, int] = (720, 400)
) -> Image.Image:
    """(x, y) points of every name as a line; points that are not finite leave a gap. Raises DataError where there is nothing to draw."""
    finite = [p for points in series.values() for p in points if all(map(math.isfinite, p))]
    if not finite:
        raise DataError("there are no finite points to draw")
    width, height = size
    x_ticks, y_ticks = _ticks([p[0] for p in finite]), _ticks([p[1] for p in finite])
    left = 18 + max(text.width(f"{v:g}", 13) for v in y_ticks)
    top, right, bottom = 40 if title or len(series) > 1 else 18, width - 22, height - 46

    def place(px: float, py: float) -> tuple[float, float]:
        fx = (px - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        fy = (py - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + fx * (right - left), bottom - fy * (bottom - top)

    image = _lines(series, size, place, x_ticks, y_ticks)
    draw = ImageDraw.Draw(image)
    for value in x_ticks:
        draw.text((place(value, y_ticks[0])[0], bottom + 6), f"{value:g}", fill=text.FAINT, font=text.font(13), anchor="mt")
    for value in y_ticks:
        draw.text((left - 8, place(x_ticks[0], value)[1]), f"{value:g}", fill=text.FAINT, font=text.font(13), anchor="rm")
    draw.text(((left + right) / 2, height - 8), x, fill=text.FAINT, font=text.font(13), anchor="mb")
    legend = list(series) if len(series) > 1 else []
    head = text.fit(" ".join(filter(None, [title, f"({y})" if y and y not in title else ""])), 16, right - left)
    draw.text((left, 26), head, fill=text.INK, font=text.font(16), anchor="ls")
    at = right
    for i, name in reversed(list(enumerate(legend))):
        draw.text((at, 26), name, fill=COLOURS[i % len(COLOURS)], font=text.font(13), anchor="rs")
        at -= text.width(name, 13) + 16
    return image


def run_curves(run: str | Path, names: Sequence[str] = ("loss",), *, title: str = "") -> Image.Image:
    """Curves of a run's metrics.jsonl. Raises DataError where the file or a name is missing."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file; is {run} a run folder?")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a line cut short by a kill
    known = sorted({key for row in rows for key, value in row.items() if isinstance(value, int | float)} - {"step"})
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(f"{path} holds no {', '.join(missing)}; it has {', '.join(known) or 'nothing yet'}")
    series = {name: [(float(r["step"]), float(r[name])) for r in rows if name in r and "step" in r] for name in names}
    return curves(series, title=title or Path(run).name, y=names[0] if len(names) == 1 else "")


def _lines(series: Mapping[str, Points], size: tuple[int, int], place: Place, x_ticks: list[float], y_ticks: list[float]) -> Image.Image:
    big = Image.new("RGB", (size[0] * FINE, size[1] * FINE), "white")
    draw = ImageDraw.Draw(big)

    def fine(point: tuple[float, float]) -> tuple[float, float]:
        return place(*point)[0] * FINE, place(*point)[1] * FINE

    for value in y_ticks:
        draw.line([fine((x_ticks[0], value)), fine((x_ticks[-1], value))], fill=(228, 231, 235), width=FINE)
    draw.line([fine((x_ticks[0], y_ticks[0])), fine((x_ticks[-1], y_ticks[0]))], fill=(150, 156, 164), width=FINE)
    for i, points in enumerate(series.values()):
        run: list[tuple[float, float]] = []
        for point in [*points, (math.nan, math.nan)]:
            if all(map(math.isfinite, point)):
                run.append(fine(point))
                continue
            if len(run) > 1:
                draw.line(run, fill=COLOURS[i % len(COLOURS)], width=2 * FINE, joint="curve")
            elif run:
                draw.circle(run[0], 3 * FINE, fill=COLOURS[i % len(COLOURS)])
            run = []
    return big.resize(size, Image.Resampling.LANCZOS)


def _ticks(values: Sequence[float], about: int = 5) -> list[float]:
    """Round numbers, at least two, that enclose the values."""
    low, high = min(values), max(values)
    room = max(abs(low), abs(high), 1e-9)
    if high - low < 1e-9 * room:  # flat: give it some room
        low, high = low - room / 2, high + room / 2
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
