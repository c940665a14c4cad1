"""The easy scene: one object on a smooth ground at rest. Small models learn from it in minutes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tubelet.playground._draw import Dice, Ints
from tubelet.playground._ground import MIDDLE, PATTERNS, draw_ground
from tubelet.playground._motions import BY_NAME, Ranges
from tubelet.playground._scene import Fps, Frames, Motions, Scene, SceneSettings, Size
from tubelet.playground._shapes import COLOURS
from tubelet.playground._world import World, draw_body

SHAPES = ("circle", "square", "triangle", "ring")
RADIUS = (0.11, 0.15)  # middle radius in sides of the frame; with RANGES, every way fits into it
SIZE_WORDS = ((0.13, "small"), (math.inf, "big"))
RANGES = Ranges(reach=(0.25, 0.45), orbit=(0.14, 0.20), turns=(0.75, 1.0), spins=(0.3, 0.6), cycles=(0.9, 1.4), swell=(0.5, 0.8))


class Config(SceneSettings):
    """Defaults: 8 frames of 32 pixels, and the first 8 classes: the eight directions.

    edges: stay = the object keeps inside the frame, so that where it is in one frame says a little of where it goes; wrap = it leaves on
    one side and enters at the other, so that a single frame says nothing, and only motion itself tells.
    """

    kind: Literal["easy"] = "easy"
    size: Size = (32, 32)
    frames: Frames = 8
    fps: Fps = 8.0
    motions: Motions = tuple(BY_NAME)[:8]
    edges: Literal["stay", "wrap"] = "stay"

    def build(self) -> Easy:
        """The scene."""
        return Easy(settings=self)


class Easy(Scene):
    """One object, one smooth still ground."""

    def __init__(self, *, settings: Config) -> None:
        super().__init__(kind="easy", settings=settings, size_words=SIZE_WORDS)
        self._inside = settings.edges == "stay"

    def compose(self, dice: Dice, motion: Ints) -> World:
        many = len(motion)
        shape = {"frames": self.frames, "height": self.height, "width": self.width}
        ground = draw_ground(
            dice.child("ground"),
            pattern=np.full(many, PATTERNS.index("smooth")),
            drift=np.zeros(many),
            short=min(self.height, self.width),
            frames=self.frames,
            tones=MIDDLE,
        )
        body = draw_body(
            dice.child("main"),
            motion=motion,
            colour=dice.integers("colour", len(COLOURS)),
            present=np.ones(many, bool),
            shapes=SHAPES,
            textures=("plain",),
            radius=RADIUS,
            ranges=RANGES,
            inside=self._inside,
            **shape,
        )
        return World(ground, (body,), **shape)
