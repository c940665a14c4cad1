"""What several clips from each opened video cost the features: pre-training with 1 and with 4, at equal numbers of samples.

    python experiments/clips_per_video.py OUT [--steps 1500] [--seeds 0 1] [--clips 1 4] [--json scores.json]

Claim: neighbours in a batch that come from one video make decoding up to four times cheaper (benchmarks/data.py) and hardly change what an
encoder learns. Writes 1,200 `easy` clips of 24 frames (playground seed 7; 20 % of them are for the test), pre-trains by the recipe `demo`
on random windows of 8 frames of those for training, with as many steps, samples and settings for each arm, then fits a linear probe for
the 8 directions on features of every time slot. Prints a row for each run: top-1 on the 240 test clips with its 95 % Wilson interval, and
the scores of random weights. An arm takes about ten minutes on one core. One scene and small models: it would show harm, no more.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tubelet
from tubelet.tasks import Score

SETTINGS = ["data.sampling=window", "watch.tensorboard=false", "train.checkpoint_minutes=5"]


def arm(manifest: Path, out: Path, *, clips: int, seed: int, steps: int) -> tuple[Score, Score]:
    """(probe, probe with random weights) after pre-training with so many clips from each opened video."""
    run = out / f"clips-{clips}-seed-{seed}"
    settings = [
        *SETTINGS,
        f"data.clips_per_video={clips}",
        f"train.steps={steps}",
        f"train.warmup_steps={steps // 10}",
        f"train.seed={seed}",
    ]
    tubelet.pretrain(manifest, out=run, recipe="demo", settings=settings, quiet=True, resume=True)
    trained, untrained = (tubelet.probe(run, manifest, pool="slots", random=random, settings=["workers=0"]) for random in (False, True))
    return trained, untrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--videos", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    manifest = args.out / "easy" / "manifest.csv"
    if not manifest.exists():
        tubelet.make_playground(manifest.parent, clips=args.videos, scene="easy", size=32, frames=24, seed=7)
    kept = {}
    print("| clips a video | seed | steps | probe | random weights |\n|---|---|---|---|---|")
    for seed in args.seeds:
        for clips in args.clips:
            found = arm(manifest, args.out, clips=clips, seed=seed, steps=args.steps)
            scores = " | ".join(f"{100 * s.value:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in found)
            print(f"| {clips} | {seed} | {args.steps:,} | {scores} |", flush=True)
            kept[f"clips {clips}, seed {seed}"] = {name: s.as_dict() for name, s in zip(("trained", "random"), found, strict=True)}
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "runs": kept}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
