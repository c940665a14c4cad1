"""What pre-training is worth when few clips have a label: fine-tuning on generated clips, against the same network from random weights.

    python experiments/few_labels.py OUT [--seeds 0 1 2] [--json scores.json]

Claim: after pre-training without labels, LABELS clips of each of the 8 classes of motion are enough to learn what the same network does
not learn from random weights. Writes 1,200 `easy` clips (playground seed 5; 20 % of them are for the test), pre-trains by the recipe
`demo` on those for training, then fine-tunes by `finetune-tiny-cpu` on the first LABELS clips of each class, and on all. Prints a row
for each run: top-1 on the 240 test clips with its 95 % Wilson interval. Settings were chosen on held-out training clips.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tubelet
from tubelet.tasks import Score

LABELS = 40
SETTINGS = ["cache=memory", "workers=0", "data.cache_size=32", "watch.tensorboard=false"]


def prepare(out: Path) -> tuple[Path, Path, Path]:
    """(the manifest of all clips, the one with few labels, the pre-training run)."""
    everything, run = out / "easy" / "manifest.csv", out / "pretrained"
    if not everything.exists():
        tubelet.make_playground(everything.parent, clips=1200, scene="easy", size=32, frames=8, seed=5)
    few = everything.with_name("few.csv")
    with everything.open(newline="") as source, few.open("w", newline="") as target:
        rows = csv.DictReader(source)
        writer = csv.DictWriter(target, rows.fieldnames or [])
        writer.writeheader()
        seen: Counter[str] = Counter()
        for row in rows:
            seen[row["label"]] += row["split"] == "train"
            if row["split"] == "test" or seen[row["label"]] <= LABELS:
                writer.writerow(row)
    tubelet.pretrain(everything, out=run, recipe="demo", quiet=True, resume=True)
    return everything, few, run


def compare(run: Path, manifest: Path, out: Path, seed: int) -> Iterator[tuple[str, Score]]:
    """The score from the run's encoder, then from random weights."""
    for start in ("pre-trained", "random"):
        done = tubelet.finetune(
            run, manifest, out=out / f"{manifest.stem}-{start}-{seed}", recipe="finetune-tiny-cpu", settings=[*SETTINGS, f"seed={seed}"],
            random=start == "random", quiet=True,
        )  # fmt: skip
        assert done.score is not None
        yield start, done.score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    everything, few, run = prepare(args.out)
    kept = {}
    print("| labelled clips | seed | pre-trained | random weights |\n|---|---|---|---|")
    for manifest, seeds in ((few, args.seeds), (everything, args.seeds[:1])):
        for seed in seeds:
            found = dict(compare(run, manifest, args.out, seed))
            scores = " | ".join(f"{100 * s.value:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in found.values())
            print(f"| {found['random'].details['n_train']} | {seed} | {scores} |", flush=True)
            kept[f"{manifest.stem}, seed {seed}"] = {start: s.as_dict() for start, s in found.items()}
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
