"""Panels side by side hold the pixels and the words that they claim to hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tubelet.core import Mask, TokenGrid
from tubelet.methods.videomae import Reconstruction
from tubelet.objectives.pixels import PixelTarget
from tubelet.viz import _text as text
from tubelet.viz.board import Board
from tubelet.viz.maskings import ShownMask, mask_figure, mask_frames
from tubelet.viz.pictures import CAPTIONS
from tubelet.viz.vision import Vision, movie, rounds

GRID = TokenGrid.of((4, 16, 24), (2, 8, 8))
ONE = torch.ones(3)
LINE = text.height(13) + 3


def clip(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (1, 3, 4, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tube() -> Mask:
    return Mask.of_hidden(GRID, torch.tensor([[True, False, True, True, False, True] * 2]))


def vision(seed: int = 0, **more) -> Vision:
    video, target = clip(seed), more.pop("target", PixelTarget(normalise="none"))
    answer = Reconstruction(tube(), target.rows(video, GRID, tube().target), target)
    time = torch.tensor([[1.0, 1.5, 2.0, 2.5]])
    return Vision(f"clip{seed}.mp4", video, time, answer, more.pop("statistics", "visible"), 0 * ONE, ONE, **more)


def panels_of(frame: Image.Image, count: int, size: tuple[int, int], top: int) -> list[np.ndarray]:
    array = np.asarray(frame)
    return [array[top : top + size[1], 10 + k * (size[0] + 6) : 10 + k * (size[0] + 6) + size[0]] for k in range(count)]


@pytest.mark.parametrize("panel", [(30, 20), (31, 21), (50, 7)])
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_board_keeps_its_panels_apart_and_has_even_sides(panel: tuple[int, int], columns: int):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    board = Board(["a", "b\nc", ""], panel=panel, columns=columns, caption="some words " * 5, titled=True)
    made = board.draw([Image.new("RGB", panel, c) for c in colours], ["title"] * (3 if columns == 1 else 2 if columns == 2 else 1))
    assert made.size == board.size
    assert not made.width % 2
    assert not made.height % 2
    counts = {c: n for n, c in made.getcolors(100_000) or []}
    assert [counts[c] for c in colours] == [panel[0] * panel[1]] * 3


def test_a_movie_shows_input_what_is_seen_and_what_is_imagined():
    one = vision()
    frames = list(movie([[one]]))
    assert [seconds for _, seconds in frames] == [0.5] * 4
    factor = 192 // 16
    size, top = (24 * factor, 16 * factor), 10 + 2 * LINE
    found = [panels_of(frame, 3, size, top) for frame, _ in frames]
    for t, (given, seen, made) in enumerate(found):
        truth = one.video[0, :, t].permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
        assert np.array_equal(given, truth)
        assert np.array_equal(made, truth)  # the answer was right
        assert (seen[: 8 * factor, : 8 * factor] == round(0.78 * 255)).all()
        assert np.array_equal(seen[: 8 * factor, 8 * factor : 16 * factor], truth[: 8 * factor, 8 * factor : 16 * factor])
    assert not np.array_equal(found[0][0], found[1][0])


def test_clips_of_a_group_play_at_once_and_groups_after_each_other():
    both = [frame for frame, _ in movie([[vision(0), vision(1)]])]
    one = [frame for frame, _ in movie([[vision(0)], [vision(1, fresh=3)]])]
    assert (len(both), len(one)) == (4, 4 + 1)
    assert both[0].height > one[0].height + 190
    assert len({frame.size for frame in one}) == 1
    assert not np.array_equal(np.asarray(one[0])[:25], np.asarray(one[1])[:25])  # the clock runs


def test_the_strip_says_whose_statistics():
    words = {kind: vision(target=PixelTarget(), statistics=kind).words for kind in ("visible", "own")}
    assert all(words[kind].endswith(CAPTIONS[kind]) for kind in words)
    assert vision(statistics="own").words.endswith(CAPTIONS["none"])
    assert "67 % of the tubelets are hidden" in words["own"]
    frames = [np.asarray(next(movie([[vision(target=PixelTarget(), statistics=kind)]]))[0]) for kind in ("visible", "own")]
    assert frames[0].shape != frames[1].shape or not np.array_equal(frames[0][-40:], frames[1][-40:])


def test_the_clock_of_targets_with_fewer_frames():
    one = vision(target=PixelTarget(normalise="none", frames="centre"))
    assert one.seconds.tolist() == [1.5, 2.5]
    assert one.gap == 1.0
    assert [s for _, s in movie([[one]])] == [1.0, 1.0]


def test_the_picture_has_the_masked_error():
    assert "better than trivial: 0.00" in vision().error.verdict()
    with_note = vision().figure(4)
    assert with_note.height > 100


@pytest.mark.parametrize(("seconds", "times"), [(0.5, 6), (1.0, 3), (2.9, 2), (3.0, 1), (100.0, 1)])
def test_short_clips_play_again(seconds: float, times: int):
    assert rounds(seconds, 3.0) == times


def test_masks_say_exact_counts():
    one = ShownMask("tube", {"kind": "tube", "ratio": 0.7}, tube())
    assert (one.n, one.hidden, one.visible, one.asked) == (12, 8, 4, 8)
    assert one.lines() == ["tube", "ratio 0.7", "4 of 12 visible"]
    assert str(one) == "tube: ratio 0.7, 4 of 12 visible (33.3 %)"
    valid = torch.tensor([[True, True, True, False]])
    fewer = Mask(GRID, tube().visible, tube().target[:, :5], visible_valid=valid)
    assert ShownMask("mine", {}, fewer).lines() == ["mine", "3 of 12 visible", "5 asked for"]


def test_masks_side_by_side_hide_what_they_say():
    half = Mask.of_hidden(GRID, (torch.arange(12) >= 6)[None])
    shown = [ShownMask("tube", {}, tube()), ShownMask("frame", {}, half)]
    frames = list(mask_frames(clip(), shown, seconds=0.2))
    assert [s for _, s in frames] == [0.2] * 4
    factor = 192 // 16
    early, late = (panels_of(frames[t][0], 3, (24 * factor, 16 * factor), 10 + 2 * LINE) for t in (1, 2))
    assert np.array_equal(early[2], early[0])
    assert (late[2] == round(0.78 * 255)).all()
    grey = (early[1] == round(0.78 * 255)).all(-1).mean()
    assert grey == pytest.approx(8 / 12, abs=0.01)
    table = mask_figure(clip(), torch.arange(4.0)[None] / 5, shown, frames=2, cell=32)
    share = (np.asarray(table) == round(0.78 * 255)).all(-1).sum() / (2 * 32 * 48)
    assert share == pytest.approx(8 / 12 + 1 / 2, abs=0.02)
