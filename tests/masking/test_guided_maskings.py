"""Guided maskings: exact counts whatever the guide says, what is hidden follows it, and what happens where it has nothing to say."""

from __future__ import annotations

import pytest
import torch
from guided import Says, mask_by
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.core import TokenGrid
from tubelet.errors import ConfigError
from tubelet.masking import mgm, mgmae, tgm
from tubelet.masking._boxes import best_window, box_size, distance
from tubelet.masking._select import pick

GRID = TokenGrid(("t", "h", "w"), (4, 6, 8), (2, 8, 8))
N = 6 * 8


def moving_square(step: tuple[int, int] = (0, 8), *, patch: int = 8, size: int = 16) -> tuple[Tensor, Tensor]:
    """Flow (1, 2, T, H, W) from the frame before, and where the square is (T, H, W)."""
    t, h, w = GRID.size
    flow, where = torch.zeros(1, 2, t, h, w), torch.zeros(t, h, w, dtype=torch.bool)
    for i in range(t):
        y, x = 8 + i * step[0], i * step[1] // 2
        where[i, y : y + size, x : x + size] = True
        flow[0, 0, i][where[i]], flow[0, 1, i][where[i]] = step[1] / 2, float(step[0])
    return flow, where


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**30))
def test_the_kernel_picks_exactly_as_many_and_ties_go_to_the_first(rows: int, n: int, count: int, seed: int) -> None:
    count = min(count, n)
    scores = torch.randint(0, 3, (rows, n), generator=torch.Generator().manual_seed(seed)).float()
    for select, sign in (("top", -1), ("bottom", 1)):
        chosen = pick(scores, count, select)
        assert (chosen.sum(1) == count).all()
        for row, which in zip(scores.tolist(), chosen.tolist(), strict=True):
            wanted = sorted(range(n), key=lambda i: (sign * row[i], i))[:count]
            assert sorted(wanted) == [i for i in range(n) if which[i]]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 5), st.integers(0, 7))
def test_distances_order_places_from_the_middle_of_the_box_to_far_away(height: int, width: int, top: int, left: int) -> None:
    top, left = min(top, 6 - height), min(left, 8 - width)
    far = distance(torch.tensor(top), torch.tensor(left), (height, width), 6, 8).view(6, 8)
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert torch.equal(far <= 0, inside)
    for count in (height * width, max(1, height * width - 1), min(48, height * width + 3)):
        chosen = pick(far.flatten(), count, "bottom").view(6, 8)
        assert int(chosen.sum()) == count
        assert bool((chosen <= inside).all()) if count <= height * width else bool((inside <= chosen).all())


