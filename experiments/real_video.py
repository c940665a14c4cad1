"""What pre-training on few videos is worth on real video: JHMDB, GRID digits, hand-washing. On one core, at sizes that fit there.

One encoder (ViT of 6 blocks, width 192) and one length of fine-tuning for all; starts differ: random weights, VideoMAE on JHMDB's 570
training clips, VideoMAE on those and 760 other unlabelled videos. Settings are chosen on a part of the training set that is apart from the
rest by source video or subject; every test set is read once for each figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from real_sets import DATA, GRID, JHMDB, SETS, Labelled, unlabelled
from study import WORK, Entry, Found, Stopped, Study

import tubelet
from tubelet.errors import DataError
from tubelet.tasks import Score
from tubelet.tasks.probe import score_probe

PROTOCOLS = {"knn, mean": ("knn", "mean"), "linear, mean": ("linear", "mean"), "linear, slots": ("linear", "slots"),
             "attentive": ("attentive", "mean")}  # fmt: skip
RATES = (3e-4, 1e-3)
DECAYS: dict[str, float | None] = {"scratch": None, "pre-trained": 0.75}  # layer decay: rates of early blocks mean nothing from scratch


@dataclass(frozen=True)
class Scale:
    """What differs between one core and a GPU.

    ``frames``, ``size``: of clips. ``steps``: of the main pre-training runs, ``short``: of those that compare maskings. ``epochs``: of
    fine-tuning; ``long``: those that cost as much as pre-training and fine-tuning. ``tune_seeds``: further seeds of fine-tuning from the
    first encoder, where a whole run for each seed is dear. ``minutes``: declared costs.
    """

    device: str
    recipe: str
    frames: int
    size: int
    settings: tuple[str, ...]
    steps: int
    short: int
    batch: int
    epochs: int
    long: int
    seeds: tuple[int, ...]
    short_seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    minutes: Mapping[str, float]


CPU = Scale(
    device="cpu", recipe="tiny-cpu", frames=8, size=80, settings=("data.workers=0",), steps=9600, short=1600, batch=32, epochs=24, long=250,
    seeds=(0, 1, 2), short_seeds=(0,), tune_seeds=(1, 2),
    minutes={"pretrain": 65, "short": 11, "frozen": 3, "choose": 10, "finetune": 6, "long": 60, "curve": 4, "small": 1},
)  # fmt: skip


class Work:
    """The measurements of one scale, by the name of their study."""

    def __init__(self, name: str, scale: Scale) -> None:
        self.name, self.scale, self.folder = name, scale, WORK / name

    def pretrain(
        self, out: str, source: Callable[[], Path], seed: int, steps: int, more: Sequence[str], needed: Mapping[str, Found]
    ) -> Found:
        """A run that goes on where it was stopped; its checkpoints stay, for the curve."""
        s = self.scale
        train = [f"steps={steps}", f"batch={s.batch}", f"train.warmup_steps={max(1, steps // 20)}", f"train.seed={seed}"]
        keep = [f"train.checkpoint_every={-(-steps // 12)}", "train.checkpoint_minutes=null", "train.keep=100"]
        watch = ["watch.pictures=0", "watch.probe=0"]
        settings = ["data.split=train", *self._clips(JHMDB), *s.settings, *train, *keep, *watch, *more]
        run = self.folder / out
        ended = tubelet.pretrain(source(), out=run, recipe=s.recipe, settings=settings, resume=run.exists(), quiet=True)
        if ended.stopped_by:
            raise Stopped(ended.stopped_by)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if "clips_per_s" in row]
        timed = [row for row in rows if row["clips_per_s"]]  # no speed is known of the first step
        before, seconds = 0.0, 0.0
        for row in timed:
            seconds, before = seconds + (row["samples"] - before) / row["clips_per_s"], row["samples"]
        return {
            "steps": rows[-1]["step"], "clips": rows[-1]["samples"], "epochs": rows[-1]["epoch"], "minutes": round(seconds / 60, 2),
            "loss": rows[-1]["loss"], "zero": rows[-1]["zero_answer"],
            "curve": [(row["step"], row["loss"]) for row in rows[:: max(1, len(rows) // 60)]],
        }  # fmt: skip

    def curve(self, run: str, of: Labelled, needed: Mapping[str, Found]) -> Found:
        """The linear probe after every twelfth of a run, inside the training set: fitted on three quarters, read on the rest."""
        files = sorted((self.folder / run / "checkpoints").glob("*.safetensors"))
        points = []
        for file in files:
            step = int("".join(c for c in file.stem if c.isdigit()))
            points.append((step, {pool: self._inside(file, of, pool).value for pool in ("mean", "slots")}))
        score = self._inside(files[-1], of, "slots", random=True)
        return {"points": points, "random": score.value, "n": score.n_scored}

    def _inside(self, file: Path, of: Labelled, pool: str, random: bool = False) -> Score:
        model = tubelet.load(file, random=random)
        pair = [tubelet.embed(model, of.choosing(), pool=pool, split=split, settings=self._views(of)) for split in ("train", "test")]
        return score_probe(*pair, groups={row["key"]: row["group"] for row in of.rows()} if of.group else None)

    def _clips(self, of: Labelled) -> list[str]:
        """As long in seconds at every number of frames, as far as whole strides allow."""
        s = self.scale
        return [f"data.frames={s.frames}", f"data.size={s.size}", f"data.stride={max(1, round(of.stride * 8 / s.frames))}"]

    def _views(self, of: Labelled) -> list[str]:
        return [*self._clips(of), f"views.clips={of.views}"]

    def frozen(self, run: str, of: Labelled, seed: int, random: bool, needed: Mapping[str, Found]) -> Found:
        """All protocols on frozen features, their settings chosen by groups where there are some."""
        model = tubelet.load(self.folder / run, random=random)
        scores = {}
        for name, (kind, pool) in PROTOCOLS.items():
            if kind == "knn":
                score = tubelet.knn(model, of.manifest(), pool=pool, settings=self._views(of))
            else:
                how: dict[str, Any] = {"groups": "group"} if of.group else {}
                score = tubelet.probe(model, of.manifest(), kind=kind, pool=pool, seed=seed, settings=self._views(of), **how)
            scores[name] = kept(score)
        return {"scores": scores, "groups": groups_of(of)}

    def _finetune(self, run: str, out: str, manifest: Path, of: Labelled, seed: int, random: bool, lr: float, epochs: int) -> Score:
        decay = DECAYS["scratch" if random else "pre-trained"]
        settings = [
            f"epochs={epochs}", f"lr={lr:g}", f"train.seed={seed}", f"classifier.layer_decay={'null' if decay is None else decay}",
            "data.cache=memory", "data.workers=0", *self._views(of),
        ]  # fmt: skip
        place = self.folder / out
        done = tubelet.finetune(
            self.folder / run, manifest, out=place, recipe="finetune-tiny-cpu", settings=settings, random=random, resume=place.exists(),
            quiet=True,
        )  # fmt: skip
        if done.result.stopped_by:
            raise Stopped(done.result.stopped_by)
        if done.score is None:  # an earlier call has tested it and was stopped before it wrote that down
            return tubelet.evaluate(place, manifest)
        return done.score

    def choose(self, run: str, of: Labelled, random: bool, name: str, needed: Mapping[str, Found]) -> Found:
        """Learning rate of fine-tuning by the accuracy on the held-out part of the training set, seed 0."""
        tried = {}
        for lr in RATES:
            score = self._finetune(run, f"{name}-{lr:g}", of.choosing(), of, 0, random, lr, self.scale.epochs)
            tried[f"{lr:g}"] = score.value
        return {"tried": tried, "lr": float(max(tried, key=lambda key: tried[key])), "n": score.n_scored}

    def finetune(self, run: str, of: Labelled, seed: int, random: bool, epochs: int, name: str, needed: Mapping[str, Found]) -> Found:
        """Full fine-tuning with the rate that was chosen."""
        (lr,) = [found["lr"] for found in needed.values() if "lr" in found]
        score = self._finetune(run, name, of.manifest(), of, seed, random, lr, epochs)
        return {"scores": {"fine-tuned": kept(score)}, "groups": groups_of(of), "lr": lr, "epochs": epochs}


def kept(score: Score) -> dict[str, Any]:
    """What of a score is written down: with it, which test items were right (1) in the order of their keys, for paired comparisons."""
    if score.n_scored != score.n_total:
        raise DataError(f"{score.n_total - score.n_scored} test items could not be read; what is compared must be the same items")
    keys = sorted(score.predictions)
    right = "".join(str(int(len(set(score.predictions[key])) == 1)) for key in keys)
    chosen = {name: score.details[name] for name in ("C", "lr", "weight_decay") if name in score.details}
    return {
        "value": score.value, "low": score.low, "high": score.high, "n": score.n_scored, "total": score.n_total, "right": right, **chosen
    }  # fmt: skip


def groups_of(of: Labelled) -> str:
    """A number for every test item, in the order of their keys: the same for clips of one source video or subject."""
    items = sorted((row["key"], row["group"] or row["key"]) for row in of.rows() if row["split"] == "test")
    names = sorted({group for _, group in items})
    return " ".join(str(names.index(group)) for _, group in items)


SHORT: dict[str, tuple[str, ...]] = {
    "tube-75": (),
    "all-75": (),  # the same on 1,330 videos
    "tube-50": ("masking.ratio=0.5",),
    "tube-90": ("masking.ratio=0.9",),
    "tube-95": ("masking.ratio=0.95",),
    "random-75": ("masking=random", "masking.ratio=0.75"),
    "frame-75": ("masking=frame", "masking.ratio=0.75"),
    "depth-1": ("method.decoder.depth=1",),
    "depth-4": ("method.decoder.depth=4",),
}


def study(name: str, about: str, scale: Scale) -> Study:
    """All entries of a scale, the most valuable first."""
    work, cost = Work(name, scale), scale.minutes
    found: dict[str, list[Entry]] = {}

    def add(rank: int, entry: Entry) -> None:
        found.setdefault(str(rank), []).append(entry)

    sources: dict[str, Callable[[], Path]] = {"jhmdb": lambda: DATA / JHMDB.file, "all": unlabelled, "grid": lambda: DATA / GRID.file}
    for seed in scale.seeds:
        first = seed == scale.seeds[0]
        late = 0 if first else 10
        none = f"untrained/{seed}"
        step = partial(work.pretrain, f"untrained-{seed}", sources["jhmdb"], seed, 1, ())
        add(late, Entry(none, "one step, for an encoder whose weights are then drawn at random", cost["small"], step))
        for start in ("jhmdb", "all"):
            run = f"pretrain/{start}/{seed}"
            what = (
                "VideoMAE on JHMDB's 570 training clips"
                if start == "jhmdb"
                else "VideoMAE on 1,330 unlabelled videos, those 570 among them"
            )
            step = partial(work.pretrain, f"pretrain-{start}-{seed}", sources[start], seed, scale.steps, ())
            add(late + (1 if start == "jhmdb" else 2), Entry(run, f"{what}, seed {seed}", cost["pretrain"], step))
            if first:
                step = partial(work.curve, f"pretrain-{start}-{seed}", JHMDB)
                add(3, Entry(f"curve/{start}/{seed}", "the probe while pre-training went on", cost["curve"], step, (run,)))
        for of in SETS.values():
            for start in ("random", "jhmdb", "all"):
                random, run = start == "random", none if start == "random" else f"pretrain/{start}/{seed}"
                rank = late + (1 if of is JHMDB else 4)
                step = partial(work.frozen, run.replace("/", "-"), of, seed, random)
                add(rank, Entry(f"frozen/{of.name}/{start}/{seed}", f"probes of {of.title}", cost["frozen"], step, (run,)))
                chosen = f"choose/{of.name}/{start}"
                small = of.name == "handwash"
                if first:
                    step = partial(work.choose, run.replace("/", "-"), of, random, f"choose-{of.name}-{start}")
                    add(rank, Entry(chosen, f"rate of fine-tuning for {of.title}", cost["small" if small else "choose"], step, (run,)))
                tuned = f"finetune/{of.name}/{start}/{seed}"
                step = partial(work.finetune, run.replace("/", "-"), of, seed, random, scale.epochs, tuned.replace("/", "-"))
                price = cost["small" if small else "finetune"]
                add(rank + 1, Entry(tuned, f"fine-tuning on {of.title}", price, step, (run, chosen)))
                for again in scale.tune_seeds if first and of is JHMDB else ():
                    more = f"{tuned}+{again}"
                    step = partial(work.finetune, run.replace("/", "-"), of, again, random, scale.epochs, more.replace("/", "-"))
                    add(rank + 2, Entry(more, f"the same from the same encoder, fine-tuning seed {again}", price, step, (run, chosen)))
        long = f"finetune/jhmdb/random-long/{seed}"
        step = partial(work.finetune, none.replace("/", "-"), JHMDB, seed, True, scale.long, long.replace("/", "-"))
        what = "from scratch for as long as pre-training and fine-tuning take together"
        add(late + 6, Entry(long, what, cost["long"], step, (none, "choose/jhmdb/random")))
    for kind, more in SHORT.items():
        for seed in scale.short_seeds:
            run = f"short/{kind}/{seed}"
            step = partial(work.pretrain, run.replace("/", "-"), sources["all" if kind == "all-75" else "jhmdb"], seed, scale.short, more)
            add(5, Entry(run, f"a shorter run with {kind}", cost["short"], step))
            step = partial(work.frozen, run.replace("/", "-"), JHMDB, seed, False)
            add(5, Entry(f"frozen/jhmdb/{kind}/{seed}", "its probes", cost["frozen"], step, (run,)))
    ordered = [entry for rank in sorted(found, key=int) for entry in found[rank]]
    return Study(name, about, ordered, scale.device)


STUDY = study("real_video", "On one core: a ViT of 6 blocks and width 192, clips of 8x80x80", CPU)
