"""AdaMAE's sampler learns to show the object: its probability mass and its visible tokens move there; with weight 0 they do not.

The page's own setting: an even ground and one moving textured square, 16 frames of 32 pixels, patches of 2 x 8 x 8, 85 % masked, two
blocks of width 64, AdamW at 1e-3, 300 steps, normalised targets.
"""

from __future__ import annotations

import torch
from claims import Claim, Figures, mean
from torch import Tensor

from tubelet.core import Batch, CounterDraw, Step, Stream
from tubelet.masking.adamae import Config as Masking
from tubelet.methods.videomae import Config

STEPS, BATCH, FRAMES, SIZE = 300, 16, 16, 32


def squares(n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 3, T, H, W) in [0, 1] and the object's pixels (n, T, H, W)."""
    video = torch.rand(n, 3, 1, 1, 1, generator=draw).expand(-1, -1, FRAMES, SIZE, SIZE).clone()
    where = torch.zeros(n, FRAMES, SIZE, SIZE, dtype=torch.bool)
    for i in range(n):
        texture = torch.rand(3, 8, 8, generator=draw)
        place, speed = torch.rand(2, generator=draw) * 24, (torch.rand(2, generator=draw) - 0.5) * 3
        for t in range(FRAMES):
            at = place + t * speed
            y, x = (int(24 - abs(float(v) % 48 - 24)) for v in at)
            video[i, :, t, y : y + 8, x : x + 8] = texture
            where[i, t, y : y + 8, x : x + 8] = True
    return video, where


def run(seed: int, weight: float) -> Figures:
    torch.manual_seed(seed)
    options = {"dim": 64, "depth": 2, "heads": 4, "patch": (2, 8, 8), "decoder": {"dim": 32, "depth": 1, "heads": 2}}
    config = Config.model_validate(options)
    masker = Masking(ratio=0.85, weight=weight).build(grid=config.grid(FRAMES, (SIZE, SIZE)), dim=64)
    model = config.build(masking=masker, frames=FRAMES, size=(SIZE, SIZE))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(seed)
    figures = {}
    for i in range(STEPS + 1):
        video, where = squares(64 if i in (0, STEPS) else BATCH, draw)
        batch = Batch({"video": Stream(video)}, {}, torch.arange(i * 64, i * 64 + len(video)))
        at = Step(i, 0, 0.0, 0.0, CounterDraw(seed, batch.sample, i))
        if i in (0, STEPS):
            model.eval()
            with torch.no_grad():
                mask = model.mask(batch, at)
            touched = where.unflatten(1, (8, 2)).unflatten(3, (4, 8)).unflatten(5, (4, 8)).any(6).any(4).any(2).flatten(1).float()
            visible = 1 - mask.hidden().flatten(1).float()
            name = "before" if i == 0 else "after"
            assert mask.logp is not None
            figures[f"mass_{name}"] = float((mask.logp.exp() * touched).sum(1).mean())
            figures[f"visible_{name}"] = float((visible * touched).sum() / visible.sum())
            figures["object"] = float(touched.mean())
            model.train()
            continue
        optimiser.zero_grad()
        model.losses("main", batch, at).total.backward()
        optimiser.step()
    return figures


def measure(seed: int) -> Figures:
    learned, control = run(seed, 1e-4), run(seed, 0.0)
    return {**learned, "mass_after_without": control["mass_after"], "visible_after_without": control["visible_after"]}


CLAIM = Claim(
    paper="AdaMAE 8.1.",
    claim="The sampler learns to show the moving object; without its loss it does not.",
    expected="probability mass and visible share on object tokens at least 2 x what they were; without the loss below 1.3 x",
    measure=measure,
    holds=lambda s: (
        mean(s, "mass_after") >= 2 * mean(s, "mass_before")
        and mean(s, "visible_after") >= 2 * mean(s, "visible_before")
        and mean(s, "mass_after_without") < 1.3 * mean(s, "mass_before")
    ),
    shown={
        "mass_before": ".3f",
        "mass_after": ".3f",
        "mass_after_without": ".3f",
        "visible_before": ".3f",
        "visible_after": ".3f",
        "object": ".3f",
    },
    minutes=2,
)
