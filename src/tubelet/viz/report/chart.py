"""A curve as the parts of an inline SVG: places in per cent and per mille, so that one drawing fits a phone, a laptop and paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tubelet.viz.curves import Points, _ticks
from tubelet.viz.report.words import Unit, tick, written

MOST = 300  # points of a line: more than a screen shows, few enough for the page
GREY = 4  # the colour of what a line is compared with; those before it are lines' own
DOTTED = 40  # up to so many points are marked one by one


@dataclass(frozen=True)
class Line:
    """``path``: in a box of 1000 x 1000, y downwards. ``dots``: per cent. ``x``, ``y``, ``t``: steps, heights in per mille and figures
    in words, for the read-out. ``level``: height in per cent of a dashed baseline of the same colour."""

    name: str
    colour: int
    dashed: bool
    path: str
    dots: list[tuple[str, str]]
    x: str
    y: str
    t: str
    last: str
    level: str | None


@dataclass(frozen=True)
class Chart:
    """``x_ticks``, ``y_ticks``: (per cent, words)."""

    title: str
    note: str
    first: float
    end: float
    at: str
    lines: list[Line]
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    summary: str
    tall: bool
    log: bool


@dataclass(frozen=True)
class Series:
    """``dashed``: something to compare with, drawn in grey. ``baseline``: a value drawn as a dashed level."""

    name: str
    points: Points
    dashed: bool = False
    baseline: float | None = None


def chart(
    title: str, series: Sequence[Series], *, unit: Unit = "plain", note: str = "", free: bool = False, tall: bool = False
) -> Chart | None:
    """The chart of those series that have finite points; None where there are none. Its axis starts at zero, or, ``free``, where the
    values do, and then it is logarithmic where they span more than a factor of eight."""
    series = [s for s in series if any(map(_finite, s.points))]
    if not series:
        return None
    shown = [_thin(s.points) for s in series]
    values = [y for points in shown for x, y in points if _finite((x, y))] + [s.baseline for s in series if s.baseline is not None]
    steps = [x for points in shown for x, _ in points]
    log = free and min(values) > 0 and max(values) > 8 * min(values)
    room = values if free else [0.0, *values]
    y_ticks = _decades(min(values), max(values)) if log else _ticks(room if any(room) else [0.0, 1.0])
    first, end = min(0.0, *steps), max(steps)
    end = end if end > first else first + 1
    x_ticks = [v for v in _ticks([first, end], 5) if first <= v <= end and v == int(v)]

    def across(x: float) -> float:
        return (x - first) / (end - first)

    def down(y: float) -> float:
        low, high = (math.log(y_ticks[0]), math.log(y_ticks[-1])) if log else (y_ticks[0], y_ticks[-1])
        return 1 - ((math.log(y) if log else y) - low) / (high - low)

    lines = []
    for i, (s, points) in enumerate(zip(series, shown, strict=True)):
        finite = [p for p in points if _finite(p)]
        placed = [(across(x), down(y)) if _finite((x, y)) else None for x, y in points]
        lines.append(
            Line(
                s.name,
                GREY if s.dashed else i % GREY,
                s.dashed,
                _path(placed),
                [] if s.dashed else _dots(placed),
                ",".join(f"{x:.0f}" for x, _ in finite),
                ",".join(f"{1000 * down(y):.0f}" for _, y in finite),
                "|".join(written(y, unit) for _, y in finite),
                written(finite[-1][1], unit),
                None if s.baseline is None else _percent(down(s.baseline)),
            )
        )
    return Chart(
        title,
        note,
        first,
        end,
        f"step {max(steps):,.0f}",
        lines,
        [(_percent(across(v)), tick(v)) for v in x_ticks],
        [(_percent(down(v)), tick(v, unit)) for v in y_ticks],
        _summary(title, series, unit),
        tall,
        log,
    )


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _thin(points: Points) -> list[tuple[float, float]]:
    """At most about ``MOST`` points: the lowest and the highest of every stretch, in order, and both ends."""
    points = [p for p in points if math.isfinite(p[0])]
    if len(points) <= MOST:
        return points
    kept = {0, len(points) - 1}
    size = 2 * len(points) / MOST
    edges = [round(i * size) for i in range(MOST // 2 + 1)]
    for low, high in pairwise(edges):
        part = range(low, min(high, len(points)))
        finite = [i for i in part if _finite(points[i])]
        kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])} if finite else set(part[:1])
    return [points[i] for i in sorted(kept)]


def _path(placed: Sequence[tuple[float, float] | None]) -> str:
    """Moves and lines; a gap where there is no place."""
    out, pen = [], False
    for place in placed:
        if place is not None:
            out.append(f"{'L' if pen else 'M'}{1000 * place[0]:.1f} {1000 * place[1]:.1f}")
        pen = place is not None
    return "".join(out)


def _dots(placed: Sequence[tuple[float, float] | None]) -> list[tuple[str, str]]:
    """All points of a sparse line; of a dense one those that no line reaches."""
    few = len(placed) <= DOTTED
    fenced = [None, *placed, None]
    return [
        (_percent(p[0]), _percent(p[1]))
        for before, p, after in zip(fenced, placed, fenced[2:], strict=False)
        if p is not None and (few or (before is None and after is None))
    ]


def _decades(low: float, high: float) -> list[float]:
    """Steps of 1, 2 and 5 that enclose positive values; powers of ten alone where there would be many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = (1, 2, 5) if last - first <= 3 else (1,)
    steps = [float(f"{m}e{power}") for power in range(first, last + 1) for m in marks]
    start = max(i for i, v in enumerate(steps) if v <= low)
    stop = min(i for i, v in enumerate(steps) if v >= high)
    return steps[start : max(stop, start + 1) + 1]


def _summary(title: str, series: Sequence[Series], unit: Unit) -> str:
    """The chart in words, for those who do not see it."""
    told = []
    for s in series:
        points = [p for p in s.points if _finite(p)]
        values = [y for _, y in points]
        told.append(
            f"{s.name} from {written(values[0], unit)} at step {points[0][0]:,.0f} to {written(values[-1], unit)} at step "
            f"{points[-1][0]:,.0f}, between {written(min(values), unit)} and {written(max(values), unit)}"
            + ("" if s.baseline is None else f", untrained {written(s.baseline, unit)}")
        )
    return f"{title}: {'; '.join(told)}."
