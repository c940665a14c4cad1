"""It learns: after pre-training on unlabelled clips a linear probe knows the motion better than from random weights."""

from __future__ import annotations

import pytest
import torch
from easy import features, model, pretrain, probe

from tubelet.core import Batch, CounterDraw, Step, Stream


def margin(seed: int, steps: int) -> tuple[float, dict[str, float], dict[str, float]]:
    net = model(seed)
    before = probe(net)
    rows = pretrain(net, seed, steps)
    after = probe(net)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    return after["slots"] - before["slots"], before, after


def test_a_probe_per_time_slot_beats_random_weights_after_1500_steps():
    """The promise of DESIGN: at least .04 above the random-weight probe, on 1,600 test clips, one seed."""
    gain, before, after = margin(0, 1500)
    assert gain >= 0.04, (before, after)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_five_seeds(seed):
    gain, before, after = margin(seed, 1500)
    assert gain >= 0.04, (before, after)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_longer_run_learns_more():
    _, _, short = margin(0, 1500)
    gain, _, long = margin(0, 3000)
    assert gain >= 0.1
    assert long["slots"] > short["slots"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hidden_pixels_are_predicted_from_what_is_seen():
    """The error beats answering the visible pixels' mean, and gets worse when the visible cubes come from other clips."""
    net = model(0)
    pretrain(net, 0, 1500)
    net.eval()
    frames = _probe_frames()
    sample = torch.arange(len(frames))
    batch, at = Batch({"video": Stream(frames)}, {}, sample), Step(0, 0, 0.0, 1.0, CounterDraw(5, sample))
    with torch.no_grad():
        mask = net.mask(batch, at)
        target = net.target.rows(frames, mask.grid, mask.target, net.encoder.pixels.mean, net.encoder.pixels.std)
        error = (net.predict(frames, mask, at) - target).square().mean()
        wrong = (net.predict(frames.roll(1, 0), mask, at) - target).square().mean()
        rows = net.target.rows(frames, mask.grid, mask.visible, net.encoder.pixels.mean, net.encoder.pixels.std)
        mean = (rows.mean(1, keepdim=True) - target).square().mean()
    assert error < 0.8 * mean
    assert wrong > 2 * error


def _probe_frames():
    from easy import PROBE, TRAIN, clips

    return clips(TRAIN, PROBE)[0][:200]


def test_features_are_a_function_of_the_clip_alone():
    """Each clip's features do not depend on its neighbours in the batch."""
    net = model(0)
    a, b = features(net, 0, 8), features(net, 4, 4)
    assert abs(a["slots"][4:] - b["slots"]).max() < 1e-5
