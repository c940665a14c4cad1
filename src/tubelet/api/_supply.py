"""How many decoding processes a run takes: a short measurement before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tubelet.api._cost import black, first_step
from tubelet.core import Trainable
from tubelet.data.cache import free_bytes
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings
from tubelet.data.supply import Supply, batch_room, choose
from tubelet.data.workers import spare_cores
from tubelet.train.cost import pass_seconds
from tubelet.train.distributed import Ranks
from tubelet.train.hooks import undisturbed
from tubelet.train.plan import Plan, Position
from tubelet.train.settings import TrainSettings

SHORT_RUN = 200  # steps, below which measuring is not worth its time
DECODE_SECONDS, PASS_SECONDS = 1.0, 0.5  # for decoding; a pass that takes longer is not made again
CLIPS = {"cpu": 4, "cuda": 32}  # in a timed pass, at most
COMPILED = 1.5  # a compiled step is so much faster at most: passes are timed before anything is compiled


def supply(
    feed: VideoFeed, model: Trainable, data: DataSettings, train: TrainSettings, plan: Plan, device: torch.device, ranks: Ranks
) -> Supply | None:
    """Choose the feed's processes where the settings leave that open and the run is long enough; None = nothing was chosen.

    Every process chooses for itself, from the same number of passes. Samples do not depend on it.
    """
    wanted = data.workers == "auto" and data.cache != "device" and not feed.remote
    if not wanted or plan.total_steps < SHORT_RUN:
        return None
    batch = max(len(mine) for mine, _ in plan.micro_batches(Position(), ranks.rank))
    seconds = clip_seconds(model, data, train, device, batch, ranks)
    if seconds is None:
        return None
    h, w = data.hw
    chosen = choose(
        feed.pace(seconds=DECODE_SECONDS, batch=batch),
        1 / seconds,
        batch=batch,
        clip_bytes=3 * data.frames * h * w,
        cores=spare_cores(),
        free=batch_room(free_bytes(torch.device("cpu"))),
        prefetch=None if data.prefetch == "auto" else data.prefetch,
    )
    feed.use(chosen)
    return chosen


def clip_seconds(
    model: Trainable, data: DataSettings, train: TrainSettings, device: torch.device, batch: int, ranks: Ranks
) -> float | None:
    """Seconds of training on a clip, at least: of the forward and backward passes over a few black ones. None for a model that cannot
    read those."""
    clips = black(data, max(1, min(batch, CLIPS.get(device.type, 4))), model.needs)
    try:
        with undisturbed(model, device), torch.enable_grad():
            found = pass_seconds(model, clips, first_step(train, clips), precision=train.precision, again=_thrice(ranks))
    except (ValueError, RuntimeError, LookupError, TypeError):
        return None
    return found / (COMPILED if train.compile else 1.0)


def _thrice(ranks: Ranks) -> Callable[[float], bool]:
    """Make up to three passes, fewer where they take long for any process."""
    made = 0

    def again(seconds: float) -> bool:
        nonlocal made
        made += 1
        slowest = ranks.agree([math.ceil(1e6 * seconds)])[0]
        return made < 3 and slowest < 1e6 * PASS_SECONDS

    return again
