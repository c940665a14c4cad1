"""Figures as words: how the report writes numbers, shares, times and settings."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

Unit = Literal["plain", "share", "rate", "gib"]
JOINED = "\u00a0"


def figure(value: object) -> float | None:
    """A finite number, or None for everything else that a damaged or foreign file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def written(value: float, unit: Unit = "plain") -> str:
    """``0.0241``, ``36.5 %``, ``382``, ``1.25 GiB``; a figure and its unit are not parted at the end of a line."""
    if unit == "share":
        return f"{100 * value:.1f}{JOINED}%"
    if unit == "gib":
        return f"{value:.3g}{JOINED}GiB"
    if unit == "rate":
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.4g}"


def tick(value: float, unit: Unit = "plain") -> str:
    """A number on an axis, as short as it can be."""
    if unit == "share":
        return f"{100 * value:.6g}{JOINED}%"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.6g}M"
    if abs(value) >= 10000:
        return f"{value / 1e3:.6g}k"
    return f"{value:,.6g}"


def seconds(value: float) -> str:
    """``45 s``, ``12 min 05 s``, ``3 h 10 min``, ``2 d 04 h``."""
    if value < 9.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def large(value: float, unit: str) -> str:
    """``2.27 PFLOP``: three figures and the prefix that fits, without one below a thousand."""
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g}{JOINED}{prefix}{unit}"
    return f"{value:.3g}{JOINED}{unit}"


def plural(count: int, one: str, many: str = "") -> str:
    """``1 clip``, ``3,840 clips``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def setting(value: object) -> str:
    """A setting as it would be written after ``--set path=``."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def text(value: object) -> str:
    """What a file holds where words are expected: words as they are, lists joined, other data as JSON."""
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(str, value))
    return setting(value)


def mapping(value: object) -> dict[str, Any]:
    """A mapping with text keys, empty where there is none."""
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}
