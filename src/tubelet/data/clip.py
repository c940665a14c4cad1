"""From an item to clips: draws choose frames and boxes, one decode serves all clips of a visit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from tubelet.core import Batch, Draw, Stream
from tubelet.data import sampling, transform
from tubelet.data.displacement import seen_where_untold, told
from tubelet.data.picture import Picture
from tubelet.data.reader import Reader, read_chosen, source_size
from tubelet.data.settings import DataSettings, Views
from tubelet.data.table import Item
from tubelet.data.transform import Box
from tubelet.data.workers import batch_memory

Windows = Callable[[np.ndarray], list[np.ndarray]]
Boxes = Callable[[int, int], list[list[Box]]]


@dataclass(frozen=True)
class Clips:
    """``data`` (V, T, h, w, 3) uint8, ``time`` (V, T) float32 seconds, ``crop`` (V, 2, 3) float32. ``share`` (V, T) float32: where the
    frames are in the item, 0 = its start, 1 = its end. ``source``: (h, w) of the frames that ``crop`` starts from.

    Beside the pixels, where asked for, over cells of 4x4 of them: ``motion`` (V, 2, T, h', w') float32 and ``known`` (V, T) bool, see
    :mod:`tubelet.data.displacement`; ``score`` (V, 1, T, h', w') float32.
    """

    data: Tensor
    time: Tensor
    crop: Tensor
    share: Tensor
    source: tuple[int, int]
    motion: Tensor | None = None
    known: Tensor | None = None
    score: Tensor | None = None

    def __getitem__(self, clip: int) -> Clips:
        """One of them, as clips."""
        tensors = {f.name: value[clip : clip + 1] for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Plan:
    """How an item is looked at. ``windows``: seconds of its frames (n,) -> C index arrays (T,). ``boxes``: (h, w) of a frame -> for each
    window the boxes to cut; the clips of a window follow each other."""

    windows: Windows
    boxes: Boxes


class TrainDraws:
    """The random numbers of a batch's samples, drawn at once: names ``data/start``, ``data/frames``, ``data/crop``.

    ``moment``: the source of the first two, bound to the number of each clip's first copy; None = every sample is a clip of its own.
    """

    def __init__(self, settings: DataSettings, draw: Draw, moment: Draw | None = None) -> None:
        self.settings = settings
        places = settings.frames if settings.sampling == "tsn" else 1
        name = "data/frames" if settings.sampling == "tsn" else "data/start"
        numbers = transform.ATTEMPTS * 4 if settings.crop == "random_resized" else 2
        self.place = (moment or draw).uniform(name, places).double().numpy()
        self.crop = draw.uniform("data/crop", numbers).double().numpy()

    def plan(self, rows: Sequence[int]) -> Plan:
        """The plan of one visit, whose clips are these samples of the batch."""
        return Plan(
            lambda times: [self._window(times, self.place[r]) for r in rows],
            lambda h, w: [[self._box(h, w, self.crop[r])] for r in rows],
        )

    def _window(self, times: np.ndarray, u: np.ndarray) -> np.ndarray:
        s, n = self.settings, len(times)
        if s.sampling == "tsn":
            return sampling.tsn(n, s.frames, u)
        if s.sampling == "dense":
            return sampling.dense(n, s.frames, s.stride, float(u[0]))
        if s.sampling == "whole":
            return sampling.whole(n, s.frames)
        if s.fps is not None:
            return sampling.window_seconds(times, s.frames, s.fps, float(u[0]))
        return sampling.window(n, s.frames, s.stride, float(u[0]))

    def _box(self, h: int, w: int, u: np.ndarray) -> Box:
        s = self.settings
        if s.crop == "multiscale":
            return transform.multiscale(h, w, s.hw, s.multiscale, u)
        if s.crop == "random_resized":
            return transform.random_resized(h, w, s.hw, s.area, s.ratio, u.reshape(-1, 4))
        return transform.centre(h, w, s.hw)


def view_plan(settings: DataSettings, views: Views) -> Plan:
    """The plan of evaluation: the same for every item, nothing drawn."""

    def windows(times: np.ndarray) -> list[np.ndarray]:
        n, frames, stride, clips = len(times), settings.frames, settings.stride, views.clips
        if views.sampling == "dense":
            return sampling.views_dense(n, frames, stride, clips)
        if views.sampling == "tsn":
            return sampling.views_tsn(n, frames, clips)
        if views.sampling == "whole":
            return [sampling.whole(n, frames)] * clips
        if settings.fps is not None:
            return sampling.views_seconds(times, frames, settings.fps, clips)
        return sampling.views_window(n, frames, stride, clips)

    def boxes(h: int, w: int) -> list[list[Box]]:
        found = transform.three(h, w, settings.hw) if views.crops == 3 else [transform.centre(h, w, settings.hw)]
        return [found] * views.clips

    return Plan(windows, boxes)


class Cuts:
    """The clips of an item while its frames come. ``windows``: C index arrays (T,) of the frames that they show. ``motion``: also what
    moves between them."""

    def __init__(self, reader: Reader, windows: list[np.ndarray], plan: Plan, out: tuple[int, int], *, motion: bool = False) -> None:
        self._reader, self._windows, self._plan, self._out, self._motion = reader, windows, plan, out, motion
        self._boxes: list[list[Box]] = []
        self._cuts: list[list[Tensor]] = []  # per clip, per frame
        self._fields: list[list[np.ndarray | None]] = []  # alike
        self._shape = self._source = (0, 0)

    def take(self, index: int, picture: Picture, cut: Callable[[Box], Tensor] | None = None) -> None:
        """A frame, for all clips that show it. ``cut``: how to cut it, None = :meth:`Picture.part`."""
        if not self._boxes:
            self._shape = picture.shape
            self._source = source_size(self._reader, self._shape)
            self._boxes = [
                [transform.rescale(box, self._source, self._shape) for box in found] for found in self._plan.boxes(*self._source)
            ]
            self._cuts = [[torch.empty(0)] * len(w) for w, bs in zip(self._windows, self._boxes, strict=True) for _ in bs]
            self._fields = [[None] * len(frames) for frames in self._cuts]
        clip = 0
        for window, wanted in zip(self._windows, self._boxes, strict=True):
            at = np.flatnonzero(window == index)
            for box in wanted:
                if len(at):
                    image = picture.part(box, self._out) if cut is None else cut(box)
                    moved = picture.motion(box, self._out) if self._motion else None
                    for t in at:
                        self._cuts[clip][t], self._fields[clip][t] = image, moved
                clip += 1

    def clips(self, times: np.ndarray) -> Clips:
        """All of them, once every frame was taken. ``times`` (n,): seconds of the frames that the windows count."""
        parts = [_resized(frames, self._out) for frames in self._cuts]
        data = parts[0][None] if len(parts) == 1 else torch.stack(parts)
        repeat = [len(bs) for bs in self._boxes]
        time = np.repeat(np.stack([times[w] for w in self._windows]), repeat, axis=0).astype(np.float32)
        share = np.repeat(np.stack([shares(times, w) for w in self._windows]), repeat, axis=0)
        crop = np.stack([transform.affine(b, self._out, self._source, self._shape) for bs in self._boxes for b in bs])
        clips = Clips(data, torch.from_numpy(time), torch.from_numpy(crop), torch.from_numpy(share), self._source)
        if not self._motion:
            return clips
        shown = [window for window, count in zip(self._windows, repeat, strict=True) for _ in range(count)]
        moves = [told(found, window, self._out) for found, window in zip(self._fields, shown, strict=True)]
        motion, known = (torch.from_numpy(np.stack(part)) for part in zip(*moves, strict=True))
        return replace(clips, motion=seen_where_untold(motion, known, data), known=known)


def shares(times: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(T,) float32: where frames of an item with these ``times`` (n,) begin in it, 0 = its start, 1 = its end."""
    if len(times) < 2:
        return np.zeros(len(window), np.float32)
    length = (times[-1] - times[0]) * len(times) / (len(times) - 1)  # with the last frame, as long as the others are on average
    return ((times[window] - times[0]) / length).astype(np.float32)


