"""Whether training can read every item, and what is odd about it: first, middle and last frame, decoded by training's own reader."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from av.stream import Disposition

from tubelet.data.cutoff import missing_bytes
from tubelet.data.decode import PyavReader, VideoInfo, probe
from tubelet.data.files import Deadline, TimedOut, open_container
from tubelet.data.guarded import Lost, run_guarded
from tubelet.data.manifest import suffix
from tubelet.data.picture import Picture
from tubelet.data.reader import Decoder, Reader, open_item, read_chosen
from tubelet.data.sampling import frame_gap
from tubelet.data.table import KINDS, Item, Kind, Table
from tubelet.data.timeline import Timeline
from tubelet.errors import DecodeError

if TYPE_CHECKING:
    from tubelet.data.prepared.store import Store

FAR = 300  # frames decoded to reach one frame: above this, decoding and not the GPU sets the pace (x264's default is a key frame in 250)
LARGE = 1920 * 1088  # pixels of a frame
FETCHING = 3600.0  # seconds for an item whose shards must be fetched
PIECE = 2**16  # bytes of a file that are compared at a time

# What can be wrong. The first group makes an item bad: training would fail on it, or lose a part of it.
PROBLEMS = {
    "unreadable": "cannot be read",
    "timeout": "not read in time",
    "crash": "ends the process that reads it",
    "sound_only": "sound only",
    "damaged": "damaged",
}
WARNINGS = {
    "one_frame": "a single frame",
    "few_frames": "fewer frames than asked for",
    "variable_rate": "variable frame rate",
    "duration": "the header's duration is wrong",
    "segment": "the segment ends behind the video",
    "lost_frames": "some frames cannot be decoded",
    "rotated": "rotated",
    "odd_size": "odd width or height",
    "pixel_aspect": "pixels that are not square",
    "slow": "slow to decode",
}


@dataclass(frozen=True)
class Remark:
    """Something about an item. ``code``: a key of PROBLEMS or WARNINGS."""

    code: str
    text: str


@dataclass(frozen=True)
class Checked:
    """What is known of one item; None = not known.

    ``problem``: why it is bad. ``frames``, ``seconds``, ``fps``: of the item, as decoded, not as its header claims. ``height``, ``width``:
    pixels as training sees them, ``rotation`` (degrees counter-clockwise) applied. ``file_bytes``: of the whole file.
    """

    key: str
    path: str
    kind: Kind
    problem: Remark | None = None
    warnings: tuple[Remark, ...] = ()
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    rotation: int | None = None
    codec: str | None = None
    container: str | None = None
    has_audio: bool | None = None
    file_bytes: int | None = None

    @property
    def bad(self) -> bool:
        """Whether training would fail on it or lose a part of it."""
        return self.problem is not None


@dataclass(frozen=True)
class Check:
    """How items are looked at. ``frames``: how many an item should have. ``timeout``: seconds for opening and reading one.
    ``store``: where shards of prepared sets behind URLs are kept."""

    frames: int | None = None
    timeout: float = 30.0
    decoder: Decoder = "pyav"
    store: Store | None = None

    def item(self, item: Item) -> Checked:
        """One item, opened a second time where that fails, as training does. Raises nothing: whatever a file does to it is the answer."""
        try:
            try:
                return self._look(item)
            except TimedOut:
                raise
            except DecodeError:
                return self._look(item)
        except TimedOut as error:
            code, reason = "timeout", str(error)
        except DecodeError as error:
            code, reason = "sound_only" if self._only_sound(item) else "unreadable", str(error)
        except Exception as error:  # noqa: BLE001 - training would stop on it, the check of the other items need not
            code, reason = "crash", f"unexpected {type(error).__name__} while it is read{': ' if str(error) else ''}{error}"
        return Checked(item.key, item.path, item.kind, Remark(code, " ".join(reason.removeprefix(f"{item.path}: ").split())))

    def _look(self, item: Item) -> Checked:
        with open_item(item, decoder=self.decoder, timeout=self.timeout, store=self.store) as reader:
            noted = _Noted(reader)
            try:
                _, times, _ = read_chosen(noted, item, noted.first_middle_last, noted.take)
            except TimedOut as error:
                raise TimedOut(f"{error}; of its first, middle and last frame {len(noted.shapes)} had come") from None
            seen = _seen(item, times, noted.shapes[0], self.frames)
            if item.kind == "prepared":
                return _of_prepared(item, seen, reader)
            if not isinstance(reader, PyavReader):
                return seen
            return _Video(item, times, noted, reader, probe(item.path, timeout=self.timeout)).complete(seen)

    def _only_sound(self, item: Item) -> bool:
        """Whether a file that has no video to decode has sound; a cover picture is no video."""
        if item.kind != "video":
            return False
        try:
            container, _, watched = open_container(item.path, Deadline(item.path, self.timeout))
        except DecodeError:
            return False
        with container:
            only = bool(container.streams.audio) and all(s.disposition & Disposition.attached_pic for s in container.streams.video)
        if watched is not None:
            watched.close()
        return only


def count(n: int, what: str) -> str:
    """``1 frame``, ``2,000 frames``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def size_of(n: float) -> str:
    """Bytes as ``9.4 kB``, ``23 MB``, ``1,200 GB``."""
    unit, name = next(((u, s) for u, s in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if n >= u), (1.0, "bytes"))
    return f"{n / unit:,.0f} {name}" if n >= 10 * unit or unit == 1 else f"{n / unit:.1f} {name}"


