"""A world is a ground and up to a few bodies; here it becomes frames, and for one clip the truth about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tubelet.playground._draw import Bools, Bytes, Dice, Floats, Ints
from tubelet.playground._ground import Ground, paint_ground
from tubelet.playground._motions import Gait, Ranges, Span, beats, paths
from tubelet.playground._shapes import COLOURS, EXTENT, SHAPES, TEXTURES, Stamp, paint_stamp, stamp

SIZE_RATIO = 2.0  # largest to smallest radius of one body
_COLOURS = np.array(list(COLOURS.values()), np.float32)
_SHAPES = list(SHAPES.items())


@dataclass(frozen=True, kw_only=True)
class Body:
    """The same place in the cast of B clips; ``motion``, ``shape``, ``colour``, ``texture`` are indices into their tables."""

    motion: Ints  # (B,)
    shape: Ints
    colour: Ints
    texture: Ints
    size: Floats  # (B,) middle radius in shorter sides
    present: Bools  # (B,)
    gait: Gait
    x: Floats  # (B, T) pixels, not wrapped: the true way
    y: Floats
    radius: Floats  # (B, T) pixels
    angle: Floats  # (B, T) radians, clockwise
    phase: Floats  # (B, T) size phase in laps; the radius jumps where it passes a whole number


@dataclass(frozen=True)
class World:
    """B clips. ``bodies`` from the front to the back; body i has the number i + 1 in masks and events."""

    ground: Ground
    bodies: tuple[Body, ...]
    frames: int
    height: int
    width: int


class Truth(NamedTuple):
    """What is where in one clip."""

    masks: Bytes  # (T, H, W) number of the body seen, 0 ground
    flow: NDArray[np.float32]  # (T-1, H, W, 2) pixels right and down to the same point of the surface in the next frame
    valid: Bools  # (T-1, H, W) one surface fills the pixel, and what it shows is seen whole in the next frame
    seen: Floats  # (N,) share of each body's pixels that no other body hides, over the clip


def draw_body(
    dice: Dice,
    *,
    motion: Ints,
    colour: Ints,
    present: Bools,
    shapes: tuple[str, ...],
    textures: tuple[str, ...],
    radius: Span,
    ranges: Ranges,
    frames: int,
    height: int,
    width: int,
    inside: bool = False,
) -> Body:
    """One body for each clip of the dice. ``radius``: middle radius in shorter sides. ``inside``: it starts where its whole way stays in
    the frame; else anywhere, and it wraps around the sides."""
    short = min(height, width)
    gait = Gait.draw(dice, ranges, frames)
    dx, dy, turn, laps = paths(motion, gait)
    drawn = dice.table(
        "body",
        size=radius,
        lap=(0, 1),
        x=(0, width),
        y=(0, height),
        angle=(0, 2 * np.pi),
        shape=(0, len(shapes)),
        texture=(0, len(textures)),
    )
    size, phase = drawn["size"], drawn["lap"][:, None] + laps
    spread = short * size[:, None] * SIZE_RATIO ** (phase - np.floor(phase) - 0.5)
    start, way = np.stack([drawn["x"], drawn["y"]])[..., None], np.stack([dx, dy]) * short
    x, y = _kept_inside(start, way, np.array([width, height], float)[:, None, None], spread) if inside else start + way
    names = list(SHAPES)
    return Body(
        motion=motion,
        shape=np.array([names.index(s) for s in shapes])[drawn["shape"].astype(np.int64)],
        colour=colour,
        texture=np.array([TEXTURES.index(t) for t in textures])[drawn["texture"].astype(np.int64)],
        size=size,
        present=present,
        gait=gait,
        x=x,
        y=y,
        radius=spread,
        angle=drawn["angle"][:, None] + turn,
        phase=phase,
    )


def _kept_inside(start: Floats, way: Floats, side: Floats, radius: Floats) -> Floats:
    """Where bodies are (2, B, T) when every frame shows them whole: ``start`` (2, B, 1) uniform over the frame becomes uniform over the
    places that allow it, and a ``way`` (2, B, T) longer than the frame allows is shortened. ``side`` (2, 1, 1) pixels."""
    room = EXTENT * radius.max(1, keepdims=True) + 1  # a pixel's centre is at its number, and a smooth edge reaches half a pixel farther
    free = side - 1 - 2 * room
    way = way * np.minimum(1, free / np.maximum(np.ptp(way, 2, keepdims=True), 1e-9)).min(0)
    return room - way.min(2, keepdims=True) + start / side * (free - np.ptp(way, 2, keepdims=True)) + way


def _stamp(world: World, body: Body, rows: Ints, shape: int) -> Stamp:
    frame = (rows[:, None] * world.frames + np.arange(world.frames)).reshape(-1)
    where = {name: getattr(body, name)[rows].reshape(-1) for name in ("x", "y", "radius", "angle")}
    return stamp(_SHAPES[shape][1], **where, height=world.height, width=world.width, frame=frame)


def paint(world: World) -> Bytes:
    """(B, T, H, W, 3) uint8."""
    canvas = paint_ground(world.ground, frames=world.frames, height=world.height, width=world.width)
    pixels = canvas.reshape(-1, 3)
    for body in reversed(world.bodies):
        look = body.shape * len(TEXTURES) + body.texture
        for kind in np.unique(look[body.present]):
            rows = np.flatnonzero((look == kind) & body.present)
            shape, texture = divmod(int(kind), len(TEXTURES))
            colour = np.repeat(_COLOURS[body.colour[rows]], world.frames, axis=0)
            paint_stamp(pixels, _stamp(world, body, rows, shape), colour, TEXTURES[texture])
    return canvas


def popped(body: Body, row: int) -> Bools:
    """(T-1,): the radius jumps before the next frame."""
    lap = np.floor(body.phase[row])
    return lap[1:] != lap[:-1]


def truth(world: World) -> Truth:
    """Masks, flow and validity of a world of one clip."""
    frames, height, width = world.frames, world.height, world.width
    masks, mixed = np.zeros((2, frames, height, width), np.uint8)
    flow = np.empty((frames - 1, height, width, 2), np.float32)
    flow[..., 0], flow[..., 1] = world.ground.vx[0], world.ground.vy[0]
    area = np.zeros(len(world.bodies))
    jump = np.zeros((frames - 1, height, width), bool)
    for i, body in reversed(list(enumerate(world.bodies))):
        if not body.present[0]:
            continue
        mark = _stamp(world, body, np.zeros(1, np.int64), int(body.shape[0]))
        inside = mark.cover > 0.5
        area[i] = inside.sum()
        masks.reshape(-1)[mark.pixel[inside]] = i + 1
        mixed.reshape(-1)[mark.pixel[mark.cover > 0]] = 1
        mixed.reshape(-1)[mark.pixel[mark.cover == 1]] = 0
        now = mark.pixel[:-1][inside[:-1]]
        flow.reshape(-1, 2)[now] = _body_flow(body, mark)[inside[:-1]]
        jump.reshape(-1)[now] = np.broadcast_to(popped(body, 0)[:, None, None], inside[:-1].shape)[inside[:-1]]
    counts = np.bincount(masks.reshape(-1), minlength=len(world.bodies) + 1)[1:]
    return Truth(masks, flow, _valid(masks, mixed, flow) & ~jump, counts / np.maximum(area, 1))


def _body_flow(body: Body, mark: Stamp) -> NDArray[np.float32]:
    """(T-1, S, S, 2): the body shifts, turns and scales about its centre; 0 where it jumps."""
    dx, dy, turn = (np.diff(getattr(body, name)[0]) for name in ("x", "y", "angle"))
    scale = body.radius[0, 1:] / body.radius[0, :-1]
    still = ~popped(body, 0)
    a, b = scale * np.cos(turn) - 1, scale * np.sin(turn)
    dx, dy, a, b = ((value * still).astype(np.float32)[:, None, None] for value in (dx, dy, a, b))
    right, down = mark.right[:-1], mark.down[:-1]
    return np.stack([dx + a * right - b * down, dy + b * right + a * down], -1)


def _valid(masks: Bytes, mixed: Bytes, flow: NDArray[np.float32]) -> Bools:
    """Whether a pixel and the four around its place in the next frame show one and the same surface, unmixed."""
    frames, height, width = masks.shape
    surface = np.where(mixed != 0, 255, masks).astype(np.uint8)
    near = np.pad(surface[1:], ((0, 0), (0, 1), (0, 1)), mode="edge")
    first = near[:, :-1, :-1]
    whole = (first == near[:, 1:, :-1]) & (first == near[:, :-1, 1:]) & (first == near[:, 1:, 1:])
    seen = np.where(whole, first, 255).reshape(-1)
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    column, row = (np.clip(p, 0, n - 1).astype(np.int32) for p, n in ((x, width), (y, height)))
    place = (np.arange(frames - 1, dtype=np.int32)[:, None, None] * height + row) * width + column
    return inside & (surface[:-1] != 255) & (seen[place] == surface[:-1])


def timeline(world: World, row: int) -> list[tuple[float, str, int]]:
    """(frame as a real number, event, body number) of one clip, ordered by time.

    ``bounce``, ``start``, ``stop`` come with the motion; ``pop``: the size jumps; ``cross``: the centre leaves through one side of the
    frame and comes back through the other.
    """
    found = []
    for i, body in enumerate(world.bodies):
        if not body.present[row]:
            continue
        found += [(at * world.frames, event, i + 1) for at, event in beats(int(body.motion[row]), body.gait, row)]
        # A pixel's square reaches half a pixel around its centre, so the side of the frame is at -1/2.
        for values, period, shift, event in (
            (body.phase[row], 1, 0.0, "pop"),
            (body.x[row], world.width, 0.5, "cross"),
            (body.y[row], world.height, 0.5, "cross"),
        ):
            found += [(at, event, i + 1) for at in _crossings((values + shift) / period)]
    return sorted(found)


def _crossings(laps: Floats) -> list[float]:
    """When a sampled line passes whole numbers, in samples."""
    out = []
    for t in np.flatnonzero(np.floor(laps[1:]) != np.floor(laps[:-1])):
        a, b = float(laps[t]), float(laps[t + 1])
        whole = np.arange(np.floor(min(a, b)) + 1, np.floor(max(a, b)) + 1)
        out += [float(t + (n - a) / (b - a)) for n in whole]
    return out
