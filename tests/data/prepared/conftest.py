"""Small prepared sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tubelet.api.preparing import merge_prepared
from tubelet.api.preparing import prepare as prepare_videos


def write(sources: Path, out: Path, *, size: int = 48, seconds: float = 1.2, shards: int = 2) -> Path:
    """The prepared set of sources, in pieces of ``seconds``, its origins dealt to ``shards`` shards; a key frame every fourth frame."""
    settings = [f"piece_seconds={seconds}", "gop=4", "crf=6", "preset=ultrafast"]
    for part in range(1, shards + 1):
        prepare_videos(sources, out, size=size, settings=settings, part=f"{part}/{shards}" if shards > 1 else None, workers=1)
    if shards > 1:
        merge_prepared(out)
    return out


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Path]:
    """``prepare(sources, out, ...)``: see :func:`write`."""
    return write
