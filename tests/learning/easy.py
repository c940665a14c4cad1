"""Pre-train a small VideoMAE on easy scenes and ask a linear probe which way the object went.

    python tests/learning/easy.py --steps 1500 --seeds 0 1 2 3 4 [--masking tube|random|frame] [--ratio .75]

prints a table: accuracy of a probe on features pooled per time slot, and on their mean, for random and trained weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.config import config_class
from tubelet.core import Batch, Stream, permutation
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.nn import pool
from tubelet.playground import render_batch
from tubelet.train.loop import fit
from tubelet.train.settings import TrainSettings

TRAIN, PROBE, TEST = 8192, 2400, 1600  # clips: for pre-training, for fitting the probe, for its score


@cache
def clips(first: int, n: int) -> tuple[Tensor, np.ndarray]:
    """Clips by number, (n, 3, T, H, W) uint8, and their motion classes."""
    parts = [render_batch("easy", 7, range(i, min(i + 512, first + n))) for i in range(first, first + n, 512)]
    frames = torch.from_numpy(np.concatenate([p[0] for p in parts])).permute(0, 4, 1, 2, 3).contiguous()
    return frames, np.concatenate([p[1] for p in parts])


class Feed:
    """The pre-training clips, in counted order."""

    def __init__(self, seed: int) -> None:
        self.frames, self.seed = clips(0, TRAIN)[0], seed

    def __len__(self) -> int:
        return TRAIN

    def fingerprint(self) -> Mapping[str, Any]:
        return {"clips": TRAIN}

    def keys(self) -> Sequence[str]:
        return []

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        orders = {}
        for numbers in schedule:
            for epoch in {k // TRAIN for k in numbers} - orders.keys():
                orders[epoch] = permutation(self.seed, epoch, TRAIN)
            rows = torch.stack([orders[k // TRAIN][k % TRAIN] for k in numbers])
            yield Batch({"video": Stream(self.frames[rows])}, {}, torch.tensor(list(numbers)))

    def report(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def model(seed: int, masking: str = "tube", ratio: float = 0.75) -> VideoMAE:
    """D 96, 4 blocks; patches of 2x8x8; raw pixels as the target. (With the 1-D table, 1,500 steps are too few.)"""
    config = Config.model_validate(
        {
            "dim": 96,
            "depth": 4,
            "heads": 3,
            "patch": (2, 8, 8),
            "decoder": {"dim": 48, "depth": 2, "heads": 3},
            "position": "sincos3d",
            "target": {"normalise": "none"},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masker: Any = config_class("tubelet.masking", masking).model_validate({"ratio": ratio})
        return config.build(masking=masker.build(), frames=8, size=(32, 32))


@torch.no_grad()
def features(net: VideoMAE, first: int, n: int) -> dict[str, np.ndarray]:
    """Per-slot means one after the other, and the mean over all tokens."""
    net.eval()
    frames, out = clips(first, n)[0], {"slots": [], "mean": []}
    for part in frames.split(200):
        tokens = net.encode(Batch({"video": Stream(part)}, {}, torch.zeros(len(part), dtype=torch.int64)))
        out["slots"].append(pool.slots(tokens).flatten(1))
        out["mean"].append(pool.mean(tokens))
    return {k: torch.cat(v).numpy() for k, v in out.items()}


def probe(net: VideoMAE) -> dict[str, float]:
    """Accuracy on the test clips of a logistic regression fitted on the probe clips."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test = features(net, TRAIN, PROBE), features(net, TRAIN + PROBE, TEST)
    truth, asked = clips(TRAIN, PROBE)[1], clips(TRAIN + PROBE, TEST)[1]
    out, half = {}, PROBE * 4 // 5
    for kind in train:
        scale = StandardScaler().fit(train[kind])
        x, y = scale.transform(train[kind]), scale.transform(test[kind])

        def score(strength: float, x: np.ndarray = x) -> float:
            part = LogisticRegression(C=strength, max_iter=300).fit(x[:half], truth[:half])
            return float((part.predict(x[half:]) == truth[half:]).mean())

        best = max((1e-3, 1e-2, 1e-1), key=score)
        classifier = LogisticRegression(C=best, max_iter=300).fit(x, truth)
        out[kind] = float((classifier.predict(y) == asked).mean())
    return out


def pretrain(net: VideoMAE, seed: int, steps: int) -> list[dict[str, float]]:
    """Train ``net`` in place; returns the lines of metrics.jsonl."""
    settings = TrainSettings(
        steps=steps,
        batch=64,
        lr=3e-3,
        lr_batch=None,
        min_lr=1e-5,
        warmup_steps=steps // 10,
        seed=seed,
        device="cpu",
        checkpoint_minutes=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(net, Feed(seed), settings, Path(folder), quiet=True)
        return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--masking", default="tube")
    parser.add_argument("--ratio", type=float, default=0.75)
    args = parser.parse_args()
    print("| seed | steps | slots random | slots trained | mean random | mean trained | loss | seconds |")
    print("|---" * 8 + "|")
    for seed in args.seeds:
        net = model(seed, args.masking, args.ratio)
        before, began = probe(net), time.monotonic()
        rows = pretrain(net, seed, args.steps)
        seconds, after = time.monotonic() - began, probe(net)
        figures = f"{before['slots']:.3f} | {after['slots']:.3f} | {before['mean']:.3f} | {after['mean']:.3f}"
        print(f"| {seed} | {args.steps} | {figures} | {rows[-1]['loss']:.4f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
