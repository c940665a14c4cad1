"""What several public functions share: models from settings, words on stderr, a bar for the cache."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tubelet.config import Settings
from tubelet.core import Masker, TokenGrid, Trainable
from tubelet.data.settings import DataSettings
from tubelet.errors import ConfigError
from tubelet.interop.hub import hub_id, snapshot
from tubelet.recipe import StageSettings

Sources = str | Path | Sequence[str | Path]


def build(stage: StageSettings) -> Trainable:
    """The untrained model of a stage; its random weights are a function of ``train.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.train.seed + 1)
        masker = None if stage.masking is None else _stage_masker(stage.masking, stage.method, stage.data)
        torch.manual_seed(stage.train.seed)
        return cast(Any, stage.method).build(masking=masker, frames=stage.data.frames, size=stage.data.hw)


def _stage_masker(masking: Settings, method: Any, data: DataSettings) -> Masker:
    """Of a stage."""
    if not (hasattr(method, "grid") and hasattr(method, "width")):
        if {"grid", "dim"} & set(inspect.signature(cast(Any, masking).build).parameters):
            raise ConfigError(f"masking {masking.model_dump().get('kind')} learns from tokens, which this method does not hand out")
        return cast(Any, masking).build()
    return build_masker(masking, lambda: method.grid(data.frames, data.hw), lambda: method.width)


def build_masker(masking: Settings, grid: Callable[[], TokenGrid], dim: Callable[[], int]) -> Masker:
    """A masker from its settings; one that learns is told the grid and the width of the tokens that it will see."""
    make = cast(Any, masking).build
    known: dict[str, Callable[[], Any]] = {"grid": grid, "dim": dim}
    return make(**{name: ask() for name, ask in known.items() if name in inspect.signature(make).parameters})


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (progress of a long call; silent with quiet=True)


def local(run: str | Path, *, download: bool = False) -> Path:
    """A path; of ``hf://ORGANISATION/NAME`` the folder of the hub's local cache, whose commit is said. ``download``: fetch what it lacks.
    Raises ConfigError, CheckpointError."""
    wanted = hub_id(run)
    if wanted is None:
        return Path(run)
    folder = snapshot(wanted, download=download)
    say(f"{wanted}: commit {folder.name} in {folder}")
    return folder


def shown(sources: Sources) -> str:
    return ", ".join(map(str, [sources] if isinstance(sources, str | Path) else sources))


class CacheProgress:
    """Says what the cache announces, and shows a bar while it fills, on a terminal."""

    def __init__(self, speak: bool) -> None:
        self.speak = speak
        self.bar = Progress(TextColumn("caching"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("cache", total=None)

    def __enter__(self) -> CacheProgress:
        return self

    def __call__(self, done: int, total: int, text: str) -> None:
        if not self.speak:
            return
        if text:
            say(text)
        if self.bar.console.is_terminal:
            self.bar.start()
            self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        if self.bar.live.is_started:
            self.bar.stop()