def _resized(frames: list[Tensor], out: tuple[int, int]) -> Tensor:
    """(T, *out, 3): frames of a clip, those that have another size resized; all at once where all have the same."""
    shapes = {(int(f.shape[0]), int(f.shape[1])) for f in frames}
    if len(shapes) == 1:
        return transform.cut(torch.stack(frames), Box(0, 0, *shapes.pop()), out)
    return torch.stack([transform.cut(f[None], Box(0, 0, int(f.shape[0]), int(f.shape[1])), out)[0] for f in frames])


def make_clips(reader: Reader, item: Item, plan: Plan, out: tuple[int, int], motion: bool = False) -> Clips:
    """Decode and cut; each frame is decoded and converted once whatever the number of clips that show it. ``motion``: with the stream of
    that name, of a reader that was opened for it. Raises DecodeError."""
    cuts = Cuts(reader, [], plan, out)

    def choose(times: np.ndarray) -> list[np.ndarray]:
        nonlocal cuts
        windows = plan.windows(times)
        cuts = Cuts(reader, windows, plan, out, motion=motion)
        return windows

    _, times, _ = read_chosen(reader, item, choose, lambda index, picture: cuts.take(index, picture))
    return cuts.clips(times)


@dataclass(frozen=True)
class Look:
    """A clip of an item whose frames are kept. ``window`` (T,): frame numbers. ``box``: in pixels of the kept frames. ``time`` (T,) float32
    seconds, ``crop`` (2, 3) float32. ``share`` (T,), ``source``: see :class:`Clips`. ``score`` (1, T, h', w') where asked for."""

    row: int
    window: np.ndarray
    box: Box
    time: np.ndarray
    crop: np.ndarray
    share: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    source: tuple[int, int] = (0, 0)
    score: Tensor | None = None


