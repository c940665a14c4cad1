"""Write docs/results.md from experiments/results/: ``python experiments/results_page.py [--check]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from claims import HERE, publish
from real_sets import SETS
from real_video import PROTOCOLS, SHORT, STUDY
from real_video_gpu import STUDY as GPU_STUDY
from study import Entry, Study

PAGE = HERE.parent / "docs" / "results.md"
IMAGES = PAGE.parent / "images" / "results"
STARTS = {"random": "random weights", "jhmdb": "VideoMAE on JHMDB's 570", "all": "VideoMAE on 1,330"}
DRAWS = 10_000
FEW = 10
HEAD = (HERE / "results_head.md").read_text(encoding="utf-8")


def shares(found: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(right (n,) float64, group (n,) int64): the share of seeds in which each test item was right. ``found``: (right, groups) of each."""
    right = np.mean([[int(c) for c in one] for one, _ in found], axis=0)
    return right, np.array([int(g) for g in found[0][1].split()])


def interval(value_N: np.ndarray, group_N: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % interval: bootstrap over groups (source videos), for clips of one film are right or wrong together.

    Over items where there are fewer than FEW groups: too few to say how much groups differ.
    """
    if len(np.unique(group_N)) < FEW:
        group_N = np.arange(len(value_N))
    sums = np.bincount(group_N, weights=value_N)
    sizes = np.bincount(group_N)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(value_N.mean()), float(low), float(high)


class Table:
    """What a study found of one protocol from one start, over its seeds."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def scores(self, pattern: str, protocol: str) -> tuple[list[tuple[str, str]], str]:
        """(right, groups) of every entry ``pattern`` + seed that is done, and how many there are, in words. Several fine-tunings of one
        encoder (``0``, ``0+1`` ...) count where there is one encoder, and its first alone where there are several."""
        done = {e.name: r for e in self.study.entries if e.name.startswith(pattern + "/") and (r := self.study.result(e.name)) is not None}
        done = {name: r for name, r in done.items() if protocol in r["scores"]}
        encoders = [name for name in done if "+" not in name]
        used = encoders if len(encoders) > 1 else list(done)
        words = f", {len(used)} {'encoders' if used == encoders else 'fine-tunings'}" if len(used) > 1 else ""
        return [(done[name]["scores"][protocol]["right"], done[name]["groups"]) for name in used], words

    def cell(self, pattern: str, protocol: str) -> str:
        """``41.3 [35.1, 47.0], 3 encoders``, in per cent."""
        found, words = self.scores(pattern, protocol)
        if not found:
            return "not run"
        mean, low, high = (100 * v for v in interval(*shares(found)))
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]{words}"

    def gap(self, first: str, second: str, protocol: str, other: str | None = None) -> str:
        """Paired difference in points with its interval."""
        (a, _), (b, _) = self.scores(first, protocol), self.scores(second, other or protocol)
        if not a or not b:
            return "not run"
        right_a, group = shares(a)
        mean, low, high = (100 * v for v in interval(right_a - shares(b)[0], group))
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def rows(cells: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = cells
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rest), ""]


def labelled(study: Study, name: str) -> list[str]:
    """The table of one set: a row for every start, a column for every protocol, and the differences to random weights."""
    table, of = Table(study), SETS[name]
    starts = [s for s in STARTS if any(e.name.startswith(f"frozen/{name}/{s}/") for e in study.entries)]
    head = ["start", *PROTOCOLS, "fine-tuned"]
    body = [
        [STARTS[s], *(table.cell(f"frozen/{name}/{s}", p) for p in PROTOCOLS), table.cell(f"finetune/{name}/{s}", "fine-tuned")]
        for s in starts
    ]
    for s, base, words in (*((s, "random", f"gain of {STARTS[s]}") for s in starts[1:]), ("all", "jhmdb", "1,330 against 570")):
        gaps = [table.gap(f"frozen/{name}/{s}", f"frozen/{name}/{base}", p) for p in PROTOCOLS]
        body.append([f"*{words}*", *gaps, table.gap(f"finetune/{name}/{s}", f"finetune/{name}/{base}", "fine-tuned")])
    if name == "jhmdb":
        long = "finetune/jhmdb/random-long"
        body.append(["from scratch, as long as both together", *("" for _ in PROTOCOLS), table.cell(long, "fine-tuned")])
        gaps = [table.gap(f"finetune/jhmdb/{s}", long, "fine-tuned") for s in starts[1:]]
        body += [[f"*gain of {STARTS[s]} over it*", *("" for _ in PROTOCOLS), gap] for s, gap in zip(starts[1:], gaps, strict=True)]
    return [f"### {of.title}", "", *rows([head, *body])]


