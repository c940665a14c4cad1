"""How well the guides see motion that is known: what the flow guide's default should be.

Claim: DIS finds the flow of small clips well enough to follow objects (MGMAE needs that), a slower preset better than a quicker one, and
all of them better than block matching. Method: 24 `full` clips of 16 frames with 64 and with 128 pixels; end-point error against the true
flow on pixels whose flow can be known (one surface, seen again in the next frame), all of them and those of objects alone; `still` is the
error of saying that nothing moves. Block matching speaks of where a thing arrives, so its answer is read there. Milliseconds are of one
pair, both directions (of block matching: one).
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import torch
from claims import Claim, Figures, mean

from tubelet import playground
from tubelet.core import Batch, Frozen, Guide, Stream
from tubelet.guides.blocks import Blocks
from tubelet.guides.flow import Dis, Flow

CLIPS, FRAMES = 24, 16
GUIDES: dict[str, Guide] = {
    **{name: Flow(estimator=Frozen(Dis(preset=name))) for name in ("ultrafast", "fast", "medium")},
    "blocks16": Blocks(block=16, search=8),
    "blocks8": Blocks(block=8, search=4),
}


def answered(guide: Guide, batch: Batch, true: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The guide's flow from each frame to the next, (2, T - 1, H, W), and its milliseconds a pair."""
    began = time.perf_counter()
    field = guide(batch, "video").data[0].float()
    spent = 1000 * (time.perf_counter() - began) / (FRAMES - 1)
    if field.shape[1] == FRAMES - 1:
        return field[:2], spent
    h, w = true.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    column, row = ((place + move).round().long().clamp(0, n - 1) for place, move, n in ((x, true[0], w), (y, true[1], h)))
    cell = h // field.shape[2]
    pair = torch.arange(FRAMES - 1)[:, None, None]
    return field[:, 1 + pair, row // cell, column // cell], spent


def measure(seed: int) -> Figures:
    figures: dict[str, float] = {}
    for size in (64, 128):
        scene = playground.build("full", size=size, frames=FRAMES)
        errors: dict[str, list[np.ndarray]] = {}
        objects, times = [], dict.fromkeys(GUIDES, 0.0)
        for index in range(CLIPS):
            clip = scene.render(seed, index)
            video, true = torch.from_numpy(clip.frames).permute(3, 0, 1, 2), torch.from_numpy(clip.flow).permute(3, 0, 1, 2)
            batch = Batch({"video": Stream(video[None])}, {}, torch.zeros(1, dtype=torch.int64))
            objects.append((clip.masks[:-1] > 0)[clip.valid])
            said = {name: answered(guide, batch, true) for name, guide in GUIDES.items()}
            for name, flow in {"still": torch.zeros_like(true), **{name: flow for name, (flow, _) in said.items()}}.items():
                errors.setdefault(name, []).append((flow - true).square().sum(0).sqrt().numpy()[clip.valid])
            for name, (_, spent) in said.items():
                times[name] += spent / CLIPS
        on = np.concatenate(objects)
        for name, parts in errors.items():
            error = np.concatenate(parts)
            figures[f"{name}_{size}"], figures[f"{name}_objects_{size}"] = float(error.mean()), float(error[on].mean())
        figures |= {f"{name}_ms_{size}": spent for name, spent in times.items()}
    return figures


def holds(seeds: list[Figures]) -> bool:
    order = ("medium", "fast", "ultrafast", "blocks16", "still")
    ranked = [[mean(seeds, f"{name}_objects_{size}") for name in order] for size in (64, 128)]
    return all(a < b for row in ranked for a, b in pairwise(row))


CLAIM = Claim(
    paper="MGMAE section 4, MGM section 3d",
    claim="Flow without learned weights sees how small objects move; a slower preset of DIS better, block matching less well.",
    expected="end-point error on objects: medium < fast < ultrafast < blocks of 16 < saying that nothing moves, at 64 and at 128 pixels",
    measure=measure,
    holds=holds,
    shown={f"{name}_objects_{size}": ".2f" for size in (64, 128) for name in ("medium", "fast", "ultrafast", "blocks16", "still")}
    | {f"{name}_ms_{size}": ".1f" for size in (64, 128) for name in ("medium", "fast", "ultrafast", "blocks16")},
    minutes=0.5,
)
