"""A decoded frame: its pixels, or a box of it scaled to the size of a clip, without making what is not asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import av.error
import numpy as np
import torch
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tubelet.data import transform
from tubelet.data.transform import Box
from tubelet.data.vectors import cells, cut_field, field_of, pooled
from tubelet.errors import DecodeError

SHRUNK = 1.5  # from this factor on, scaling a box's planes is faster than converting the whole frame (measured from 340x256 to 4K)
LARGE = 8  # frames of so many times the pixels of a box, too
MAX_SCALERS = 64  # kept for the frames to come: one for each box of a visit


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

    def part(self, box: Box, out: tuple[int, int]) -> Tensor:
        """What :meth:`cut` gives, or the box in its own size (h, w, 3) where resizing the frames of a clip together is faster. A copy."""
        return self.cut(box, out)

    def motion(self, box: Box, out: tuple[int, int]) -> np.ndarray | None:
        """(2, ceil(h / 4), ceil(w / 4)) float32: (dx, dy) of what the box shows from the frame before to this one, for each 4x4 cell of a
        clip of ``out`` (h, w), in its pixels. None where nobody says it."""
        return None


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

    def part(self, box: Box, out: tuple[int, int]) -> Tensor:
        return torch.from_numpy(_part(self._pixels, box))


def _part(pixels: np.ndarray, box: Box) -> np.ndarray:
    return np.array(pixels[box.y : box.y + box.h, box.x : box.x + box.w], order="C")


class Converter:
    """Turns the decoder's frames of one video into RGB. ``shape`` (h, w): what they are stored in, by the first of them; ``turn``: (swap
    axes, then flip rows, flip columns). ``explain`` makes a DecodeError of what PyAV raises.

    Two ways lead to a cut; box and sizes decide, so that a clip is the same whatever else is cut from the frame. Boxes that are shrunk
    a good deal, or are a small part of a large frame, are cropped and scaled on the decoder's planes, and only the result becomes RGB,
    rounded from what the planes say. Other boxes come out of the whole frame's RGB (about one level darker, for FFmpeg's fast conversion
    rounds down): with a few hundred pixels that is faster.
    """

    def __init__(self, frame: VideoFrame, explain: Callable[[Exception], DecodeError]) -> None:
        self.turn, self.shape = orientation(frame), (frame.height, frame.width)
        self._explain, self._reformat = explain, VideoReformatter()
        self._scalers: dict[tuple[object, ...], _Scaler] = {}
        self._crops: dict[tuple[object, ...], bool] = {}

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """(h, w, 3) uint8 as stored, a view of memory of its own. A frame of another size than the first is scaled to it."""
        try:  # threads=1, for threads of swscale would hang a process forked later
            (plane,) = self._reformat.reformat(frame, self.shape[1], self.shape[0], "rgb24", threads=1).planes
            return np.ndarray((*self.shape, 3), np.uint8, memoryview(plane), strides=(plane.line_size, 3, 1))
        except (av.error.FFmpegError, ValueError) as error:
            raise self._explain(error) from None

    def shrinks(self, frame: VideoFrame, box: Box, out: tuple[int, int]) -> bool:
        """Whether a box of the stored frame is better scaled on the planes."""
        if (frame.height, frame.width) != self.shape:
            return False
        shrunk = box.h >= SHRUNK * out[0] and box.w >= SHRUNK * out[1]
        if not shrunk and frame.height * frame.width < LARGE * box.h * box.w:
            return False
        key = (frame.format.name, box)
        if key not in self._crops:
            self._crops[key] = _can_crop(frame.format, box)
        return self._crops[key]

    def scale(self, frame: VideoFrame, box: Box, out: tuple[int, int]) -> Tensor:
        """(*out, 3) uint8 RGB of a box of the stored frame, from its planes."""
        key = (frame.height, frame.width, frame.format.name, int(frame.colorspace), int(frame.color_range), box, out)
        try:
            scaler = self._scalers.get(key)
            if scaler is None:
                if len(self._scalers) >= MAX_SCALERS:
                    self._scalers.pop(next(iter(self._scalers)))
                scaler = self._scalers[key] = _Scaler(frame, box, out)
            return scaler(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise self._explain(error) from None


class _Scaler:
    """Crops and scales frames of one kind with FFmpeg's filters: bilinear, its support widened where it shrinks."""

    def __init__(self, frame: VideoFrame, box: Box, out: tuple[int, int]) -> None:
        self._graph = Graph()
        self._graph.threads = 1
        colour = {"colorspace": str(int(frame.colorspace)), "range": str(int(frame.color_range))}
        size, name = f"{frame.width}x{frame.height}", frame.format.name
        self._source = self._graph.add("buffer", video_size=size, pix_fmt=name, time_base="1/1000", pixel_aspect="1/1", **colour)
        crop = self._graph.add("crop", w=str(box.w), h=str(box.h), x=str(box.x), y=str(box.y), exact="1")
        sites = {
            f"in_{axis}_chr_pos": str(_chroma_site(bits, start, size))
            for axis, bits, start, size in zip("hv", _subsampling(frame.format), (box.x, box.y), (box.w, box.h), strict=True)
        }
        scale = self._graph.add("scale", w=str(out[1]), h=str(out[0]), flags="bilinear+accurate_rnd", **sites)
        self._sink = self._graph.add("buffersink")
        self._graph.link_nodes(self._source, crop, scale, self._graph.add("format", pix_fmts="gbrp"), self._sink).configure()

    def __call__(self, frame: VideoFrame) -> Tensor:
        self._source.push(frame)
        small = cast(VideoFrame, self._sink.pull())
        shape = (small.height, small.width)
        green, blue, red = (np.ndarray(shape, np.uint8, memoryview(p), strides=(p.line_size, 1)) for p in small.planes)
        return torch.from_numpy(np.stack([red, green, blue], -1))


