"""Frames kept on the training device: a batch is gathered by one indexed read, and cut and resized by two matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tubelet.data.clip import Look
from tubelet.data.kept import FrameCache

_WORD = 8  # bytes that are read at once: rows are padded to whole words
_SPARE = 1.15  # a frame is padded to a size that there is already if that costs at most this factor
_UNIT = 2048  # a weight of 1: weights have 11 bits
_SCRATCH = 2**29  # bytes that cutting may take beside its result


class DeviceCache(FrameCache):
    """On a device, in one tensor for each size of frame; sizes that differ little share one, padded. ``block``: bytes to grow by while it
    is filled.

    All arithmetic is in whole numbers that fp32 holds exactly, so a clip's pixels are the same on every device and beside any other clips.
    They are within a level of those of a :class:`MemoryCache`, whose kernel rounds elsewhere.
    """

    def __init__(self, device: torch.device, *, block: int) -> None:
        super().__init__()
        self.device, self._block = device, block
        self._stores: list[_Store] = []
        self._places: dict[int, tuple[int, int]] = {}  # store, first frame

    @property
    def bytes(self) -> int:
        return sum(store.bytes for store in self._stores)

    def _keep(self, row: int, frames: Tensor) -> None:
        n, h, w, _ = frames.shape
        fitting = [i for i, store in enumerate(self._stores) if store.suits(h, w)]
        number = next((i for i in fitting if self._stores[i].room >= n), len(self._stores))
        if number == len(self._stores):
            shape = self._stores[fitting[0]].shape if fitting else (h, -(-w // _WORD))
            self._stores.append(_Store.empty(n, shape, self.device, self._block))
        self._places[row] = (number, self._stores[number].add(frames))

    def seal(self, free: int) -> None:
        """Join the blocks of each size where both fit into memory for a moment; the fewer, the fewer kernels a batch takes."""
        joined: list[_Store] = []
        moved: dict[int, tuple[int, int]] = {}
        for shape in dict.fromkeys(store.shape for store in self._stores):
            same = [i for i, store in enumerate(self._stores) if store.shape == shape]
            together = sum(self._stores[i].used_bytes for i in same) <= 0.8 * free
            for group in [same] if together else [[i] for i in same]:
                first = 0
                for i in group:
                    moved[i] = (len(joined), first)
                    first += self._stores[i].used
                joined.append(_Store.join([self._stores[i] for i in group]))
        self._stores = joined
        self._places = {row: (moved[number][0], moved[number][1] + first) for row, (number, first) in self._places.items()}

    def cut(self, looks: Sequence[Look], out: tuple[int, int]) -> Tensor:
        """On the device. Nothing waits for it: what decides is known on the host, and indices are sent from pinned memory."""
        stores = np.array([self._places[look.row][0] for look in looks])
        frames = np.stack([self._places[look.row][1] + look.window for look in looks])
        boxes = np.array([look.box for look in looks], np.int64)
        order = np.argsort(stores, kind="stable")
        data = torch.empty((*frames.shape, *out, 3), dtype=torch.uint8, device=self.device)
        done = 0
        for number in np.unique(stores):
            here = order[stores[order] == number]
            self._stores[number].cut(frames[here], boxes[here], data[done : done + len(here)])
            done += len(here)
        if (order == np.arange(len(order))).all():
            return data
        return data.index_select(0, sent(np.argsort(order), self.device))


@dataclass
class _Store:
    """Frames of one padded size. ``planes`` (n, 3, H, W / 8) int64: uint8 pixels, colour by colour, eight to a word. ``used``: frames."""

    planes: Tensor
    used: int

    @classmethod
    def empty(cls, n: int, shape: tuple[int, int], device: torch.device, block: int) -> _Store:
        """For frames of (height, words), at least ``n`` of them and about ``block`` bytes."""
        h, words = shape
        room = max(n, block // (3 * h * words * _WORD))
        return cls(torch.empty((room, 3, h, words), dtype=torch.int64, device=device), 0)

    @classmethod
    def join(cls, parts: Sequence[_Store]) -> _Store:
        """Their frames one after the other, without room to add; nothing is copied where that is what there is."""
        if len(parts) == 1 and not parts[0].room:
            return parts[0]
        return cls(torch.cat([p.planes[: p.used] for p in parts]), sum(p.used for p in parts))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, words)."""
        return int(self.planes.shape[2]), int(self.planes.shape[3])

    @property
    def bytes(self) -> int:
        return self.planes.nbytes

    @property
    def used_bytes(self) -> int:
        return self.planes[: self.used].nbytes

    @property
    def room(self) -> int:
        """Frames that may be added."""
        return len(self.planes) - self.used

    def suits(self, h: int, w: int) -> bool:
        """Whether frames of h x w can be kept here without much padding."""
        own_h, words = self.shape
        return h <= own_h and w <= words * _WORD and own_h * words <= _SPARE * h * -(-w // _WORD)

    def add(self, frames: Tensor) -> int:
        """Keep frames (n, h, w, 3) uint8; returns the number of the first."""
        n, h, w, _ = frames.shape
        first, self.used = self.used, self.used + n
        pixels = self.planes[first : self.used].view(torch.uint8)
        pixels[:, :, :h, :w] = frames.to(self.planes.device).permute(0, 3, 1, 2)  # what is beside them is read with weight 0
        return first

    def cut(self, frames: np.ndarray, boxes: np.ndarray, data: Tensor) -> None:
        """Fill ``data`` (V, T, h, w, 3) with frames (V, T), cut at boxes (V, 4). In parts, so that the rest of the memory stays free."""
        clips, length = frames.shape
        h, w = int(data.shape[2]), int(data.shape[3])
        tall, words = self._window(boxes)
        wide = words * _WORD
        each = 3 * (6 * tall * wide + 4 * h * wide + 8 * h * w)  # bytes a frame: index, pixels, their floats, both products
        together = max(1, _SCRATCH // each)
        many, long = max(1, together // length), min(length, together)
        for i in range(0, clips, many):
            for t in range(0, length, long):
                self._cut(frames[i : i + many, t : t + long], boxes[i : i + many], data[i : i + many, t : t + long])

    def _window(self, boxes: np.ndarray) -> tuple[int, int]:
        """Rows and words that hold the largest of some boxes wherever it is."""
        own_h, own_words = self.shape
        most = int((boxes[:, 1] % _WORD + boxes[:, 3]).max())
        return min(own_h, int(boxes[:, 2].max())), min(own_words, -(-most // _WORD))

    def _cut(self, frames: np.ndarray, boxes: np.ndarray, data: Tensor) -> None:
        (clips, length), (h, w), device = frames.shape, data.shape[2:4], self.planes.device
        own_h, own_words = self.shape
        tall, words = self._window(boxes)
        wide = words * _WORD
        top = np.minimum(boxes[:, 0], own_h - tall)
        left = np.minimum(boxes[:, 1] // _WORD, own_words - words)
        first = sent(frames * (3 * own_h * own_words) + (top * own_words + left)[:, None], device)
        down = resize_matrices(boxes[:, 0] - top, boxes[:, 2], h, tall, device)
        across = resize_matrices(boxes[:, 1] - left * _WORD, boxes[:, 3], w, wide, device)
        # In the order row, frame, colour, word, so that both products below read what lies side by side.
        rows = torch.arange(tall, device=device)[:, None, None, None] * own_words
        colours = torch.arange(3, device=device)[:, None] * (own_h * own_words)
        index = first[:, None, :, None, None] + (rows + colours + torch.arange(words, device=device))
        pixels = self.planes.view(-1).index_select(0, index.view(-1)).view(clips, tall, -1).view(torch.uint8).float()
        with _tensor_cores(device):
            lines = torch.bmm(down, pixels).add_(_UNIT / 16).mul_(8 / _UNIT).floor_()  # in eighths of a level
            cut = torch.bmm(lines.view(clips, h * length * 3, wide), across.transpose(1, 2))
        cut = cut.add_(4 * _UNIT).mul_(1 / (8 * _UNIT)).view(clips, h, length, 3, w)
        data.copy_(cut.permute(0, 2, 1, 4, 3))  # rounds down


@lru_cache(maxsize=4096)
def taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear resizing with antialiasing of ``size`` pixels to ``out``: for each of those the first pixel that counts (out,), and whole
    weights (out, K) in 1 / 2048 that sum to 2048.

    A row is a triangle around the place of the output pixel, as wide as two output pixels (at least two input pixels) and cut off at the
    ends: the filter of ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``. Running sums are rounded, not weights.
    """
    scale = size / out
    support = max(scale, 1.0)
    centre = (np.arange(out) + 0.5) * scale
    first = np.maximum(0, np.floor(centre - support + 0.5).astype(np.int64))
    pixel = first[:, None] + np.arange(int(2 * support) + 2)
    weight = np.maximum(0, 1 - np.abs(pixel + 0.5 - centre[:, None]) / support) * (pixel < size)
    running = np.rint(np.cumsum(weight, 1) / weight.sum(1, keepdims=True) * _UNIT)
    return first, np.diff(running, axis=1, prepend=0).astype(np.int64)


def resize_matrices(start: np.ndarray, size: np.ndarray, out: int, length: int, device: torch.device) -> Tensor:
    """(B, out, length) fp32: :func:`taps` for pixels ``start`` .. ``start + size`` (B,) of ``length``."""
    found = [taps(int(n), out) for n in size]
    most = max(weight.shape[1] for _, weight in found)
    packed = np.zeros((len(found), out, 1 + most), np.int64)
    for row, (first, weight), at in zip(packed, found, start, strict=True):
        row[:, 0] = first + at
        row[:, 1 : 1 + weight.shape[1]] = weight
    on_device = sent(packed, device)
    tap = torch.arange(length, device=device) - on_device[:, :, :1]
    weight = on_device[:, :, 1:].float().gather(2, tap.clamp(0, most - 1))
    return weight * ((tap >= 0) & (tap < most))


@contextmanager
def _tensor_cores(device: torch.device) -> Iterator[None]:
    """fp32 products as TF32: pixels, weights and eighths of a level fit into its 11 bits, sums into fp32, so nothing is lost."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Whole numbers on the device, without waiting."""
    host = torch.from_numpy(np.ascontiguousarray(numbers, np.int64))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
