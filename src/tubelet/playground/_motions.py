"""The motion classes. Only time tells them apart: the law of any single frame is the same for all of them.

Every quantity a motion changes lives on a circle and starts at a uniform point of it: the position on the torus of the frame (what
leaves at one side enters at the other), the angle, and the phase of the size, which jumps from largest to smallest. A uniform point
plus any offset is uniform again, so position, angle and size have at every instant the law that an object at rest has.
A path is given as the offsets from that start. Each class names the class that its clips become when played backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from tubelet.playground._draw import Dice, Floats, Ints

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What a scene allows; lengths in units of the frame's shorter side, counts per clip."""

    reach: Span  # way of a moving object
    orbit: Span  # radius of a circle, amplitude of a swing
    turns: Span  # rounds of a circle
    spins: Span  # rotations on the spot
    cycles: Span  # swings, hops, stops
    swell: Span  # share of the size range that a growing object passes


@dataclass(frozen=True, kw_only=True)
class Gait:
    """What the motions are made of, drawn for every clip whatever its class: (B, 1) each, ``tau`` (T,) in [0, 1)."""

    tau: Floats
    reach: Floats
    orbit: Floats
    turns: Floats
    spins: Floats
    cycles: Floats
    swell: Floats
    phase: Floats
    heading: Floats

    @classmethod
    def draw(cls, dice: Dice, ranges: Ranges, frames: int) -> Gait:
        """One gait for each clip of the dice."""
        unit = (0.0, 1.0)
        drawn = dice.table("gait", **{f.name: getattr(ranges, f.name) for f in fields(ranges)}, phase=unit, heading=unit)
        return cls(tau=np.arange(frames) / frames, **{name: value[:, None] for name, value in drawn.items()})

    def select(self, rows: Ints) -> Gait:
        """The gaits of some of the clips."""
        return Gait(**{k: v if k == "tau" else v[rows] for k, v in vars(self).items()})


@dataclass(frozen=True)
class Path:
    """Offsets (B, T) from the start: x right and y down in shorter sides, angle in radians clockwise, size phase in laps."""

    x: Floats | float = 0.0
    y: Floats | float = 0.0
    angle: Floats | float = 0.0
    phase: Floats | float = 0.0


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One class. ``beats``: (event, rate, shift) happens whenever rate * (cycles * tau + phase) + shift is a whole number."""

    name: str
    path: Callable[[Gait], Path]
    backwards: str
    phrases: tuple[str, ...]
    beats: tuple[tuple[str, int, float], ...] = ()


def _straight(x: float, y: float) -> Callable[[Gait], Path]:
    length = math.hypot(x, y)
    return lambda g: Path(x=x / length * g.reach * g.tau, y=y / length * g.reach * g.tau)


def _along(g: Gait, way: Floats) -> Path:
    """``way`` (B, T) along the clip's own random heading."""
    turn = 2 * math.pi * g.heading
    return Path(x=way * np.cos(turn), y=way * np.sin(turn))


def _circle(sense: int) -> Callable[[Gait], Path]:
    def path(g: Gait) -> Path:
        turn = 2 * math.pi * (g.phase + sense * g.turns * g.tau)
        return Path(x=g.orbit * np.cos(turn), y=g.orbit * np.sin(turn))

    return path


def _spin(sense: int) -> Callable[[Gait], Path]:
    return lambda g: Path(angle=sense * 2 * math.pi * g.spins * g.tau)


def _swell(sense: int) -> Callable[[Gait], Path]:
    return lambda g: Path(phase=sense * g.swell * g.tau)


def _speed_up(g: Gait) -> Path:
    return _along(g, g.reach * g.tau**2)


def _slow_down(g: Gait) -> Path:
    # Exactly the reversed samples of _speed_up: the last frame is at tau = 1 - 1/T.
    return _along(g, -g.reach * (g.tau[-1] - g.tau) ** 2)


def _swing(g: Gait) -> Floats:
    """(B, T) triangle wave in [-1, 1] that turns wherever twice its argument is whole."""
    s = g.cycles * g.tau + g.phase
    return 4 * np.abs(s - np.floor(s) - 0.5) - 1


def _hop(g: Gait) -> Path:
    s = g.cycles * g.tau + g.phase
    s = s - np.floor(s)
    side = np.where(g.heading < 0.5, -0.5, 0.5)
    return Path(x=side * g.reach * g.tau, y=-1.7 * g.orbit * 4 * s * (1 - s))


