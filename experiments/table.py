"""Write docs/experiments.md from experiments/results/*.json: ``python experiments/table.py [--check]``."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from claims import HERE, RESULTS, Claim, load, names, publish

PAGE = HERE.parent / "docs" / "experiments.md"
HEAD = """# Claims, measured

*Written by `python experiments/table.py` from `experiments/results/`; do not edit.*

Each row is a claim of a paper at a size that a CPU measures in minutes, on clips whose truth is known. What had to come out was written
into the experiment's file before it was measured; figures are means over seeds with the range behind. A claim that does not hold at this
size may hold at the paper's, and the other way round. To measure one again: `python experiments/run.py NAME --again`.

"""


def cell(claim: Claim, seeds: dict[str, dict[str, dict[str, float]]]) -> str:
    """The figures of the table: mean [least, largest]."""
    parts = []
    for name, form in claim.shown.items():
        values = [s["figures"][name] for s in seeds.values() if name in s["figures"]]
        if values:
            low, high = min(values), max(values)
            spread = f" [{format(low, form)}, {format(high, form)}]" if len(values) > 1 else ""
            parts.append(f"{name.replace('_', ' ')} {format(statistics.mean(values), form)}{spread}")
    return "; ".join(parts)


def page() -> str:
    lines, details = ["| claim | expected here | measured | |", "|---|---|---|---|"], []
    for name in names():
        claim = load(name).CLAIM
        path = RESULTS / f"{name}.json"
        title = f"**{claim.paper}** {claim.claim} (`{name}`)"
        if not path.exists():
            lines.append(f"| {title} | {claim.expected} | not run: needs {claim.device}, {claim.minutes:g} min a seed | not run |")
            continue
        seeds = json.loads(path.read_text(encoding="utf-8"))["seeds"]
        verdict = "holds" if claim.holds([s["figures"] for s in seeds.values()]) else "**does not hold**"
        if len(seeds) < len(claim.seeds):
            verdict += f" so far: {len(seeds)} of {len(claim.seeds)} seeds"
        lines.append(f"| {title} | {claim.expected} | {cell(claim, seeds)} | {verdict} |")
        one = next(iter(seeds.values()))
        minutes = statistics.mean(s["minutes"] for s in seeds.values())
        details.append(
            f"- `{name}`: seeds {', '.join(seeds)}; {minutes:.1f} min a seed on {one['machine']}, torch {one['torch']}, {one['date']}; "
            f"`python experiments/run.py {name}`" + (f". {claim.note}" if claim.note else "")
        )
    return HEAD + "\n".join(lines) + "\n\n## How and where\n\n" + "\n".join(details) + "\n"


if __name__ == "__main__":
    publish(PAGE, page(), __doc__)
