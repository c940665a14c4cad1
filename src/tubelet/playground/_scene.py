"""What a scene is: settings, the worlds it draws, and their rendering to clips. A kind of scene says only what its worlds hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from tubelet.config import Settings, did_you_mean
from tubelet.playground import _sound
from tubelet.playground._captions import Thing, caption, ground_noun
from tubelet.playground._draw import Bools, Bytes, Dice, Ints
from tubelet.playground._ground import PATTERNS, TONES, paint_ground
from tubelet.playground._motions import BY_NAME, MOTIONS
from tubelet.playground._shapes import COLOURS, SHAPES, TEXTURES
from tubelet.playground._world import World, paint, timeline, truth

_CHUNK_BYTES = 1 << 20  # frames painted at once: what stays in the processor's cache


def _read_size(value: Any) -> Any:
    """32, "120x160" or (120, 160) -> (height, width)."""
    try:
        sides = [int(part) for part in value.lower().split("x")] if isinstance(value, str) else value
    except ValueError:
        raise PydanticCustomError("size", "write one number of pixels or HEIGHTxWIDTH, such as 64 or 120x160") from None
    if isinstance(sides, int):
        sides = [sides]
    return tuple(sides) * 2 if isinstance(sides, (list, tuple)) and len(sides) == 1 else sides


def _read_motions(value: Any) -> Any:
    """A count takes the first of MOTIONS; names are kept."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
        value = int(value[0]) if len(value) == 1 and value[0].isdecimal() else value
    if isinstance(value, int) and not isinstance(value, bool):
        if not 2 <= value <= len(MOTIONS):
            raise PydanticCustomError("motions", "must be 2 to {most} classes or a list of names", {"most": len(MOTIONS)})
        return tuple(BY_NAME)[:value]
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_read_size)]
Frames = Annotated[int, Field(ge=2, le=4096)]
Fps = Annotated[float, Field(ge=1, le=240, allow_inf_nan=False)]
Motions = Annotated[tuple[str, ...], BeforeValidator(_read_motions)]


class SceneSettings(Settings, ABC):
    """Settings that all scenes share.

    size: side in pixels, or (height, width); even, because H.264 stores colour at half size. frames, fps: length is frames / fps seconds.
    motions: the classes, by name or as a count that takes the first of ``MOTIONS``.
    """

    size: Size
    frames: Frames
    fps: Fps
    motions: Motions

    @abstractmethod
    def build(self) -> Scene:
        """The scene."""

    @field_validator("size")
    @classmethod
    def _even(cls, size: tuple[int, int]) -> tuple[int, int]:
        for side in size:
            if side % 2 or not 16 <= side <= 2048:
                raise ValueError(
                    f"each side must be an even number of pixels from 16 to 2048 (H.264 stores colour at half size), got {side}"
                )
        return size

    @field_validator("motions")
    @classmethod
    def _known(cls, motions: tuple[str, ...]) -> tuple[str, ...]:
        for name in motions:
            if name not in BY_NAME:
                raise ValueError(f"unknown motion {name!r}{did_you_mean(name, BY_NAME)}; there are {', '.join(BY_NAME)}")
        if len(set(motions)) != len(motions) or not motions:
            raise ValueError("name at least one motion, each once")
        return motions


