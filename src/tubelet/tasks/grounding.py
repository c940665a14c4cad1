"""Does a map of text-patch similarity find what the text names? Measured on clips whose objects are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.masking._select import pick
from tubelet.tasks.metrics import wilson

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ENOUGH = 1.5  # times chance; below that a guide by such a map is hardly better than none


@dataclass(frozen=True)
class Grounding:
    """``recall``: share of the named object's places among the best ``ratio`` of a frame's, the mean over n frames; chance is the ratio
    itself. ``best``: share of frames whose single best place touches the object; ``chance``: how often any place does."""

    ratios: tuple[float, ...]
    recall: tuple[float, ...]
    best: float
    chance: float
    n: int

    @property
    def gain(self) -> float:
        """Recall over chance where the best tenth to third of a frame is taken: the mean of recall / ratio up to 0.3."""
        small = [r / ratio for r, ratio in zip(self.recall, self.ratios, strict=True) if ratio <= 0.3]
        return sum(small) / len(small)

    @property
    def useful(self) -> bool:
        """At least 1.5 times chance."""
        return self.gain >= ENOUGH

    def __str__(self) -> str:
        low, high = wilson(round(self.best * self.n), self.n)
        pairs = ", ".join(f"{100 * recall:.0f} % of it in the best {100 * ratio:.0f} %" for ratio, recall in self.table())
        first = f"best place on the object {100 * self.best:.1f} % [{100 * low:.1f}, {100 * high:.1f}], chance {100 * self.chance:.1f} %"
        return f"{first}; {pairs} (n = {self.n} frames; {self.gain:.2f} x chance)"

    def table(self) -> list[tuple[float, float]]:
        """(ratio, recall)."""
        return list(zip(self.ratios, self.recall, strict=True))


def grounding(
    score: Callable[[Tensor, Sequence[str]], Tensor],
    frames: Tensor,
    objects: Tensor,
    texts: Sequence[str],
    *,
    grid: tuple[int, int],
    ratios: Sequence[float] = RATIOS,
    batch: int = 256,
) -> Grounding:
    """``score(frames, texts)``: (n, 3, H, W) in [0, 1] and n texts -> (n, rows, columns). ``objects`` (n, H, W) bool: the pixels that each
    text names; frames where nothing of it is seen are left out. A place counts as the object's by the share of its pixels that are. Maps
    are brought to ``grid``, on which the places are chosen. Raises ValueError where no frame shows its object."""
    seen = objects.flatten(1).any(1).nonzero()[:, 0]
    if not len(seen):
        raise ValueError("none of the frames shows the object that its text names")
    totals, hits, chances = torch.zeros(len(ratios), dtype=torch.float64), 0, 0.0
    for rows in seen.split(batch):
        maps = score(frames[rows], [texts[int(i)] for i in rows]).float()
        maps = F.interpolate(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0].flatten(1)
        share = F.adaptive_avg_pool2d(objects[rows].float()[:, None], grid)[:, 0].flatten(1).to(maps.device)
        for i, ratio in enumerate(ratios):
            chosen = pick(maps, max(1, int(ratio * maps.shape[1])))
            totals[i] += ((share * chosen).sum(1) / share.sum(1)).double().sum().cpu()
        best = maps.argmax(1, keepdim=True)
        hits += int((share.gather(1, best) > 0).sum())
        chances += float((share > 0).float().mean(1).sum())
    n = len(seen)
    return Grounding(tuple(ratios), tuple((totals / n).tolist()), hits / n, chances / n, n)
