"""Pictures of what a model imagines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import torch
from PIL import Image
from pydantic import SerializeAsAny

from tubelet.api._common import Sources, build_masker
from tubelet.api._footage import Footage, Shot
from tubelet.api._maskings import LEARNED, unavailable
from tubelet.api.loading import Loaded, load
from tubelet.config import Family, Settings, import_file, overlay, parse
from tubelet.core import Batch, CounterDraw, Masker, Step, TokenGrid
from tubelet.data.beside import NEEDS
from tubelet.data.clip import to_batch
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table_for
from tubelet.errors import ConfigError, DataError, TubeletError
from tubelet.methods.videomae import Reconstruction
from tubelet.nn.video import AXES, VideoEncoder
from tubelet.train.checkpoint import read_meta
from tubelet.viz.pictures import Statistics, sheet
from tubelet.viz.saving import save_animation, save_picture, writable
from tubelet.viz.trivial import MaskedError
from tubelet.viz.vision import Vision, movie, rounds

CLIPS_APART = 2**20  # sample numbers between the clips of one video: the masks of clips and videos differ
SHORTEST = 3.0  # seconds that an .mp4 plays at least: shorter clips are repeated


@runtime_checkable
class Imagines(Protocol):
    """A method that answers with pixels of hidden tubelets."""

    encoder: VideoEncoder
    masking: Masker | None
    needs: frozenset[str]

    def reconstruct(self, batch: Batch, at: Step) -> Reconstruction: ...


class Look(Settings):
    """What can be set for a reconstruction. ``masking``: what is hidden of the videos, None as in training."""

    masking: Annotated[SerializeAsAny[Settings], Family("tubelet.masking")] | None = None
    data: DataSettings


@dataclass(frozen=True)
class Reconstructed:
    """``errors``: of every video by its key, ``error``: of all. ``failures``: (key, reason) of videos that could not be used.

    ``n_total``: videos tried, of ``n_found``. ``statistics``: whose brightness and contrast the pictures have, "visible" or "own"; without
    meaning where the model predicts raw pixels. ``picture``: what a .png holds; None for whole videos. ``clips``: how many were seen.
    """

    errors: Mapping[str, MaskedError]
    clips: int
    failures: tuple[tuple[str, str], ...]
    n_total: int
    n_found: int
    statistics: Statistics
    picture: Image.Image | None
    out: Path | None

    @property
    def error(self) -> MaskedError:
        return MaskedError.mean(list(self.errors.values()))

    def __str__(self) -> str:
        several = "" if self.clips == len(self.errors) else f", {self.clips} clips"
        first = "" if self.n_total == self.n_found else f" (the first of {self.n_found})"
        return f"{len(self.errors)} / {self.n_total} videos{first}{several}, {self.error.cubes} hidden tubelets\n{self.error}"


def reconstruct(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    imports: Sequence[str | Path] = (),
    statistics: Statistics = "visible",
    start: float | None = None,
    whole: bool = False,
    frames: int = 8,
    seed: int = 0,
    limit: int = 8,
    split: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstructed:
    """What the model makes of masked videos: input, what it sees and what it imagines, and its error beside that of trivial answers.

    ``out``: .png (``frames`` columns), .gif or .mp4 (playing side by side); None = only return. ``settings``: ``masking=frame``,
    ``masking.ratio=0.5`` (default: the run's masking) and data settings. ``statistics``: where a normalised prediction gets its brightness
    and contrast, "visible" (tubelets nearby) or "own" (the hidden tubelets themselves, which the model was not told); the picture says
    which. ``start``: seconds; default the middle of the video. ``whole``: clip after clip over whole videos, a few clips in memory, .mp4
    or .gif. ``seed``: of the mask. ``limit``: only so many videos, the first by name. Raises ConfigError, DataError, CheckpointError.
    """
    if statistics not in ("visible", "own"):
        raise ConfigError(f"statistics={statistics!r}: there are visible and own")
    _at_least_one(frames=frames, limit=limit)
    path = None if out is None else writable(out, overwrite=overwrite)
    if whole and path is not None and path.suffix == ".png":
        raise ConfigError(f"--out {path}: a .png holds one clip, not a whole video; write .mp4 or .gif")
    for file in imports:
        import_file(file)
    loaded = run if isinstance(run, Loaded) else load(run, device=device)
    model = _imagining(loaded)
    masker, data = _look(loaded, model, settings, split)
    table = open_table_for(sources, data)
    footage = Footage(table.select(range(min(limit, len(table)))), data, start=start, whole=whole, needs=masker.needs | {"video"})
    seen = _Seen(loaded, model, footage, statistics=statistics, seed=seed, progress=progress)
    image = None
    with _masked_by(model, masker):
        if whole and path is not None:
            save_animation(path, movie([vision] for vision in seen), overwrite=overwrite)
        elif whole:
            deque(seen, maxlen=0)
        else:
            image = _one_clip_each(list(seen), path, frames, overwrite)
    errors = {key: MaskedError.mean(parts) for key, parts in seen.errors.items()}
    clips = sum(map(len, seen.errors.values()))
    return Reconstructed(errors, clips, tuple(footage.failures), len(footage.table), len(table), statistics, image, path)


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _one_clip_each(visions: Sequence[Vision], path: Path | None, frames: int, overwrite: bool) -> Image.Image:
    """Write them; what a .png holds."""
    image = sheet([vision.figure(frames) for vision in visions])
    if path is not None and path.suffix == ".png":
        save_picture(path, image, overwrite=overwrite)
    elif path is not None:
        times = rounds(len(visions[0].seconds) * visions[0].gap, SHORTEST) if path.suffix == ".mp4" else 1
        save_animation(path, movie([visions] * times), overwrite=overwrite)
    return image


class _Seen:
    """What a model makes of footage, clip by clip; keeps the errors. Raises DataError at the end where no video could be used."""

    def __init__(
        self,
        loaded: Loaded,
        model: Imagines,
        footage: Footage,
        *,
        statistics: Statistics,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.loaded, self.model, self.footage, self.seed = loaded, model, footage, seed
        self.statistics: Statistics = statistics
        self.progress = progress or (lambda done, total: None)
        self.errors: dict[str, list[MaskedError]] = {}

    def __iter__(self) -> Iterator[Vision]:
        for shot in self.footage:
            vision = self._look_at(shot)
            self.errors.setdefault(shot.key, []).append(vision.error)
            yield vision
            done, total = (shot.number + 1, shot.total) if self.footage.whole else (shot.row + 1, len(self.footage.table))
            self.progress(done, total)
        failures = self.footage.failures
        if not self.errors:
            shown = "\n".join(f"  {reason}" for _, reason in failures[:3])
            raise DataError(failures[0][1] if len(failures) == 1 else f"none of {len(failures)} videos could be used:\n{shown}")

    @torch.no_grad()
    def _look_at(self, shot: Shot) -> Vision:
        sample = torch.tensor([shot.row + CLIPS_APART * shot.number])
        batch = to_batch([shot.clip], sample=sample, key=[shot.key], labels={}, text=shot.text).to(self.loaded.device)
        video = batch.stream("video")
        assert video.time is not None
        try:
            answer = self.model.reconstruct(batch, Step(0, 0, 0.0, 1.0, CounterDraw(self.seed, batch.sample)))
        except TubeletError:
            raise
        except ValueError as error:
            raise ConfigError(f"{self.loaded.path} cannot reconstruct such clips: {error}") from None
        pixels = self.model.encoder.pixels
        return Vision(shot.key, video.data, video.time, answer, self.statistics, pixels.mean, pixels.std, shot.fresh)


def _imagining(loaded: Loaded) -> Imagines:
    """The model, if it answers with pixels. Raises ConfigError."""
    if not isinstance(loaded.model, Imagines):
        what = "a classifier" if "classifier" in loaded.config else f"a model ({type(loaded.model).__name__})"
        raise ConfigError(f"{loaded.path} holds {what} that predicts no hidden pixels; give the run of a pre-training with masks")
    return loaded.model


def _look(loaded: Loaded, model: Imagines, settings: Sequence[str], split: str | None) -> tuple[Masker, DataSettings]:
    """The masking and the data settings of the run with changes. Raises ConfigError where there is no masking that can be used."""
    now = {"crop": "centre", "cache": "none", "clips_per_video": 1, "split": split, "labels": "none", "augment": {}}
    base = {"masking": loaded.config.get("masking"), "data": loaded.data.model_dump(mode="json") | now}
    plain = overlay(base, [t if t.partition("=")[0].strip().partition(".")[0] in Look.model_fields else f"data.{t}" for t in settings])
    look = parse(Look, plain, where="--set")
    if look.masking is None:
        own = (read_meta(loaded.path).get("config", {}).get("masking") or {}).get("kind")
        why = (
            f"with the masking {own!r} of a file of your own: give it with --import {own}.py, or choose"
            if own
            else "without masking; choose"
        )
        raise ConfigError(f"{loaded.path} was trained {why} one, e.g. --set masking=tube")
    if plain["masking"] == base["masking"] and model.masking is not None:
        masker = model.masking
    else:
        masker = _build(look.masking, model)
    missing = unavailable(masker, NEEDS)
    if missing:
        raise ConfigError(f"the masking {_kind(look.masking)} {missing}; choose another, e.g. --set masking=tube")
    return masker.to(loaded.device), look.data


def _kind(masking: Settings) -> str:
    return str(masking.model_dump()["kind"])


def _build(masking: Settings, model: Imagines) -> Masker:
    """A masker from settings; what the run's masker of this kind has learned goes over to it. Raises ConfigError where nothing can."""
    encoder, trained = model.encoder, model.masking
    masker = build_masker(masking, lambda: TokenGrid(AXES, encoder.position.shape, encoder.embed.patch), lambda: encoder.dim)
    if not masker.state_dict():
        return masker
    if trained is None or type(masker) is not type(trained):
        raise ConfigError(f"the masking {_kind(masking)} {LEARNED}, and this run has not; choose another, e.g. --set masking=tube")
    try:
        masker.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"what the run's masking has learned does not fit these settings of {_kind(masking)}: {error}") from None
    return masker


@contextmanager
def _masked_by(model: Imagines, masker: Masker) -> Iterator[None]:
    """The model with another masking, for a while."""
    before = model.masking
    model.masking = masker
    try:
        yield
    finally:
        model.masking = before
