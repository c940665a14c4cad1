"""Run folders as ``pretrain`` leaves them, written in a moment: figures are invented, formats are real.

``python tests/viz/run_folders.py FOLDER`` writes all of them with their reports, to look at.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from tubelet import recipe
from tubelet.config import to_yaml

NASTY = "<script>alert(1)</script>.mp4"
BREAKOUT = "\"'><img src=x onerror=alert(2)>"
SETTINGS = ["masking.ratio=0.9", "train.epochs=null", "train.steps=2000"]


def resolved(name: str = "tiny-cpu", settings: list[str] | None = None) -> recipe.Recipe:
    return recipe.load(name, SETTINGS if settings is None else settings)


def metrics(steps: int, *, every: int = 10, probes: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: a look at step 0, then figures of a run that learns something."""
    draw = np.random.default_rng(seed)

    def look(share: float) -> dict[str, float]:
        out = {
            "probe/n": 200.0,
            "probe/fit": 200.0,
            "probe/chance": 0.125,
            "rank/n": 400.0,
            "probe/mean": 0.16 + 0.12 * share,
            "probe/slots": 0.17 + 0.3 * share**2,
            "knn/mean": 0.14 + 0.1 * share,
            "knn/slots": 0.15 + 0.2 * share,
        }
        return {k: v + 0.012 * float(draw.standard_normal()) * (v < 1 and "chance" not in k) for k, v in out.items()} | {
            "rank/mean": 9.0 + 40 * share
        }

    rows: list[dict[str, Any]] = [{"step": 0, "samples": 0, "epoch": 0.0, **look(0.0)}]
    for step in range(every, steps + 1, every):
        share = step / steps
        loss = 0.62 + 0.4 * math.exp(-6 * share) + 0.006 * float(draw.standard_normal())
        rows.append(
            {
                "step": step,
                "loss": loss,
                "pixels": loss,
                "zero_answer": 0.998 + 0.001 * float(draw.standard_normal()),
                "grad_norm": 0.4 + 0.05 * abs(float(draw.standard_normal())),
                "samples": 32 * step,
                "epoch": step / 20,
                "lr": 1e-3 * min(1, 10 * share) * (0.5 + 0.5 * math.cos(math.pi * share)),
                "wait": 0.04 + 0.01 * abs(float(draw.standard_normal())),
                "clips_per_s": 61.0 + 2 * float(draw.standard_normal()),
                "mfu": 0.38 + 0.01 * float(draw.standard_normal()),
                "memory_gib": 3.4,
            }
        )
        if step % (steps // probes) == 0:
            rows.append({"step": step, "samples": 32 * step, **look(share)})
    return rows


def picture(path: Path, shade: float, *, size: tuple[int, int] = (217, 258)) -> None:
    """Smooth colours and some noise, about as hard to compress as clips."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / (31 + 9 * c) + y / (47 - 8 * c)) * (1 - shade / 2) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 12 * (1 - shade), (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)).save(path)


def weights(path: Path, meta: Any) -> None:
    """A file that holds next to nothing but its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, path, metadata={"tubelet": json.dumps(meta)})


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def facts(**more: Any) -> dict[str, Any]:
    """What run.json holds."""
    return {
        "tubelet": "0.1.0",
        "torch": "2.15.0",
        "python": "3.11.9",
        "command": ["tubelet", "pretrain", "my_videos", "--out", "runs/a", "--set", "masking.ratio=0.9"],
        "folder": "/home/ada/films",
        "sources": ["my_videos"],
        "exclude": [],
        "imports": [],
        "origins": recipe.origins("tiny-cpu", SETTINGS),
        "items": 640,
        "started": "2025-03-01T09:00:00+00:00",
        "sessions": 1,
        "ended": "2025-03-01T09:17:30+00:00",
        "stopped_by": None,
        "machine": {
            "system": "Linux x86_64",
            "cpu": "A processor",
            "cores": 8,
            "threads": 4,
            "gpu": "NVIDIA H100 80GB HBM3",
            "device": "cuda:0",
            "processes": 2,
        },
        "parameters": 3_140_000,
        "steps": 2000,
        "total_steps": 2000,
        "samples": 64000,
        "forward_flops": 1.1e9,
        "peak": {"name": "H100 SXM bf16", "flops": 989e12},
        "watch_seconds": 31.2,
        "seconds": 1050.4,
        **more,
    }


