"""Results of a fine-tuned run for the page: scores with their intervals, and which classes are taken for which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.viz.report.words import figure, mapping, text, written

SHARES = re.compile(r"(?:.*[/_ ])?(?:top[15]|accuracy)")
MOST = 60
TOP1, TOP5 = "top\u20111", "top\u20115"  # not to be broken at the hyphen


def results(found: object, name: str = "") -> list[tuple[str, str, str]]:
    """(name, figure, note) of whatever results.json holds: scores with their interval, top-5 and how many items were scored; or figures."""
    if isinstance(found, list):
        return [row for child in found for row in results(child, name)][:MOST]
    if not isinstance(found, dict):
        return []
    value = figure(found.get("value"))
    if value is not None and figure(found.get("n_scored")) is not None:
        return _score(found, value, name)
    out: list[tuple[str, str, str]] = []
    for key, child in found.items():
        label = " / ".join(filter(None, [name, text(key)]))
        if isinstance(child, dict):
            out += results(child, label)
        elif (number := figure(child)) is not None:
            out.append((label, written(number, "share" if SHARES.fullmatch(label) and 0 <= number <= 1 else "plain"), ""))
        elif isinstance(child, str) and child:
            out.append((label, child, ""))
    return out[:MOST]


def _score(found: Mapping[str, Any], value: float, name: str) -> list[tuple[str, str, str]]:
    details = mapping(found.get("details"))
    label = name or text(found.get("name", "score"))
    low, high, scored, total = (figure(found.get(k)) for k in ("low", "high", "n_scored", "n_total"))
    notes = [f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"] if low is not None and high is not None else []
    notes.append(f"{scored:,.0f} of {'?' if total is None else f'{total:,.0f}'} items scored")
    if classes := figure(details.get("classes")):
        notes.append(f"{classes:.0f} classes, chance {100 / classes:.1f} %")
    out = [(f"{label}, {TOP1}", written(value, "share"), "; ".join(notes))]
    if (top5 := figure(details.get("top5"))) is not None:
        out.append((f"{label}, {TOP5}", written(top5, "share"), ""))
    return out


def hardest(scores: Sequence[Any], most: int = 8) -> list[tuple[str, str, str]]:
    """(clip, true class and what it was taken for, probability of the true class) of the hardest clips in the first score."""
    found = mapping(scores[0]).get("hardest") if scores else None
    rows = []
    for clip in [mapping(c) for c in (found if isinstance(found, list) else [])][:most]:
        chance = figure(clip.get("probability"))
        taken = f"{text(clip.get('true'))}, taken for {text(clip.get('predicted'))}"
        rows.append((text(clip.get("key")), taken, "" if chance is None else written(chance, "share")))
    return rows


def mistakes(scores: Sequence[Any], most: int = 8) -> list[tuple[str, str, str]]:
    """(true class, predicted class, how often) of the most frequent mistakes in the first score."""
    found = mapping(scores[0]).get("confused") if scores else None
    pairs = [mapping(pair) for pair in found] if isinstance(found, list) else []
    return [(text(p.get("true")), text(p.get("predicted")), f"{text(p.get('n'))} of {text(p.get('of'))}") for p in pairs[:most] if p]
