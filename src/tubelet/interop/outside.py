"""An encoder with weights that others trained, made to fit other clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.core import Batch, Losses, Method, Step, TokenGrid, Tokens
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.report import Given, by, some
from tubelet.methods.videomae import Config
from tubelet.nn.embed import retime_kernel
from tubelet.nn.position import Learned, Separable, thw
from tubelet.nn.video import AXES, VideoEncoder

Grid = tuple[int, int, int]  # slots, rows, columns
CUBES = "embed.weight"
RELEASED = 16  # frames of the clips that released models read
LEAST = 64  # pixels: no released model reads smaller pictures


class EncoderOnly(Method):
    """Encodes; it has no decoder and no objective, so it cannot be pre-trained further."""

    def __init__(self, *, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        """Raises ConfigError."""
        raise ConfigError("an encoder alone has no pre-training objective; use it to embed, probe or fine-tune")

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        """All tokens, unmasked, after the final norm where the file has one."""
        return self.encoder(batch.stream(stream).data, layers=layers)


def strict_problem(missing: Sequence[str], wrong: Sequence[str]) -> str:
    """``3 missing (a, b, c) and 1 unknown (d)``, or nothing."""
    said = [f"{len(missing)} missing ({some(missing)})"] if missing else []
    said += [f"{len(wrong)} unknown ({some(wrong)})"] if wrong else []
    return " and ".join(said)


def build_for(config: Config, kernel: Tensor, stored: Grid | None, *, frames: int, size: tuple[int, int], where: object) -> VideoEncoder:
    """A freshly started encoder with the position table that a file holds: of its ``stored`` grid, or of clips where it holds none.

    What is read on another grid is resized when it is read, so nothing is resized twice. ``kernel`` (D, C, u, P, P): the file's.
    Raises ConfigError for clips that the patch does not cut, and for cubes whose rows and columns are not the file's.
    """
    config.grid(frames, size)
    check_patch(config.patch, tuple(kernel.shape[2:]), where)
    if stored is not None:
        u, p, q = config.patch
        frames, size = stored[0] * u, (stored[1] * p, stored[2] * q)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config.build_encoder(frames=frames, size=size, channels=kernel.shape[1])


def check_patch(asked: Sequence[int], held: Sequence[int], where: object) -> None:
    """Raises ConfigError where cubes of ``held`` (frames, rows, columns) cannot be made ``asked``."""
    if tuple(asked[1:]) != tuple(held[1:]):
        raise ConfigError(
            f"method.patch={list(asked)}: {where} has cubes of {list(held)} (frames, rows, columns), and only their number of frames can "
            f"be changed: give method.patch=[N,{held[1]},{held[2]}]"
        )
    if asked[0] % held[0] and held[0] % asked[0]:
        raise ConfigError(
            f"method.patch={list(asked)}: {where} has cubes of {held[0]} frames, which can be made cubes of 1 frame, of a divisor or of a "
            f"multiple of {held[0]}"
        )


def said_patch(new: int, old: int) -> tuple[str, ...]:
    """What happened to a kernel, as a note; nothing where cubes keep their frames."""
    return () if new == old else (f"tubelet {old} -> {new}: kernel {'inflated' if new > old else 'deflated'}",)


def said_positions(
    encoder: VideoEncoder, *, frames: int, size: tuple[int, int], guessed: bool = False, trained: Grid | None = None
) -> tuple[str, ...]:
    """What happens to an encoder's positions for clips of ``frames`` frames of ``size`` (H, W), as a note; nothing where they fit.

    ``guessed``: the file did not say the grid of its table. ``trained``: the grid that computed positions were trained on, where it is not
    the encoder's. Raises ConfigError for clips that the patch does not cut.
    """
    try:
        old, new = encoder.position.shape, thw(TokenGrid.of((frames, *size), encoder.embed.patch, AXES))
    except ValueError as error:
        raise ConfigError(f"{error}; change the clip's frames or size, or the method's patch") from None
    doubt = " (the file does not say its grid; this is the likeliest)" if guessed else ""
    learned = isinstance(encoder.position, Learned | Separable)
    old = old if learned or trained is None else trained
    if old == new:
        return ()
    if learned:
        return (f"positions resized from {by(old)} to {by(new)}{doubt}",)
    return (f"positions computed for {by(new)}, where {by(old)} was trained",)


def grid_of(cube: Sequence[int], frames: int, size: tuple[int, int]) -> Grid:
    """Of clips in a file's own cubes (frames, rows, columns)."""
    return frames // cube[0], size[0] // cube[1], size[1] // cube[2]


