"""Measure claims and studies: ``python experiments/run.py NAME...``, without a name the list of them.

What experiments/results/ holds is not measured again, so a stopped call goes on where it was; --again forgets it. Of a claim
``--seeds 0 1`` are measured, of a study the entries that match ``--only 'finetune/*'``. Several calls may work at one study.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from claims import RESULTS, load, names, studies
from study import Study, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    if not args.names:
        show()
    for name in args.names:
        if name in studies():
            load(name).STUDY.run(args.only, args.again)
        else:
            measure(name, args.seeds, args.again)


def show() -> None:
    """All claims and studies with their declared costs."""
    for name in names():
        claim = load(name).CLAIM
        print(f"{name:28} {claim.minutes:5.1f} min a seed, {claim.device:4}  {claim.claim}")
    for name in studies():
        study: Study = load(name).STUDY
        done = [e for e in study.entries if study.result(e.name) is not None]
        hours = sum(e.minutes for e in study.entries) / 60
        print(f"{name:28} {len(done)} of {len(study.entries)} entries done, {hours:.1f} h in all, {study.device:4}  {study.about}")


def measure(name: str, seeds: list[int] | None, again: bool) -> None:
    """The seeds of a claim that are not measured yet."""
    claim = load(name).CLAIM
    path = RESULTS / f"{name}.json"
    kept = {} if again or not path.exists() else json.loads(path.read_text(encoding="utf-8"))["seeds"]
    for seed in seeds or claim.seeds:
        if str(seed) in kept:
            continue
        torch.manual_seed(seed)
        began = time.monotonic()
        figures = {k: float(v) for k, v in claim.measure(seed).items()}
        about = {"minutes": round((time.monotonic() - began) / 60, 2), "machine": machine(), "torch": torch.__version__}
        kept[str(seed)] = {"figures": figures, **about, "date": date.today().isoformat()}
        RESULTS.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"seeds": kept}, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        print(name, seed, figures, about, flush=True)
    held = claim.holds([s["figures"] for s in kept.values()])
    print(f"{name}: {'holds' if held else 'DOES NOT HOLD'}. Expected: {claim.expected}")


if __name__ == "__main__":
    main()
