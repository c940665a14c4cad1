"""Maskings on JHMDB: each at its paper's ratio and all at one ratio, and MAE against MAE with InfoNCE, by a linear probe.

570 training clips of 21 actions, decoded in memory; 225 test clips. Captions are sentences made of the class names ("a video of a person
doing golf"): weak captions, which tell the class away, so the text-guided and aligned rows know the label and are no fair match for the
others; they show that the road works. The dual encoder that guides the text mask is trained on the same sentences. Equal samples: the
same number of steps for all. Equal FLOPs: the steps of the others are scaled to the cost of tube masking at 90 %.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adamae_error import SHARED
from claims import Claim, Figures, mean

import tubelet

STEPS, WORDS = int(os.environ.get("JHMDB_STEPS", "20000")), int(os.environ.get("JHMDB_WORDS", "2000"))
SIZE = ["data.size=112", "data.frames=16", "data.stride=1", "data.cache=memory", "data.split=train"]
NET = ["method.dim=384", "method.depth=8", "method.heads=6", "method.patch=[2,16,16]", "method.decoder={dim: 192, depth: 2, heads: 3}"]
PAPER = {"tube": 0.9, "random": 0.9, "mgm": 0.75, "mgmae": 0.9, "adamae": 0.95, "tgm": 0.6}
COMMON = 0.75


def captioned(folder: Path) -> Path:
    """JHMDB's list with a sentence for each class."""
    source = SHARED / "data" / "actions" / "jhmdb" / "split.csv"
    with open(source, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    out = folder / "captioned.csv"
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "key", "label", "split", "caption"])
        writer.writeheader()
        for row in rows:
            words = row["label"].replace("_", " ")
            path = str((source.parent / row["file"]).resolve())
            writer.writerow(
                {"path": path, "key": row["file"], "label": row["label"], "split": row["split"]} | {"caption": f"a video of {words}"}
            )
    return out


def pretrain(manifest: Path, out: Path, kind: str, ratio: float, steps: int, seed: int, words: Path, more: Sequence[str] = ()) -> float:
    """Linear probe's accuracy on the test clips after pre-training."""
    guided = [f"masking.guide.model={words}"] if kind == "tgm" else []
    train = [f"steps={steps}", "batch=64", "lr=1e-3", "train.lr_batch=null", f"train.seed={seed}", "watch.probe=0", "watch.pictures=0"]
    train += ["train.checkpoint_minutes=null", f"train.warmup_steps={steps // 10}"]
    settings = [*SIZE, *NET, *train, f"masking={kind}", f"masking.ratio={ratio}", *guided, *more]
    tubelet.pretrain(manifest, out=out, recipe="tiny-cpu", settings=settings, quiet=True)
    return tubelet.probe(out, manifest, pool="slots").value


def measure(seed: int) -> Figures:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        manifest, words = captioned(home), home / "words"
        text = [f"steps={WORDS}", f"train.seed={seed}", "data.size=112", "data.cache_size=112", "data.stride=1", "method.network.patch=16"]
        tubelet.pretrain(manifest, out=words, recipe="dual", settings=text, quiet=True)
        for kind, ratio in PAPER.items():
            found[f"{kind}_paper"] = pretrain(manifest, home / f"{kind}-p", kind, ratio, STEPS, seed, words)
            found[f"{kind}_common"] = pretrain(manifest, home / f"{kind}-c", kind, COMMON, STEPS, seed, words)
            scaled = max(1, round(STEPS * (1 - PAPER["tube"] + 0.3) / (1 - ratio + 0.3)))  # the decoder costs about 0.3 of an encoder here
            found[f"{kind}_flops"] = pretrain(manifest, home / f"{kind}-f", kind, ratio, scaled, seed, words)
        aligned = [f"method.align.model={words}", "method.align.twins=skip"]
        found["tube_aligned"] = pretrain(manifest, home / "aligned", "tube", PAPER["tube"], STEPS, seed, words, aligned)
        found["random_weights"] = tubelet.probe(home / "tube-p", manifest, pool="slots", random=True).value
    return found


CLAIM = Claim(
    paper="TGM 6, MGM 6, MGMAE 6, AdaMAE 6.",
    claim="On real video guided maskings are at least as good as tube masking, and InfoNCE beside reconstruction helps a linear probe.",
    expected="the probe of MGM, MGMAE and AdaMAE at their papers' ratios not below tube's by more than 2 points in the mean; aligned tube "
    "above tube",
    measure=measure,
    holds=lambda s: (
        all(mean(s, f"{kind}_paper") >= mean(s, "tube_paper") - 0.02 for kind in ("mgm", "mgmae", "adamae"))
        and mean(s, "tube_aligned") > mean(s, "tube_paper")
    ),
    shown={f"{kind}_{how}": ".3f" for kind in PAPER for how in ("paper", "common", "flops")}
    | {"tube_aligned": ".3f", "random_weights": ".3f"},
    minutes=40,
    device="cuda",
)
