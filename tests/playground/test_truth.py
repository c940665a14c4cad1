"""Masks, flow and events against the pixels; every check is also shown to fail on a wrong truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tubelet.playground as pg
from tubelet.errors import DataError
from tubelet.playground._motions import BY_NAME
from tubelet.playground._sound import EVENTS
from tubelet.playground.verify import warp_back


@pytest.mark.parametrize("motion", list(BY_NAME))
@pytest.mark.parametrize(("scene", "size", "frames"), [("easy", 32, 8), ("full", 64, 16)])
def test_truth_agrees_with_the_pixels(scene, size, frames, motion):
    world = pg.build(scene, size=size, frames=frames, motions=(motion,))
    for index in range(3):
        report = pg.verify_clip(world.render(1, index))
        assert report.problems() == []
        assert report.mask_iou > 0.95
        assert report.flow_mean < 1
        assert report.flow_tail < 12


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**30), index=st.integers(0, 2**30))
def test_truth_agrees_at_any_seed_on_frames_that_are_not_square(seed, index):
    assert pg.verify_clip(pg.render("full", seed, index, size="64x96", frames=12)).problems() == []


def test_truth_agrees_at_the_default_size():
    report = pg.verify_clip(pg.render("full", 0, 3))
    assert report.problems() == []
    assert report.mask_iou > 0.98
    assert report.valid > 0.85


@pytest.fixture(scope="module")
def moving():
    """A clip whose objects and ground all move."""
    world = pg.build("full", size=64, frames=16, motions=("left", "down_right"), drift=1.0)
    return next(clip for clip in (world.render(0, i) for i in range(50)) if len(clip.objects) == 3 and (clip.masks == 2).any())


def test_a_wrong_flow_is_noticed(moving):
    for wrong in (np.zeros_like(moving.flow), -moving.flow, moving.flow[..., ::-1].copy(), moving.flow + np.float32(0.7)):
        assert pg.verify_clip(replace(moving, flow=wrong)).problems()
    objects_still = np.where((moving.masks[:-1] > 0)[..., None], np.float32(0), moving.flow)
    assert pg.verify_clip(replace(moving, flow=objects_still)).problems()


@pytest.mark.parametrize("motion", [m for m in BY_NAME if m != "stop_and_go"])
def test_no_flow_a_quarter_off_explains_the_objects_as_well(motion):
    """Finer than the bounds of the check, which only find gross errors on such smooth surfaces."""
    world = pg.build("full", size=96, frames=6, motions=(motion,), objects=1, drift=0.0)
    for index in range(2):
        clip = world.render(0, index)

        def error(scale: float, clip=clip) -> float:
            found = np.abs(warp_back(clip.frames[1:], clip.flow * np.float32(scale)) - clip.frames[:-1])
            return float(found[clip.valid & (clip.masks[:-1] > 0)].mean())

        assert error(1.0) < 0.8 * min(error(0.75), error(1.25))


def test_a_wrong_mask_is_noticed(moving):
    assert pg.verify_clip(replace(moving, masks=np.roll(moving.masks, 1, axis=2))).mask_iou < 0.95
    assert pg.verify_clip(replace(moving, masks=np.where(moving.masks == 1, 0, moving.masks).astype(np.uint8))).mask_iou < 0.5
    with pytest.raises(DataError, match="masks agree"):
        pg.verify_clip(replace(moving, masks=np.zeros_like(moving.masks))).require("here")


def test_pixels_called_invalid_are_those_that_flow_cannot_explain(moving):
    """Where something is covered or uncovered the warped frame is far off: the mask of validity is needed, and it covers that."""
    error = np.abs(warp_back(moving.frames[1:], moving.flow) - moving.frames[:-1]).max(-1)
    assert error[~moving.valid].mean() > 5 * error[moving.valid].mean()
    assert 0.02 < 1 - moving.valid.mean() < 0.3


def test_warping_by_whole_pixels_reads_the_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    flow = np.zeros((1, 6, 8, 2), np.float32)
    flow[..., 0], flow[..., 1] = 2, 1
    np.testing.assert_array_equal(warp_back(frames, flow)[0, :-1, :-2], frames[0, 1:, 2:])


def test_main_flow_is_the_motion():
    for motion, sign in (("left", (-1, 0)), ("down", (0, 1)), ("up_right", (1, -1))):
        clip = pg.render("easy", 0, 0, motions=(motion,))
        mean = clip.flow[(clip.masks[:-1] == 1)].mean(0)
        np.testing.assert_array_equal(np.sign(np.round(mean, 3)), sign)


def test_events_are_where_the_tracks_say():
    """Bounces are where the way turns, stops where it ends, pops where the radius jumps, crossings where the centre passes the side."""
    seen = set()
    world = pg.build("full", size=64, frames=48, motions=("side_to_side", "stop_and_go", "grow", "left"), objects=1)
    for index in range(24):
        clip = world.render(6, index)
        x, y, radius, _ = clip.tracks[0].T.astype(float)
        speed = np.hypot(np.diff(x), np.diff(y))
        for event in clip.events:
            at = event.second * clip.fps
            seen.add(event.kind)
            t = int(at)
            if event.kind == "bounce" and 1 <= t < 46:
                assert np.sign(x[t] - x[t - 1]) == -np.sign(x[t + 2] - x[t + 1])
            elif event.kind == "stop" and t + 2 < 48:
                assert speed[t + 1] < 1e-3 < speed[t - 1]
            elif event.kind == "start" and t >= 1 and t + 2 < 48:
                assert speed[t - 1] < 1e-3 < speed[t + 1]
            elif event.kind == "pop":
                assert radius[t + 1] < 0.8 * radius[t]
            elif event.kind == "cross":
                way = x if np.floor((x[t] + 0.5) / 64) != np.floor((x[t + 1] + 0.5) / 64) else y
                assert np.floor((way[t] + 0.5) / 64) != np.floor((way[t + 1] + 0.5) / 64)
        jumps = np.flatnonzero(np.abs(np.diff(np.log(radius))) > 0.3)
        assert [int(e.second * clip.fps) for e in clip.events if e.kind == "pop"] == jumps.tolist()
        turns = np.flatnonzero(np.diff(np.sign(np.round(np.diff(x), 6))) != 0) if clip.motion == "side_to_side" else []
        bounces = [e for e in clip.events if e.kind == "bounce" and 1 <= e.second * clip.fps < 46]
        assert len(bounces) <= len(turns) + 1 or clip.motion != "side_to_side"
    assert seen == set(EVENTS)
