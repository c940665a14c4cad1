"""``tubelet demo``: the whole road on generated videos, in minutes on a laptop's CPU."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from tubelet import api
from tubelet.data.decode import read_frames
from tubelet.errors import DataError
from tubelet.tasks.grounding import ENOUGH, Grounding, grounding
from tubelet.train.checkpoint import write_text
from tubelet.viz.curves import run_curves
from tubelet.viz.pictures import sheet


@dataclass(frozen=True)
class _Size:
    """How much the demo does. ``clips`` are split 4 : 1 into training and test clips."""

    clips: int
    steps: int


_FULL, _QUICK = _Size(clips=2000, steps=1500), _Size(clips=160, steps=30)


def demo(out: str | Path = "tubelet-demo", *, quick: bool = False, text: bool = False) -> Path:
    """Make videos, pre-train on them, ask a probe what was learned, draw what the model imagines. Returns the folder.

    ``out`` gets videos/, run/, scores.json, loss.png and reconstruction.png; an interrupted demo goes on when called again. ``quick``: a
    minute of the same in ``out``/quick, too short to learn. ``text``: masks that follow words instead, see :func:`words`. Raises DataError
    for a folder that holds something else.
    """
    if text:
        return words(out, quick=quick)
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


def words(out: str | Path = "tubelet-demo", *, quick: bool = False) -> Path:
    """Make videos with captions, train a small dual encoder on them, measure whether it finds what a text names, and mask by it.

    ``out``/words gets videos/, run/, grounding.json and masks.png, in which the same clip is masked by two texts.
    """
    size = _Size(clips=160, steps=30) if quick else _Size(clips=2500, steps=1000)
    out = Path(out) / "words" / "quick" if quick else Path(out) / "words"
    began = time.monotonic()
    _say(f"1/3  {size.clips} videos of up to three objects, with captions, into {out / 'videos'}")
    manifest = api.make_playground(out / "videos", clips=size.clips, seed=0, scene="full", size=64, frames=16)
    _say("2/3  a dual encoder: every frame must find its caption among those of the batch, patches pooled by their mean")
    run = out / "run"
    if not (run / "model.safetensors").exists():
        settings = [f"steps={size.steps}", "data.frames=2", "data.stride=8"]
        result = api.pretrain(manifest, out=run, recipe="dual", settings=settings, resume=(run / "checkpoints").exists())
        if result.stopped_by:
            _say(f"stopped at step {result.step}; call the demo again to go on")
            raise SystemExit(128 + signal.Signals[result.stopped_by])
    _say("3/3  does it find what a text names? Objects of test videos by their nouns, in the middle frame")
    found = _found(run, manifest)
    _say(f"     {found}")
    if not found.useful:
        short = f"{size.steps} steps are too few" if quick else "it did not learn enough"
        _say(f"     below {ENOUGH:g} x chance: masks by this encoder are hardly better than random ones ({short})")
    write_text(out / "grounding.json", json.dumps({"gain": found.gain, "n": found.n, "recall": dict(found.table())}, indent=1) + "\n")
    _two_texts(run, manifest).save(out / "masks.png")
    _say(f"done in {time.monotonic() - began:.0f} s. Look at {out / 'masks.png'}: the same clip, masked by two texts.")
    return out


def _found(run: Path, manifest: Path, most: int = 400) -> Grounding:
    """How well the run's encoder finds the main object of test clips."""
    dual = cast(Any, api.load(run, device="cpu").model).dual
    frames, objects, nouns = [], [], []
    for path, truth in _test_clips(manifest)[:most]:
        middle = len(truth["masks"]) // 2
        frames.append(read_frames(str(path), [middle])[0][0])
        objects.append(truth["masks"][middle] == 1)
        nouns.append(_noun(truth, 0))
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return grounding(
            lambda part, texts: torch.einsum("nhwd,nd->nhw", dual.patches(part), dual.text(texts)),
            pixels,
            torch.from_numpy(np.stack(objects)),
            nouns,
            grid=tuple(dual.image_tower.grid.shape[1:]),
        )


def _two_texts(run: Path, manifest: Path) -> Image.Image:
    """The test clip whose second object is largest, of those (if any) in which both stay whole, masked by the noun of either."""

    def suits(clip: tuple[Path, dict[str, Any]]) -> tuple[bool, int]:
        seen = clip[1]["masks"]
        rim = np.concatenate([seen[:, :, 0], seen[:, :, -1], seen[:, 0], seen[:, -1]], 1)
        return not np.isin(rim, (1, 2)).any(), int((seen == 2).sum())

    path, truth = max(_test_clips(manifest), key=suits)
    settings = ["tgm.ratio=0.3", "tgm.guide.window=8"]
    images = [
        api.masks(path, caption=_noun(truth, i), model=run, settings=settings, size=64, frames=16, patch=(2, 8, 8), only=["tgm"]).picture
        for i in range(2)
    ]
    return sheet(images)


def _test_clips(manifest: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Videos of the test split, and what is true about them."""
    with open(manifest, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return [(manifest.parent / row["path"], dict(np.load(manifest.parent / row["truth"]))) for row in rows]


def _noun(truth: dict[str, Any], i: int) -> str:
    """The object's looks in words."""
    size, texture, colour, shape, _ = (str(word) for word in truth["objects"][min(i, len(truth["objects"]) - 1)])
    return " ".join(word for word in (size, texture if texture != "plain" else "", colour, shape) if word)


def pictures(run: str | Path, sources: str | Path, *, clips: int = 3, split: str | None = "test") -> Image.Image:
    """Input, what the model sees and what it imagines for the first ``clips`` items, one under the other."""
    image = api.reconstruct(run, sources, limit=clips, split=split).picture
    assert image is not None, "only whole videos have none"
    return image


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (this is what the command shows)
