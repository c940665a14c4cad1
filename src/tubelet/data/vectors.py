"""A codec's motion vectors as fields of displacements: painted on small cells, and cut out with a box of the picture."""

from __future__ import annotations

import math

import numpy as np
from av.video.frame import VideoFrame

from tubelet.data.transform import Box

CELL = 4  # pixels: the smallest block that H.264 moves, and a field's resolution
UNIT = 16  # a stored value of 16 is one pixel
_Turn = tuple[bool, bool, bool]


def cells(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a field over (h, w) pixels; the last ones may be cut off."""
    return math.ceil(size[0] / CELL), math.ceil(size[1] / CELL)


def field_of(frame: VideoFrame) -> np.ndarray | None:
    """:func:`painted` of a frame as it is stored; None where its decoder gave no vectors (key frames, codecs that export none)."""
    side = frame.side_data.get("MOTION_VECTORS")
    if side is None or not len(side):
        return None
    return painted(side.to_ndarray(), frame.height, frame.width)


def painted(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """(ceil(h/4), ceil(w/4), 2) float32: displacement in source pixels of every 4x4 cell, past references over future ones."""
    rows, columns = cells((height, width))
    field = np.zeros((rows + 2, columns + 2, 2), np.float32)  # with a rim for what hangs over or lies beyond
    flat, past = field.reshape(-1, 2), vectors["source"] < 0
    sign = np.where(past, -1, 1) / np.maximum(vectors["motion_scale"], 1)
    move = np.stack([vectors["motion_x"] * sign, vectors["motion_y"] * sign], 1).astype(np.float32)
    left, top = vectors["dst_x"].astype(np.int64), vectors["dst_y"].astype(np.int64)
    kind = past * 2**16 + vectors["w"].astype(np.int64) * 2**8 + vectors["h"]
    for number in sorted(set(kind.tolist())):
        same, w, h = np.flatnonzero(kind == number), number >> 8 & 255, number & 255
        x = (left[same] - w // 2)[:, None] // CELL + np.arange(1, max(1, w // CELL) + 1)
        y = (top[same] - h // 2)[:, None] // CELL + np.arange(1, max(1, h // CELL) + 1)
        place = np.clip(y, 0, rows + 1)[:, :, None] * (columns + 2) + np.clip(x, 0, columns + 1)[:, None]
        flat[place] = move[same][:, None, None]
    return field[1:-1, 1:-1]


def pooled(field: np.ndarray, grid: tuple[int, int], steps: tuple[float, float]) -> np.ndarray:
    """Means over ``steps`` (rows, columns of cells; fractions allowed) of a field, for each block of a grid."""
    rows, columns = (
        averages(np.arange(n) * step, np.arange(n) * step + step, size) for n, step, size in zip(grid, steps, field.shape[:2], strict=True)
    )
    return np.einsum("ri,ijc,kj->rkc", rows, field, columns, optimize=True)


def averages(begin: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """(n, size) float32: how much each of ``size`` cells counts in the mean over ``begin`` .. ``end`` (n,), in cells; every row adds up
    to 1. What lies beyond all cells takes the nearest."""
    begin, end = begin[:, None], end[:, None]
    at = np.arange(size)[None]
    share = np.clip(np.minimum(at + 1, end) - np.maximum(at, begin), 0, None)
    outside = np.flatnonzero(share.sum(1) == 0)
    share[outside, np.clip(begin[outside, 0], 0, size - 1).astype(np.int64)] = 1
    return (share / share.sum(1, keepdims=True)).astype(np.float32)


def spans(start: float, length: float, out: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,), (n,): where the cells of a clip's ``out`` pixels begin and end in ``length`` units from ``start`` on that it shows."""
    edges = np.minimum(np.arange(math.ceil(out / CELL) + 1) * CELL, out) * (length / out) + start
    return edges[:-1], edges[1:]


def cut_field(
    field: np.ndarray, stored: tuple[int, int], box: Box, out: tuple[int, int], turn: _Turn = (False, False, False)
) -> np.ndarray:
    """(2, ceil(h / 4), ceil(w / 4)) float32: (dx, dy) in pixels of a clip of ``out`` (h, w), means over its cells.

    ``field`` (rows, columns, 2): over a frame as it is stored, in pixels of that frame; ``stored`` (h, w): its size. ``box``: of the
    displayed frame. ``turn``: (swap axes, then flip rows, flip columns) from stored to displayed.
    """
    swap, up, left = turn
    h, w = stored[::-1] if swap else stored
    rows, columns = spans(box.y, box.h, out[0]), spans(box.x, box.w, out[1])
    if up:
        rows = h - rows[1], h - rows[0]
    if left:
        columns = w - columns[1], w - columns[0]
    seen = field.transpose(1, 0, 2)[..., ::-1] if swap else field
    down = averages(rows[0] / CELL, rows[1] / CELL, seen.shape[0])
    across = averages(columns[0] / CELL, columns[1] / CELL, seen.shape[1]).T
    dx, dy = (down @ np.ascontiguousarray(seen[..., c]) @ across for c in (0, 1))
    return np.stack([dx * np.float32((-1 if left else 1) * out[1] / box.w), dy * np.float32((-1 if up else 1) * out[0] / box.h)])
