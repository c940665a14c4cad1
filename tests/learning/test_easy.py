"""It learns: after pre-training on unlabelled clips a linear probe knows the motion better than from random weights."""

from __future__ import annotations

import pytest
import torch
from easy import PROBE, TRAIN, clips, features, model, pretrain, probe

from tubelet.core import Batch, CounterDraw, Step, Stream
from tubelet.methods.videomae import VideoMAE

STEPS = 1500


def gain(seed: int, steps: int) -> tuple[float, dict[str, float]]:
    """What training adds to the probe per time slot, and both probes of the trained net."""
    net = model(seed)
    before = probe(net)
    pretrain(net, seed, steps)
    after = probe(net)
    return after["slots"] - before["slots"], after


@pytest.fixture(scope="module")
def trained() -> tuple[VideoMAE, dict[str, float], list[dict[str, float]]]:
    """One net after 1,500 steps, what a probe saw in its random weights, and the lines of its metrics."""
    net = model(0)
    before = probe(net)
    return net, before, pretrain(net, 0, STEPS)


def test_a_probe_per_time_slot_beats_random_weights(trained):
    """At least .04 above the random-weight probe after 1,500 steps, on 1,600 test clips."""
    net, before, rows = trained
    after = probe(net)
    assert after["slots"] - before["slots"] >= 0.04, (before, after)
    assert rows[-1]["loss"] < 0.05 * rows[0]["zero_answer"]


def test_hidden_pixels_are_predicted_from_what_is_seen(trained):
    """The error beats answering each clip's visible mean, and grows when the visible cubes come from other clips."""
    net = trained[0].eval()
    frames = clips(TRAIN, PROBE)[0][:200]
    sample = torch.arange(len(frames))
    batch, at = Batch({"video": Stream(frames)}, {}, sample), Step(0, 0, 0.0, 1.0, CounterDraw(5, sample))
    with torch.no_grad():
        mask = net.mask(batch, at)
        pixels = net.encoder.pixels
        target = net.target.rows(frames, mask.grid, mask.target, pixels.mean, pixels.std)
        seen = net.target.rows(frames, mask.grid, mask.visible, pixels.mean, pixels.std)
        error = (net.predict(frames, mask, at) - target).square().mean()
        wrong = (net.predict(frames.roll(1, 0), mask, at) - target).square().mean()
        trivial = (seen.unflatten(2, (-1, 3)).mean((1, 2)).repeat(1, target.shape[2] // 3)[:, None] - target).square().mean()
    assert error < 0.8 * trivial
    assert wrong > 1.5 * error


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_seeds():
    """Every one of five seeds gains."""
    gains = [gain(seed, STEPS)[0] for seed in range(5)]
    assert min(gains) >= 0.04, gains


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_longer_run_gains_too():
    """Twice the steps: above random weights by far. (Not always above the shorter run: see docs/measured.md.)"""
    assert gain(0, 2 * STEPS)[0] >= 0.1


def test_features_are_a_function_of_the_clip_alone():
    """Each clip's features do not depend on its neighbours in the batch."""
    net = model(0)
    a, b = features(net, 0, 8), features(net, 4, 4)
    assert abs(a["slots"][4:] - b["slots"]).max() < 1e-5
