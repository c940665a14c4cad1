"""What comes with Tubelet: recipes and generated videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from tubelet import recipe as recipe_book
from tubelet.playground import write as write_playground


def recipes() -> list[tuple[str, str]]:
    """Name and one-line description of every recipe that comes with Tubelet."""
    known = recipe_book.names() + recipe_book.names(finetune=True)
    return [(name, str(yaml.safe_load(recipe_book.path_of(name).read_text(encoding="utf-8"))["about"])) for name in known]


def show_recipe(name: str) -> str:
    """A recipe's YAML text. Raises ConfigError for an unknown name."""
    return recipe_book.path_of(name).read_text(encoding="utf-8")


def make_playground(
    out: str | Path,
    *,
    clips: int,
    seed: int = 0,
    scene: str = "full",
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``clips`` generated videos with true masks, flow, events, captions and sound into ``out``; returns its manifest.csv.

    ``scene``: easy | full. ``size``: side or (height, width) in pixels. See :func:`tubelet.playground.write`.
    """
    return write_playground(
        out, clips=clips, seed=seed, scene=scene, verify=verify, overwrite=overwrite, progress=progress, size=size, frames=frames, fps=fps
    )
