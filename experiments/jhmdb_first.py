"""What a pre-trained run knows about JHMDB, against the same network with random weights.

    tubelet pretrain DATA/split.csv --recipe tiny-cpu --out runs/jhmdb --set data.split=train --set data.workers=0
    python experiments/jhmdb_first.py runs/jhmdb DATA/split.csv [--json scores.json]

Claim: an hour of VideoMAE pre-training on 570 unlabelled clips makes better frozen features than random weights. Prints one row for
each protocol: top-1 with 95 % Wilson intervals, and the paired difference with its 95 % interval and McNemar's exact p.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tubelet
from tubelet.tasks.knn import score_knn
from tubelet.tasks.probe import score_probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    trained, control = tubelet.load(args.run), tubelet.load(args.run, random=True)
    print("| protocol | pre-trained | random weights | difference | n |\n|---|---|---|---|---|")
    kept = {}
    for pool in ("mean", "slots"):
        vectors = [
            [tubelet.embed(model, args.data, pool=pool, split=split, settings=["views.clips=2"]) for split in ("train", "test")]
            for model in (trained, control)
        ]
        for name, score in (("knn", score_knn), ("linear probe", score_probe)):
            a, b = (score(*pair) for pair in vectors)
            gap = a.compare(b)
            scores = " | ".join(f"{100 * s.value:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in (a, b))
            paired = f"{100 * gap.difference:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], p = {gap.p:.2g}"
            print(f"| {name}, {pool} | {scores} | {paired} | {a.n_scored} / {a.n_total} |", flush=True)
            kept[f"{name}, {pool}"] = {"trained": a.as_dict(), "random": b.as_dict()}
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
