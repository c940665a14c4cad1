"""Put what was measured into docs/performance.md: the tables between its marks, from the JSON that the benchmarks wrote.

    python benchmarks/tables.py [--results benchmarks/results] [--page docs/performance.md]

Reads data.json (benchmarks/data.py), embed.json (benchmarks/embed.py) and clips_per_video.json (experiments/clips_per_video.py) where they
are there; a table without its file keeps what it says. The marks are ``<!-- measured: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import embed

import data

HERE = Path(__file__).parent
Found = dict[str, dict[str, Any]]  # by name of the file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    args = parser.parse_args()
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.results.glob("*.json"))}
    args.page.write_text(filled(args.page.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(f"wrote {args.page} from {', '.join(found) or 'nothing'}")


def filled(page: str, found: Found) -> str:
    """The page with every table for which there are figures."""
    makers: dict[str, Callable[[Found], str]] = {
        "targets": targets,
        "data": lambda found: f"{_when(found['data'])}\n\n{data.markdown(found['data'])}",
        "embed": lambda found: f"{_when(found['embed'])}\n\n{embed.markdown(found['embed'])}",
        "clips_per_video": lambda found: probes(found["clips_per_video"]),
    }
    for name, make in makers.items():
        if found and (name == "targets" or name in found):
            pattern = rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)"
            parts = re.split(pattern, page, flags=re.DOTALL)
            if len(parts) != 4:
                raise SystemExit(f"the page has {len(parts) // 3} places for {name}")
            before, mark, end, after = parts
            page = f"{before}{mark}\n{make(found)}\n\n{end}{after}"
    return page


def _when(found: dict[str, Any]) -> str:
    return f"*{found['machine']}, torch {found['torch']}, {found['date']}.*"


def targets(found: Found) -> str:
    """Each target of the data path beside what was measured; the ratios are of gop250 at both sizes of clip."""
    lines = ["| target | measured | |", "|---|---|---|"]
    rows: list[tuple[str, float, list[tuple[str, dict[str, float]]]]] = []
    if "data" in found:
        sizes = found["data"]["sets"].get("gop250", {})

        def ratio(pair: str, k: str) -> list[tuple[str, dict[str, float]]]:
            named = [(f"{size} px", by_k.get(k, {}).get("ratios", {}).get(pair)) for size, by_k in sizes.items()]
            return [(name, value) for name, value in named if value is not None]

        rows += [
            ("raw files, k = 1: 1.3 times decord", 1.3, ratio("Tubelet, raw / decord", "1")),
            ("raw files, k = 4: 3 times decord", 3.0, ratio("Tubelet, raw / decord", "4")),
            ("a prepared set: 8 times decord on raw files", 8.0, ratio("Tubelet, shards / decord", "1")),
            ("a prepared set: 0.8 of FFmpeg's limit", 0.8, ratio("Tubelet, shards / limit, shards", "1")),
            ("two decoding processes: 1.9 times one", 1.9, [(n, s["ratio"]) for n, s in found["data"]["scaling"].items()]),
        ]
    if "embed" in found:
        rows.append(("embedding long videos: 3 times transformers", 3.0, [("", found["embed"]["ratios"]["transformers"])]))
    for text, least, values in rows:
        told = ", ".join(f"{v['median']:.2f} ({v['low']:.2f}-{v['high']:.2f}){f' at {name}' if name else ''}" for name, v in values)
        verdict = "" if not values else "reached" if all(v["median"] >= least for _, v in values) else "not reached"
        lines.append(f"| {text} | {told or 'not measured'} | {verdict} |")
    return "\n".join(lines)


def probes(found: dict[str, Any]) -> str:
    """The scores of experiments/clips_per_video.py."""
    lines = [f"| {found['steps']:,} steps | probe | random weights |", "|---|---|---|"]
    for name, scores in found["runs"].items():
        cells = [f"{100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in (scores["trained"], scores["random"])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