def config(path: Path, book: recipe.Recipe) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# tubelet 0.1.0, torch 2.15.0; sources: my_videos\n" + to_yaml(book), encoding="utf-8")


def stage(folder: Path, book: recipe.Recipe, *, steps: int = 2000, done: int = 2000, about: dict[str, Any] | None = None) -> None:
    """What one stage leaves: ``done`` of ``steps``."""
    config(folder / "config.yaml", book)
    lines(folder / "metrics.jsonl", [r for r in metrics(steps) if r["step"] <= done])
    (folder / "items.txt").write_text("".join(f"clips/{i:06d}.mp4\n" for i in range(640)))
    for i, step in enumerate(range(0, done + 1, 250)):
        picture(folder / "pictures" / f"step_{step:08d}.png", i / 9)
    weights(folder / "checkpoints" / f"step-{done:08d}.safetensors", {"step": done, "samples": 32 * done, "total_steps": steps})
    if done == steps:
        weights(folder / "model.safetensors", {"step": done, "samples": 32 * done})
    if about is not None:
        (folder / "run.json").write_text(json.dumps(about))


def complete(folder: Path) -> Path:
    stage(folder, resolved(), about=facts())
    bad = [{"path": f"/videos/b{i}.mp4", "key": f"b{i}.mp4", "reason": "moov atom not found", "sample": 7 * i} for i in range(3)]
    lines(folder / "bad_videos.jsonl", bad)
    return folder


def stopped(folder: Path) -> Path:
    stage(folder, resolved(), done=700, about=facts(stopped_by="SIGTERM", seconds=367.0, steps=700, samples=22400))
    return folder


def killed(folder: Path) -> Path:
    """Half a line at the end, no end in run.json."""
    stage(folder, resolved(), done=700, about=facts(ended=None, seconds=301.0, steps=700, samples=22400))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 710, "lo')
    return folder


def failed(folder: Path) -> Path:
    why = "the gradient of step 704 is not finite; that step was skipped and the run stopped.\nLower train.lr."
    about = facts(stopped_by="NonFiniteError", error=why, seconds=380.0, steps=700)
    stage(folder, resolved(), done=700, about={**about, "samples": 22400})
    rows = metrics(2000)[:70]
    lines(folder / "metrics.jsonl", [*rows[:-1], {**rows[-1], "loss": "nan", "zero_answer": "inf"}])
    return folder


def old(folder: Path) -> Path:
    """As an earlier version left it: no run.json, no pictures, no probes."""
    config(folder / "config.yaml", resolved("demo", ["steps=60"]))
    keep = ("step", "loss", "pixels", "zero_answer", "grad_norm", "samples", "epoch", "lr", "wait", "clips_per_s")
    lines(folder / "metrics.jsonl", [{k: r[k] for k in keep} for r in metrics(60) if "loss" in r])
    (folder / "items.txt").write_text("a.mp4\nb.mp4\n")
    weights(folder / "model.safetensors", {"step": 60, "samples": 1920})
    return folder


def empty(folder: Path) -> Path:
    """Started and killed at once."""
    config(folder / "config.yaml", resolved())
    return folder


def several(folder: Path) -> Path:
    """Two stages, the second stopped; a third that was not reached."""
    one = resolved().stages[0]
    names = ("pretrain", "again", "last")
    book = resolved().model_copy(update={"stages": tuple(one.model_copy(update={"name": n}) for n in names)})
    config(folder / "config.yaml", book)
    origins = {f"{n}.{k}": v for n in names for k, v in recipe.origins("tiny-cpu", SETTINGS).items()}
    for i, (name, done, by) in enumerate((("pretrain", 2000, None), ("again", 700, "SIGINT"))):
        about = facts(stopped_by=by, origins=origins, steps=done, samples=32 * done)
        stage(folder / name, book.model_copy(update={"stages": book.stages[i : i + 1]}), done=done, about=about)
    return folder


