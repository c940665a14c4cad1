"""All tokens of a set of videos, computed once and kept: what a probe that looks inside a clip reads again and again."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.core import Method
from tubelet.errors import DataError
from tubelet.nn import pool as pools
from tubelet.tasks.embed import Embeddings, collect, encoded, finite

if TYPE_CHECKING:
    from tubelet.data.evaluation import EvalFeed
    from tubelet.data.table import Table

GIB = 2**30
EPS = 1e-6  # of the standardisation, as in nn.pool.Attentive


@dataclass(frozen=True)
class KeptTokens:
    """Standardised tokens of every item that could be read, in the table's order.

    ``x`` (n, V, K, D) float16: every token minus its mean, divided by its standard deviation over D, so within +-sqrt(D). V views, K
    tokens each. ``valid`` (n, V, K) bool, None = all real. ``items``: keys, labels, failures, and means over tokens and views as vectors.
    ``spilled``: ``x`` is a memory-mapped file without a name, gone when nobody reads it any more.
    """

    x: np.ndarray
    valid: np.ndarray | None
    items: Embeddings
    spilled: bool

    def __len__(self) -> int:
        return len(self.x)

    @property
    def in_memory(self) -> int:
        """Bytes of main memory that the tokens take."""
        return 0 if self.spilled else self.x.nbytes


def keep_tokens(
    model: Method,
    feed: EvalFeed,
    table: Table,
    *,
    limit: int = 4 * GIB,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> KeptTokens:
    """Encode every item of ``feed``, which reads ``table``, and keep all its tokens, two bytes a number.

    More than ``limit`` bytes go into a file in the folder for temporary files. Raises DataError where it does not fit there either, or
    where nothing can be read; CheckpointError for tokens that are not finite.
    """
    means: dict[int, np.ndarray] = {}
    room: np.ndarray | None = None
    valid: np.ndarray | None = None
    spilled = False
    for items, tokens in encoded(model, feed, device=device, progress=progress):
        pooled = pools.mean(tokens).double().cpu().numpy()
        x = F.layer_norm(tokens.x.float(), tokens.x.shape[-1:], eps=EPS).cpu()
        if room is None:
            room, spilled = _room((len(table), len(items[0][1]), *x.shape[1:]), limit)
            valid = None if tokens.valid is None else np.ones(room.shape[:3], bool)
        for item, views in items:
            means[item] = finite(pooled[views].mean(0), table.keys[item])
            at = len(means) - 1
            room[at] = finite(x[views].half().numpy(), table.keys[item])
            if valid is not None and tokens.valid is not None:
                valid[at] = tokens.valid[views].cpu().numpy()
    assert room is not None, "encoded raises where it gives nothing"
    assert list(means) == sorted(means), "a feed gives its items in the table's order"
    kept = len(means)
    return KeptTokens(room[:kept], None if valid is None else valid[:kept], collect(means, table, feed, "all tokens"), spilled)


def _room(shape: tuple[int, ...], limit: int) -> tuple[np.ndarray, bool]:
    """An array for the tokens, and whether it is a file. Raises DataError that says how much is missing."""
    size = 2 * math.prod(shape)
    if size <= limit:
        return np.empty(shape, np.float16), False
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > 0.9 * free:
        raise DataError(
            f"the tokens of {shape[0]} items ({shape[1]} views of {shape[2]} tokens of {shape[3]} numbers) take {size / GIB:.1f} GiB: more "
            f"than the {limit / GIB:.1f} GiB that may stay in memory, and {folder} has {free / GIB:.1f} GiB free. Raise --memory, "
            "name a larger folder in the environment variable TMPDIR, use fewer items or views, or a linear probe"
        )
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the map keeps it)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would kill the process
    return np.memmap(file, np.float16, "w+", shape=shape), True


class Reader:
    """Batches of kept tokens as float32 on a device. On the CPU every call fills the same memory anew, which saves half of the time."""

    def __init__(self, kept: KeptTokens, *, most: int, device: torch.device | str = "cpu") -> None:
        self.kept, self.device = kept, torch.device(device)
        self.room = torch.empty((most, *kept.x.shape[2:])) if self.device.type == "cpu" else None

    def __call__(self, which: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, K, D) and (B, K) bool, None = all real, of the views numbered item x V + view; B up to ``most``."""
        views = self.kept.x.shape[1]
        item, view = (which // views).numpy(), (which % views).numpy()
        valid = None if self.kept.valid is None else torch.from_numpy(self.kept.valid[item, view]).to(self.device)
        if self.room is None:
            return torch.from_numpy(self.kept.x[item, view]).to(self.device).float(), valid
        for row, i, v in zip(self.room, item, view, strict=False):
            row.copy_(torch.from_numpy(self.kept.x[i, v]))
        return self.room[: len(which)], valid
