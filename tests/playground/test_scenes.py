"""Scenes: clips are functions of (seed, index, settings), settings are checked, captions say what is so."""

from __future__ import annotations

import hashlib
import re
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tubelet.playground as pg
from tubelet.errors import ConfigError
from tubelet.playground._captions import GROUND_NOUNS
from tubelet.playground._ground import TONES
from tubelet.playground._motions import BY_NAME
from tubelet.playground._shapes import COLOURS, SHAPES, stamp


@pytest.fixture(scope="module")
def small():
    return pg.build("full", size=48, frames=6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40), scene=st.sampled_from(["easy", "full"]))
def test_a_clip_does_not_depend_on_its_company(seed, index, scene):
    world = pg.build(scene, size=32, frames=4)
    frames, labels = world.render_batch(seed, [index + 3, index, 5])
    clip = world.render(seed, index)
    np.testing.assert_array_equal(frames[1], clip.frames)
    assert labels[1] == clip.label
    assert clip.motion == world.motions[clip.label]


def test_chunks_do_not_show():
    world = pg.build("easy", motions=20)
    frames, labels = world.render_batch(1, range(100))
    for first in (0, 37, 99):
        alone, label = world.render_batch(1, [first])
        np.testing.assert_array_equal(alone[0], frames[first])
        assert label[0] == labels[first]


def test_seeds_and_indices_give_other_clips(small):
    frames, _ = small.render_batch(0, [0, 1])
    assert (frames[0] != frames[1]).any()
    assert (small.render_batch(1, [0])[0] != frames[0]).any()


@pytest.mark.parametrize(("scene", "digest"), [("easy", "b24ab661b73e730a"), ("full", "22bd2361a75aa4bb")])
def test_clips_of_a_seed_stay_what_they_are(scene, digest):
    """Published seeds must keep their meaning on every machine: whoever changes what is drawn raises the folder's format."""
    frames, labels = pg.render_batch(scene, 7, range(12), size=64, frames=6)
    assert hashlib.sha256(frames.tobytes() + labels.tobytes()).hexdigest()[:16] == digest


def test_every_round_holds_every_class_once_and_every_fifth_round_is_for_testing(small):
    n = len(small.motions)
    labels = small.labels(3, range(10 * n)).reshape(10, n)
    assert (np.sort(labels, 1) == np.arange(n)).all()
    assert (labels[0] != labels[1]).any()
    assert {i // n for i in range(10 * n) if small.split(i) == "test"} == {4, 9}


def test_size_of_everything():
    clip = pg.render("full", 0, 1, size="48x64", frames=5, fps=10)
    assert clip.frames.shape == clip.ground.shape == (5, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.masks.shape == (5, 48, 64)
    assert clip.flow.shape == (4, 48, 64, 2)
    assert clip.flow.dtype == np.float32
    assert clip.valid.shape == (4, 48, 64)
    assert clip.audio.shape == (8000,)
    assert clip.tracks.shape == (len(clip.objects), 5, 4)


def test_pixels_are_computed_in_float32():
    one = np.array([10.0])
    for shape in SHAPES.values():
        mark = stamp(shape, x=one, y=one, radius=one / 3, angle=one, height=20, width=20, frame=np.zeros(1, np.int64))
        assert mark.cover.dtype == np.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 33}, "even"),
        ({"size": "12x64"}, "16 to 2048"),
        ({"size": "big"}, "HEIGHTxWIDTH"),
        ({"frames": 1}, "frames"),
        ({"fps": 0}, "fps"),
        ({"motions": "left,rihgt"}, "did you mean 'right'"),
        ({"motions": 21}, "2 to 20"),
        ({"motions": ["left", "left"]}, "each once"),
        ({"sise": 32}, "did you mean 'size'"),
        ({"objects": 4}, "objects"),
    ],
)
def test_wrong_settings_are_explained(given, message):
    with pytest.raises(ConfigError, match=message):
        pg.build("full", **given)


def test_all_mistakes_at_once_and_unknown_scene():
    with pytest.raises(ConfigError) as caught:
        pg.build("easy", size=7, frames=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="easy, full"):
        pg.build("hard")


