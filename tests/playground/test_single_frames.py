"""Only time tells: every frame has the same law for all classes, while the way from frame to frame shows the class."""

from __future__ import annotations

import numpy as np
import pytest

import tubelet.playground as pg
from tubelet.playground._draw import Dice
from tubelet.playground._motions import BY_NAME

N_TRAIN, N_TEST = 1600, 800


@pytest.fixture(scope="module")
def clips():
    """Frames, labels of all classes in the easy scene: what a classifier would get."""
    scene = pg.build("easy", motions=20, size=16, edges="wrap")
    frames, labels = scene.render_batch(0, range(N_TRAIN + N_TEST))
    return frames, labels


def ridge_accuracy(x: np.ndarray, labels: np.ndarray, train: int) -> float:
    """Test accuracy of a linear classifier (ridge on one-hot labels), fitted on the first ``train`` rows."""
    x = x.reshape(len(x), -1).astype(np.float64)
    x = (x - x[:train].mean(0)) / (x[:train].std(0) + 1e-6)
    classes = np.unique(labels)
    y = (labels[:train, None] == classes) - 1 / len(classes)
    gram = x[:train] @ x[:train].T
    dual = np.linalg.solve(gram + x.shape[1] * 0.3 * np.eye(train), y)
    guess = classes[(x[train:] @ x[:train].T @ dual).argmax(1)]
    return float((guess == labels[train:]).mean())


def at_chance(accuracy: float, classes: int, tests: int) -> bool:
    """Within 4 standard deviations of guessing."""
    p = 1 / classes
    return accuracy < p + 4 * np.sqrt(p * (1 - p) / tests)


@pytest.mark.parametrize("scene", ["easy", "full"])
def test_state_is_uniform_at_every_time_for_every_class(scene):
    """Position on the torus, angle and size phase: histograms of 16 bins by class and frame against the uniform law."""
    world = pg.build(scene, motions=20, size=64, frames=8, **({"edges": "wrap"} if scene == "easy" else {}))
    many = 4000
    for name in world.motions:
        dice = Dice(5, np.arange(many), f"test/{name}/")
        body = world.compose(dice, np.full(many, list(BY_NAME).index(name))).bodies[0]
        state = np.stack([body.x / 64, body.y / 64, body.angle / (2 * np.pi), body.phase])
        bins = np.floor((state - np.floor(state)) * 16).astype(int).clip(0, 15)
        for t in (0, 3, 7):
            for quantity in bins[:, :, t]:
                counts = np.bincount(quantity, minlength=16)
                chi2 = ((counts - many / 16) ** 2).sum() / (many / 16)
                assert chi2 < 50, (name, t)  # 15 degrees of freedom: 50 is met once in 80,000 times; 240 tests are made


@pytest.mark.parametrize("t", [0, 4, 7])
def test_a_linear_classifier_on_one_frame_is_at_chance(clips, t):
    frames, labels = clips
    assert at_chance(ridge_accuracy(frames[:, t], labels, N_TRAIN), 20, N_TEST)


def test_frames_without_their_time_are_at_chance(clips):
    """Frames drawn from anywhere in the clips, several from each."""
    frames, labels = clips
    pick = np.random.default_rng(0).integers(0, 8, len(frames))
    assert at_chance(ridge_accuracy(frames[np.arange(len(frames)), pick], labels, N_TRAIN), 20, N_TEST)


def test_neighbours_in_full_frames_are_at_chance():
    """Nearest neighbours among single frames of the full scene: no linear assumption."""
    world = pg.build("full", size=16, frames=4)
    frames, labels = world.render_batch(1, range(1600))
    x = frames[:, 2].reshape(1600, -1).astype(np.float32)
    x -= x.mean(1, keepdims=True)
    bank, query = x[:1200], x[1200:]
    distance = (bank**2).sum(1) - 2 * query @ bank.T
    assert at_chance(float((labels[:1200][distance.argmin(1)] == labels[1200:]).mean()), 20, 400)


def test_two_frames_tell_what_one_does_not(clips):
    """The controls: the same classifier with the change between frames is far above chance, on pixels too."""
    frames, labels = clips
    rows = np.isin(labels, [12, 13])  # grow, shrink
    x = frames[rows].astype(np.float32)
    brightness = np.abs(x - np.median(x, axis=(2, 3), keepdims=True)).mean((2, 3, 4))
    train = int(rows.sum() * 2 / 3)
    assert at_chance(ridge_accuracy(brightness[:, :1], labels[rows], train), 2, rows.sum() - train)
    assert ridge_accuracy(np.diff(brightness, axis=1) > 0, labels[rows], train) > 0.85


