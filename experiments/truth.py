"""The true flow of a world as a guide, and the small models that the experiments on motion-guided masking train.

The models are those of tests/learning/easy.py: easy scenes of 8 frames of 32 pixels, patches of 2 x 8 x 8, width 96, four blocks, raw
pixels, 75 % hidden. Experiments that are measured in one call share them.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor
from worlds import Feed, World, train, world

from tubelet.core import Batch, Field, Guide, Masker
from tubelet.masking.mgm import MotionGuided
from tubelet.masking.mgmae import Config as FlowConfig
from tubelet.masking.mgmae import FlowGuided
from tubelet.masking.random import Random
from tubelet.masking.tube import Tube
from tubelet.methods.videomae import Config, VideoMAE

FRAMES, SIZE, PATCH, RATIO, STEPS = 8, 32, (2, 8, 8), 0.75, 1500
TRAIN, PROBE, TEST = 8192, 2400, 1600  # clips: for pre-training, for fitting the probe, for its score
MASKINGS = ("tube", "random", "mgm", "mgmae")


class Told(Guide):
    """What stream "map" says, as flow."""

    needs = frozenset({"map"})

    def forward(self, batch: Batch, stream: str) -> Field:
        return Field(batch.stream("map").data, "flow")


def both_ways(clips: World, rows: Tensor) -> Tensor:
    """(B, 4, T - 1, H, W): the flow to the next frame, and from there back, of clips with one object that shifts as a whole before a
    ground at rest: where the object is in the later frame the way back is the shift turned round, elsewhere it is none."""
    flow, objects = clips.flow[rows], (clips.objects[rows] == 1).float()[:, None]
    before, after = objects[:, :, :-1], objects[:, :, 1:]
    shift = (flow * before).sum((3, 4), keepdim=True) / before.sum((3, 4), keepdim=True).clamp(min=1)
    return torch.cat([flow, -shift * after], 1)


def touched(clips: World, rows: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, N) bool: tokens that show some of an object."""
    t, h, w = patch
    return (clips.objects[rows] > 0).unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t)).any(6).any(4).any(2).flatten(1)


def masker(kind: str, ratio: float = RATIO) -> Masker:
    """One of MASKINGS; those that follow motion are told the true flow."""
    if kind == "mgm":
        return MotionGuided(guide=Told(), ratio=ratio, fill=True)
    if kind == "mgmae":
        return FlowGuided(guide=Told(), settings=FlowConfig(ratio=ratio))
    return Tube(ratio=ratio) if kind == "tube" else Random(ratio=ratio)


def easy(first: int, n: int) -> World:
    """The clips of all these experiments; they differ by their seeds in weights, order and masks."""
    return world("easy", 7, first, n)


def untrained(kind: str, seed: int) -> VideoMAE:
    """A model with its masking, as it starts."""
    options = {"dim": 96, "depth": 4, "heads": 3, "patch": PATCH, "decoder": {"dim": 48, "depth": 2, "heads": 3}}
    config = Config.model_validate(options | {"position": "sincos3d", "target": {"normalise": "none"}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(masking=masker(kind), frames=FRAMES, size=(SIZE, SIZE))


@cache
def trained(kind: str, seed: int, steps: int = STEPS) -> VideoMAE:
    """The same, trained."""
    model, clips = untrained(kind, seed), easy(0, TRAIN)
    train(model, Feed(clips, seed, partial(both_ways, clips)), steps=steps, lr=3e-3, seed=seed)
    return model
