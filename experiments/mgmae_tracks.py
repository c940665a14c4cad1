"""Do visible tokens keep showing the same thing? Under MGMAE's mask they go along with the object, under a tube they stay behind.

Method: 256 easy clips (the object stays inside) of 16 frames of 64 pixels, 2 x 8 x 8 tokens, 75 % hidden, true flow both ways. Every
visible token whose centre lies on the object in the middle frame, from which the map is warped, stands for the object's point there; the
point is followed to every other slot, and the token that shows it in the middle of that slot is visible or not. ``kept``: the share that
is; ``before`` and ``after`` the middle. ``released``: the published code. (Points of tokens of all slots were taken first, and gave 0.63
for one seed: tokens of other slots are up to half a token off the map that has moved, so that even a perfect follower would lose about a
third of their centres again. What was expected stayed as it was.)
"""

from __future__ import annotations

from functools import partial

import torch
from claims import Claim, Figures, mean
from torch import Tensor
from truth import Told, both_ways
from worlds import World, batch_of, step, world

from tubelet.core import Masker, TokenGrid
from tubelet.masking.mgmae import Config, FlowGuided
from tubelet.masking.random import Random
from tubelet.masking.tube import Tube

FRAMES, SIZE, PATCH, RATIO, CLIPS = 16, 64, (2, 8, 8), 0.75, 256
BASE = FRAMES // 2
KINDS: dict[str, Masker] = {
    "mgmae": FlowGuided(guide=Told(), settings=Config(ratio=RATIO)),
    "released": FlowGuided(guide=Told(), settings=Config(ratio=RATIO, variant="released")),
    "tube": Tube(ratio=RATIO),
    "random": Random(ratio=RATIO),
}


def kept(hidden: Tensor, clips: World, rows: Tensor) -> Tensor:
    """(points, S) bool: whether the points that visible tokens show in the base frame are visible in each slot."""
    s, h, w = hidden.shape[1:]
    top, left = torch.arange(h) * PATCH[1] + PATCH[1] // 2, torch.arange(w) * PATCH[2] + PATCH[2] // 2
    on = (clips.objects[rows, BASE] == 1)[:, top][..., left]
    sample, row, column = torch.nonzero(on & ~hidden[:, BASE // PATCH[0]], as_tuple=True)
    back = both_ways(clips, rows)[:, 2:]
    shift = -back.flatten(3).sum(3) / (back != 0).any(1, keepdim=True).flatten(3).sum(3).clamp(min=1)
    way = torch.cat([torch.zeros_like(shift[:, :, :1]), shift.cumsum(2)], 2)  # (B, 2, T) from the first frame
    move = (way.unflatten(2, (s, -1)).mean(3) - way[:, :, BASE, None])[sample]
    places = ((row, PATCH[1], h, 1), (column, PATCH[2], w, 0))
    there = [((at[:, None] * n + n // 2 + move[:, axis] + 0.5) // n).long().clamp(0, most - 1) for at, n, most, axis in places]
    return ~hidden[sample[:, None], torch.arange(s), there[0], there[1]]


def measure(seed: int) -> Figures:
    clips = world("easy", seed, 0, CLIPS, frames=FRAMES, size=SIZE)
    grid = TokenGrid.of((FRAMES, SIZE, SIZE), PATCH)
    rows, base, found = torch.arange(CLIPS), BASE // PATCH[0], {}
    batch = batch_of(clips, rows, beside=partial(both_ways, clips))
    for kind, masker in KINDS.items():
        seen = kept(masker(grid, batch, "video", step(batch, seed)).hidden(), clips, rows).float()
        before, after = seen[:, :base], seen[:, base + 1 :]
        found[f"kept_{kind}"] = float(torch.cat([before, after], 1).mean())
        found[f"before_{kind}"], found[f"after_{kind}"] = float(before.mean()), float(after.mean())
    return found


CLAIM = Claim(
    paper="MGMAE 8.2.",
    claim="Visible tokens on a moving object keep showing the same points of it; the published code does so after the middle frame only.",
    expected="kept: MGMAE >= 0.8, tube at least 0.2 less, random 0.25 +- 0.05; published code >= 0.8 after the middle, 0.2 less before it",
    measure=measure,
    holds=lambda s: (
        mean(s, "kept_mgmae") >= 0.8
        and mean(s, "kept_tube") <= mean(s, "kept_mgmae") - 0.2
        and abs(mean(s, "kept_random") - 0.25) <= 0.05
        and mean(s, "after_released") >= 0.8
        and mean(s, "before_released") <= mean(s, "after_released") - 0.2
    ),
    shown={f"kept_{kind}": ".3f" for kind in KINDS}
    | {f"{part}_{kind}": ".3f" for kind in ("mgmae", "released") for part in ("before", "after")},
    minutes=0.2,
    note="The order is as claimed, the levels are not reached, also with true flow: warping backward leaves a trail of "
    "visibility that takes a part of the count",
)
