"""Frame choice: the papers' rules as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data import sampling as s

N = st.integers(1, 400)
T = st.integers(1, 32)
STRIDE = st.integers(1, 8)
U = st.floats(0, 1, exclude_max=True, width=32)


@given(N, T, STRIDE, U)
def test_every_rule_gives_frames_of_the_video_in_order(n: int, t: int, stride: int, u: float) -> None:
    times = np.arange(n) / 25
    clips = [
        s.window(n, t, stride, u), s.tsn(n, t), s.tsn(n, t, np.full(t, u)), s.dense(n, t, stride, u), s.whole(n, t),
        s.window_seconds(times, t, 7.5, u),
        *s.views_window(n, t, stride, 3), *s.views_dense(n, t, stride, 5), *s.views_tsn(n, t, 2), *s.views_seconds(times, t, 7.5, 2),
    ]  # fmt: skip
    for index in clips:
        assert index.shape == (t,)
        assert index.dtype == np.int64
        assert (np.diff(index) >= 0).all()
        assert index[0] >= 0
        assert index[-1] < n


@given(N, T, STRIDE, U)
def test_window_is_the_pages_pointer_rule(n: int, t: int, stride: int, u: float) -> None:
    index = s.window(n, t, stride, u)
    start = int(index[0])
    expected, pointer = [], start
    for _ in range(t):
        expected.append(pointer)
        if pointer + stride < n:
            pointer += stride
    assert index.tolist() == expected
    assert 0 <= start <= max(0, n - t * stride)


def test_window_reaches_every_start_equally_often() -> None:
    starts = [int(s.window(20, 4, 4, u)[0]) for u in np.arange(1000) / 1000]
    assert np.bincount(starts).tolist() == [200] * 5
    assert s.window(7, 4, 3, 0.9).tolist() == [0, 3, 6, 6], "a short video repeats the frame where the pointer stopped"


@given(st.integers(2, 60), st.floats(2, 20), U)
def test_the_same_seconds_at_any_source_rate(seconds: int, fps: float, u: float) -> None:
    slow, fast = np.arange(seconds * 30) / 30, np.arange(seconds * 60) / 60
    a, b = slow[s.window_seconds(slow, 8, fps, u)], fast[s.window_seconds(fast, 8, fps, u)]
    assert np.abs(a - b).max() <= 1 / 30 + 1e-6
    if 8 / fps < seconds:
        assert np.abs(np.diff(b) - 1 / fps).max() <= 1 / 60 + 1e-6


def test_seconds_on_a_variable_rate_take_what_is_on_screen() -> None:
    times = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 1.2])
    assert s.window_seconds(times, 5, 4.0, 0.0).tolist() == [0, 2, 2, 2, 3]
    assert s.window_seconds(np.array([3.0]), 4, 10, 0.7).tolist() == [0, 0, 0, 0]


@given(st.integers(16, 400), U)
def test_tsn_takes_one_frame_of_each_segment(n: int, u: float) -> None:
    index = s.tsn(n, 16, np.full(16, u))
    edges = np.arange(17) * n / 16
    assert (index >= np.floor(edges[:-1])).all()
    assert (index < np.ceil(edges[1:])).all()


def test_dense_is_the_pages_rule() -> None:
    assert s.dense(64, 16, 4, 0.5).tolist() == np.clip(np.linspace(0, 64, 16), 0, 63).astype(int).tolist()
    assert s.dense(40, 16, 4, 0.5).tolist() == [*np.clip(np.linspace(0, 40, 10), 0, 39).astype(int).tolist(), *[39] * 6]
    assert s.dense(2, 16, 4, 0.5).tolist() == [1] * 16
    long = s.dense(100, 16, 4, 0.5)
    assert long[0] == 18
    assert long.tolist() == np.minimum(np.linspace(18, 82, 16), 81).astype(int).tolist()


def test_kinetics_views() -> None:
    n, kept = 250, np.arange(0, 250, 4)
    views = s.views_dense(n, 16, 4, 5)
    starts = [int(k * max(0, (len(kept) - 16) / 4)) for k in range(5)]
    assert [v.tolist() for v in views] == [kept[a : a + 16].tolist() for a in starts]
    assert s.views_dense(10, 16, 4, 5)[4].tolist() == [0, 4, *[8] * 14]


@given(st.integers(16, 400))
def test_ssv2_views_are_even_and_odd_places_of_the_merged_list(n: int) -> None:
    tick = n / 16
    merged = sorted([int(tick * x) for x in range(16)] + [int(tick / 2 + tick * x) for x in range(16)])
    assert [v.tolist() for v in s.views_tsn(n, 16, 2)] == [merged[0::2], merged[1::2]]


@pytest.mark.parametrize("clips", [1, 2, 5])
def test_window_views_spread_from_start_to_end(clips: int) -> None:
    views = s.views_window(100, 8, 4, clips)
    starts = [int(v[0]) for v in views]
    assert starts == ([34] if clips == 1 else [int(k * 68 / (clips - 1)) for k in range(clips)])
