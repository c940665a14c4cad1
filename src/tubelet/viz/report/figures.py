"""The figures of a stage for the page: headline, tiles, curves, probes, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tubelet.viz.report.chart import Chart, Series, chart
from tubelet.viz.report.folder import Part
from tubelet.viz.report.scores import SHARES, TOP1, results
from tubelet.viz.report.words import JOINED, Unit, figure, large, mapping, plural, seconds, text, written

PROBES = {
    "probe/slots": "linear probe, slots",
    "probe/mean": "linear probe, mean",
    "knn/slots": "nearest neighbours, slots",
    "knn/mean": "nearest neighbours, mean",
}
RANK = "rank/mean"
UNITS: dict[str, Unit] = {RANK: "plain"}  # of probes that are no shares
# What has a place of its own, or none, among the other curves of a run.
PLACED = {"step", "samples", "epoch", "loss", "zero_answer", "lr", "clips_per_s", "wait", "mfu", "tflops", "memory_gib", RANK, *PROBES}
PLACED |= {"probe/n", "probe/fit", "probe/chance", "rank/n"}
TITLES = {"grad_norm": "Gradient norm", "accuracy": "Training accuracy", "val_top1": "Held-out top-1", "val_loss": "Held-out loss"}
MORE = 6  # other figures that are drawn
TRAINING = 3  # forward and backward passes cost about three forward passes

COLUMNS: dict[str, tuple[str, Unit]] = {
    "loss": ("Loss", "plain"), "zero_answer": ("Answering zero", "plain"), "lr": ("Learning rate", "plain"),
    "clips_per_s": ("Clips/s", "rate"), "wait": ("Data wait", "share"), "mfu": ("MFU", "share"), "memory_gib": ("Memory", "gib"),
}  # fmt: skip


def sentence(part: Part, sources: list[str]) -> str:
    """What was trained on what."""
    saved = mapping(part.header.get("config"))
    method = mapping(part.config.get("method")) or mapping(saved.get("method"))
    masking, classifier = mapping(part.config.get("masking")), "classifier" in part.config
    about = []
    if (count := figure(part.facts.get("parameters"))) is not None:
        about.append(f"{count / 1e6:.1f} M parameters")
    if masking.get("kind"):
        ratio = figure(masking.get("ratio"))
        about.append(f"{text(masking['kind'])} masking" + (f" {100 * ratio:g}{JOINED}%" if ratio is not None else ""))
    if isinstance(classes := saved.get("classes"), list):
        about.append(plural(len(classes), "class", "classes"))
    what = text(method.get("kind", "a model"))
    what = f"A classifier on {what}" if classifier else what
    known = figure(part.facts.get("items"))
    items = part.items if known is None else int(known)
    on = " of ".join(filter(None, [plural(items, "item") if items is not None else "", ", ".join(sources)]))
    start = mapping(part.facts.get("start")) or mapping(saved.get("start"))
    verb = (
        ("to be trained" if part.ended == "waiting" else "trained")
        if not classifier
        else f"fine-tuned from {text(start.get('path', 'an encoder'))}"
    )
    verb = f"{verb} with random weights" if start.get("random") else verb
    brackets = f" ({', '.join(about)})" if about else ""
    return f"{what}{brackets}, {verb}{f' on {on}' if on else ''}{_clips(mapping(part.config.get('data')))}."


def _clips(data: Mapping[str, Any]) -> str:
    frames, size = figure(data.get("frames")), data.get("size")
    if frames is None or size is None:
        return ""
    sides = [text(v) for v in size] if isinstance(size, list) else [text(size)] * 2
    return f", clips of {frames:.0f} x {' x '.join(sides)}"


def ending(part: Part) -> str:
    """How it ended, and where."""
    step, total = part.step, part.total
    at = f"step {step:,}" + (f" of {total:,}" if total else "") if step is not None else "an unknown step"
    took = seconds(part.seconds[0]) if part.seconds else ""
    if part.ended == "complete":
        clips = f", {plural(part.samples, 'clip')}" if part.samples is not None else ""
        return f"{plural(step, 'step') if step is not None else 'All steps'}{clips}{f' in {took}' if took else ''}."
    if part.ended == "stopped":
        return f"Stopped by {text(part.facts.get('stopped_by'))} at {at}{f' after {took}' if took else ''}. It can be continued."
    if part.ended == "failed":
        why = ": ".join(text(part.facts[k]) for k in ("stopped_by", "error") if part.facts.get(k))
        return f"Failed{f' after {took}' if took else ''}; the last that is known is {at}. {why}"
    if part.ended == "waiting":
        return "Not started."
    return f"Not finished: the last that is known is {at}. No end was recorded, so it is still running or was killed."


def tiles(part: Part) -> list[tuple[str, str, str]]:
    """(label, value, note) of the few figures that matter most."""
    out: list[tuple[str, str, str]] = []
    if part.step is not None:
        epoch = part.last("epoch")
        notes = [f"of {part.total:,}" if part.total else "", epochs(epoch)]
        out.append(("Steps", f"{part.step:,}", ", ".join(filter(None, notes))))
    if (loss := part.last("loss")) is not None:
        zero = part.last("zero_answer")
        out.append(("Loss", written(loss), f"answering zero scores {written(zero)}" if zero is not None else ""))
    out += _best_probe(part)
    out += [("Top-1", value, note.partition("; ")[0]) for name, value, note in results(part.scores[:1]) if name.endswith(TOP1)][:1]
    if part.seconds is not None:
        speed = part.last("clips_per_s")
        out.append(("Time", seconds(part.seconds[0]), f"{written(speed, 'rate')} clips/s" if speed else ""))
    if (mfu := part.last("mfu")) is not None:
        out.append(("MFU", written(mfu, "share"), f"of {peak(part)}" if peak(part) else ""))
    elif (wait := part.last("wait")) is not None:
        out.append(("Waiting for data", written(wait, "share"), "of a step's time"))
    return out


def _best_probe(part: Part) -> list[tuple[str, str, str]]:
    """The newest figure of the first probe that there is."""
    for key, label in PROBES.items():
        if (value := part.last(key)) is not None:
            name, _, pool = label.partition(", ")
            start = untrained(part, key)
            before = f"untrained {written(start, 'share')}" if start is not None else "untrained not measured"
            return [(_capital(name), written(value, "share"), f"{pool}; {before}")]
    return []


def epochs(passes: float | None) -> str:
    """``12.67 epochs``; nothing before the first step."""
    return f"{passes:.4g} epoch{'' if passes == 1 else 's'}" if passes else ""


def untrained(part: Part, key: str) -> float | None:
    """A figure before the first step."""
    return next((y for x, y in part.points(key) if x == 0 and y == y), None)


def peak(part: Part) -> str:
    """The peak that MFU is a share of, by name."""
    known = part.facts.get("peak")
    parts = list(known.values()) if isinstance(known, dict) else known if isinstance(known, list) else [known]
    name = " ".join(p for p in parts if isinstance(p, str))
    rate = next((n for n in map(figure, parts) if n is not None), None)
    return " ".join(filter(None, [name, (f"({large(rate, 'FLOP/s')})" if name else large(rate, "FLOP/s")) if rate else ""]))


def curves(part: Part) -> list[Chart]:
    """Loss, rate, speed, wait, MFU, memory, then whatever else the run logged."""

    def one(key: str, title: str, unit: Unit = "plain", note: str = "") -> Chart | None:
        return chart(title, [Series(title.lower() if title != "MFU" else title, part.points(key))], unit=unit, note=note)

    zero = Series("answering zero", part.points("zero_answer"), dashed=True)
    drawn = [
        chart("Loss", [Series("loss", part.points("loss")), zero], free=True, tall=True),
        one("lr", "Learning rate"),
        one("clips_per_s", "Clips per second", "rate"),
        one("wait", "Waiting for data", "share", "share of a step's time"),
        one("mfu", "MFU", "share", f"of {peak(part)}" if peak(part) else "") or one("tflops", "TFLOP/s"),
        one("memory_gib", "Memory", "gib", "the most so far"),
    ]
    others = sorted({k for row in part.rows for k, v in row.items() if figure(v) is not None} - PLACED)
    loss = part.points("loss")
    others = [k for k in others if part.points(k) != loss]
    drawn += [chart(TITLES.get(k, k), [Series(k, part.points(k))], unit="share" if SHARES.fullmatch(k) else "plain") for k in others[:MORE]]
    return [c for c in drawn if c is not None]


def probe_curves(part: Part) -> list[Chart]:
    """Probes and neighbours, each with the untrained value as a level, and the rank."""

    def group(start: str, title: str) -> Chart | None:
        named = [(key, label.rpartition(", ")[2]) for key, label in PROBES.items() if key.startswith(start)]
        lines = [Series(label, part.points(key), baseline=untrained(part, key)) for key, label in named if part.points(key)]
        lines += [Series("chance", part.points("probe/chance"), dashed=True)] if lines else []
        told = ["dashed: untrained weights"] if any(s.baseline is not None for s in lines) else []
        return chart(title, lines, unit="share", note=", ".join([*told, "grey: chance"] if lines and lines[-1].points else told))

    rank = Series("rank", part.points(RANK), baseline=untrained(part, RANK))
    note = "dashed: untrained weights" if rank.baseline is not None else ""
    drawn = [
        group("probe", "Linear probe, top-1"),
        group("knn", "Nearest neighbours, top-1"),
        chart("Effective rank of the features", [rank], note=note),
    ]
    return [c for c in drawn if c is not None]


def probe_note(part: Part) -> str:
    """How far the probes can be trusted."""
    n, fit = part.last("probe/n"), part.last("probe/fit")
    if not n or fit is None:
        return "Measured while training, on items of the training set."
    wide = 98 / math.sqrt(n)
    return (
        f"Measured while training, on items of the training set: learned from {fit:.0f}, scored on {n:.0f} others, so that a figure is "
        f"uncertain by up to {wide:.0f} points."
    )


def probe_table(part: Part) -> list[tuple[str, str, str, str]]:
    """(figure, untrained, last, best) with the steps of the last two."""
    out = []
    for key, label in {**PROBES, RANK: "effective rank, mean"}.items():
        unit: Unit = UNITS.get(key, "share")
        if points := [p for p in part.points(key) if p[1] == p[1]]:
            start, last, best = untrained(part, key), points[-1], max(points, key=lambda p: p[1])
            before = "not measured" if start is None else written(start, unit)
            out.append((_capital(label), before, *(f"{written(y, unit)} at step {x:,.0f}" for x, y in (last, best))))
    return out


def _capital(label: str) -> str:
    return f"{label[:1].upper()}{label[1:]}"


def table(part: Part, most: int = 12) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the curves as figures, evenly spread over the run."""
    rows = [row for row in part.rows if figure(row.get("step")) is not None and figure(row.get("loss")) is not None]
    keys = [k for k in COLUMNS if any(figure(row.get(k)) is not None for row in rows)]
    pick = sorted({round(i * (len(rows) - 1) / (most - 1)) for i in range(most)}) if len(rows) > most else range(len(rows))
    out = []
    for i in pick:
        values: list[tuple[float | None, Unit]] = [(figure(rows[i].get(k)), COLUMNS[k][1]) for k in keys]
        out.append([f"{rows[i]['step']:,.0f}", *("–" if v is None else written(v, unit) for v, unit in values)])
    return ["Step", *(COLUMNS[k][0] for k in keys)], out


