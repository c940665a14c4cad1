"""``tubelet demo``: the whole road on generated videos, in minutes on a laptop's CPU."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tubelet import api
from tubelet.core import CounterDraw, Step
from tubelet.data.evaluation import EvalFeed
from tubelet.data.source import open_table_for
from tubelet.errors import DataError
from tubelet.methods.videomae import VideoMAE
from tubelet.train.checkpoint import write_text
from tubelet.viz.curves import run_curves
from tubelet.viz.pictures import figure, sheet


@dataclass(frozen=True)
class _Size:
    """How much the demo does. ``clips`` are split 4 : 1 into training and test clips."""

    clips: int
    steps: int


_FULL, _QUICK = _Size(clips=2000, steps=1500), _Size(clips=160, steps=30)


def demo(out: str | Path = "tubelet-demo", *, quick: bool = False) -> Path:
    """Make videos, pre-train on them, ask a probe what was learned, draw what the model imagines. Returns the folder.

    ``out`` gets videos/, run/, scores.json, loss.png and reconstruction.png; an interrupted demo goes on when called again. ``quick``: a
    minute of the same in ``out``/quick, too short to learn. Raises DataError for a folder that holds something else.
    """
    size = _QUICK if quick else _FULL
    out = Path(out) / "quick" if quick else Path(out)
    if out.is_file() or (out.exists() and any(p.name != "quick" for p in out.iterdir()) and not (out / "videos").exists()):
        raise DataError(f"{out} holds other things; give an empty folder with --out")
    began = time.monotonic()
    _say(f"1/4  {size.clips} videos of one moving object into {out / 'videos'}: eight directions, equal in every single frame")
    manifest = api.make_playground(out / "videos", clips=size.clips, seed=0, scene="easy")

    _say("2/4  pre-training without labels: three of four tubes hidden, their pixels predicted")
    run = out / "run"
    complete = (run / "model.safetensors").exists()
    if not complete:
        result = api.pretrain(manifest, out=run, recipe="demo", settings=[f"steps={size.steps}"], resume=(run / "checkpoints").exists())
        if result.stopped_by:
            _say(f"stopped at step {result.step}; call the demo again to go on")
            raise SystemExit(128 + signal.Signals[result.stopped_by])

    _say("3/4  which way did it go? a linear probe on frozen features, one vector per time slot")
    scores = {name: api.probe(run, manifest, pool="slots", random=name == "random") for name in ("trained", "random")}
    gain = scores["trained"].compare(scores["random"], names=("pre-trained", "random"))
    _say(f"     pre-trained  {scores['trained']}\n     random       {scores['random']}\n     difference   {gain}")
    if quick:
        _say(f"     ({size.steps} steps teach nothing: leave --quick out to see the difference)")
    write_text(out / "scores.json", json.dumps({k: s.as_dict() for k, s in scores.items()}, indent=1) + "\n")

    _say("4/4  pictures")
    pictures(run, manifest).save(out / "reconstruction.png")
    run_curves(run, title="Pre-training loss").save(out / "loss.png")
    _say(
        f"done in {time.monotonic() - began:.0f} s. Look at {out / 'reconstruction.png'} and {out / 'loss.png'}.\n"
        "Your own videos: tubelet pretrain my_videos/ --out runs/mine"
    )
    return out


def pictures(run: str | Path, sources: str | Path, *, clips: int = 3, split: str | None = "test"):
    """Input, what the model sees and what it imagines for the first ``clips`` items, one under the other, as a PIL image."""
    loaded = api.load(run)
    assert isinstance(loaded.model, VideoMAE)
    data = loaded.data.model_copy(update={"split": split, "crop": "centre", "cache": "none"})
    table = open_table_for(sources, data)
    feed = EvalFeed(table.select(range(min(clips, len(table)))), data, batch=clips, device=str(loaded.device))
    images = []
    for batch in feed:
        batch = batch.to(loaded.device)
        at = Step(0, 0, 0.0, 1.0, CounterDraw(0, batch.sample))
        with torch.no_grad():
            answer = loaded.model.reconstruct(batch, at)
        images += [figure(batch.stream("video").data, answer, sample=i) for i in range(len(batch))]
    return sheet(images)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (this is what the command shows)
