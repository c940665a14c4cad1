"""A decoded frame: its pixels, or a box of it scaled to the size of a clip, without making what is not asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import av.error
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tubelet.data import transform
from tubelet.data.transform import Box
from tubelet.errors import DecodeError


class Picture(ABC):
    """One frame as it is displayed. It may hold the decoder's memory: take what is needed of it and let it go."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(h, w) as displayed."""

    @property
    def like_first(self) -> bool:
        """Whether a reader that began with this frame would give it alike: it is stored in the size of the first frame, and as that one
        turned."""
        return True

    @abstractmethod
    def rgb(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB."""

    @abstractmethod
    def cut(self, box: Box, out: tuple[int, int]) -> Tensor:
        """(*out, 3) uint8 RGB: the box of displayed pixels, resized with antialiasing."""


class PixelPicture(Picture):
    """Of pixels (h, w, 3) uint8 that are RGB already."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    @property
    def shape(self) -> tuple[int, int]:
        return self._pixels.shape[0], self._pixels.shape[1]

    def rgb(self) -> np.ndarray:
        return self._pixels

    def cut(self, box: Box, out: tuple[int, int]) -> Tensor:
        frame = torch.from_numpy(np.require(self._pixels, requirements=["C", "W"]))
        return transform.cut(frame[None], box, out)[0]


class Converter:
    """Turns the decoder's frames of one video into RGB. ``shape`` (h, w): what they are stored in, by the first of them; ``turn``: (swap
    axes, then flip rows, flip columns). ``explain`` makes a DecodeError of what PyAV raises."""

    def __init__(self, frame: VideoFrame, explain: Callable[[Exception], DecodeError]) -> None:
        self.turn, self.shape = orientation(frame), (frame.height, frame.width)
        self._explain, self._reformat = explain, VideoReformatter()

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """(h, w, 3) uint8, turned. A frame of another size than the first is scaled to it."""
        try:  # threads=1, for threads of swscale would hang a process forked later
            pixels = self._reformat.reformat(frame, self.shape[1], self.shape[0], "rgb24", threads=1).to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise self._explain(error) from None
        swap, up, left = self.turn
        pixels = pixels.transpose(1, 0, 2) if swap else pixels
        return pixels[:: -1 if up else 1, :: -1 if left else 1]


class PlanePicture(Picture):
    """Of a decoder's frame, in whatever format it has."""

    def __init__(self, frame: VideoFrame, converter: Converter) -> None:
        self._frame, self._converter = frame, converter

    @property
    def shape(self) -> tuple[int, int]:
        h, w = self._converter.shape
        return (w, h) if self._converter.turn[0] else (h, w)

    @property
    def like_first(self) -> bool:
        known = self._converter
        return (self._frame.height, self._frame.width) == known.shape and orientation(self._frame) == known.turn

    def rgb(self) -> np.ndarray:
        return self._converter.rgb(self._frame)

    def cut(self, box: Box, out: tuple[int, int]) -> Tensor:
        return PixelPicture(self.rgb()).cut(box, out)


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(swap axes, then flip rows, flip columns) of the display matrix, to the nearest quarter turn.

    The matrix (a b u; c d v; x y w) takes a stored point (x, y) to (ax + cy, bx + dy).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)
