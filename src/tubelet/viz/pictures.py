"""A clip row by row: what was filmed, what the model sees, what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tubelet.core import Mask, TokenGrid, patchify, to_unit, unpatchify
from tubelet.errors import ConfigError
from tubelet.methods.videomae import Reconstruction
from tubelet.viz import _text as text

Statistics = Literal["visible", "own"]
HIDDEN = 0.78  # the grey of a hidden tubelet
CAPTIONS = {
    "none": "Reconstruction: visible tubelets as filmed, hidden ones as predicted (raw pixels).",
    "visible": "Reconstruction: visible tubelets as filmed, hidden ones as predicted; brightness and contrast taken from the visible "
    "tubelets nearby.",
    "own": "Reconstruction: visible tubelets as filmed, hidden ones as predicted, but with the hidden tubelets' own brightness and "
    "contrast, which the model was not told.",
}


def hide(video: Tensor, grid: TokenGrid, hidden: Tensor, fill: float = HIDDEN) -> Tensor:
    """(B, C, T, H, W) pixels, (B, *grid.shape) bool -> float [0, 1] with every hidden cube in one grey."""
    big = hidden
    for axis, patch in enumerate(grid.patch):
        big = big.repeat_interleave(patch, dim=1 + axis)
    return torch.where(big[:, None], torch.full((), fill, device=video.device), to_unit(video))


def neighbour_statistics(centre: Tensor, scale: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """What the visible cubes say about the asked ones: means of their ``centre`` and (geometric) ``scale``, weighted by 1 / distance^4,
    so steep that far ones do not outweigh near ones by their number.

    ``centre``, ``scale`` (B, V, ...) of ``mask.visible`` -> (B, M, ...) for ``mask.target``. Distance is counted in tokens.
    """

    def places(index: Tensor) -> Tensor:
        return torch.stack([mask.grid.where(axis, index) for axis in mask.grid.axes], -1).to(torch.float32)

    gap = torch.cdist(places(mask.target), places(mask.visible)).clamp_min(0.5)
    weight = gap**-4
    if mask.visible_valid is not None:
        weight = weight * mask.visible_valid[:, None]
    weight = weight / weight.sum(2, keepdim=True)

    def mean(x: Tensor) -> Tensor:
        return (weight @ x.flatten(2).to(torch.float32)).unflatten(2, x.shape[2:])

    return mean(centre), mean(scale.clamp_min(1e-6).log()).exp()


def hidden_targets(mask: Mask) -> Tensor:
    """(B, M) bool: which of ``mask.target`` are real and not read."""
    asked = mask.hidden().flatten(1).gather(1, mask.target)
    return asked if mask.target_valid is None else asked & mask.target_valid


def predicted(
    video: Tensor, answer: Reconstruction, *, statistics: Statistics = "visible", mean: Tensor | None = None, std: Tensor | None = None
) -> Tensor:
    """The asked cubes (B, M, C, *patch) as [0, 1] pixels, not yet clamped; C is 1 for a grey target. Arguments as :func:`restore`."""
    if statistics not in ("visible", "own"):
        raise ConfigError(f"statistics={statistics!r}: there are visible and own")
    target, mask = answer.target, answer.mask
    if target.normalise == "none":
        made = target.pixels(answer.rows, mask.grid, video)
    elif statistics == "own":
        made = target.pixels(answer.rows, mask.grid, video, *target.statistics(target.cubes(video, mask.grid, mask.target, mean, std)))
    else:
        seen = target.statistics(target.cubes(video, mask.grid, mask.visible, mean, std))
        made = target.pixels(answer.rows, mask.grid, video, *neighbour_statistics(*seen, mask))
    if target.space == "input":
        assert mean is not None, "checked by target.cubes"
        assert std is not None, "checked by target.cubes"
        made = made * std.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)
    return made


def restore(
    video: Tensor, answer: Reconstruction, *, statistics: Statistics = "visible", mean: Tensor | None = None, std: Tensor | None = None
) -> Tensor:
    """The clip with its hidden cubes as predicted: (B, C, T', H, W) float [0, 1]; T' < T where only some frames are predicted.

    ``video`` (B, C, T, H, W) uint8 or [0, 1]: what was masked. Cubes that were neither read nor asked for stay grey. A normalised
    prediction lacks each cube's brightness and contrast: ``visible`` takes them from the visible cubes around it, ``own`` from the
    hidden cube itself, which the model cannot know. ``mean``, ``std`` (C,): the network's, for targets in its input space.
    """
    target, mask = answer.target, answer.mask
    made = predicted(video, answer, statistics=statistics, mean=mean, std=std)
    frames, grid = target.select(video, mask.grid), target.cut(mask.grid)
    hidden = mask.hidden()
    cubes = patchify(hide(frames, grid, hidden), grid).clone()
    asked = hidden_targets(mask)
    rows = torch.arange(len(video), device=video.device)[:, None].expand_as(mask.target)
    cubes[rows[asked], mask.target[asked]] = made.expand(-1, -1, cubes.shape[2], *made.shape[3:]).to(cubes.dtype)[asked]
    return unpatchify(cubes, grid).clamp(0, 1)


def triptych(
    video: Tensor, answer: Reconstruction, *, statistics: Statistics = "visible", mean: Tensor | None = None, std: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, what the model sees (hidden tubelets grey), reconstruction: (B, C, T', H, W) float [0, 1] each. See :func:`restore`."""
    made = restore(video, answer, statistics=statistics, mean=mean, std=std)
    shown, grid = answer.target.select(video, answer.mask.grid), answer.target.cut(answer.mask.grid)
    return to_unit(shown), hide(shown, grid, answer.mask.hidden()), made


def caption(answer: Reconstruction, statistics: Statistics) -> str:
    """How much is hidden, and whose brightness and contrast the reconstruction has."""
    share = float(answer.mask.hidden().float().mean())
    return f"{100 * share:.0f} % of the tubelets are hidden. {CAPTIONS['none' if answer.target.normalise == 'none' else statistics]}"


def spread(frames: int, count: int) -> list[int]:
    """At most ``count`` of the frames, evenly from the first to the last."""
    return sorted(set(np.linspace(0, frames - 1, min(count, frames)).round().astype(int).tolist()))


def figure(
    video: Tensor,
    answer: Reconstruction,
    *,
    sample: int = 0,
    statistics: Statistics = "visible",
    frames: int = 8,
    cell: int = 128,
    time: Tensor | None = None,
    title: str = "",
    mean: Tensor | None = None,
    std: Tensor | None = None,
    note: str = "",
) -> Image.Image:
    """One clip of a batch in three rows: input, what the model sees (hidden tubelets grey), reconstruction.

    ``video`` (B, 3, T, H, W). ``frames``: at most so many columns, evenly spread. ``cell``: pixels of a picture's shorter side, about.
    ``time`` (B, T): seconds, written above the columns. The caption says whose brightness and contrast were used, then ``note``. See
    :func:`restore`.
    """
    one = Reconstruction(_only(answer.mask, sample), answer.rows[sample : sample + 1].detach(), answer.target)
    rows = triptych(video[sample : sample + 1], one, statistics=statistics, mean=mean, std=std)
    pick = spread(rows[0].shape[2], frames)
    heads = [f"frame {i}" for i in pick]
    if time is not None and answer.target.frames == "all":
        heads = [f"{float(time[sample, i]):.2f} s" for i in pick]
    names = ("input", "visible", "restored")
    drawn = [(name, [picture(x[0, :, i], cell) for i in pick]) for name, x in zip(names, rows, strict=True)]
    return table(drawn, heads, title, f"{caption(one, statistics)} {note}".rstrip())


def sheet(images: Sequence[Image.Image], captions: Sequence[str] = (), *, columns: int = 1, margin: int = 16) -> Image.Image:
    """Pictures in a grid, each with its caption above it. Raises ConfigError where their numbers disagree."""
    if not images or (captions and len(captions) != len(images)):
        raise ConfigError(f"a sheet needs pictures and as many captions, got {len(images)} and {len(captions)}")
    columns = min(columns, len(images))
    width = max(i.width for i in images)
    above = text.height(15) + 6 if captions else 0
    lines = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(i.height for i in line) + above for line in lines]
    out = Image.new("RGB", (columns * (width + margin) + margin, sum(heights) + margin * (len(lines) + 1)), "white")
    draw = ImageDraw.Draw(out)
    y = margin
    for n, (line, height) in enumerate(zip(lines, heights, strict=True)):
        for c, image in enumerate(line):
            x = margin + c * (width + margin)
            if captions:
                draw.text((x, y), text.fit(captions[n * columns + c], 15, width), fill=text.INK, font=text.font(15))
            out.paste(image, (x, y + above))
        y += height + margin
    return out


