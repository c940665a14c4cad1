"""Draws the pictures of docs/gallery.md from generated video, each by one command:

python docs/make_gallery.py worlds         images/worlds.png
python docs/make_gallery.py truth          images/truth.png
python docs/make_gallery.py masks          images/masks.png
python docs/make_gallery.py text           images/text.png
python docs/make_gallery.py demo FOLDER    images/reconstruction.png and one-clip.png, from a folder that `tubelet demo` made
"""

from __future__ import annotations

import colorsys
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tubelet.playground as pg
from tubelet import api
from tubelet.core import Batch, Stream
from tubelet.guides.similarity import Config as Similarity
from tubelet.methods import dual
from tubelet.playground._write import encode
from tubelet.train.checkpoint import write_tensors
from tubelet.viz.fields import field_figure, panels
from tubelet.viz.pictures import sheet

IMAGES = Path(__file__).parent / "images"
CHECKER = Path(__file__).parents[1] / "examples" / "checker_mask.py"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CLIP = 14  # of seed 5: a clip whose main object stays in the picture
LIMIT = 300_000  # bytes of a picture
GAP = 6


def worlds() -> dict[str, Image.Image]:
    """Four clips of the full scene: eight frames each, with caption and class."""
    return {"worlds": pg.contact_sheet([pg.render("full", 0, index) for index in (1, 3, 5, 9)], columns=8, height=84)}


def truth() -> dict[str, Image.Image]:
    """What is known about a generated clip: pixels, which object is seen where, and the flow to the next frame."""
    clip = pg.render("full", 4, 2)
    at = np.linspace(0, len(clip.frames) - 2, 6).round().astype(int)
    rows = [
        [clip.frames[t] for t in at],
        [_colours(clip.masks[t]) for t in at],
        [_flow(clip.flow[t].astype(np.float32)) for t in at],
    ]
    return {
        "truth": sheet(
            [_row(row, 128) for row in rows], ["frames", "masks: which object is seen", "flow: colour is direction, strength is speed"]
        )
    }


def masks() -> dict[str, Image.Image]:
    """Every masking strategy, and the example of docs/adding-a-mask.md, on one clip of 16 frames. The masking that learns is trained
    here, and so is the encoder that compares words with the frames: a few minutes."""
    home = Path(tempfile.gettempdir(), "tubelet-gallery")
    if not (home / "learned" / "model.safetensors").exists():
        manifest = pg.write(home / "worlds", clips=600, seed=0, scene="full", size=64, frames=16)
        small = [
            "method.dim=64",
            "method.depth=2",
            "method.heads=4",
            "method.patch=[2,8,8]",
            "method.decoder={dim: 32, depth: 1, heads: 2}",
        ]
        small += ["masking=adamae", "masking.ratio=0.9", "data.frames=16", "data.stride=1", "data.size=64", "data.cache_size=64"]
        small += ["steps=300", "batch=16", "lr=1e-3", "train.warmup_epochs=1", "watch.probe=0", "watch.pictures=0", "train.device=cpu"]
        api.pretrain(manifest, out=home / "learned", recipe="tiny-cpu", settings=small)
    clip = pg.build("full", size=64, frames=16).render(5, CLIP)
    video = home / "clip.mp4"
    video.write_bytes(encode(clip))
    guided: dict[str, Any] = {"caption": clip.objects[0].noun, "model": _words(home), "run": home / "learned"}
    return {"masks": api.masks(video, imports=[CHECKER], settings=["mgm.ratio=0.5"], **guided).picture}


def text() -> dict[str, Image.Image]:
    """Where a small dual encoder finds two objects of a clip by their nouns."""
    clip = pg.build("full", size=96, frames=16).render(5, CLIP)
    video = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None]
    guide = Similarity(model=str(_words(Path(tempfile.gettempdir(), "tubelet-gallery")))).build()
    rows = []
    for thing in clip.objects[:2]:
        field = guide(Batch({"video": Stream(video)}, {}, torch.zeros(1, dtype=torch.int64), text=(thing.noun,)), "video")
        rows.append((thing.noun, panels(field, video)[0][1]))
    time = torch.arange(16)[None] / clip.fps
    return {
        "text": field_figure(video, time, rows, frames=8, title="Where the frames match the words", caption="Yellow: best, blue: worst.")
    }


def _words(home: Path) -> Path:
    """A run with the dual encoder of the experiments: 800 steps on 3,000 clips of 48 pixels."""
    sys.path.insert(0, str(EXPERIMENTS))
    import words

    out = home / "words" / "model.safetensors"
    if not out.exists():
        net = words.trained(0)
        config = {"method": dual.Config().model_dump(mode="json"), "data": {"size": words.SIZE}}
        write_tensors(out, {f"dual.{k}": v for k, v in net.state_dict().items()}, {"config": config})
    return out.parent


def demo(folder: str) -> dict[str, Image.Image]:
    """The picture of a finished demo, and its first clip alone."""
    image = Image.open(Path(folder) / "reconstruction.png").convert("RGB")
    return {"reconstruction": image, "one-clip": image.crop((0, 0, image.width, image.height // 3))}


def _colours(numbers: np.ndarray) -> np.ndarray:
    """(H, W) numbers of objects -> RGB, 0 dark."""
    table = np.array([(30, 34, 42), (235, 178, 60), (86, 160, 211), (203, 93, 91), (126, 178, 109)], np.uint8)
    return table[numbers.astype(int) % len(table)]


def _flow(flow: np.ndarray) -> np.ndarray:
    """(H, W, 2) pixels right and down -> RGB: hue is the direction, strength the length, at most 4 pixels."""
    hue = (np.arctan2(flow[..., 1], flow[..., 0]) / (2 * math.pi)) % 1
    wheel = np.array([colorsys.hsv_to_rgb(i / 256, 0.8, 1.0) for i in range(256)])
    strength = np.clip(np.hypot(flow[..., 0], flow[..., 1]) / 4, 0, 1)[..., None]
    return ((strength * wheel[(hue * 255).astype(int)] + (1 - strength)) * 255).round().astype(np.uint8)


def _row(frames: Sequence[np.ndarray], side: int) -> Image.Image:
    """Frames side by side, each ``side`` pixels wide and high."""
    out = Image.new("RGB", (len(frames) * (side + GAP) - GAP, side), "white")
    for i, frame in enumerate(frames):
        out.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST), (i * (side + GAP), 0))
    return out


def main(args: Sequence[str]) -> int:
    make = {"worlds": worlds, "truth": truth, "masks": masks, "text": text}.get(args[0] if args else "")
    if make is None and not (len(args) == 2 and args[0] == "demo"):
        sys.stderr.write(__doc__ or "")
        return 2
    for name, image in (make() if make else demo(args[1])).items():
        path = IMAGES / f"{name}.png"
        image.save(path, optimize=True)
        if path.stat().st_size > LIMIT:
            image.convert("RGB").quantize(256).save(path, optimize=True)
        assert path.stat().st_size <= LIMIT, f"{path}: {path.stat().st_size} bytes"
        sys.stdout.write(f"{path}: {image.width}x{image.height}, {path.stat().st_size // 1000} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
