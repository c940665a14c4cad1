"""The codec's motion vectors as a field of displacements on the blocks of the prepared picture."""

from __future__ import annotations

import io
import math

import numpy as np
from av.video.frame import VideoFrame

from tubelet.data.vectors import CELL, UNIT, field_of, pooled

BLOCK = 16  # pixels of the prepared picture


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
        field = field_of(frame)
        rows, columns = math.ceil(shape[0] / BLOCK), math.ceil(shape[1] / BLOCK)
        self.ok.append(field is not None)
        if field is None:
            self.fields.append(np.zeros((rows, columns, 2), np.int16))
            return
        swap, up, left = turn
        if swap:
            field = field.transpose(1, 0, 2)[..., ::-1]
        field = field[:: -1 if up else 1, :: -1 if left else 1] * np.array([-1 if left else 1, -1 if up else 1], np.float32)
        source = (frame.width, frame.height) if swap else (frame.height, frame.width)
        scale = np.array([shape[1] / source[1], shape[0] / source[0]], np.float32)
        small = pooled(field, (rows, columns), (BLOCK * source[0] / shape[0] / CELL, BLOCK * source[1] / shape[1] / CELL)) * scale
        self.fields.append(np.clip(np.round(small * UNIT), -(2**15), 2**15 - 1).astype(np.int16))

    def pack(self) -> bytes:
        """The .npz."""
        out = io.BytesIO()
        np.savez_compressed(out, motion=np.stack(self.fields), ok=np.array(self.ok))
        return out.getvalue()