def torus_steps(masks: np.ndarray) -> np.ndarray:
    """(T-1, 2) displacement of a mask's centroid on the torus, in pixels, right and down."""
    size = masks.shape[1]
    wave = np.exp(2j * np.pi * np.arange(size) / size)
    angles = np.stack([np.angle((masks.sum(1) * wave).sum(1)), np.angle((masks.sum(2) * wave).sum(1))], 1)
    return (np.diff(angles, axis=0) + np.pi) % (2 * np.pi) * size / (2 * np.pi) - size / 2


@pytest.mark.parametrize("edges", ["stay", "wrap"])
def test_centroid_displacement_tells_the_directions(edges):
    world = pg.build("easy", edges=edges)
    compass = np.array([[-1, 0], [1, 0], [0, -1], [0, 1], [-1, -1], [1, 1], [1, -1], [-1, 1]], float)
    compass /= np.linalg.norm(compass, axis=1, keepdims=True)
    clips = [world.render(9, i) for i in range(160)]
    guess = [int((compass @ torus_steps(clip.masks == 1).sum(0)).argmax()) for clip in clips]
    assert np.mean([g == clip.label for g, clip in zip(guess, clips, strict=True)]) > 0.97


def test_sense_of_turning_tells_circles():
    world = pg.build("full", motions="circle_clockwise,circle_anticlockwise", objects=1, size=64, frames=24)
    for index in range(20):
        clip = world.render(1, index)
        step = torus_steps(clip.masks == 1)
        sense = (step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0]).sum()
        assert (sense > 0) == (clip.motion == "circle_clockwise")


@pytest.mark.parametrize("edges", ["stay", "wrap"])
@pytest.mark.parametrize("name", ["left", "up_left", "circle_clockwise", "spin_clockwise", "grow", "speed_up"])
def test_a_class_and_its_reverse_differ_in_the_order_of_frames_only(name, edges):
    """Mean, least and greatest of the frames do not know their order: at chance between a class and its reverse."""
    world = pg.build("easy", motions=(name, BY_NAME[name].backwards), size=16, edges=edges)
    frames, labels = world.render_batch(2, range(900))
    x = np.concatenate([frames.mean(1), frames.min(1), frames.max(1)], -1)
    assert at_chance(ridge_accuracy(x, labels, 600), 2, 300)


def test_order_free_statistics_do_tell_classes_that_are_no_pair():
    """The control of the test above: the same statistic separates left from up."""
    world = pg.build("easy", motions="left,up", size=16)
    frames, labels = world.render_batch(2, range(900))
    spread = [frames.astype(np.float32).mean(axis).std(1).mean((1, 2)) for axis in (2, 3)]
    assert ridge_accuracy(np.stack(spread, 1), labels, 600) > 0.8


def test_objects_that_stay_are_whole_in_every_frame():
    """Of all classes: the painted area never touches the frame's sides, and no centre crosses them."""
    world = pg.build("easy", motions=20)
    for index in range(200):
        clip = world.render(4, index)
        sides = [clip.masks[:, 0], clip.masks[:, -1], clip.masks[:, :, 0], clip.masks[:, :, -1]]
        assert clip.masks.any((1, 2)).all(), index
        assert not any(side.any() for side in sides), (index, clip.motion)
        assert "cross" not in [event.kind for event in clip.events]


def test_one_frame_of_objects_that_stay_says_a_little():
    """The price of staying: the first frame is above chance (1/8), and far below the eight frames' centroids (above .97)."""
    frames, labels = pg.build("easy").render_batch(0, range(N_TRAIN + N_TEST))
    grey = np.abs(frames[:, 0].astype(np.float32) - np.median(frames[:, 0], axis=(1, 2), keepdims=True)).mean(-1)
    where = np.stack([grey.mean(1), grey.mean(2)], 1)
    accuracy = ridge_accuracy(where, labels, N_TRAIN)
    assert not at_chance(accuracy, 8, N_TEST)
    assert accuracy < 0.45