def test_kinds_are_the_scenes_only():
    assert pg.scene_kinds() == ["easy", "full"]


def test_motions_by_count_and_by_name():
    assert pg.build("easy").motions == tuple(m.name for m in pg.MOTIONS[:8])
    assert pg.build("easy", motions="grow, shrink").motions == ("grow", "shrink")
    assert {pg.render("easy", 0, i, motions=("hop", "grow")).motion for i in range(2)} == {"hop", "grow"}


def test_the_main_object_is_always_the_largest_and_in_front(small):
    many = 0
    for index in range(40):
        clip = small.render(2, index)
        radii = clip.tracks[:, :, 2]
        assert (radii[0] > radii[1:]).all()
        many += len(clip.objects) > 1
        # Nothing covers it: its area does not fall short of that of the same shape drawn alone.
        if clip.objects[0].motion in ("left", "right", "up", "down"):
            area = (clip.masks == 1).sum((1, 2))
            assert area.min() > 0.9 * area.max()
    assert many > 15


def _parse(text: str) -> list[tuple[str, str, str, str, str]]:
    """(size, texture, colour, shape, motion) of every object named, from the text alone."""
    phrases = {phrase: motion.name for motion in pg.MOTIONS for phrase in motion.phrases}
    pattern = (
        rf"\ban? (tiny|small|big|huge) (?:(striped|dotted) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) "
        rf"({'|'.join(sorted(phrases, key=len, reverse=True))})"
    )
    return [(size, texture or "plain", colour, shape, phrases[said]) for size, texture, colour, shape, said in re.findall(pattern, text)]


def test_captions_name_true_facts_main_object_first(small):
    wordings, left_out = set(), 0
    for index in range(150):
        clip = small.render(4, index)
        facts = [(o.size, o.texture, o.colour, o.shape, o.motion) for o in clip.objects]
        named = _parse(clip.caption)
        assert named[0] == facts[0]
        assert clip.objects[0].motion == clip.motion
        assert [fact for fact in facts if fact in named] == named
        left_out += len(facts) - len(named)
        ground = re.search(
            rf"\ba (drifting )?({'|'.join(g.split()[1] for g in GROUND_NOUNS.values())}) ({'|'.join(TONES)}) ground", clip.caption
        )
        moves = bool((clip.flow[clip.masks[:-1] == 0] != 0).any())
        assert (ground is not None and bool(ground[1])) == moves
        wordings.add(re.sub("|".join([*COLOURS, *SHAPES, *TONES]), "_", clip.caption))
    assert left_out < 10
    assert len(wordings) > 75


def test_phrases_tell_the_motions_apart():
    phrases = [(phrase, motion.name) for motion in pg.MOTIONS for phrase in motion.phrases]
    for (a, one), (b, other) in combinations(phrases, 2):
        assert one == other or (a not in b and b not in a)
    assert all(BY_NAME[BY_NAME[m.name].backwards].backwards == m.name for m in pg.MOTIONS)


def test_an_object_hidden_all_the_time_is_not_named():
    """Covered others exist; where one cannot be seen in any frame, the caption is silent about it."""
    world = pg.build("full", size=32, frames=2)
    hidden = 0
    for index in range(600):
        clip = world.render(11, index)
        for number, thing in enumerate(clip.objects, start=1):
            if not (clip.masks == number).any():
                hidden += 1
                assert (thing.size, thing.texture, thing.colour, thing.shape, thing.motion) not in _parse(clip.caption)
    assert hidden > 0


def test_contact_sheet_shows_the_clips(small):
    clips = [small.render(0, i) for i in range(3)]
    sheet = np.asarray(pg.contact_sheet(clips, columns=4, height=48))
    assert sheet.shape[1] == 2 * 24 + 4 * (48 + 8) - 8
    # The first frame of the first clip stands below its caption, pixel for pixel away from the round corners.
    tile = clips[0].frames[0][12:36, 12:36]
    found = [top for top in range(sheet.shape[0] - 48) if (sheet[top + 12 : top + 36, 24 + 12 : 24 + 36] == tile).all()]
    assert len(found) == 1
    with pytest.raises(ValueError, match="at least one clip"):
        pg.contact_sheet([])
