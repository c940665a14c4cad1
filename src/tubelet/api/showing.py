"""Pictures of what masking strategies hide of a clip, and of what guides say about it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from tubelet.api._maskings import Learned, try_all, wanted
from tubelet.api._one_clip import clip_settings, read_clip
from tubelet.api.loading import load
from tubelet.config import Settings, config_class, did_you_mean, import_file, kinds, overlay, parse
from tubelet.core import Guide, TokenGrid
from tubelet.errors import ConfigError
from tubelet.methods.videomae import VideoMAE
from tubelet.nn.video import AXES
from tubelet.viz.fields import field_figure, panels
from tubelet.viz.maskings import ShownMask, mask_figure, mask_frames
from tubelet.viz.saving import save_animation, save_picture, writable
from tubelet.viz.vision import rounds

SHORTEST = 3.0  # seconds that an .mp4 plays at least: shorter clips are repeated
GUIDES = "tubelet.guides"


@dataclass(frozen=True)
class Masks:
    """``shown``: what each masking made of the clip. ``skipped``: (kind, reason). ``picture``: what a .png holds."""

    shown: tuple[ShownMask, ...]
    skipped: tuple[tuple[str, str], ...]
    picture: Image.Image
    out: Path | None

    def __str__(self) -> str:
        lines = [str(one) for one in self.shown]
        if self.skipped:
            lines += [f"{len(self.skipped)} skipped:", *(f"  {kind}: {reason}" for kind, reason in self.skipped)]
        return "\n".join(lines)


def masks(
    video: str | Path,
    *,
    out: str | Path | None = None,
    ratio: float | None = None,
    settings: Sequence[str] = (),
    imports: Sequence[str | Path] = (),
    caption: str | None = None,
    model: str | Path | None = None,
    run: str | Path | None = None,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    patch: tuple[int, int, int] | None = None,
    stride: int | None = None,
    start: float | None = None,
    columns: int = 8,
    seed: int = 0,
    only: Sequence[str] = (),
    overwrite: bool = False,
) -> Masks:
    """Every masking kind that there is, your own included, on one clip, with its ratio and the exact number of visible tubelets.

    ``out``: .png (``columns`` columns), .gif or .mp4 (side by side); None = only return. ``ratio``: of all kinds that have one.
    ``settings``: ``tube.ratio=0.9``. ``caption``: what text-guided kinds hide, compared by ``model``, the folder of a CLIP-like model or of
    a run of method dual. ``run``: a trained run, whose masking is shown as it has learned to mask. The clip: ``frames`` frames (16), every
    ``stride``-th of the video (1), ``size`` pixels (224) or (height, width), cut into ``patch`` (frames, rows, columns; 2 x 16 x 16), by
    default those of ``run``; ``start``: seconds, default the middle. ``seed``: of the masks. ``only``: these kinds instead of all. Kinds
    that need more than there is are listed as skipped with their reason. Raises ConfigError, DataError, CheckpointError.
    """
    if columns < 1:
        raise ConfigError(f"columns must be at least 1, got {columns}")
    if ratio is not None and not 0 < ratio < 1:
        raise ConfigError(f"ratio must be between 0 and 1, got {ratio:g}")
    path = None if out is None else writable(out, overwrite=overwrite)
    for file in imports:
        import_file(file)
    learned = None if run is None else _learned(run)
    base: dict[str, Any] = {"frames": 16, "size": 224, "patch": (2, 16, 16), "stride": 1} | ({} if learned is None else dict(learned.clip))
    given = {"frames": frames, "size": size, "patch": patch, "stride": stride}
    chosen = base | {k: v for k, v in given.items() if v is not None}
    cut = chosen.pop("patch")
    data = clip_settings(**chosen)
    try:
        grid = TokenGrid.of((data.frames, *data.hw), cut, AXES)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if model is not None:
        settings = [f"tgm.guide.model={model}", *settings]
    needs = wanted(settings, caption=caption is not None)
    batch, time = read_clip(video, data, start=start, needs=needs, caption=caption)
    clip = batch.stream("video").data
    shown, skipped = try_all(batch, grid, ratio=ratio, settings=settings, seed=seed, learned=learned, only=only)
    words = f' "{batch.text[0]}"' if any(batch.text) else ""
    title = f"{batch.key[0]}: {data.frames} x {data.hw[0]} x {data.hw[1]}, tubelets of {' x '.join(map(str, cut))}{words}"
    image = mask_figure(clip, time, shown, frames=columns, title=title)
    if path is not None and path.suffix == ".png":
        save_picture(path, image, overwrite=overwrite)
    elif path is not None:
        gap = float(time[0].diff().median()) if data.frames > 1 else 1.0
        moving = list(mask_frames(clip, shown, seconds=gap, title=f"{title}."))
        save_animation(path, moving * (rounds(data.frames * gap, SHORTEST) if path.suffix == ".mp4" else 1), overwrite=overwrite)
    return Masks(tuple(shown), tuple(skipped), image, path)


def _learned(run: str | Path) -> Learned:
    """The masking of a run. Raises ConfigError for one without."""
    loaded = load(run, device="cpu")
    model = loaded.model
    if not isinstance(model, VideoMAE) or model.masking is None:
        raise ConfigError(f"{run} holds no masking; give the run of a pre-training with one")
    masking = loaded.config["masking"]
    kind = masking if isinstance(masking, str) else masking["kind"]
    clip = {"frames": loaded.data.frames, "size": loaded.data.size, "stride": loaded.data.stride, "patch": model.encoder.embed.patch}
    settings = config_class("tubelet.masking", kind).model_validate(masking if isinstance(masking, Mapping) else {"kind": kind})
    return Learned(kind, model, settings.model_dump(), clip)


@dataclass(frozen=True)
class Guided:
    """What a guide said. ``ok``: whether it had anything to say about the clip. ``figures``: such as the share of frames without
    vectors."""

    kind: str
    ok: bool
    figures: Mapping[str, float]
    shape: tuple[int, ...]
    picture: Image.Image
    out: Path | None

    def __str__(self) -> str:
        frames, rows, columns = self.shape[-3:]
        said = f"{self.kind}: {frames} maps of {rows} x {columns}" + (
            "" if self.ok else "; it had nothing to say, a masking would fall back"
        )
        return "\n".join([said, *(f"  {name.replace('_', ' ')}: {100 * value:.1f} %" for name, value in self.figures.items())])


def guide(
    video: str | Path,
    *,
    kind: str = "vectors",
    out: str | Path | None = None,
    caption: str | None = None,
    settings: Sequence[str] = (),
    imports: Sequence[str | Path] = (),
    maps: str | None = None,
    frames: int = 16,
    size: int | tuple[int, int] = 224,
    stride: int = 1,
    start: float | None = None,
    columns: int = 8,
    overwrite: bool = False,
) -> Guided:
    """What a guide says about one clip, as a picture: motion vectors of the file, optical flow, similarity with a caption, ...

    ``kind``: vectors | flow | blocks | similarity | maps, or a file of your own. ``settings`` of the guide, such as ``model=FOLDER``.
    ``caption``: None = what the source says. ``maps``: the manifest's column of score maps. ``out``: .png. The clip as in :func:`masks`.
    Raises ConfigError, DataError, CheckpointError.
    """
    if columns < 1:
        raise ConfigError(f"columns must be at least 1, got {columns}")
    path = None if out is None else writable(out, overwrite=overwrite)
    if path is not None and path.suffix != ".png":
        raise ConfigError(f"--out {path}: what a guide says is drawn as a .png")
    for file in imports:
        import_file(file)
    config = _guide(kind, settings)
    made = cast(Any, config).build()
    if not isinstance(made, Guide):
        raise ConfigError(f"kind {kind} is no guide: its build() gives a {type(made).__name__}")
    if caption is not None and "text" not in made.needs:
        raise ConfigError(f"kind {kind} reads no caption; leave it out, or take kind similarity")
    data = clip_settings(frames=frames, size=size, stride=stride, maps=maps)
    batch, time = read_clip(video, data, start=start, needs=made.needs | {"video"}, caption=caption)
    with torch.no_grad():
        field = made.eval()(batch, "video")
    clip = batch.stream("video").data
    words = f' "{batch.text[0]}"' if any(batch.text) else ""
    title = f"{batch.key[0]}: {kind}{words}"
    image = field_figure(clip, time, panels(field, clip), frames=columns, title=title, caption=_legend(field.kind))
    if path is not None:
        save_picture(path, image, overwrite=overwrite)
    ok = field.ok is None or bool(field.ok[0])
    return Guided(kind, ok, {k: float(v) for k, v in field.log.items()}, tuple(field.data.shape), image, path)


def _guide(kind: str, settings: Sequence[str]) -> Settings:
    known = kinds(GUIDES)
    if kind not in known:
        raise ConfigError(f"--kind {kind}: no such guide{did_you_mean(kind, known)}; there are {', '.join(known)}")
    config = parse(config_class(GUIDES, kind), {"kind": kind, **overlay({}, settings)}, where=f"guide {kind}")
    if inspect.signature(cast(Any, config).build).parameters:
        raise ConfigError(f"kind {kind} is no guide: its build() wants more than settings")
    return config


def _legend(kind: str) -> str:
    if kind == "flow":
        return "Colour says the direction (red right, green down, cyan left, violet up), strength the speed; white stands still."
    return "Yellow: highest in this clip. Dark blue: lowest."
