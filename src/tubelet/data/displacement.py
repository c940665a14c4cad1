"""The stream "motion" of a clip: what the codec says between its frames, or what is seen in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubelet.data.vectors import CELL, cells
from tubelet.nn.motion import block_match

_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601


def gaps(window: np.ndarray) -> np.ndarray:
    """(T,) float32: source frames from the frame before to each of a clip; the first has the second's, a frame alone has 1."""
    steps = np.diff(window) if len(window) > 1 else np.ones(1)
    return np.concatenate([steps[:1], steps])[: len(window)].astype(np.float32)


def told(fields: Sequence[np.ndarray | None], window: np.ndarray, out: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(2, T, h', w') float32 and (T,) bool, of the frames' fields (2, h', w') over one source frame each: stretched to the time between
    the clip's frames. What is not known is 0 and False."""
    known = np.array([field is not None for field in fields])
    nothing = np.zeros((2, *cells(out)), np.float32)
    data = np.stack([nothing if field is None else field for field in fields], 1)
    return data * gaps(window)[:, None, None], known


def seen_where_untold(motion: Tensor, known: Tensor, pixels: Tensor) -> Tensor:
    """``motion`` (V, 2, T, h', w') with :func:`seen` for the clips whose ``known`` (V, T) is False everywhere. ``pixels`` (V, T, h, w, 3)
    uint8."""
    for clip in torch.nonzero(~known.any(1))[:, 0].tolist():
        motion[clip] = seen(pixels[clip])
    return motion


def seen(pixels: Tensor) -> Tensor:
    """(T, h, w, 3) uint8 -> (2, T, ceil(h / 4), ceil(w / 4)) float32, by matching blocks of 16 pixels."""
    _, h, w, _ = pixels.shape
    luma = (pixels.float() @ torch.tensor(_LUMA, device=pixels.device)).round()
    blocks = block_match(luma)
    rows, columns = (torch.arange(n, device=pixels.device) * CELL // 16 for n in cells((h, w)))
    return blocks[:, :, rows[:, None], columns].transpose(0, 1)