class _Noted:
    """A reader that notes how it was used: which timelines were tried, how many frames of the item each one had, which shapes came."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.tried: list[Timeline] = []
        self.counts: list[int] = []
        self.shapes: list[tuple[int, int]] = []

    def timelines(self) -> Iterator[Timeline]:
        for timeline in self._reader.timelines():
            self.tried.append(timeline)
            yield timeline

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Picture]]:
        return self._reader.frames(timeline, index)

    def first_middle_last(self, times: np.ndarray) -> list[np.ndarray]:
        """What is decoded of an item. An estimated timeline may promise more than there is: there it is a frame a little before the end,
        for looking for one that does not exist would decode the whole of a large file."""
        n = len(times)
        self.counts.append(n)
        self.shapes.clear()
        early = max(n // 100, int(1 / (frame_gap(times) or 1))) if self.tried[-1].kind == "estimate" else 0
        return [np.unique([0, n // 2, max(n // 2, n - 1 - early)])]

    def take(self, _: int, picture: Picture) -> None:
        self.shapes.append(picture.rgb().shape[:2])


def _seen(item: Item, times: np.ndarray, shape: tuple[int, int], frames: int | None) -> Checked:
    """What can be said of any kind of item. ``times``: seconds of its frames; ``shape`` (h, w): of the first."""
    n, (h, w) = len(times), shape
    warnings = []
    if item.kind != "image":
        if n == 1:
            warnings.append(Remark("one_frame", "a single frame: every clip repeats it"))
        elif frames is not None and n < frames:
            warnings.append(Remark("few_frames", f"{count(n, 'frame')}, {frames} were asked for: clips repeat a late frame"))
    if h % 2 or w % 2:
        warnings.append(Remark("odd_size", f"{w}x{h} pixels"))
    still = item.kind == "image"
    span = float(times[-1] - times[0])
    return Checked(
        item.key,
        item.path,
        item.kind,
        warnings=tuple(warnings),
        frames=n,
        seconds=None if still else span + frame_gap(times),
        fps=(n - 1) / span if n > 1 else None,
        height=h,
        width=w,
        codec=suffix(item.path).lstrip(".") if still else "pictures",
        file_bytes=os.path.getsize(item.path) if os.path.isfile(item.path) else None,
    )


def _of_prepared(item: Item, seen: Checked, reader: Any) -> Checked:
    """The same with what the pieces of a prepared item tell: all their bytes are read, and compared with what was written."""
    from tubelet.data.prepared.verify import examine

    found = examine(reader, item.start, item.end)
    problem = Remark("damaged", found.problem) if found.problem else None
    return replace(seen, problem=problem, codec=found.codec, container="prepared", has_audio=found.has_audio, file_bytes=found.bytes)


class _Video:
    """A video file, or a segment of one, that could be read. ``times``: seconds of the item's frames."""

    def __init__(self, item: Item, times: np.ndarray, noted: _Noted, reader: PyavReader, info: VideoInfo) -> None:
        self.item, self.times, self.reader, self.info = item, times, reader, info
        self.tried, self.counts = noted.tried, noted.counts
        self.file_times = noted.tried[-1].times
        self.gap = frame_gap(times)

    def complete(self, seen: Checked) -> Checked:
        """The same with what a video file tells besides."""
        problem = self._damage()
        warnings = (*seen.warnings, *self._time_warnings(), *self._picture_warnings())
        if problem is not None:  # it explains what would be said of the duration
            warnings = tuple(w for w in warnings if w.code != "duration")
        return replace(
            seen,
            problem=problem,
            warnings=warnings,
            fps=seen.fps or self.info.fps,
            rotation=self.info.rotation,
            codec=self.reader.stream.codec_context.codec.canonical_name,
            container=self.info.container,
            has_audio=self.info.has_audio,
            file_bytes=self.info.size_bytes,
        )

    @property
    def _file_end(self) -> float:
        """Seconds at which the file's last frame ends."""
        return float(self.file_times[-1]) + frame_gap(self.file_times)

    def _damage(self) -> Remark | None:
        """What of the item is missing. A segment that lies before the damage has none."""
        n, promised, cut_off = self.counts[-1], self._promised(), self._cut_off()
        if promised > n and not self._tail_is_there():
            return Remark("damaged", f"decoding stops after {n:,} of {count(promised, 'frame')}{cut_off}")
        if self.item.end is not None and self.item.end <= self._file_end + self.gap:
            return None
        if cut_off:
            return Remark("damaged", f"{count(n, 'frame')} can be read{cut_off}")
        if self.tried[-1].kind == "decoded" and (claimed := self.info.frames or 0) > 1.05 * len(self.file_times) + 2:
            return Remark("damaged", f"{len(self.file_times):,} of the {claimed:,} frames that its header counts can be decoded")
        return None

    def _promised(self) -> int:
        """Frames that the packets of the item promise, at least those that came."""
        packets = [count for timeline, count in zip(self.tried, self.counts, strict=True) if timeline.kind == "packets"]
        return max(packets[0], self.counts[-1]) if packets else self.counts[-1]

    def _tail_is_there(self) -> bool:
        """Whether the last promised frame came: what is missing lies before it, as where a recording does not begin with a key frame."""
        promised = next(t for t in self.tried if t.kind == "packets").times
        end = promised[-1] if self.item.end is None else promised[promised < self.item.end - 1e-6][-1]
        return float(self.times[-1]) > float(end) - self.gap / 2

    def _cut_off(self) -> str:
        """``; the file is cut off: ...`` or nothing."""
        missing = 0 if "://" in self.item.path else missing_bytes(self.item.path)
        return f"; the file is cut off: {size_of(missing)} are missing at its end" if missing else ""

    def _time_warnings(self) -> Iterator[Remark]:
        if (promised := self._promised()) > self.counts[-1] and self._tail_is_there():
            yield Remark("lost_frames", f"{promised - self.counts[-1]} of {promised} frames cannot be decoded")
        steps = np.diff(self.times)
        if len(steps) > 1 and self._is_variable(steps):
            low, high = 1000 * steps.min(), 1000 * steps.max()
            yield Remark("variable_rate", f"{low:.0f} to {high:.0f} ms from frame to frame; data.fps samples by time instead of by frame")
        if wrong := self._wrong_duration(self.info.duration):
            yield wrong
        if self.item.end is not None and self.item.end > self._file_end + max(0.5, self.gap):
            yield Remark("segment", f"the segment ends at {self.item.end:g} s, the video at {self._file_end:.2f} s")

    def _picture_warnings(self) -> Iterator[Remark]:
        if self.info.rotation:
            yield Remark("rotated", f"{self.info.rotation} degrees counter-clockwise by its metadata, applied when it is read")
        ratio = self.reader.stream.sample_aspect_ratio
        if ratio and abs(float(ratio) - 1) > 0.05:
            yield Remark("pixel_aspect", f"pixels are {ratio.numerator}:{ratio.denominator}; training takes them as square")
        if reasons := self._slow():
            yield Remark("slow", f"{' and '.join(reasons)}; a re-encoded copy is read many times faster")

    def _is_variable(self, steps: np.ndarray) -> bool:
        """More than jitter and a dropped frame: one step in twenty is off by a fifth, or a picture stands for half a second and more."""
        off = np.abs(steps - self.gap) > max(0.2 * self.gap, 0.002)
        return bool(off.mean() > 0.05 or steps.max() > max(0.5, 3 * self.gap))

    def _wrong_duration(self, claimed: float | None) -> Remark | None:
        if claimed is None or self.tried[-1].kind == "estimate":  # an estimate is the claim itself
            return None
        end, begin = self._file_end, float(self.file_times[0])
        if min(abs(claimed - end), abs(claimed - (end - begin))) <= max(0.5, 0.05 * claimed):
            return None
        longer = "it was cut off, its sound is longer, or its header is wrong"
        why = longer if claimed > end else "its header is wrong"
        return Remark("duration", f"the header says {claimed:.2f} s, the frames end at {end:.2f} s: {why}")

    def _slow(self) -> list[str]:
        """What makes decoding, and not the model, set the pace."""
        timeline, reasons = self.tried[-1], []
        if timeline.kind == "decoded" or not self.reader.can_seek:
            if len(timeline) > FAR:
                reasons.append(f"it cannot be searched, so a clip costs up to all its {len(timeline):,} frames")
        elif timeline.keys is not None and timeline.pts is not None:
            apart = int(np.diff([*np.searchsorted(timeline.pts, timeline.keys), len(timeline)]).max())
            if apart > FAR:
                reasons.append(f"key frames are up to {apart} frames apart")
        if self.info.height * self.info.width > LARGE:
            reasons.append(f"its frames have {self.info.width}x{self.info.height} pixels")
        return reasons