def _only(mask: Mask, i: int) -> Mask:
    """One sample of a batch of masks."""

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[i : i + 1].detach()

    valid, target_valid = cut(mask.visible_valid), cut(mask.target_valid)
    visible, target = mask.visible[i : i + 1], mask.target[i : i + 1]
    return replace(mask, visible=visible, target=target, weight=None, visible_valid=valid, target_valid=target_valid, logp=None)


def picture(pixels: Tensor, cell: int) -> Image.Image:
    """(C, H, W) uint8 or [0, 1] -> a picture whose shorter side is about ``cell``; small ones are enlarged by whole factors, unsmoothed."""
    array = (to_unit(pixels.detach()).float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    short = min(image.size)
    if short <= cell:
        factor = max(1, cell // short)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize((round(image.width * cell / short), round(image.height * cell / short)), Image.Resampling.LANCZOS)


def table(rows: Sequence[tuple[str, list[Image.Image]]], heads: Sequence[str], title: str, caption: str) -> Image.Image:
    """Pictures of one size in rows with a name each (one or more lines), headings above the columns, words below."""
    gap, pad, size = 4, 12, 14
    w, h = rows[0][1][0].size
    left = pad + max(text.width(line, size) for name, _ in rows for line in name.split("\n")) + 10
    width = left + len(heads) * (w + gap) - gap + pad
    titled = text.wrap(title, 17, width - 2 * pad) if title else []
    lines = text.wrap(caption, size, width - 2 * pad)
    top = pad + len(titled) * (text.height(17) + 4) + text.height(size) + 6
    tall = max(h, *(len(name.split("\n")) * (text.height(size) + 3) for name, _ in rows))
    height = top + len(rows) * (tall + gap) + 6 + len(lines) * (text.height(size) + 3) + pad
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    for i, line in enumerate(titled):
        draw.text((pad, pad + i * (text.height(17) + 4)), line, fill=text.INK, font=text.font(17))
    for c, head in enumerate(heads):
        x = left + c * (w + gap) + w / 2
        draw.text((x, top - 6), text.fit(head, size, w), fill=text.FAINT, font=text.font(size), anchor="mb")
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (tall + gap)
        said = name.split("\n")
        for i, line in enumerate(said):
            at = y + tall / 2 + (i - (len(said) - 1) / 2) * (text.height(size) + 3)
            draw.text((left - 10, at), line, fill=text.FAINT if i else text.INK, font=text.font(size), anchor="rm")
        for c, one in enumerate(pictures):
            out.paste(one, (left + c * (w + gap), y + (tall - h) // 2))
    y = top + len(rows) * (tall + gap) + 6
    for i, line in enumerate(lines):
        draw.text((pad, y + i * (text.height(size) + 3)), line, fill=text.FAINT, font=text.font(size))
    return out
