"""Measure claims: ``python experiments/run.py NAME... [--seeds 0 1 2]``, without a name the list of them.

Seeds that experiments/results/NAME.json holds are not measured again, so a stopped call goes on where it was; --again forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from claims import RESULTS, load, names


def machine() -> str:
    """In words."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    if not args.names:
        for name in names():
            claim = load(name).CLAIM
            print(f"{name:28} {claim.minutes:5.1f} min a seed, {claim.device:4}  {claim.claim}")
    for name in args.names:
        claim = load(name).CLAIM
        path = RESULTS / f"{name}.json"
        kept = {} if args.again or not path.exists() else json.loads(path.read_text(encoding="utf-8"))["seeds"]
        for seed in args.seeds or claim.seeds:
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
