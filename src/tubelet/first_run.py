"""``tubelet demo``: the whole road on generated videos, in minutes on a laptop's CPU."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tubelet import api
from tubelet.errors import DataError
from tubelet.train.checkpoint import write_text
from tubelet.viz.curves import run_curves


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
    _say(f"1/4  {size.clips} videos of one moving object into {out / 'videos'}: eight directions")
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


def pictures(run: str | Path, sources: str | Path, *, clips: int = 3, split: str | None = "test") -> Image.Image:
    """Input, what the model sees and what it imagines for the first ``clips`` items, one under the other."""
    image = api.reconstruct(run, sources, limit=clips, split=split).picture
    assert image is not None, "only whole videos have none"
    return image


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (this is what the command shows)
