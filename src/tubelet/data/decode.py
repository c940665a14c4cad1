"""Frame-exact decoding with PyAV: any frame by index or time, the same pixels however it is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from types import TracebackType

import av.error
import numpy as np
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tubelet.data.files import MAX_PIXELS, Deadline, WatchedFile, explain, open_container
from tubelet.data.picture import Converter, Picture, PlanePicture
from tubelet.data.skipping import says_what_is_unused
from tubelet.data.timeline import Timeline, TimelineCache
from tubelet.errors import DecodeError

SCAN_LIMIT = 256 * 2**20  # bytes: larger files are not read to their end only to list their frames
_SEEKABLE = {"mov", "matroska"}  # containers whose index leads to key frames
_scanned = TimelineCache()


class Mismatch(Exception):
    """A timeline promised a frame that did not come out: the sign to use a more careful one."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself. ``duration`` seconds and ``frames`` are claims, None = no claim. ``rotation``: degrees counter-clockwise,
    already applied to ``height`` and ``width``."""

    duration: float | None
    fps: float | None
    height: int
    width: int
    rotation: int
    frames: int | None
    codec: str
    container: str
    has_audio: bool
    size_bytes: int


class PyavReader:
    """One opened video. Use as a context manager; one reader belongs to one thread. All failures are DecodeErrors with the path.

    Pixels: uint8 RGB with the display rotation applied; the pixel aspect ratio is not. ``vectors``: decoded frames carry the codec's motion
    vectors where its decoder exports them.
    """

    def __init__(self, path: str, *, timeout: float = 30.0, vectors: bool = False) -> None:
        self.path, self.vectors = path, vectors
        self.deadline = Deadline(path, timeout)
        self._converter: Converter | None = None
        self._watched: WatchedFile | None = None
        self.leave: Callable[[PyavReader], bool] | None = None  # asked at the end of a with block whether it takes care of closing
        self._error: Exception | None = None
        self._open()

    def _open(self) -> None:
        self.container, self.size_bytes, self._watched = open_container(self.path, self.deadline)
        try:
            self.stream = self._pick_stream()
        except Exception:
            self.close()
            raise
        self._fresh = True
        if self.vectors:
            self.stream.codec_context.options = {"flags2": "+export_mvs"}
        if self.can_seek:  # what other streams hold is not even read there
            for other in self.container.streams:
                if other.index != self.stream.index:
                    other.discard = Discard.all
        self.stream.codec_context.thread_count = 1  # workers are processes; threads would only fight for the same cores
        origin = self.container.start_time
        self._base = float(self.stream.time_base) if self.stream.time_base else 0.0
        self._origin = origin / 1e6 if origin is not None and abs(origin) < 2**62 else 0.0

    def _pick_stream(self) -> VideoStream:
        pictures = 0
        for stream in self.container.streams.video:
            if stream.disposition & Disposition.attached_pic:
                pictures += 1
            elif stream.codec_context is None:
                raise DecodeError(f"{self.path}: this build of FFmpeg has no decoder for its video")
            else:
                return stream
        kinds = sorted({s.type for s in self.container.streams} - {"video"})
        what = "only a cover picture" if pictures else f"only {' and '.join(kinds)}" if kinds else "nothing"
        raise DecodeError(f"{self.path}: has no video stream, {what}")

    def close(self) -> None:
        self.container.close()
        if self._watched is not None:
            self._watched.close()

    def __enter__(self) -> PyavReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None or self.leave is None or not self.leave(self):
            self.close()

    def renew(self, timeout: float) -> None:
        """Give a reader that was left open the time limit of a new visit; nothing of the one before changes what it reads."""
        self.deadline, self._converter = Deadline(self.path, timeout), None

    @property
    def fps(self) -> float | None:
        """Claimed average frames a second; None where the claim is absent or absurd (container clocks pass for rates)."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate and 0.01 < rate <= 500 else None

    @property
    def duration(self) -> float | None:
        """Claimed seconds of the video stream."""
        if self.stream.duration is not None and self._base > 0:
            return self.stream.duration * self._base
        return self.container.duration / 1e6 if self.container.duration else None

    def timelines(self) -> Iterator[Timeline]:
        """Descriptions of the same file from cheap to careful. Use the next where :meth:`frames` raises Mismatch."""
        for kind in ("estimate", "packets", "decoded"):
            timeline = _scanned.get(self.path, kind)
            if timeline is None:
                timeline = {"estimate": self._estimate, "packets": self._scan, "decoded": self._decode_all}[kind]()
            if timeline is not None:
                if kind != "estimate":
                    _scanned.put(self.path, timeline)
                yield timeline

    def _estimate(self) -> Timeline | None:
        if self.size_bytes <= SCAN_LIMIT or not self.can_seek or self.fps is None or not self.duration:
            return None
        n = int(self.duration * self.fps)
        start = self.stream.start_time or 0
        pts = start + np.round(np.arange(n) / (self.fps * self._base)).astype(np.int64)
        return Timeline(pts * self._base - self._origin, "estimate", pts) if n else None

    def _scan(self) -> Timeline | None:
        """From the stamps of all packets, without decoding; None where they do not say which frames will be shown and when."""
        pts, keys, codec = [], [], self.stream.codec_context.name
        vp8, mpeg4, first = codec.endswith("vp8"), codec == "mpeg4", None
        self._rewind()
        for packet in self._packets():
            first = first or _mark(packet)
            size = packet.size
            hidden = vp8 and size and not bytes(packet)[0] & 16  # VP8 sends frames that are never shown
            if not size or packet.is_discard or hidden:
                continue
            stamp = packet.pts
            if stamp is None or (mpeg4 and size <= 16):  # too short for a picture: "the same again", no frame
                return None
            pts.append(stamp)
            if packet.is_keyframe:
                keys.append(stamp)
        stamps = np.array(sorted(pts), np.int64)
        if not len(stamps) or not keys or (np.diff(stamps) <= 0).any():
            return None
        if self._is_avi and len(keys) < len(pts):
            return None
        return Timeline(stamps * self._base - self._origin, "packets", stamps, np.array(sorted(keys), np.int64), first)

    def _decode_all(self) -> Timeline:
        """By decoding everything: what a damaged file, or one with useless stamps, really holds."""
        stamps: list[int | None] = [frame.pts for frame in self._from_start()]
        if not stamps:
            raise DecodeError(f"{self.path}: no frame can be decoded{self._last_error}")
        known = [s for s in stamps if s is not None]
        if not self._is_avi and len(known) == len(stamps) and all(a < b for a, b in pairwise(known)):
            return Timeline(np.array(known, np.int64) * self._base - self._origin, "decoded")
        return Timeline(np.arange(len(stamps)) / (self.fps or 25.0), "decoded")

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Picture]]:
        """(index, frame) for each of the increasing indices. Raises Mismatch where the timeline does not hold."""
        for i, frame in self.decoded(timeline, index):
            yield i, self._picture(frame)

    def decoded(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        """The same frames as the decoder gives them, not turned."""
        wanted = [int(i) for i in index]
        assert all(a < b for a, b in pairwise(wanted)), "indices must increase"
        return self._by_count(wanted) if timeline.pts is None else self._by_stamp(timeline, wanted)

    def _by_count(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        frames = enumerate(self._from_start())
        for want in wanted:
            found = next(((i, f) for i, f in frames if i == want), None)
            if found is None:
                raise DecodeError(f"{self.path}: frame {want} came out once but not again{self._last_error}")
            yield found

    def _by_stamp(self, timeline: Timeline, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """What packets promise is decoded run by run, and only as far as the wanted frames need it; should one be missing or damaged, they
        and all others are searched for in what decoding everything gives."""
        done = 0
        for run in self._runs(timeline, wanted) if timeline.kind == "packets" else ():
            end = done + len(run)
            for i, frame in self._run(timeline, run):
                if i != wanted[done] or frame.is_corrupt:
                    break
                yield i, frame
                done += 1
            if done < end:
                break
        if done < len(wanted):
            yield from self._search(timeline, wanted[done:])

    def _runs(self, timeline: Timeline, wanted: list[int]) -> Iterator[list[int]]:
        """The wanted frames, parted where seeking saves decoding."""
        start = 0
        for at in range(1, len(wanted) + 1):
            if at == len(wanted) or (self.can_seek and timeline.skips(wanted[at - 1], wanted[at])):
                yield wanted[start:at]
                start = at

    def _run(self, timeline: Timeline, run: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Those frames of a run that come out, decoded from the key frame before it to its end."""
        assert timeline.pts is not None
        stamps, left = {int(timeline.pts[i]): i for i in run}, len(run)
        key = timeline.key_before(run[0]) if self.can_seek else None
        packets = self._packets_again(timeline.first) if key is None else self._packets_from(key, timeline.keys)
        for frame in self._decode(packets, frozenset(stamps)):
            if frame.pts in stamps:
                yield stamps[frame.pts], frame
                left -= 1
                if not left:
                    break

    def _search(self, timeline: Timeline, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The wanted frames among all that are decoded, from the start on; with an estimated timeline from a key frame on at first."""
        assert timeline.pts is not None
        pts, tolerance = timeline.pts, timeline.tolerance
        careful = timeline.kind != "estimate" or not self.can_seek
        frames, frame, here, at = None, None, 0, 0
        while at < len(wanted):
            want = pts[wanted[at]]
            if frames is None or (not careful and timeline.skips(here, wanted[at])):
                key = None if careful else timeline.key_before(wanted[at])
                frames = self._from_start() if key is None else self._decode(self._packets_from(key, timeline.keys))
                frame, here = None, wanted[at]  # as far as further seeking goes, we are there
            if frame is None or frame.pts is None or frame.pts < want - tolerance:
                landed = frame is None
                frame = next(frames, None)
                stamp = None if frame is None else frame.pts
                missed = stamp is None or (stamp > want + tolerance and (timeline.kind != "estimate" or (landed and not careful)))
                if missed and careful:
                    raise Mismatch(self._last_error)
                if missed:
                    careful, frames, frame = True, None, None
                continue
            here = wanted[at]
            yield wanted[at], frame
            at += 1

    @property
    def _is_avi(self) -> bool:
        """AVI counts packets in the order of decoding; what it calls a time stamp is not when a frame is shown."""
        return "avi" in self.container.format.name.split(",")

    @property
    def can_seek(self) -> bool:
        return bool(_SEEKABLE & set(self.container.format.name.split(",")))

    def _rewind(self) -> None:
        """Back to the start, in a container opened anew unless nothing was read yet: not every container can be rewound."""
        if not self._fresh:
            self.close()
            self._open()
        self._fresh = False

    def _from_start(self) -> Iterator[VideoFrame]:
        """All frames."""
        self._rewind()
        return self._decode(self._packets())

    def _packets_again(self, mark: tuple[int | None, ...] | None) -> Iterator[Packet[VideoStream]]:
        """All packets; by seeking where that leads back to the first one, which spares opening the file a second time."""
        if mark is not None and mark[0] is not None and not self._fresh and self._error is None and self.can_seek:
            packets = self._packets_from(mark[0], None)
            if (first := next(packets, None)) is not None and _mark(first) == mark:
                return chain([first], packets)
        self._rewind()
        return self._packets()

    def _packets_from(self, key: int, keys: np.ndarray | None) -> Iterator[Packet[VideoStream]]:
        """Packets from a key frame on; none where the seek does not lead to a known key frame."""
        self._fresh = False
        try:
            self.container.seek(key, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            return
        packets = self._packets()
        first = next(packets, None)
        if first is not None and first.is_keyframe and (keys is None or first.pts in keys):
            yield first
            yield from packets

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets until the end or the first error, which is kept for the message. Raises DecodeError where reading itself fails."""
        self._error = None
        try:
            for packet in self.container.demux(self.stream):
                self.deadline.left()
                yield packet
        except (av.error.ExitError, av.error.TimeoutError):
            raise self.deadline.error() from None
        except (av.error.FFmpegError, IndexError) as error:  # IndexError: damage that looks like a new stream
            self._error = error
        if self._watched is not None:
            self._watched.check()

    def _decode(self, packets: Iterator[Packet[VideoStream]], wanted: frozenset[int] | None = None) -> Iterator[VideoFrame]:
        """Frames until the end or the first error; what comes after an error cannot be told apart from damage.

        ``wanted``: stamps of the frames that matter; others come only if they had to be decoded.
        """
        context = self.stream.codec_context
        context.skip_frame, skipping = "DEFAULT", False
        kept = wanted if says_what_is_unused(context) else None
        try:
            for packet in packets:
                if kept is not None and skipping == (packet.pts in kept):
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                yield from packet.decode()
        except av.error.FFmpegError as error:
            self._error = error

    @property
    def _last_error(self) -> str:
        """`` (why decoding stopped)`` or nothing."""
        if self._error is None:
            return ""
        return f" ({str(explain(self.path, self._error, b'', self.deadline)).removeprefix(self.path + ': ')})"

    def _picture(self, frame: VideoFrame) -> PlanePicture:
        if frame.width * frame.height > MAX_PIXELS:
            raise DecodeError(f"{self.path}: frames of {frame.width}x{frame.height} pixels are not believable")
        if self._converter is None:
            self._converter = Converter(frame, lambda error: explain(self.path, error, b"", self.deadline))
        return PlanePicture(frame, self._converter)


def _mark(packet: Packet[VideoStream]) -> tuple[int | None, ...]:
    """What tells a packet from the others of its file."""
    return packet.pts, packet.dts, packet.pos, packet.size


def forget_timelines() -> None:
    """What is remembered of files. See :func:`tubelet.data.reader.forget_files`."""
    _scanned.clear()


def probe(path: str, *, timeout: float = 30.0) -> VideoInfo:
    """Look at a file's header and first frame. Raises DecodeError."""
    with PyavReader(str(path), timeout=timeout) as reader:
        frame = next(reader._from_start(), None)
        if frame is None:
            raise DecodeError(f"{path}: no frame can be decoded{reader._last_error}")
        height, width = reader._picture(frame).rgb().shape[:2]
        return VideoInfo(
            duration=reader.duration,
            fps=reader.fps,
            height=height,
            width=width,
            rotation=int(frame.rotation),
            frames=reader.stream.frames or None,
            codec=reader.stream.codec_context.name,
            container=reader.container.format.name,
            has_audio=bool(reader.container.streams.audio),
            size_bytes=reader.size_bytes,
        )


def read_frames(
    path: str, index: Sequence[int] | None = None, *, seconds: Sequence[float] | None = None, timeout: float = 30.0
) -> tuple[np.ndarray, np.ndarray]:
    """Frames by index (presentation order), by time (the frame on screen at that second), or all.

    Returns (n, h, w, 3) uint8 RGB and (n,) float64 seconds, in the order asked for. Raises DecodeError, also for an index past the end.
    """
    assert index is None or seconds is None
    with PyavReader(str(path), timeout=timeout) as reader:
        for timeline in reader.timelines():
            n = len(timeline)
            if seconds is not None:
                chosen = at_seconds(timeline.times, np.asarray(seconds, np.float64))
            else:
                chosen = np.arange(n) if index is None else np.asarray(index, np.int64)
            if len(chosen) and (chosen.min() < 0 or chosen.max() >= n):
                raise DecodeError(f"{path}: has {n} frames, asked for {int(chosen.min())} to {int(chosen.max())}")
            order, back = np.unique(chosen, return_inverse=True)
            try:
                frames = [picture.rgb() for _, picture in reader.frames(timeline, order)]
            except Mismatch:
                continue
            return np.stack(frames)[back], timeline.times[chosen]
    raise DecodeError(f"{path}: its frames cannot be found again after listing them")


def at_seconds(times: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Index of the frame on screen at each second: the last that began not later (a microsecond is forgiven)."""
    return np.clip(np.searchsorted(times, seconds + 1e-6, side="right") - 1, 0, len(times) - 1)