def _stop_and_go(g: Gait) -> Path:
    s = g.cycles * g.tau + g.phase
    lap = np.floor(s)
    return _along(g, g.reach / g.cycles * (lap + np.minimum(2 * (s - lap), 1)))


def _compass(name: str, x: float, y: float, backwards: str, *phrases: str) -> Motion:
    return Motion(name=name, path=_straight(x, y), backwards=backwards, phrases=phrases)


MOTIONS: tuple[Motion, ...] = (
    _compass("left", -1, 0, "right", "moves left", "slides to the left"),
    _compass("right", 1, 0, "left", "moves right", "slides to the right"),
    _compass("up", 0, -1, "down", "moves up", "rises straight upwards"),
    _compass("down", 0, 1, "up", "moves down", "sinks straight downwards"),
    _compass("up_left", -1, -1, "down_right", "drifts up and left", "climbs diagonally to the upper left"),
    _compass("down_right", 1, 1, "up_left", "drifts down and right", "descends diagonally to the lower right"),
    _compass("up_right", 1, -1, "down_left", "drifts up and right", "climbs diagonally to the upper right"),
    _compass("down_left", -1, 1, "up_right", "drifts down and left", "descends diagonally to the lower left"),
    Motion(
        name="circle_clockwise",
        path=_circle(1),
        backwards="circle_anticlockwise",
        phrases=("circles clockwise", "goes round and round clockwise"),
    ),
    Motion(
        name="circle_anticlockwise",
        path=_circle(-1),
        backwards="circle_clockwise",
        phrases=("circles anticlockwise", "goes round and round anticlockwise"),
    ),
    Motion(
        name="spin_clockwise", path=_spin(1), backwards="spin_anticlockwise", phrases=("spins clockwise", "turns clockwise on the spot")
    ),
    Motion(
        name="spin_anticlockwise",
        path=_spin(-1),
        backwards="spin_clockwise",
        phrases=("spins anticlockwise", "turns anticlockwise on the spot"),
    ),
    Motion(name="grow", path=_swell(1), backwards="shrink", phrases=("grows", "gets bigger and bigger")),
    Motion(name="shrink", path=_swell(-1), backwards="grow", phrases=("shrinks", "gets smaller and smaller")),
    Motion(name="speed_up", path=_speed_up, backwards="slow_down", phrases=("speeds up", "starts gently and gets faster")),
    Motion(name="slow_down", path=_slow_down, backwards="speed_up", phrases=("slows down", "starts fast and gets slower")),
    Motion(
        name="side_to_side",
        path=lambda g: Path(x=g.orbit * _swing(g)),
        backwards="side_to_side",
        phrases=("bounces from side to side", "goes to and fro sideways"),
        beats=(("bounce", 2, 0.0),),
    ),
    Motion(
        name="up_and_down",
        path=lambda g: Path(y=g.orbit * _swing(g)),
        backwards="up_and_down",
        phrases=("bounces up and down", "goes to and fro vertically"),
        beats=(("bounce", 2, 0.0),),
    ),
    Motion(name="hop", path=_hop, backwards="hop", phrases=("hops along", "jumps along in arcs"), beats=(("bounce", 1, 0.0),)),
    Motion(
        name="stop_and_go",
        path=_stop_and_go,
        backwards="stop_and_go",
        phrases=("stops and goes", "moves on in fits and starts"),
        beats=(("start", 1, 0.0), ("stop", 1, 0.5)),
    ),
)
BY_NAME: dict[str, Motion] = {motion.name: motion for motion in MOTIONS}


def paths(motion: Ints, gait: Gait) -> tuple[Floats, Floats, Floats, Floats]:
    """x, y, angle, size phase (B, T) for the motions (B,), indices into MOTIONS."""
    x, y, angle, phase = (np.zeros((len(motion), len(gait.tau))) for _ in range(4))
    for kind in np.unique(motion):
        rows = np.flatnonzero(motion == kind)
        path = MOTIONS[kind].path(gait.select(rows))
        x[rows], y[rows], angle[rows], phase[rows] = path.x, path.y, path.angle, path.phase
    return x, y, angle, phase


def beats(motion: int, gait: Gait, row: int) -> list[tuple[float, str]]:
    """(time as a fraction of the clip, event) of one clip, ordered."""
    found = []
    cycles, phase = float(gait.cycles[row, 0]), float(gait.phase[row, 0])
    for event, rate, shift in MOTIONS[motion].beats:
        first, last = rate * phase + shift, rate * (cycles + phase) + shift
        found += [((n - first) / (rate * cycles), event) for n in range(math.ceil(first), math.ceil(last))]
    return sorted(found)
