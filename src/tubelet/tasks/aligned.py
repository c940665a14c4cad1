"""Vectors of videos and of texts in the space that an aligned method shares between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tubelet.core import Aligned, Batch, Method
from tubelet.errors import ConfigError
from tubelet.tasks.embed import Embeddings, answered, collect, finite, pieces, unit

if TYPE_CHECKING:
    from tubelet.data.evaluation import EvalFeed
    from tubelet.data.table import Table

TEXTS = 256  # that are encoded at once


def aligned(model: Method, name: str = "this model") -> Aligned:
    """The same model. Raises ConfigError for one that knows nothing of texts, saying how to train one that does."""
    if isinstance(model, Aligned) and model.aligned:
        return model
    raise ConfigError(
        f"{name} is not aligned with text: its videos and texts share no vectors to compare; train one that is, on videos with captions: "
        "method.align of videomae (recipe tgm), or the method dual"
    )


def video_vectors(
    model: Method,
    feed: EvalFeed,
    table: Table,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """One vector of length 1 for every item of ``feed``, which reads ``table``: the mean over the item's views, renormalised.

    Items that cannot be read are in ``failures`` and have no row. Raises ConfigError for a model that is not aligned, CheckpointError for
    a vector that is not finite, DataError where nothing can be read.
    """
    speaker = aligned(model)

    def ask(batch: Batch) -> np.ndarray:
        return torch.cat([speaker.embed_video(piece) for piece in pieces(batch)]).double().cpu().numpy()

    found: dict[int, np.ndarray] = {}
    for items, vectors in answered(model, feed, ask, device=device, progress=progress):
        for item, views in items:
            assert item not in found, "the views of an item must come in one batch"
            found[item] = unit(finite(vectors[views].mean(0, keepdims=True), table.keys[item]))[0]
    return collect(found, table, feed, "aligned")


@torch.no_grad()
def text_vectors(model: Method, texts: Sequence[str], *, device: torch.device | str = "cpu") -> np.ndarray:
    """(n, D) float64 of length 1, in the order of ``texts``, which are at least one.

    The model runs in eval mode and gets its mode back. Raises ConfigError for a model that is not aligned, CheckpointError for a vector
    that is not finite.
    """
    assert texts, "nothing to encode"
    speaker = aligned(model)
    was_training = model.training
    model.to(device).eval()
    try:
        parts = [speaker.embed_text(texts[i : i + TEXTS]).double().cpu().numpy() for i in range(0, len(texts), TEXTS)]
    finally:
        model.train(was_training)
    vectors = np.concatenate(parts)
    assert len(vectors) == len(texts), f"{len(vectors)} vectors for {len(texts)} texts"
    for text, vector in zip(texts, vectors, strict=True):
        finite(vector, f"the text {text!r}")
    return unit(vectors)