def short(study: Study) -> list[str]:
    """Maskings, ratios and decoder depths at a shorter pre-training."""
    table = Table(study)
    gains = ("random", "tube-75")
    head = ["pre-training", "loss", *PROTOCOLS, "*linear, mean: gain over random weights*", "*over tube-75*"]
    body = []
    for kind in SHORT:
        runs = [r for e in study.entries if e.name.startswith(f"short/{kind}/") and (r := study.result(e.name)) is not None]
        loss = f"{np.mean([r['loss'] for r in runs]):.3f}" if runs else "not run"
        scores = (table.cell(f"frozen/jhmdb/{kind}", p) for p in PROTOCOLS)
        more = (table.gap(f"frozen/jhmdb/{kind}", f"frozen/jhmdb/{of}", "linear, mean") if kind != of else "" for of in gains)
        body.append([kind, loss, *scores, *more])
    return ["### Mask ratio, kind of mask, depth of the decoder", "", *rows([head, *body])]


def curve_lines(study: Study) -> list[str]:
    """The probe during pre-training, as a table and a picture."""
    series: dict[str, list[tuple[float, float]]] = {}
    cells = [["run", "random", *(f"{i + 1}/12" for i in range(12)), "n"]]
    for entry in study.entries:
        found = study.result(entry.name) if entry.name.startswith("curve/") else None
        if found is None:
            continue
        start = entry.name.split("/")[1]
        for pool in ("mean", "slots"):
            values = [(step, point[pool]) for step, point in found["points"]]
            series[f"{start}, {pool}"] = values
            first = f"{100 * found['random']:.1f}" if pool == "slots" else ""
            cells.append([f"{start}, {pool}", first, *(f"{100 * v:.1f}" for _, v in values), str(found["n"])])
    if not series:
        return []
    from tubelet.viz.curves import curves

    IMAGES.mkdir(parents=True, exist_ok=True)
    name = f"{study.name}-probe.png"
    percent = {key: [(x, 100 * y) for x, y in points] for key, points in series.items()}
    curves(percent, title="linear probe inside the training set, %", x="step of pre-training").save(IMAGES / name)
    losses = {}
    for entry in study.entries:
        if entry.name.startswith("pretrain/") and (found := study.result(entry.name)) is not None:
            losses[entry.name.removeprefix("pretrain/")] = [(float(x), float(y)) for x, y in found["curve"]]
    curves(losses, title="loss of pre-training (answering zero: 0.997)", x="step").save(IMAGES / f"{study.name}-loss.png")
    text = "Fitted on three quarters of the training clips, read on the rest, apart by source video; the test set has no part in it."
    pictures = f"![probe](images/results/{name}) ![loss](images/results/{study.name}-loss.png)"
    return ["### While pre-training goes on", "", text, "", *rows(cells), pictures, ""]


def ran(study: Study) -> list[str]:
    """Costs of what ran, and what did not run."""
    done = [(e, r) for e in study.entries if (r := study.result(e.name)) is not None]
    missing = [e for e in study.entries if study.result(e.name) is None]
    lines = ["### What ran, and what did not", ""]
    if done:
        machines = sorted({(r["machine"], r["torch"], r["date"]) for _, r in done})
        where = "; ".join(f"{m}, torch {t}, {d}" for m, t, d in machines)
        lines += [f"{len(done)} of {len(study.entries)} entries, {sum(r['minutes'] for _, r in done):.0f} minutes in all ({where}).", ""]
        cells = [["pre-training", "steps", "epochs", "minutes of training", "last loss"]]
        cells += [
            [e.name, f"{r['steps']:,}", f"{r['epochs']:.0f}", f"{r['minutes']:.0f}", f"{r['loss']:.3f}"] for e, r in done if "zero" in r
        ]
        chosen = [f"{e.name.removeprefix('choose/')} {r['lr']:g}" for e, r in done if "tried" in r]
        lines += [*rows(cells), f"Chosen rates of fine-tuning: {', '.join(chosen) or 'none yet'}.", ""]
    if missing:
        hours = sum(e.minutes for e in missing) / 60
        lines += [
            f"**Not run:** {len(missing)} entries, {hours:.1f} hours as declared.",
            "",
            *rows([["entry", "seeds", "minutes each"], *_open(missing)]),
        ]
    return lines


def _open(missing: Sequence[Entry]) -> list[list[str]]:
    """Entries that differ by their seed alone share a row."""
    together: dict[tuple[str, float], list[str]] = {}
    for e in missing:
        stem, _, seed = e.name.rpartition("/")
        together.setdefault((stem, e.minutes) if seed[:1].isdigit() else (e.name, e.minutes), []).append(seed if seed[:1].isdigit() else "")
    return [[f"`{stem}`", ", ".join(seeds), f"{minutes:g}"] for (stem, minutes), seeds in together.items()]


def section(study: Study) -> list[str]:
    command = f"```bash no-run: hours\npython experiments/run.py {study.name}\n```"
    lines = [f"## {study.about}", "", command, ""]
    if not any(study.result(e.name) for e in study.entries):
        return [*lines, *ran(study)]
    for name in SETS:
        lines += labelled(study, name)
    return [*lines, *curve_lines(study), *short(study), *ran(study)]


def page() -> str:
    return HEAD + "\n" + "\n".join([*section(STUDY), *section(GPU_STUDY)]).rstrip() + "\n"


if __name__ == "__main__":
    publish(PAGE, page(), __doc__)
