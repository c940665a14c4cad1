"""Score maps that were made before: of saliency, gaze, a detector, anything. The loader reads them from the manifest (``data.maps``)."""

from __future__ import annotations

from typing import Literal

from tubelet.config import Settings
from tubelet.core import Batch, Field, Guide


class Config(Settings):
    """A column of the manifest, named by ``data.maps``, holds each item's .npy; prepared sets carry it along."""

    kind: Literal["maps"] = "maps"

    def build(self) -> Maps:
        return Maps()


class Maps(Guide):
    """Field: score (B, 1, T, H', W') over the clip's crop."""

    needs = frozenset({"map"})

    def forward(self, batch: Batch, stream: str) -> Field:
        data = batch.stream("map").data
        return Field(data, "score", data.isfinite().flatten(1).all(1))