def cost(part: Part) -> list[tuple[str, str, str]]:
    """(what, how much, how it was counted) of everything that the run used."""
    out: list[tuple[str, str, str]] = []
    if part.seconds is not None:
        spent, guessed = part.seconds
        note = f"{spent:,.1f} s" + (" up to the last checkpoint" if part.ended == "unfinished" else "")
        out.append(("Time", seconds(spent), "worked out from clips/s; the run did not record it" if guessed else note))
        if (used := hours(part.facts, spent)) is not None:
            out.append(used)
        if (watched := figure(part.facts.get("watch_seconds"))) is not None:
            out.append(("Looks", seconds(watched), "of that time, for pictures and probes in the last session"))
    if part.samples is not None:
        epoch = part.last("epoch")
        out.append(("Clips", f"{part.samples:,}", epochs(epoch)))
        if (forward := figure(part.facts.get("forward_flops"))) is not None:
            note = f"{TRAINING} x a clip's forward pass, {large(forward, 'FLOP')}"
            out.append(("Computed", large(TRAINING * forward * part.samples, "FLOP"), note))
    mean = "mean over the run"
    shares: list[tuple[str, str, Unit, str]] = [
        ("mfu", "MFU", "share", f"of {peak(part)}, {mean}" if peak(part) else mean),
        ("clips_per_s", "Clips per second", "rate", mean),
        ("wait", "Waiting for data", "share", f"of a step's time, {mean}"),
    ]
    for key, name, unit, note in shares:
        values = [y for _, y in part.points(key) if y == y]
        if values:
            out.append((name, written(sum(values) / len(values), unit), note))
    if (memory := max((y for _, y in part.points("memory_gib") if y == y), default=None)) is not None:
        gpu = mapping(part.facts.get("machine")).get("gpu")
        out.append(("Most memory", written(memory, "gib"), "of a GPU, by tensors" if gpu else "of the main process"))
    return out


def hours(facts: Mapping[str, Any], spent: float) -> tuple[str, str, str] | None:
    """GPU-hours or CPU-hours; None where the devices were not recorded."""
    machine = mapping(facts.get("machine"))
    processes = int(figure(machine.get("processes")) or 1)
    if machine.get("gpu"):
        return "GPU-hours", _hours(spent * processes), f"{processes} x {text(machine['gpu'])}"
    threads = figure(machine.get("threads"))
    if threads is None:
        return None
    of = f" on {text(machine['cpu'])}" if machine.get("cpu") else ""
    count = processes * int(threads)
    return "CPU-hours", _hours(spent * count), f"{plural(count, 'thread')}{of}, without those that decode"


def _hours(spent: float) -> str:
    return f"{spent / 3600:.3g}" if spent >= 3.6 else "under 0.001"