def stored_grid(rows: int, asked: Grid, cube: Sequence[int], *, frames: int = RELEASED) -> Grid | None:
    """The grid of a learned table of so many rows, which its file does not say; None where none is likely.

    The grid that is asked for, where its rows are as many. Else pictures are taken to be square, with as many slots as ``frames`` give
    (``cube``: frames, rows, columns of the file's cubes), where these are pictures of a model's size; or with as many slots as are asked
    for; or else the pictures are those that are asked for.
    """
    t, h, w = asked
    if rows == t * h * w:
        return asked
    if (usual := _usual(rows, cube, frames)) is not None:
        return usual
    side = _side(rows, t)
    if side is not None:
        return t, side, side
    return (rows // (h * w), h, w) if rows % (h * w) == 0 else None


def said_doubt(rows: int, asked: Grid, cube: Sequence[int], *, frames: int = RELEASED) -> tuple[str, ...]:
    """A note where a table has the rows of the grid that is asked for, and those of another one that released models have."""
    usual = _usual(rows, cube, frames)
    if usual in (None, asked) or rows != math.prod(asked):
        return ()
    return (f"positions taken for those of {by(asked)}; {by(usual)} has as many",)


def _usual(rows: int, cube: Sequence[int], frames: int) -> Grid | None:
    """``frames`` frames of square pictures of a model's size, where these have so many cubes."""
    slots = max(1, frames // cube[0])
    side = _side(rows, slots)
    return None if side is None or side * cube[1] < LEAST else (slots, side, side)


def _side(rows: int, slots: int) -> int | None:
    side = math.isqrt(rows // slots)
    return side if side and slots * side * side == rows else None


def asked_grid(config: Config, frames: int, size: tuple[int, int]) -> Grid:
    """Slots, rows and columns of clips. Raises ConfigError where the patch does not cut them."""
    return thw(config.grid(frames, size))


@torch.no_grad()
def fill(encoder: VideoEncoder, given: Given, where: str) -> tuple[str, ...]:
    """Copy tensors into an encoder; those that it has and ``given`` lacks stay as they are. Returns our names of those that were reshaped.

    A kernel for cubes of another number of frames is inflated or deflated: a still clip keeps its embedding. Raises CheckpointError that
    lists every tensor whose shape does not fit, or that is not finite.
    """
    own = encoder.state_dict()
    problems, reshaped = [], []
    for name, (names, value) in given.items():
        said, wanted = joint(names) if names else name, own[name].shape
        if name == CUBES and value.ndim == 5 and value.shape != wanted:
            value = retime_kernel(value.float(), wanted[2])
            reshaped.append(name)
        if value.shape != wanted:
            problems.append(f"{said} is {tuple(value.shape)}, the encoder's {tuple(wanted)}")
        elif not bool(value.isfinite().all()):
            problems.append(f"{said} holds numbers that are not finite")
        else:
            own[name].copy_(value)
    if problems:
        rest = [f"{len(problems) - 6} more"] if len(problems) > 6 else []
        raise CheckpointError(f"{where} does not fit: {'; '.join([*problems[:6], *rest])}")
    return tuple(reshaped)


def joint(names: Sequence[str]) -> str:
    """One name for what is one tensor here."""
    return names[0] if len(names) == 1 else names[0].replace(".query.", ".{query,key,value}.")
