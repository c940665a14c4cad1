"""Hiding what the caption speaks of is a harder task than hiding anything, and hiding the rest is easier.

Three small VideoMAEs with equal budgets, masked at 60 % by the guide of a dual encoder trained here: the best matching places, any, the
worst. Each is measured on clips that it has not seen, under its own masking, on raw pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from claims import Claim, Figures, mean
from torch.nn import functional as F
from words import FRAMES, SIZE, clips, guide, others, trained
from worlds import Feed, batch_of, masked_error, step, train

from tubelet.masking.tgm import TextGuided
from tubelet.methods.videomae import Config

STEPS, RATIO = 400, 0.6


def model(masker: Any, seed: int, **more: Any) -> Any:
    """D 96, 4 blocks, patches of 2 x 8 x 8, raw pixels."""
    torch.manual_seed(seed)
    options = {"dim": 96, "depth": 4, "heads": 3, "patch": (2, 8, 8), "decoder": {"dim": 48, "depth": 2, "heads": 3}}
    config = Config.model_validate(options | {"position": "sincos3d", "target": {"normalise": "none"}} | more)
    return config.build(masking=masker, frames=FRAMES, size=(SIZE, SIZE))


def measure(seed: int) -> Figures:
    net, test, found = trained(seed), others(seed), {}
    for select in ("top", "random", "bottom"):
        made = model(TextGuided(guide=guide(net), ratio=RATIO, select=select), seed)
        train(made, Feed(clips(seed), seed), steps=STEPS, batch=32, seed=seed)
        found[f"error_{select}"] = masked_error(made, test)
        batch = batch_of(test, torch.arange(len(test)))
        hidden = made.mask(batch, step(batch)).hidden()
        share = F.adaptive_avg_pool3d((test.objects == 1).float()[:, None], hidden.shape[1:])[:, 0]
        found[f"object_hidden_{select}"] = float(((share * hidden).flatten(1).sum(1) / share.flatten(1).sum(1)).mean())
    return found


CLAIM = Claim(
    paper="TGM 8.2.",
    claim="Text-guided masks make reconstruction harder than random ones, and those harder than hiding the rest.",
    expected="masked error top > random > bottom in the mean over seeds; top hides at least 1.2 x 0.6 of the main object",
    measure=measure,
    holds=lambda s: mean(s, "error_top") > mean(s, "error_random") > mean(s, "error_bottom") and mean(s, "object_hidden_top") >= 0.72,
    shown={
        f"{what}_{select}": form for what, form in (("error", ".4f"), ("object_hidden", ".2f")) for select in ("top", "random", "bottom")
    },
    minutes=8,
    note="The order of the errors is as claimed in every seed; the mark for the object is missed (0.70 instead of 0.72) because "
    "captions name ground and other objects, too",
)
