"""What a batch brings beside the pixels, because a model asks for it: motion, words, score maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tubelet.core import Draw
from tubelet.data.captions import Captions
from tubelet.data.clip import Clips, Look
from tubelet.data.kept_shared import sharing
from tubelet.data.maps import Maps
from tubelet.data.reader import Decoder, choose_decoder
from tubelet.data.settings import DataSettings
from tubelet.data.table import Table
from tubelet.errors import ConfigError

NEEDS = ("video", "motion", "text", "map")


@dataclass(frozen=True)
class Beside:
    """``decoder``: that can give it. ``motion``: the stream of that name. ``captions``, ``maps``: where batches get text and "map"."""

    decoder: Decoder
    motion: bool = False
    captions: Captions | None = None
    maps: Maps | None = None

    @classmethod
    def of(cls, table: Table, settings: DataSettings, needs: Collection[str] = ("video",)) -> Beside:
        """For a model with these needs. Raises ConfigError for needs that the loader or these settings cannot serve, DataError for a table
        that lacks them."""
        unknown = sorted(set(needs) - set(NEEDS))
        if unknown:
            raise ConfigError(f"the model needs {' and '.join(unknown)}, which the loader does not know; it brings {', '.join(NEEDS)}")
        if "map" in needs and settings.maps is None:
            raise ConfigError("the masking needs score maps: set data.maps to the manifest's column with the path of each item's .npy")
        motion = "motion" in needs
        if motion and settings.decoder == "torchcodec":
            raise ConfigError("data.decoder = torchcodec gives no motion vectors, which the masking needs; set data.decoder = auto or pyav")
        return cls(
            decoder=choose_decoder("pyav" if motion else settings.decoder),
            motion=motion,
            captions=Captions(table) if "text" in needs else None,
            maps=Maps(table, settings) if "map" in needs else None,
        )

    def check_cache(self, cache: str) -> None:
        """Raises ConfigError for a frame cache that forgets what is needed."""
        if self.motion and (cache == "device" or (cache == "memory" and sharing())):
            shared = " (shared by several training processes)" if cache == "memory" else ""
            raise ConfigError(
                f"data.cache = {cache}{shared} does not keep motion vectors; use data.cache = none, or masking.guide = blocks"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user may want to know."""
        return (self.captions.note,) if self.captions is not None and self.captions.note else ()

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on with the same batches; nothing for pixels alone."""
        captions = {} if self.captions is None else {"captions": self.captions.digest()}
        return captions | ({} if self.maps is None else {"maps": self.maps.digest()})

    def text(self, rows: Sequence[int], draw: Draw | None = None) -> tuple[str, ...]:
        """A caption for each sample, () where none are asked for. ``draw``: bound to the samples; None = the first of each."""
        if self.captions is None:
            return ()
        return self.captions.first(rows) if draw is None else self.captions.drawn(rows, draw)

    def clips(self, row: int, clips: Clips, out: tuple[int, int]) -> Clips:
        """With their maps. Raises DataError."""
        if self.maps is None:
            return clips
        every = zip(clips.share.numpy(), clips.crop.numpy(), strict=True)
        return replace(clips, score=torch.stack([self.maps.cut(row, share, crop, clips.source, out) for share, crop in every]))

    def looks(self, looks: list[Look], out: tuple[int, int]) -> list[Look]:
        """With their maps. Raises DataError."""
        if self.maps is None:
            return looks
        return [replace(k, score=self.maps.cut(k.row, np.asarray(k.share), k.crop, k.source, out)) for k in looks]
