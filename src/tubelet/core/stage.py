"""A recipe is a list of stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe; each resumes on its own.

    ``run``: gradient steps | write a feature set | closed-form fit. ``init`` says where modules start from, by name of an earlier
    stage: ``{"encoder": "pretrain.encoder", "teacher": "pretrain"}``.
    """

    name: str
    run: Literal["train", "extract", "fit"]
    settings: Mapping[str, object]
    init: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or "." in self.name or "/" in self.name:
            raise ValueError(f"a stage's name must be a plain word, got {self.name!r}")