def looks_at(row: int, times: np.ndarray, source: tuple[int, int], have: tuple[int, int], plan: Plan, out: tuple[int, int]) -> list[Look]:
    """What :func:`make_clips` would cut, from frames that are kept at ``have`` (h, w), scaled from ``source`` (h, w) pixels."""
    looks = []
    for window, boxes in zip(plan.windows(times), plan.boxes(*source), strict=True):
        time, share = times[window].astype(np.float32), shares(times, window)
        for box in boxes:
            small = transform.rescale(box, source, have)
            looks.append(Look(row, window, small, time, transform.affine(small, out, source, have), share, source))
    return looks


def to_batch(clips: Sequence[Clips], *, sample: Tensor, key: Sequence[str], labels: dict[str, Tensor], text: Sequence[str] = ()) -> Batch:
    """A batch of all clips in order; ``video`` (B, 3, T, h, w) uint8 is a view of channels-last memory. "motion" and "map" come along where
    the clips have them."""
    data = clips[0].data
    if len(clips) > 1:
        data = torch.cat([c.data for c in clips], out=batch_memory((sum(len(c.data) for c in clips), *data.shape[1:])))
    video = Stream(data.permute(0, 4, 1, 2, 3), time=torch.cat([c.time for c in clips]), crop=torch.cat([c.crop for c in clips]))
    streams = {"video": video}
    if clips[0].motion is not None:
        motion, known = (torch.cat([getattr(c, name) for c in clips]) for name in ("motion", "known"))
        streams["motion"] = Stream(motion, valid=known, time=video.time, crop=video.crop, kind="flow")
    if clips[0].score is not None:
        score = torch.cat([c.score for c in clips if c.score is not None])
        streams["map"] = Stream(score, time=video.time, crop=video.crop, kind="score")
    return Batch(streams, labels, sample, tuple(key), tuple(text))
