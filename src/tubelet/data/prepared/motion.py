"""The codec's motion vectors as a field of displacements on the blocks of the prepared picture."""

from __future__ import annotations

import io
import math

import numpy as np
from av.video.frame import VideoFrame

BLOCK = 16  # pixels of the prepared picture
UNIT = 16  # a stored value of 16 is one pixel
_CELL = 4  # pixels of the source: the smallest block that H.264 moves


class Vectors:
    """Collects the fields of a piece. Stored as ``motion.npz``:

    ``motion`` (T, gh, gw, 2) int16: (dx, dy) from a frame's predecessor to it, in 1/16 pixels of the prepared, upright picture, the mean
    over blocks of 16 pixels (the last ones may be cut off). What moves to the right has dx > 0. Where a block is predicted from the
    future alone the sign is turned; where nothing is known it is 0. ``ok`` (T,) bool: False = the frame has no vectors (key frames, codecs
    that export none).

    The vectors do not tell how many frames lie between a picture and its reference (MGM, section 3a of FFmpeg's AVMotionVector).
    """

    def __init__(self) -> None:
        self.fields: list[np.ndarray] = []
        self.ok: list[bool] = []

    def add(self, frame: VideoFrame, turn: tuple[bool, bool, bool], shape: tuple[int, int]) -> None:
        """``turn``: to upright; ``shape``: (h, w) of the prepared picture."""
        side = frame.side_data.get("MOTION_VECTORS")
        rows, columns = math.ceil(shape[0] / BLOCK), math.ceil(shape[1] / BLOCK)
        known = side is not None and len(side) > 0
        self.ok.append(known)
        if not known:
            self.fields.append(np.zeros((rows, columns, 2), np.int16))
            return
        assert side is not None
        field = painted(side.to_ndarray(), frame.height, frame.width)
        swap, up, left = turn
        if swap:
            field = field.transpose(1, 0, 2)[..., ::-1]
        field = field[:: -1 if up else 1, :: -1 if left else 1] * np.array([-1 if left else 1, -1 if up else 1], np.float32)
        source = (frame.width, frame.height) if swap else (frame.height, frame.width)
        scale = np.array([shape[1] / source[1], shape[0] / source[0]], np.float32)
        small = pooled(field, (rows, columns), (BLOCK * source[0] / shape[0] / _CELL, BLOCK * source[1] / shape[1] / _CELL)) * scale
        self.fields.append(np.clip(np.round(small * UNIT), -(2**15), 2**15 - 1).astype(np.int16))

    def pack(self) -> bytes:
        """The .npz."""
        out = io.BytesIO()
        np.savez_compressed(out, motion=np.stack(self.fields), ok=np.array(self.ok))
        return out.getvalue()


def painted(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """(ceil(h/4), ceil(w/4), 2) float32: displacement in source pixels of every 4x4 cell, past references over future ones."""
    field = np.zeros((math.ceil(height / _CELL), math.ceil(width / _CELL), 2), np.float32)
    past = vectors["source"] < 0
    scale = np.maximum(vectors["motion_scale"], 1).astype(np.float32)
    sign = np.where(past, -1.0, 1.0)
    move = np.stack([sign * vectors["motion_x"] / scale, sign * vectors["motion_y"] / scale], 1)
    for now in (~past, past):
        for w, h in {(int(w), int(h)) for w, h in zip(vectors["w"][now], vectors["h"][now], strict=True)}:
            same = now & (vectors["w"] == w) & (vectors["h"] == h)
            x, y = (vectors["dst_x"][same] - w // 2) // _CELL, (vectors["dst_y"][same] - h // 2) // _CELL
            for down in range(max(1, h // _CELL)):
                for right in range(max(1, w // _CELL)):
                    inside = (y + down >= 0) & (y + down < field.shape[0]) & (x + right >= 0) & (x + right < field.shape[1])
                    field[(y + down)[inside], (x + right)[inside]] = move[same][inside]
    return field


def pooled(field: np.ndarray, grid: tuple[int, int], cells: tuple[float, float]) -> np.ndarray:
    """Means over ``cells`` (rows, columns; fractions allowed) of a field, for each block of a grid."""
    rows, columns = (_shares(n, c, size) for n, c, size in zip(grid, cells, field.shape[:2], strict=True))
    return np.einsum("ri,ijc,kj->rkc", rows, field, columns, optimize=True)


def _shares(blocks: int, cells: float, size: int) -> np.ndarray:
    """(blocks, size): how much each cell counts in each block; every row adds up to 1."""
    begin = np.arange(blocks)[:, None] * cells
    at = np.arange(size)[None]
    share = np.clip(np.minimum(at + 1, begin + cells) - np.maximum(at, begin), 0, None)
    share[share.sum(1) == 0, -1] = 1  # a block that lies beyond the last cell by rounding
    return (share / share.sum(1, keepdims=True)).astype(np.float32)