def _row(check: Check, table: Table, row: int) -> Checked:
    return check.item(table.item(row))


def check_table(table: Table, check: Check, *, workers: int, progress: Callable[[int, int], None] | None = None) -> list[Checked]:
    """All items in table order. ``workers``: processes; with 0, in this one, a file that hangs the decoder itself hangs the caller, too.

    ``progress(done, total)`` is called after each item. Raises DataError where the processes cannot start.
    """
    found: dict[int, Checked] = {}
    remote = any("://" in path for path in table.paths)
    work = partial(_row, check, table)
    fetches = remote and KINDS.index("prepared") in table.kinds
    limit = FETCHING if fetches else 2 * check.timeout + 1  # a shard that is fetched has limits of its own
    for row, answer in run_guarded(work, range(len(table)), workers=workers, limit=limit, remote=remote):
        if isinstance(answer, Lost):
            item = table.item(row)
            answer = Checked(item.key, item.path, item.kind, Remark("timeout" if answer.late else "crash", answer.reason))
        found[row] = answer
        if progress is not None:
            progress(len(found), len(table))
    return [found[row] for row in range(len(table))]


def duplicates(items: Sequence[Checked]) -> list[list[str]]:
    """Groups of keys whose local files have the same size and the same content, as far as it is compared: 16 pieces of 64 KiB, or all
    of a file that is not larger than they are. Segments of one file are no duplicates."""
    by_size: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for item in items:
        if item.file_bytes and not item.bad and item.kind != "prepared" and "://" not in item.path:
            by_size[item.file_bytes].setdefault(item.path, item.key)
    groups: defaultdict[tuple[int, bytes], list[str]] = defaultdict(list)
    for size, files in by_size.items():
        for path, key in files.items() if len(files) > 1 else ():
            try:
                groups[size, _digest(path, size)].append(key)
            except OSError:
                continue  # gone since it was read
    return sorted(sorted(keys) for keys in groups.values() if len(keys) > 1)


def _digest(path: str, size: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for at in np.linspace(0, max(0, size - PIECE), 16).astype(np.int64) if size > 16 * PIECE else range(0, size, PIECE):
            file.seek(int(at))
            digest.update(file.read(PIECE))
    return digest.digest()
