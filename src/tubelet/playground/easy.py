"""The easy scene: one object on a smooth ground at rest. Small models learn from it in minutes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tubelet.playground._draw import Dice, Ints
from tubelet.playground._ground import PATTERNS, draw_ground
from tubelet.playground._motions import BY_NAME, Ranges
from tubelet.playground._scene import Fps, Frames, Motions, Scene, SceneSettings, Size
from tubelet.playground._shapes import COLOURS
from tubelet.playground._world import World, draw_body

SHAPES = ("circle", "square", "triangle", "ring")
RADIUS = (0.17, 0.23)  # middle radius in sides of the frame
DARK = 4  # the dark tones come first: bright ones would outweigh the object in the error of a small model
SIZE_WORDS = ((0.20, "small"), (math.inf, "big"))
RANGES = Ranges(reach=(0.4, 0.65), orbit=(0.14, 0.20), turns=(0.75, 1.0), spins=(0.3, 0.6), cycles=(0.9, 1.4), swell=(0.5, 0.8))


class Config(SceneSettings):
    """Defaults: 8 frames of 32 pixels, and the first 8 classes: the eight directions."""

    kind: Literal["easy"] = "easy"
    size: Size = (32, 32)
    frames: Frames = 8
    fps: Fps = 8.0
    motions: Motions = tuple(BY_NAME)[:8]

    def build(self) -> Easy:
        """The scene."""
        return Easy(settings=self)


class Easy(Scene):
    """One object, one smooth still ground."""

    def __init__(self, *, settings: Config) -> None:
        super().__init__(kind="easy", settings=settings, size_words=SIZE_WORDS)

    def compose(self, dice: Dice, motion: Ints) -> World:
        many = len(motion)
        shape = {"frames": self.frames, "height": self.height, "width": self.width}
        ground = draw_ground(
            dice.child("ground"),
            pattern=np.full(many, PATTERNS.index("smooth")),
            drift=np.zeros(many),
            short=min(self.height, self.width),
            frames=self.frames,
            tones=DARK,
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
            **shape,
        )
        return World(ground, (body,), **shape)
