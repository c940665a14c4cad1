"""The map of a small dual encoder finds what the text names; patches that read each other lose it.

The encoder is trained by InfoNCE on frames and captions alone (``method: dual``), patches pooled by their mean. Asked with the noun of
the main object ("a big red star") and with the whole caption, the best places of the map are compared with the object's true mask.
"""

from __future__ import annotations

import torch
from claims import Claim, Figures, mean
from words import SIZE, others, score, trained

from tubelet.tasks.grounding import grounding


def measure(seed: int) -> Figures:
    test = others(seed)
    frames, objects = test.video[:, :, 4].float() / 255, test.objects[:, 4] == 1
    nouns = [things[0].noun for things in test.things]
    found = {}
    for mixing in ("none", "attention"):
        net = trained(seed, mixing=mixing)
        for name, texts in (("noun", nouns), ("caption", test.captions)):
            seen = grounding(lambda f, t, net=net: score(net, f, t), frames, objects, texts, grid=(SIZE // 8, SIZE // 8))
            key = name if mixing == "none" else f"{name}_with_attention"
            found |= {f"{key}_gain": seen.gain, f"{key}_recall_60": dict(seen.table())[0.6], f"{key}_best": seen.best}
            found["chance_best"] = seen.chance
    torch.manual_seed(seed)
    return found


CLAIM = Claim(
    paper="TGM 8.1.",
    claim="A dual encoder trained on captions of small worlds finds the object that a text names.",
    expected="recall of the named object in the best 10-30 % of places at least 2 x chance (asked by its noun); below 1.5 x it is useless",
    measure=measure,
    holds=lambda seeds: mean(seeds, "noun_gain") >= 2,
    shown={
        "noun_gain": ".2f",
        "caption_gain": ".2f",
        "noun_recall_60": ".2f",
        "caption_recall_60": ".2f",
        "noun_best": ".2f",
        "chance_best": ".2f",
        "noun_with_attention_gain": ".2f",
        "caption_with_attention_gain": ".2f",
    },
    minutes=5,
)
