"""One clip of one video, for pictures of masks and guides."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from tubelet.api._footage import Footage
from tubelet.config import parse
from tubelet.core import Batch
from tubelet.data.clip import to_batch
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table_for
from tubelet.errors import DataError


def clip_settings(*, frames: int, size: int | tuple[int, int], stride: int, maps: str | None = None) -> DataSettings:
    """Of a clip that is not trained on: the centre of the frame, no labels. Raises ConfigError."""
    plain = {"frames": frames, "size": size, "stride": stride, "crop": "centre", "labels": "none", "maps": maps}
    return parse(DataSettings, plain, where="the clip")


def read_clip(
    video: str | Path, data: DataSettings, *, start: float | None, needs: Collection[str] = ("video",), caption: str | None = None
) -> tuple[Batch, Tensor]:
    """A batch of the clip, and its frames' seconds (1, T). ``needs``: what lies beside the pixels; ``caption`` is said about it, None =
    what the source says. Raises DataError, ConfigError."""
    table = open_table_for(video, data)
    if len(table) > 1:
        raise DataError(f"{video} holds {len(table)} videos; give one, for example {table.paths[0]}")
    beside = set(needs) - ({"text"} if caption is not None else set())
    footage = Footage(table, data, start=start, needs=beside)
    shot = next(iter(footage), None)
    if shot is None:
        raise DataError(footage.failures[0][1])
    text = (caption,) if caption is not None else tuple(shot.text)
    return to_batch([shot.clip], sample=torch.tensor([0]), key=[shot.key], labels={}, text=text), shot.clip.time
