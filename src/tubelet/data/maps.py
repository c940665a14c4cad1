"""Score maps that were computed before: a .npy for each item, named by a column of the manifest."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubelet.config import did_you_mean
from tubelet.data.places import is_url, open_place
from tubelet.data.settings import DataSettings
from tubelet.data.table import Strings, Table
from tubelet.data.vectors import CELL, averages, cells, spans
from tubelet.errors import DataError, DecodeError


class Maps:
    """The maps of a table's items: (S, H, W) or (H, W) numbers, each over the whole frame, S of them evenly over the item's time.

    Paths start at the manifest's folder. Of prepared sets, what was stored with ``prepare --set maps=...`` under the column's name.
    Raises DataError where there is no such column, and for a map that cannot be used, naming item and file.
    """

    def __init__(self, table: Table, settings: DataSettings) -> None:
        assert settings.maps is not None
        self.table, self.settings, self.column = table, settings, settings.maps
        self._names: Sequence[str] = table.extra.get(self.column, ())
        if not len(self._names):
            near = did_you_mean(self.column, list(table.extra))
            raise DataError(
                f"data.maps = {self.column}: the items have no such column{near}; they have {', '.join(table.extra) or 'none'} (a column "
                "of the manifest gives the path of each item's .npy)"
            )

    def digest(self) -> str:
        """What identifies the files by name; not their contents."""
        return hashlib.blake2b(Strings(self._names).digest(), digest_size=16).hexdigest()

    def cut(self, row: int, share: np.ndarray, crop: np.ndarray, source: tuple[int, int], out: tuple[int, int]) -> Tensor:
        """(1, T, ceil(h / 4), ceil(w / 4)) float32, over the cells of a clip of ``out`` (h, w). ``share`` (T,): where its frames are in
        the item, 0..1. ``crop`` (2, 3): from pixels of ``source`` (h, w) to its own."""
        maps = self._read(row)
        return torch.from_numpy(cut_maps(maps, share, crop, source, out))

    def _read(self, row: int) -> np.ndarray:
        item, name = self.table.item(row), self._names[row]
        if not name:
            raise DataError(f"{item.key}: its column {self.column!r} names no map; fill it in, or leave the item out (--exclude)")
        if item.kind == "prepared":
            where, maps = f"{item.path}, {self.column}", self._stored(item.path, item.key)
        else:
            where = name if is_url(name) or os.path.isabs(name) else self.table.folder(row) + name
            maps = self._loaded(where, item.key)
        if maps.ndim == 2:
            maps = maps[None]
        if maps.ndim != 3 or 0 in maps.shape or maps.dtype.kind not in "fiub":
            raise DataError(f"{item.key}: the map {where} must be numbers (S, H, W) or (H, W), it is {maps.dtype} {maps.shape}")
        maps = maps.astype(np.float32)
        if not np.isfinite(maps).all():
            raise DataError(f"{item.key}: the map {where} holds NaN or infinity; write finite numbers")
        return maps

    def _loaded(self, where: str, key: str) -> np.ndarray:
        try:
            found = np.load(io.BytesIO(open_place(where).read()), allow_pickle=False)
        except (DataError, OSError, ValueError, EOFError) as error:
            raise DataError(f"{key}: its map {where} cannot be read as .npy: {error}") from None
        if not isinstance(found, np.ndarray):
            raise DataError(f"{key}: its map {where} holds several arrays; write one with numpy.save")
        return found

    def _stored(self, path: str, key: str) -> np.ndarray:
        from tubelet.data.prepared.side import read_side

        try:
            found = read_side(path, self.column, store=self.settings.store, timeout=self.settings.decode_timeout)
        except DecodeError as error:
            raise DataError(f"{key}: {error}") from None
        first = next((arrays for arrays in found if arrays is not None), None)
        if first is None or "data" not in first:
            raise DataError(f"{key}: the prepared set {path} holds no single array {self.column!r} for it; prepare it again with a .npy")
        return first["data"]


def cut_maps(maps: np.ndarray, share: np.ndarray, crop: np.ndarray, source: tuple[int, int], out: tuple[int, int]) -> np.ndarray:
    """(1, T, h', w') of ``maps`` (S, H, W): the map of each frame's time, means over what each cell shows. See :meth:`Maps.cut`."""
    number, height, width = maps.shape
    which = np.clip((share * number + 1e-5).astype(np.int64), 0, number - 1)
    weights = []
    for axis, size in ((1, height), (0, width)):
        scale, shift, pixels, whole = float(crop[axis, axis]), float(crop[axis, 2]), out[1 - axis], source[1 - axis]
        low, high = spans(-shift / scale, pixels / scale, pixels)
        weights.append(averages(np.clip(low, 0, whole) * size / whole, np.clip(high, 0, whole) * size / whole, size))
    used, place = np.unique(which, return_inverse=True)
    cut = weights[0] @ maps[used] @ weights[1].T
    assert cut.shape[1:] == cells(out), f"cells of {CELL} pixels"
    return np.ascontiguousarray(cut[place][None].astype(np.float32))