@dataclass(frozen=True)
class Event:
    """``second`` from the start of the clip; ``object`` is the number that the masks use."""

    second: float
    kind: str
    object: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip and the truth about it. T frames of H x W pixels, N objects; object i has number i + 1, the first is the main one."""

    scene: str
    seed: int
    index: int
    split: str  # "train" or "test"
    fps: float
    label: int  # index into the scene's motions
    motion: str
    caption: str
    frames: Bytes  # (T, H, W, 3)
    ground: Bytes  # (T, H, W, 3) the same frames without the objects
    masks: Bytes  # (T, H, W) object numbers, 0 ground
    flow: NDArray[np.float32]  # (T-1, H, W, 2) pixels right and down to the same surface point in the next frame
    valid: Bools  # (T-1, H, W) where the flow can be checked: one unmixed surface, seen whole in the next frame, inside it
    objects: tuple[Thing, ...]
    tracks: NDArray[np.float32]  # (N, T, 4) centre x, y in pixels (not wrapped), radius in pixels, angle in radians clockwise
    events: tuple[Event, ...]  # ordered by time
    audio: NDArray[np.float32]  # (samples,) mono in [-1, 1] at AUDIO_RATE


class Scene(ABC):
    """A kind of small world. Clip ``index`` of ``seed`` depends on these two and the settings, not on how many or which others are made.

    Labels come in rounds: each run of ``len(motions)`` indices holds every class once, in random order; every fifth round is for testing.
    """

    def __init__(self, *, kind: str, settings: SceneSettings, size_words: Sequence[tuple[float, str]]) -> None:
        # size_words: (below this mean radius in shorter sides, word), ascending
        self.kind, self.settings = kind, settings
        self.motions = settings.motions
        self.frames, self.fps = settings.frames, settings.fps
        self.height, self.width = settings.size
        self._size_words = size_words
        self._motion_ids = np.array([list(BY_NAME).index(name) for name in self.motions])

    @abstractmethod
    def compose(self, dice: Dice, motion: Ints) -> World:
        """The worlds of the clips of the dice; ``motion`` (B,): the main object's class as an index into MOTIONS."""

    def labels(self, seed: int, indices: Sequence[int] | Ints) -> Ints:
        """(B,) in [0, len(motions))."""
        where = np.asarray(indices, dtype=np.int64)
        order = Dice(seed, where // len(self.motions), f"playground/{self.kind}/").order("label", len(self.motions))
        return order[np.arange(len(where)), where % len(self.motions)]

    def split(self, index: int) -> str:
        """``train`` or ``test``, the same for any number of clips."""
        return "test" if index // len(self.motions) % 5 == 4 else "train"

    def _worlds(self, seed: int, indices: Sequence[int] | Ints) -> tuple[World, Dice, Ints]:
        label = self.labels(seed, indices)
        dice = Dice(seed, indices, f"playground/{self.kind}/")
        return self.compose(dice, self._motion_ids[label]), dice, label

    def render_batch(self, seed: int, indices: Sequence[int] | Ints) -> tuple[Bytes, Ints]:
        """Frames (B, T, H, W, 3) uint8 and labels (B,) int64, without the truth: fast enough to feed a training loop."""
        where = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(where), self.frames, self.height, self.width, 3), np.uint8)
        step = max(1, _CHUNK_BYTES // out[:1].nbytes)
        for first in range(0, len(where), step):
            out[first : first + step] = paint(self._worlds(seed, where[first : first + step])[0])
        return out, self.labels(seed, where)

    def render(self, seed: int, index: int) -> Clip:
        """One clip with its truth."""
        world, dice, label = self._worlds(seed, [index])
        bodies = [body for body in world.bodies if body.present[0]]
        seen = truth(world)
        objects = tuple(
            Thing(
                size=self._size_word(float(body.radius[0].mean()) / min(self.height, self.width)),
                texture=TEXTURES[body.texture[0]],
                colour=list(COLOURS)[body.colour[0]],
                shape=list(SHAPES)[body.shape[0]],
                motion=MOTIONS[body.motion[0]].name,
            )
            for body in bodies
        )
        events = [(at / self.fps, event, number) for at, event, number in timeline(world, 0)]
        sizes, shapes = [float(body.size[0]) for body in bodies], [int(body.shape[0]) for body in bodies]
        # An object is named only if it can be seen: others may stand in front of it all the time.
        named = [thing for thing, share in zip(objects, seen.seen, strict=False) if share > 0.3 or thing is objects[0]]
        return Clip(
            scene=self.kind,
            seed=seed,
            index=index,
            split=self.split(index),
            fps=self.fps,
            label=int(label[0]),
            motion=self.motions[label[0]],
            caption=caption(named, self._ground_words(world), lambda name, n: int(dice.child("caption").integers(name, n)[0])),
            frames=paint(world)[0],
            ground=paint_ground(world.ground, frames=self.frames, height=self.height, width=self.width)[0],
            masks=seen.masks,
            flow=seen.flow,
            valid=seen.valid,
            objects=objects,
            tracks=np.stack([np.stack([b.x[0], b.y[0], b.radius[0], b.angle[0]], -1) for b in bodies]).astype(np.float32),
            events=tuple(Event(*event) for event in events),
            audio=_sound.score(events, seconds=self.frames / self.fps, sizes=sizes, shapes=shapes),
        )

    def _size_word(self, size: float) -> str:
        return next(word for limit, word in self._size_words if size < limit)

    def _ground_words(self, world: World) -> str | None:
        ground = world.ground
        pattern = PATTERNS[ground.pattern[0]]
        return None if pattern == "smooth" else ground_noun(list(TONES)[ground.tone[0]], pattern, ground.moves)
