"""Which frames make a clip: pure functions of frame counts or times and uniform draws. n frames in the item, T in the clip."""

from __future__ import annotations

import numpy as np


def window(n: int, frames: int, stride: int, u: float) -> np.ndarray:
    """(T,) int64: every ``stride``-th frame from a random start (VideoMAE, pre-training).

    start ~ U{0 .. n - T*stride}, 0 where the video is shorter; the pointer stops advancing where the next step would pass the end,
    so short videos repeat a late frame. ``u`` in [0, 1).
    """
    room = n - frames * stride
    start = min(int(u * (room + 1)), room) if room > 0 else 0
    return start + np.minimum(np.arange(frames), (n - 1 - start) // stride) * stride


def window_seconds(times: np.ndarray, frames: int, fps: float, u: float) -> np.ndarray:
    """(T,) int64: the same seconds at any source rate. Frame j is the one on screen at start + j / fps.

    ``times`` (n,) increasing seconds. start is uniform over where the T / fps seconds fit, else the first frame; past the end the last
    frame that a step reached repeats, as in :func:`window`.
    """
    last = frame_gap(times)
    begin, length = float(times[0]), float(times[-1] - times[0]) + last
    start = begin + u * max(0.0, length - frames / fps)
    reach = max(0, int((float(times[-1]) + last - start) * fps - 1e-9))
    at = start + np.minimum(np.arange(frames), reach) / fps
    return np.clip(np.searchsorted(times, at + 1e-6, side="right") - 1, 0, len(times) - 1)


def frame_gap(times: np.ndarray) -> float:
    """How long the last frame stays: the median step, 0 for a single frame."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def tsn(n: int, frames: int, u: np.ndarray | None = None) -> np.ndarray:
    """(T,) int64: one frame of each of T equal segments, random by ``u`` (T,) in [0, 1), or the centre (Wang et al. 2016)."""
    place = np.full(frames, 0.5) if u is None else np.asarray(u, np.float64)
    return np.minimum(((np.arange(frames) + place) * n / frames).astype(np.int64), n - 1)


def dense(n: int, frames: int, stride: int, u: float) -> np.ndarray:
    """(T,) int64: VideoMAE's fine-tuning rule (16x4 on Kinetics).

    A random window of T*stride frames, T points of linspace over it cut to integers; videos that are not longer: n // stride points of
    linspace over the video, then the last frame.
    """
    span = frames * stride
    if n <= span:
        points = np.linspace(0, n, num=n // stride) if n >= stride else np.zeros(0)
        index = np.concatenate([points, np.full(frames - len(points), n)])
    else:
        start = min(int(u * (n - span + 1)), n - span)
        index = np.minimum(np.linspace(start, start + span, num=frames), start + span - 1)
    return np.clip(index, 0, n - 1).astype(np.int64)


def whole(n: int, frames: int) -> np.ndarray:
    """(T,) int64: from the first frame to the last in equal steps."""
    return np.rint(np.linspace(0, n - 1, frames)).astype(np.int64)


def views_window(n: int, frames: int, stride: int, clips: int) -> list[np.ndarray]:
    """``clips`` windows with starts spread evenly from the first to the last possible; one clip: the centre."""
    places = [0.5] if clips == 1 else [k / (clips - 1) for k in range(clips)]
    room = max(0, n - frames * stride)
    return [int(p * room) + np.minimum(np.arange(frames), (n - 1 - int(p * room)) // stride) * stride for p in places]


def views_seconds(times: np.ndarray, frames: int, fps: float, clips: int) -> list[np.ndarray]:
    """As :func:`views_window` on the clock."""
    places = [0.5] if clips == 1 else [k / (clips - 1) for k in range(clips)]
    return [window_seconds(times, frames, fps, p) for p in places]


def views_dense(n: int, frames: int, stride: int, clips: int) -> list[np.ndarray]:
    """VideoMAE's Kinetics test rule: every ``stride``-th frame of the video, padded with the last to at least T; clip k starts at
    int(k * max(0, (m - T) / (clips - 1))) of these m frames. One clip: the centre."""
    kept = np.arange(0, n, stride)
    kept = np.concatenate([kept, np.full(max(0, frames - len(kept)), kept[-1])])
    room = len(kept) - frames
    starts = [room // 2] if clips == 1 else [int(k * room / (clips - 1)) for k in range(clips)]
    return [kept[s : s + frames] for s in starts]


def views_tsn(n: int, frames: int, clips: int) -> list[np.ndarray]:
    """VideoMAE's SSv2 test rule: clip k takes frames int(tick * (x + k / clips)), tick = n / T, x = 0 .. T-1; one clip: the centres."""
    if clips == 1:
        return [tsn(n, frames)]
    tick = n / frames
    return [np.minimum((tick * (np.arange(frames) + k / clips)).astype(np.int64), n - 1) for k in range(clips)]
