"""Every masking kind there is, tried on one clip."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from tubelet.config import Settings, config_class, did_you_mean, kinds, overlay, parse
from tubelet.core import Batch, CounterDraw, Mask, Masker, Step, TokenGrid
from tubelet.errors import ConfigError
from tubelet.viz.maskings import ShownMask

FAMILY = "tubelet.masking"
LEARNED = "has weights that a training run learns"


HINTS = {"text": "a caption: give --caption", "map": "score maps, which a manifest brings"}


class Masks(Protocol):
    """A model that has learned how to mask."""

    def mask(self, batch: Batch, at: Step) -> Mask: ...


@dataclass(frozen=True)
class Learned:
    """A run's masking: its kind and settings, the model that it looks through, and the clips (frames, size, stride, patch) it works
    with."""

    kind: str
    model: Masks
    settings: dict[str, Any]
    clip: Mapping[str, Any]


def unavailable(masker: Masker, brought: Collection[str]) -> str:
    """What a masker needs besides what is brought, or nothing."""
    missing = sorted(masker.needs - set(brought))
    return f"needs {' and '.join(HINTS.get(name, name) for name in missing)}" if missing else ""


def wanted(settings: Sequence[str], *, caption: bool) -> set[str]:
    """What must lie beside the pixels for the kinds that a video alone can serve, and with a ``caption`` those that read text."""
    given, needs = _given(settings), {"video"}
    for kind in kinds(FAMILY):
        try:
            needs |= cast(Any, parse(config_class(FAMILY, kind), {"kind": kind, **given.get(kind, {})})).build().needs
        except Exception:  # noqa: BLE001 - a user's own file may raise anything; it is told when it is tried
            continue
    return needs & {"video", "motion", *({"text"} if caption else ())}


def try_all(
    batch: Batch,
    grid: TokenGrid,
    *,
    ratio: float | None,
    settings: Sequence[str],
    seed: int,
    learned: Learned | None = None,
    only: Sequence[str] = (),
) -> tuple[list[ShownMask], list[tuple[str, str]]]:
    """The mask of every kind that can make one for a batch of one clip, and (kind, reason) of the others.

    ``settings``: ``kind.setting=value``. ``learned``: a run's masking, in place of an untrained one. ``only``: these kinds. Raises
    ConfigError for mistakes in the settings, where a kind that they name cannot mask this clip, and where none can.
    """
    given = _given(settings)
    shown: list[ShownMask] = []
    skipped: list[tuple[str, str]] = []
    wrong: list[str] = []
    known = kinds(FAMILY)
    if unknown := [kind for kind in only if kind not in known]:
        raise ConfigError(f"no such masking: {unknown[0]}{did_you_mean(unknown[0], known)}; there are {', '.join(known)}")
    for kind in only or known:
        try:
            if learned is not None and learned.kind == kind and kind not in given:
                shown.append(_ask(learned, batch, grid, seed))
            else:
                shown.append(_try(kind, given.get(kind, {}), ratio, batch, grid, seed))
        except ConfigError as error:
            if kind in given:
                wrong += [f"{kind}: {problem}" for problem in error.problems]
            skipped.append((kind, "; ".join(error.problems)))
    if wrong:
        raise ConfigError(wrong)
    if not shown:
        raise ConfigError([f"{kind}: {reason}" for kind, reason in skipped], where="no masking can mask this clip")
    return shown, skipped


def _given(settings: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Settings by kind. Raises ConfigError."""
    given = overlay({}, settings)
    known = kinds(FAMILY)
    wrong = []
    for kind, values in given.items():
        if kind not in known:
            wrong.append(f"--set {kind}: no such masking{did_you_mean(kind, known)}; there are {', '.join(known)}")
        elif not isinstance(values, dict):
            wrong.append(f"--set {kind}={values}: write it as {kind}.ratio=0.9")
        else:
            try:
                parse(config_class(FAMILY, kind), {"kind": kind, **values})
            except ConfigError as error:
                wrong += [f"--set {kind}.{problem}" for problem in error.problems]
    if wrong:
        raise ConfigError(wrong)
    return given


def _ask(learned: Learned, batch: Batch, grid: TokenGrid, seed: int) -> ShownMask:
    """The mask of a run."""
    try:
        with torch.no_grad():
            mask = learned.model.mask(batch, Step(0, 0, 0.0, 1.0, CounterDraw(seed, batch.sample)))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"the run's masking: {error}") from None
    if mask.grid != grid:
        raise ConfigError(f"the run masks clips of {mask.grid.shape} tubelets, not of {grid.shape}: leave frames, size and patch to it")
    return ShownMask(learned.kind, learned.settings, mask)


def _try(kind: str, values: Mapping[str, Any], ratio: float | None, batch: Batch, grid: TokenGrid, seed: int) -> ShownMask:
    """What one kind makes of the clip. Raises ConfigError with the reason where it cannot."""
    at = Step(0, 0, 0.0, 0.0, CounterDraw(seed, batch.sample))
    try:
        config, masker = _masker(kind, values, ratio, {*batch.streams, *({"text"} if any(batch.text) else ())})
        with torch.no_grad():
            mask = masker(grid, batch, "video", at)
    except ConfigError:
        raise
    except ImportError as error:
        raise ConfigError(f"needs the package {error.name}, which is not installed") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except Exception as error:
        if kind in kinds(FAMILY, own=False):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})") from None
    return ShownMask(kind, config.model_dump(), mask)


def _masker(kind: str, values: Mapping[str, Any], ratio: float | None, brought: Collection[str]) -> tuple[Settings, Masker]:
    cls = config_class(FAMILY, kind)
    default = {"ratio": ratio} if ratio is not None and "ratio" in cls.model_fields else {}
    config = parse(cls, {"kind": kind, **default, **values})
    build = cast(Any, config).build
    if set(inspect.signature(build).parameters) & {"grid", "dim"}:
        raise ConfigError(f"{LEARNED}: give the run, --run RUN")
    try:
        inspect.signature(build).bind()
    except TypeError:
        raise ConfigError("is no masking: its build() wants more than settings") from None
    masker = build()
    if not isinstance(masker, Masker):
        raise ConfigError(f"is no masking: its build() gives a {type(masker).__name__}")
    reason = unavailable(masker, brought) or (LEARNED if any(True for _ in masker.parameters()) else "")
    if reason:
        raise ConfigError(reason)
    return config, masker.eval()
