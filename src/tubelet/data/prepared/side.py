"""Side data of prepared sets: what was stored beside the pieces of an origin."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from tubelet.data.prepared.index import index_sizes
from tubelet.data.prepared.layout import SIDE
from tubelet.data.prepared.paths import split_path
from tubelet.data.prepared.reader import PreparedReader
from tubelet.data.prepared.store import Store
from tubelet.errors import DataError, DecodeError


def read_side(path: str, name: str, *, store: Store | None = None, timeout: float = 30.0) -> list[dict[str, np.ndarray] | None]:
    """For each piece of an origin (``OUT#17``), in the order of time, the arrays that were stored as ``name``; None where there are none.

    ``motion``: ``motion`` (T, rows, columns, 2) and ``ok`` (T,) for the piece's frames, see :class:`~tubelet.data.prepared.motion.Vectors`;
    the pieces together have the frames of the origin. A map of a manifest's column lies with the first piece; a .npy is called ``data``.
    Raises DataError for a set without such data, DecodeError for damage.
    """
    with PreparedReader(path, timeout=timeout, store=store) as reader:
        sizes, file = index_sizes(reader.set.place), f"side-{name}.npy"
        if file not in sizes:
            known = sorted(n.removeprefix("side-").removesuffix(".npy") for n in sizes if n.startswith("side-"))
            raise DataError(f"{reader.set.name}: holds no side data {name!r}; it has {', '.join(known) or 'none'}")
        rows = reader.set.array(file, SIDE, sizes, timeout)
        place = split_path(path)
        assert place is not None
        first = int(reader.set.origins[place[1]]["first"])
        found: list[dict[str, np.ndarray] | None] = []
        for piece, where in zip(reader.pieces, rows[first : first + len(reader.pieces)], strict=True):
            size = int(where["bytes"])
            data = reader.stored(piece, int(where["offset"]), size) if size else b""
            found.append(_arrays(data, f"{reader.where(piece)}: its {name}") if size else None)
        return found


def _arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    try:
        loaded: Any = np.load(io.BytesIO(data), allow_pickle=False)
        return {"data": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise DecodeError(f"{where} is damaged ({error}); copy the shard again") from None
