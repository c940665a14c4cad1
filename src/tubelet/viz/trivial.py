"""How wrong a reconstruction is, beside answers that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.core import Mask
from tubelet.methods.videomae import Reconstruction
from tubelet.objectives.losses import answer_error
from tubelet.viz.pictures import Statistics, hidden_targets, predicted

TRIVIAL = ("visible mean", "copy in time", "copy in space")
NAMES = ("model", *TRIVIAL)


@dataclass(frozen=True)
class MaskedError:
    """Mean square errors over ``cubes`` hidden cubes that were asked for, by name: the model's, and those of trivial answers.

    ``pixels``: of [0, 1] pixels, as drawn. ``target``: of what the model was trained to answer; empty where that is the pixels.
    "visible mean": the mean colour of all that is visible. "copy in time": the visible cube at the nearest place, there the nearest in
    time; "copy in space": that of the nearest time slot, there the nearest place. They are the same where whole tubes or whole frames are
    hidden. With the hidden cubes' own statistics in the pictures, the trivial answers get them, too.
    """

    cubes: int
    pixels: dict[str, float]
    target: dict[str, float]

    @staticmethod
    def mean(parts: Sequence[MaskedError]) -> MaskedError:
        """Of several clips, each by its number of cubes."""
        kept = [part for part in parts if part.cubes]
        cubes = sum(part.cubes for part in kept)

        def over(tables: Sequence[dict[str, float]]) -> dict[str, float]:
            if not all(tables):
                return {}
            return {name: sum(p.cubes * t[name] for p, t in zip(kept, tables, strict=True)) / cubes for name in NAMES}

        return MaskedError(cubes, over([p.pixels for p in kept]), over([p.target for p in kept])) if kept else MaskedError(0, {}, {})

    def beside(self, table: dict[str, float]) -> tuple[float, str]:
        """(the model's error as a multiple of the best trivial answer's, that answer's name)."""
        best = min(TRIVIAL, key=lambda name: table[name])
        return table["model"] / max(table[best], 1e-12), best

    def verdict(self) -> str:
        """Whether the model does better than trivial, in one line."""
        if not self.cubes:
            return "no hidden tubelet was asked for, so there is no masked error"
        parts = []
        for name, table in (("in pixels ", self.pixels), ("in the target ", self.target)):
            if table:
                share, best = self.beside(table)
                whose = f"the {best}" if best == "visible mean" else f"a {best}"
                where, word = name if self.target else "", "better" if share < 1 else "no better"
                times = f"{share:.2f}" if share < 1000 else "more than 1000"
                parts.append(f"{where}{word} than trivial: {times} times the error of {whose}")
        return "; ".join(parts)

    def __str__(self) -> str:
        if not self.cubes:
            return self.verdict()
        head = f"{'masked error':<14}{'pixels':>10}" + (f"{'target':>10}" if self.target else "")
        lines = [f"{n:<14}{self.pixels[n]:>10.5f}" + (f"{self.target[n]:>10.3f}" if self.target else "") for n in NAMES]
        return "\n".join([head, *lines, self.verdict()])


def masked_error(
    video: Tensor, answer: Reconstruction, *, statistics: Statistics = "visible", mean: Tensor | None = None, std: Tensor | None = None
) -> MaskedError:
    """``video`` (B, C, T, H, W) and what a model answered for it. Arguments as :func:`tubelet.viz.pictures.restore`."""
    target, mask = answer.target, answer.mask
    asked = hidden_targets(mask)
    if not bool(asked.any()):
        return MaskedError(0, {}, {})
    made = predicted(video, answer, statistics=statistics, mean=mean, std=std)
    unit = target.model_copy(update={"space": "unit", "grey": target.grey and made.shape[2] == 1})
    film, seen = (unit.cubes(video, mask.grid, index) for index in (mask.target, mask.visible))
    copies = {"copy in time": nearest(mask, place_first=True), "copy in space": nearest(mask, place_first=False)}
    normalised = target.normalise != "none"
    shown = {"model": made}
    if normalised and statistics == "own":
        rows = _trivial_rows(video, answer, copies, mean, std)
        for name, row in rows.items():
            twin = Reconstruction(mask, row, target)
            shown[name] = predicted(video, twin, statistics="own", mean=mean, std=std)
    else:
        shown["visible mean"] = _visible_mean(seen, mask).expand_as(film)
        shown |= {name: _take(seen, which) for name, which in copies.items()}
    pixels = {name: float((cubes.clamp(0, 1) - film).square().flatten(2).mean(2)[asked].mean()) for name, cubes in shown.items()}
    if not normalised:
        return MaskedError(int(asked.sum()), pixels, {})
    truth = target.rows(video, mask.grid, mask.target, mean, std)
    rows = {"model": answer.rows, **_trivial_rows(video, answer, copies, mean, std)}
    return MaskedError(int(asked.sum()), pixels, {name: float(answer_error(row, truth)[asked].mean()) for name, row in rows.items()})


def nearest(mask: Mask, *, place_first: bool) -> Tensor:
    """(B, M): for each target the position in ``mask.visible`` of the nearest visible token, the first of several.

    ``place_first``: by distance in space, then in time; else by distance in time, then in space.
    """
    grid = mask.grid
    gaps = {axis: grid.where(axis, mask.target)[:, :, None] - grid.where(axis, mask.visible)[:, None] for axis in grid.axes}
    time = gaps.pop("t").abs()
    space = torch.stack([gap.square() for gap in gaps.values()]).sum(0)
    order = space * (time.max() + 1) + time if place_first else time * (space.max() + 1) + space
    if mask.visible_valid is not None:
        order = order.masked_fill(~mask.visible_valid[:, None], torch.iinfo(torch.int64).max)
    return order.argmin(2)


def _trivial_rows(
    video: Tensor, answer: Reconstruction, copies: dict[str, Tensor], mean: Tensor | None, std: Tensor | None
) -> dict[str, Tensor]:
    """The trivial answers (B, M, E) in the convention of a normalised target: one colour has no pattern, a copy has its own."""
    rows = answer.target.rows(video, answer.mask.grid, answer.mask.visible, mean, std)
    return {"visible mean": torch.zeros_like(answer.rows), **{name: _take(rows, which) for name, which in copies.items()}}


def _take(cubes: Tensor, which: Tensor) -> Tensor:
    """(B, V, ...) at positions (B, M) -> (B, M, ...)."""
    return cubes[torch.arange(len(cubes), device=cubes.device)[:, None], which]


def _visible_mean(seen: Tensor, mask: Mask) -> Tensor:
    """(B, 1, C, 1, ...): the mean colour of the visible cubes (B, V, C, *patch)."""
    colour = seen.flatten(3).mean(3)
    weight = torch.ones_like(colour[..., :1]) if mask.visible_valid is None else mask.visible_valid[..., None].to(colour.dtype)
    found = (colour * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return found.reshape(*found.shape, *[1] * (seen.ndim - 3))
