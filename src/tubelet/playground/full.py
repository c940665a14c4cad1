"""The full scene: one to three objects of many looks on a ground that may be patterned and may drift.

The main object, whose motion is the label, is the largest at every moment, stands in front, and is named first.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from tubelet.playground._draw import Dice, Ints
from tubelet.playground._ground import DARK_AND_LIGHT, PATTERNS, draw_ground
from tubelet.playground._motions import BY_NAME, MOTIONS, Ranges
from tubelet.playground._scene import Fps, Frames, Motions, Scene, SceneSettings, Size
from tubelet.playground._shapes import COLOURS, SHAPES, TEXTURES
from tubelet.playground._world import World, draw_body

MAIN_RADIUS = (0.142, 0.20)  # middle radius in shorter sides; sizes vary by a factor of 2, so no other body ever gets as large
OTHER_RADIUS = (0.05, 0.07)
SIZE_WORDS = ((0.058, "tiny"), (0.099, "small"), (0.18, "big"), (math.inf, "huge"))
RANGES = Ranges(reach=(0.5, 0.9), orbit=(0.14, 0.22), turns=(0.9, 1.4), spins=(0.6, 1.2), cycles=(1.5, 2.5), swell=(0.6, 1.2))


class Config(SceneSettings):
    """Defaults: two seconds of 128 pixels at 24 frames a second, all classes.

    objects: most objects in a clip. drift: share of the clips whose ground moves.
    """

    kind: Literal["full"] = "full"
    size: Size = (128, 128)
    frames: Frames = 48
    fps: Fps = 24.0
    motions: Motions = tuple(BY_NAME)
    objects: int = Field(default=3, ge=1, le=3)
    drift: float = Field(default=0.5, ge=0, le=1)

    def build(self) -> Full:
        """The scene."""
        return Full(settings=self)


class Full(Scene):
    """One to three objects; others are smaller, move in ways of their own, and may pass behind the main one."""

    def __init__(self, *, settings: Config) -> None:
        super().__init__(kind="full", settings=settings, size_words=SIZE_WORDS)
        self._objects, self._drift = settings.objects, settings.drift

    def compose(self, dice: Dice, motion: Ints) -> World:
        shape = {"frames": self.frames, "height": self.height, "width": self.width}
        count = 1 + dice.integers("objects", self._objects)
        colours = dice.order("colours", len(COLOURS))
        below = dice.child("ground")
        look = below.table("look", moving=(0, 1), drift=(0.1, 0.35), rest=(0, len(PATTERNS)), patterned=(1, len(PATTERNS)))
        moving = look["moving"] < self._drift
        ground = draw_ground(
            below,
            # A smooth ground shows no drift; one that moves is patterned.
            pattern=np.where(moving, look["patterned"], look["rest"]).astype(np.int64),
            drift=np.where(moving, look["drift"], 0.0),
            short=min(self.height, self.width),
            frames=self.frames,
            tones=DARK_AND_LIGHT,
        )
        bodies = []
        for i in range(self._objects):
            own = dice.child(f"object{i}")
            bodies.append(
                draw_body(
                    own,
                    motion=motion if i == 0 else own.integers("motion", len(MOTIONS)),
                    colour=colours[:, i],
                    present=count > i,
                    shapes=tuple(SHAPES),
                    textures=TEXTURES,
                    radius=MAIN_RADIUS if i == 0 else OTHER_RADIUS,
                    ranges=RANGES,
                    inside=False,
                    **shape,
                )
            )
        return World(ground, tuple(bodies), **shape)