def _can_crop(form: VideoFormat, box: Box) -> bool:
    """Whether FFmpeg crops a format at the box's corner: YUV in three planes, with a chroma sample for at most 2x2 pixels. Within samples
    of two bytes its cropping counts single bytes, which is wrong where a box begins between the pixels that share a chroma sample."""
    planes, shared = [part.plane for part in form.components], _subsampling(form)
    if planes != [0, 1, 2] or form.is_rgb or form.is_big_endian or max(shared) > 1:
        return False
    return form.components[0].bits == 8 or box.x % (1 << shared[0]) == 0


def _subsampling(form: VideoFormat) -> tuple[int, int]:
    """log2 of how many pixels share a chroma sample, across and down."""
    return (16 // form.chroma_width(16)).bit_length() - 1, (16 // form.chroma_height(16)).bit_length() - 1


def _chroma_site(bits: int, start: int, size: int) -> int:
    """Where the first chroma sample lies from the first pixel of a box that begins at pixel ``start``, in 1/256 pixel.

    It is taken to lie in the middle of the pixels that share it, as the conversion of whole frames takes it; a box that begins between them
    begins behind it. Where the box ends between them, FFmpeg stretches its chroma to whole samples: half of that is taken off at each end,
    which leaves the chroma at most half a pixel off there and in place in the middle.
    """
    return (128 << bits) - 128 - 256 * (start % (1 << bits)) + 128 * (-size % (1 << bits))


class PlanePicture(Picture):
    """Of a decoder's frame, in whatever format it has."""

    def __init__(self, frame: VideoFrame, converter: Converter) -> None:
        self._frame, self._converter = frame, converter
        self._stored: np.ndarray | None = None
        self._vectors: tuple[np.ndarray | None] | None = None  # asked for once

    @property
    def shape(self) -> tuple[int, int]:
        h, w = self._converter.shape
        return (w, h) if self._converter.turn[0] else (h, w)

    @property
    def like_first(self) -> bool:
        known = self._converter
        return (self._frame.height, self._frame.width) == known.shape and orientation(self._frame) == known.turn

    def rgb(self) -> np.ndarray:
        swap, up, left = self._converter.turn
        pixels = self._rgb.transpose(1, 0, 2) if swap else self._rgb
        return pixels[:: -1 if up else 1, :: -1 if left else 1]

    @property
    def _rgb(self) -> np.ndarray:
        if self._stored is None:
            self._stored = self._converter.rgb(self._frame)
        return self._stored

    def part(self, box: Box, out: tuple[int, int]) -> Tensor:
        if any(self._converter.turn) or self._converter.shrinks(self._frame, box, out):
            return self.cut(box, out)
        return torch.from_numpy(_part(self._rgb, box))

    def cut(self, box: Box, out: tuple[int, int]) -> Tensor:
        swap, up, left = self._converter.turn
        h, w = self.shape
        y, x = h - box.y - box.h if up else box.y, w - box.x - box.w if left else box.x
        stored, size = (Box(x, y, box.w, box.h), (out[1], out[0])) if swap else (Box(y, x, box.h, box.w), out)
        if self._converter.shrinks(self._frame, stored, size):
            image = self._converter.scale(self._frame, stored, size)
        else:
            image = PixelPicture(self._rgb).cut(stored, size)
        image = image.transpose(0, 1) if swap else image
        return image.flip([axis for axis, turned in enumerate((up, left)) if turned]) if up or left else image

    def motion(self, box: Box, out: tuple[int, int]) -> np.ndarray | None:
        if self._vectors is None:
            self._vectors = (field_of(self._frame),)
        (field,) = self._vectors
        stored, have = self._converter.shape, (self._frame.height, self._frame.width)
        if field is None:
            return None
        if have != stored:  # a frame of another size, shown at that of the first
            field = pooled(field, cells(stored), (have[0] / stored[0], have[1] / stored[1]))
            field = field * np.array([stored[1] / have[1], stored[0] / have[0]], np.float32)
        return cut_field(field, stored, box, out, self._converter.turn)


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(swap axes, then flip rows, flip columns) of the display matrix, to the nearest quarter turn.

    The matrix (a b u; c d v; x y w) takes a stored point (x, y) to (ax + cy, bx + dy).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)