def finetuned(folder: Path) -> Path:
    """A classifier with its result on a test set."""
    folder.mkdir(parents=True, exist_ok=True)
    book: dict[str, Any] = {
        "about": "Fine-tuning on a laptop",
        "table": "our own",
        "deviations": ["no flip"],
        "classifier": {"kind": "classifier", "pool": "mean"},
        "data": {"frames": 16, "size": 96},
        "views": {"clips": 5, "crops": 1},
        "val_share": 0.2,
        "train": {"epochs": 30.0, "batch": 16},
    }
    head = "# tubelet 0.1.0, torch 2.15.0; from runs/a/model.safetensors; sources: labelled.csv\n"
    (folder / "config.yaml").write_text(head + to_yaml(book))
    (folder / "items.txt").write_text("a.mp4\n" * 500)
    rows = [{k: v for k, v in r.items() if "/" not in k and k not in ("zero_answer", "pixels")} for r in metrics(1000) if "loss" in r]
    for i, row in enumerate(rows):
        row |= {"class": row["loss"], "accuracy": 0.1 + 0.6 * i / len(rows)}
    rows += [{"step": s, "val_top1": 0.1 + s / 2000, "val_loss": 2.5 - s / 1000} for s in range(0, 1001, 100)]
    lines(folder / "metrics.jsonl", sorted(rows, key=lambda r: r["step"]))
    about = {
        k: v for k, v in facts(steps=1000, total_steps=1000, samples=16000).items() if k not in ("sources", "origins", "items", "folder")
    }
    start = {"path": "runs/a/model.safetensors", "sha256": "0" * 64, "random": False}
    (folder / "run.json").write_text(json.dumps({**about, "command": "finetune", "recipe": book["about"], "start": start}))
    identity = {
        **{k: book[k] for k in ("classifier", "data")},
        "method": {"kind": "videomae"},
        "classes": [f"class {i}" for i in range(12)],
    }
    weights(folder / "model.safetensors", {"step": 1000, "samples": 16000, "config": {**identity, "start": start}})
    score = {
        "name": "fine-tuned, test, 5 x 1 views", "value": 0.613, "low": 0.544, "high": 0.678, "n_scored": 198, "n_total": 200,
        "failures": [], "details": {"classes": 12, "top5": 0.914}, "predictions": [], "hardest": [],
        "confused": [{"true": "sit", "predicted": "stand", "n": 7, "of": 17}, {"true": "run", "predicted": "walk", "n": 4, "of": 16}],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(score))
    picture(folder / "confusion.png", 0.5, size=(700, 700))
    held = {
        **score,
        "name": "fine-tuned, validation, 5 x 1 views",
        "value": 0.63,
        "low": 0.53,
        "high": 0.72,
        "n_scored": 100,
        "n_total": 100,
    }
    (folder / "validation.json").write_text(json.dumps(held))
    return folder


def nasty(folder: Path) -> Path:
    """Markup wherever a name, a path or a setting can bring it, and bytes that are no text."""
    complete(folder)
    config(folder / "config.yaml", resolved("tiny-cpu", [*SETTINGS, f"data.split={json.dumps(BREAKOUT)}"]).model_copy(
        update={"about": f"about {NASTY}", "table": BREAKOUT, "deviations": (NASTY,)}))  # fmt: skip
    about = facts(sources=[NASTY, BREAKOUT], command=["tubelet", "pretrain", NASTY], folder=BREAKOUT, python=BREAKOUT)
    about["origins"] |= {"masking.ratio": NASTY}
    about["machine"] |= {"cpu": BREAKOUT, "gpu": NASTY, NASTY: NASTY}
    about["report"] = {"hooks_failed": {NASTY: 3}}
    about["peak"] = {"name": BREAKOUT, "flops": 1e12}
    (folder / "run.json").write_text(json.dumps(about))
    bad = [{"key": key, "reason": f"reason {BREAKOUT}", "count": 2} for key in (NASTY, BREAKOUT, "caf\udce9.mp4", "a" * 300)]
    lines(folder / "bad_videos.jsonl", bad)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2000, NASTY: 1.0, BREAKOUT: 2.0}) + "\n")
    confused = [{"true": NASTY, "predicted": BREAKOUT, "n": 1, "of": 2}]
    (folder / "results.json").write_text(json.dumps({NASTY: {"top1": 0.5}, BREAKOUT: NASTY, "confused": confused}))
    return folder


ALL: dict[str, Callable[[Path], Path]] = {f.__name__: f for f in (complete, stopped, killed, failed, old, empty, several, finetuned, nasty)}


if __name__ == "__main__":
    import tubelet

    for name, make in ALL.items():
        made = tubelet.report(make(Path(sys.argv[1]) / name))
        sys.stdout.write(f"{made} {made.stat().st_size / 2**20:.2f} MiB\n")