def test_windows_are_those_of_exhaustive_search() -> None:
    weight = torch.rand(5, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    top, left = best_window(weight, (3, 5))
    for i in range(5):
        for s in range(4):
            sums = {(y, x): weight[i, s, y : y + 3, x : x + 5].sum().item() for y in range(4) for x in range(4)}
            assert (int(top[i, s]), int(left[i, s])) == max(sums, key=lambda k: sums[k])


def test_of_equal_windows_the_one_around_the_centre_of_mass() -> None:
    weight = torch.zeros(6, 8)
    weight[2, 3] = 1  # many windows hold it; the one centred on it wins
    assert tuple(int(v) for v in best_window(weight, (3, 3))) == (1, 2)
    assert tuple(int(v) for v in best_window(torch.ones(6, 8), (2, 2))) == (2, 3)


@pytest.mark.parametrize("mode", ["window", "track", "topk"])
def test_motion_guided_masks_hide_what_moves(mode: mgm.Mode) -> None:
    flow, where = moving_square()
    mask = mask_by(mgm.MotionGuided(guide=Says(flow, "flow"), ratio=0.5, mode=mode), GRID, 1).validate()
    hidden = mask.hidden()[0].repeat_interleave(2, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert (hidden & where).sum() / where.sum() > 0.9
    assert float(mask.log["guided"]) == 1
    assert len(set(mask.hidden().sum((2, 3)).flatten().tolist())) == 1


def test_a_tracked_box_goes_along() -> None:
    flow, _ = moving_square((0, 16), size=8)
    hidden = mask_by(mgm.MotionGuided(guide=Says(flow, "flow"), ratio=0.04, mode="track"), GRID, 1).hidden()[0]
    columns = hidden.float().sum(1).argmax(1).tolist()
    assert columns == sorted(columns)
    assert columns == [0, 2, 4, 6]


@pytest.mark.parametrize("frames", [8, 7])
def test_a_single_jump_moves_a_tracked_box_in_the_slot_where_it_happens(frames: int) -> None:
    """Into frame 4, the first of slot 2: told at frame 4 by a field of all frames, at pair 3 by one of pairs."""
    flow = torch.zeros(1, 2, frames, 48, 64)
    flow[0, 0, 4 if frames == 8 else 3] = 32.0
    start = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    _, left = mgm._tracked(flow, start, (2, 2), GRID)
    assert (left[0, 1:] - left[0, :-1]).gt(0).tolist() == [False, True, False]


@pytest.mark.parametrize("shift", [-10.0, 0.0, 1e-6, 10.0])
def test_score_maps_of_any_sign_and_scale_place_the_box(shift: float) -> None:
    scores = torch.zeros(1, 1, 4, 6, 8)
    scores[..., 3:, 5:] = 5e-4
    mask = mask_by(mgm.MotionGuided(guide=Says(scores + shift), ratio=0.2), GRID, 1)
    assert float(mask.log["guided"]) == 1
    assert mask.hidden()[..., 3:, 5:].float().mean() > 0.8 or shift in (-10.0, 10.0)  # there single precision is at its end
    flat = mask_by(mgm.MotionGuided(guide=Says(torch.full((1, 1, 4, 6, 8), shift)), ratio=0.2), GRID, 1)
    assert float(flat.log["guided"]) == 0


def test_boxes_fill_up_to_the_count_of_other_maskings() -> None:
    flow, _ = moving_square()
    assert box_size(0.75, 14, 14) == (12, 12)
    for ratio, more in ((0.75, 4), (0.7, -8)):  # a box of 5 x 7 of 36 and of 33 places
        plain = mask_by(mgm.MotionGuided(guide=Says(flow, "flow"), ratio=ratio), GRID, 1)
        filled = mask_by(mgm.MotionGuided(guide=Says(flow, "flow"), ratio=ratio, fill=True), GRID, 1)
        assert filled.target.shape[1] == 4 * int(ratio * N) == plain.target.shape[1] + more
        smaller, larger = sorted((plain.hidden(), filled.hidden()), key=lambda hidden: int(hidden.sum()))
        assert bool((smaller <= larger).all())


@pytest.mark.parametrize("what", ["static", "nan", "not ok"])
def test_without_motion_a_box_stands_at_random_and_is_counted(what: str) -> None:
    data = torch.zeros(200, 2, 8, 48, 64)
    if what == "nan":
        data[:] = torch.nan
    ok = torch.zeros(200, dtype=torch.bool) if what == "not ok" else None
    if what == "not ok":
        data[:, :, :, :8] = 3.0
    for mode in ("window", "track", "topk"):
        mask = mask_by(mgm.MotionGuided(guide=Says(data, "flow", ok), ratio=0.3, mode=mode), GRID, 200).validate()
        assert float(mask.log["guided"]) == 0
        hidden = mask.hidden()
        if mode != "topk":
            assert (hidden == hidden[:, :1]).all(), "it stands still"
        assert hidden.flatten(1).unique(dim=0).shape[0] > 10, "clips differ"
        again = mask_by(mgm.MotionGuided(guide=Says(data, "flow", ok), ratio=0.3, mode=mode), GRID, 200, index=9)
        assert torch.equal(hidden, again.hidden())


@pytest.mark.parametrize("mode", ["window", "topk"])
def test_a_box_waits_where_the_next_motion_is_or_the_last_was(mode: mgm.Mode) -> None:
    flow, _ = moving_square()
    flow[:, :, 2:4] = flow[:, :, 6:] = 0  # slots 1 and 3
    mask = mask_by(mgm.MotionGuided(guide=Says(flow, "flow"), ratio=0.3, mode=mode), GRID, 1)
    hidden = mask.hidden()[0]
    assert float(mask.log["guided"]) == 1
    assert torch.equal(hidden[1], hidden[2])
    assert torch.equal(hidden[3], hidden[2])
    assert not torch.equal(hidden[0], hidden[2])


def test_simulated_boxes_need_no_guide_and_stay_inside() -> None:
    masker = mgm.Config(mode="simulated", ratio=0.3).build()
    assert masker.needs == frozenset()
    hidden = mask_by(masker, GRID, 100).hidden()
    assert len(set(hidden.sum((2, 3)).flatten().tolist())) == 1
    assert (hidden != hidden[:, :1]).flatten(1).any(1).float().mean() > 0.5, "most boxes move"


def test_a_box_of_the_whole_slot_is_refused() -> None:
    flow, _ = moving_square()
    with pytest.raises(ConfigError, match="all 6 x 8 places"):
        mask_by(mgm.MotionGuided(guide=Says(flow, "flow"), ratio=0.999), GRID, 1)


@pytest.mark.parametrize("select", ["top", "bottom", "random"])
@pytest.mark.parametrize("frames", [1, 4, 8, 7])
def test_text_guided_masks_hide_the_best_the_worst_or_any(select: tgm.Select, frames: int) -> None:
    scores = torch.rand(3, 1, frames, 6, 8, generator=torch.Generator().manual_seed(frames))
    mask = mask_by(tgm.TextGuided(guide=Says(scores), ratio=0.6, select=select), GRID, 3).validate()
    hidden = mask.hidden()
    assert (hidden.sum((2, 3)) == int(0.6 * N)).all()
    if frames == 4 and select != "random":
        flat, chosen = scores[:, 0].flatten(2), hidden.flatten(2)
        inside, outside = flat[chosen].view(3, 4, -1), flat[~chosen].view(3, 4, -1)
        assert (inside.amin(2) >= outside.amax(2)).all() if select == "top" else (inside.amax(2) <= outside.amin(2)).all()


def test_constant_scores_hide_the_first_places_and_nan_or_no_caption_any() -> None:
    constant = mask_by(tgm.TextGuided(guide=Says(torch.ones(2, 1, 4, 6, 8)), ratio=0.5), GRID, 2).hidden().flatten(2)
    assert constant[..., : N // 2].all()
    scores = torch.ones(100, 1, 4, 6, 8)
    scores[50:, 0, 0, 0, 0] = torch.nan
    ok = torch.arange(100) >= 25
    mask = mask_by(tgm.TextGuided(guide=Says(scores, ok=ok), ratio=0.5), GRID, 100).validate()
    first = mask.hidden().flatten(2)[..., : N // 2].all(2).all(1)
    assert first.tolist() == [25 <= i < 50 for i in range(100)]
    assert float(mask.log["guided"]) == 0.75


def test_ratios_that_hide_nothing_or_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="hides none of the 48 places per slot"):
        mask_by(tgm.TextGuided(guide=Says(torch.rand(1, 1, 4, 6, 8)), ratio=0.001), GRID, 1)
    with pytest.raises(ConfigError, match="hides all of the 48 places per slot"):
        mask_by(mgmae.FlowGuided(guide=Says(even(0, 0), "flow"), settings=mgmae.Config(ratio=0.999)), GRID, 2)


def test_maps_of_another_number_of_frames_are_refused() -> None:
    with pytest.raises(ConfigError, match="maps have 3 frames; this clip has 8 in 4 slots"):
        mask_by(tgm.TextGuided(guide=Says(torch.rand(1, 1, 3, 6, 8)), ratio=0.5), GRID, 1)


def even(dx: float, dy: float, n: int = 2) -> Tensor:
    """A flow that moves everything, both ways."""
    t, h, w = GRID.size
    flow = torch.zeros(n, 4, t - 1, h, w)
    flow[:, 0], flow[:, 1], flow[:, 2], flow[:, 3] = dx, dy, -dx, -dy
    return flow


@pytest.mark.parametrize("start", ["gauss", "pixel", "token"])
@pytest.mark.parametrize("warp", ["backward", "forward"])
def test_without_motion_the_warped_map_is_a_tube(start: str, warp: str) -> None:
    settings = mgmae.Config.model_validate({"ratio": 0.75, "start": start, "warp": warp})
    mask = mask_by(mgmae.FlowGuided(guide=Says(even(0, 0), "flow"), settings=settings), GRID, 2).validate()
    hidden = mask.hidden()
    assert (hidden == hidden[:, :1]).all()
    assert hidden.sum((2, 3)).unique().tolist() == [N - int(N * (1 - 0.75))]
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize("warp", ["backward", "forward"])
def test_visible_places_move_with_an_even_flow(warp: str) -> None:
    settings = mgmae.Config.model_validate({"ratio": 0.75, "warp": warp, "start": "token"})
    hidden = mask_by(mgmae.FlowGuided(guide=Says(even(4, 0, 50), "flow"), settings=settings), GRID, 50).hidden()
    base = 2  # the slot of frame 4
    for slot, shift in ((3, 1), (1, -1)):  # two frames of four pixels: one patch a slot
        before, after = ~hidden[:, base], ~hidden[:, slot]
        moved = torch.roll(before, shift, 2)
        inside = moved[..., 1:-1]
        assert (inside & after[..., 1:-1]).sum() / inside.sum() > 0.85


def test_the_released_variant_goes_the_wrong_way_before_the_base_frame_only() -> None:
    makes = [mgmae.Config.model_validate({"ratio": 0.75, "variant": v, "start": "token"}) for v in ("consistent", "released")]
    right, wrong = (mask_by(mgmae.FlowGuided(guide=Says(even(4, 0), "flow"), settings=s), GRID, 2).hidden() for s in makes)
    assert torch.equal(right[:, 2:], wrong[:, 2:])
    assert not torch.equal(right[:, 0], wrong[:, 0])


def test_vectors_of_the_frame_before_serve_as_flow_both_ways() -> None:
    t, h, w = GRID.size
    vectors = torch.zeros(1, 2, t, h // 4, w // 4)
    vectors[:, 0] = 4.0
    ahead, back = mgmae.both_ways(Says(vectors, "flow").field, t, (h, w))
    assert ahead.shape == back.shape == (1, t - 1, 2, h, w)
    assert torch.equal(ahead, -back)
    assert float(ahead[:, :, 0].mean()) == 4


def test_flow_that_is_no_number_leaves_a_tube_and_is_counted() -> None:
    flow = even(4, 0, 4)
    flow[2:, 0, 0, 0, 0] = torch.inf
    mask = mask_by(mgmae.FlowGuided(guide=Says(flow, "flow"), settings=mgmae.Config(ratio=0.75)), GRID, 4)
    hidden = mask.hidden()
    assert (hidden[2:] == hidden[2:, :1]).all()
    assert not (hidden[:2] == hidden[:2, :1]).all()
    assert float(mask.log["guided"]) == 0.5


def test_options_of_the_warped_map() -> None:
    guide = Says(even(4, 0, 40), "flow")

    def hidden(**settings: object) -> Tensor:
        return mask_by(mgmae.FlowGuided(guide=guide, settings=mgmae.Config.model_validate({"ratio": 0.75, **settings})), GRID, 40).hidden()

    plain = hidden()
    across = hidden(across=True)
    assert across.flatten(1).sum(1).unique().tolist() == [4 * (N - 12)]
    assert across.sum((2, 3)).unique().numel() > 1
    exposed = hidden(exposure=1.0)
    changed = (exposed != plain).flatten(2).any(2).sum(1)
    assert ((changed == 1) | (changed == 0)).all()
    assert changed.sum() > 0
    assert not torch.equal(hidden(base="first"), plain)
    assert not torch.equal(hidden(base="random"), hidden(base="first"))
    assert not torch.equal(hidden(holes="none"), plain)


def test_a_single_slot_of_one_frame_needs_no_flow() -> None:
    grid = TokenGrid(("t", "h", "w"), (1, 6, 8), (1, 8, 8))
    mask = mask_by(mgmae.FlowGuided(guide=Says(torch.zeros(0)), settings=mgmae.Config(ratio=0.75)), grid, 2).validate()
    assert mask.target.shape[1] == N - 12


def test_scores_and_labels_are_no_flow() -> None:
    with pytest.raises(ConfigError, match="follows a flow"):
        mask_by(mgmae.FlowGuided(guide=Says(torch.rand(1, 1, 4, 6, 8)), settings=mgmae.Config()), GRID, 1)
    with pytest.raises(ConfigError, match="follows scores or motion"):
        mask_by(tgm.TextGuided(guide=Says(torch.zeros(1, 1, 4, 6, 8), "label"), ratio=0.5), GRID, 1)
    with pytest.raises(ConfigError, match="track follows displacements"):
        mask_by(mgm.MotionGuided(guide=Says(torch.rand(1, 1, 4, 6, 8)), ratio=0.5, mode="track"), GRID, 1)
