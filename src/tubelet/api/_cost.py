"""What a sample costs in the training that is about to start: the line before a run, and what its MFU is measured by."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from tubelet.core import Batch, CounterDraw, Step, Stream, Trainable
from tubelet.data.settings import DataSettings
from tubelet.data.vectors import cells
from tubelet.train.cost import measure
from tubelet.train.hooks import undisturbed
from tubelet.train.monitor import Yardstick
from tubelet.train.peaks import peak_flops
from tubelet.train.plan import Plan
from tubelet.train.settings import TrainSettings


def measured(model: Trainable, data: DataSettings, train: TrainSettings, device: torch.device) -> Yardstick | None:
    """What a sample's forward pass costs, counted on two black clips; None for a model that cannot read those."""
    batch = black(data, 2, model.needs)
    try:
        with undisturbed(model, device), torch.enable_grad():
            cost = measure(model, batch, first_step(train, batch), precision=train.precision)
    except (ValueError, RuntimeError, LookupError, TypeError):
        return None
    return Yardstick(cost.forward_flops, peak_flops(device, train.precision)) if cost.forward_flops else None


def black(data: DataSettings, clips: int, needs: Collection[str] = ("video",)) -> Batch:
    """Some black clips of class 0, in which nothing moves and about which nothing is said."""
    h, w = data.hw
    time = torch.zeros(clips, data.frames)
    streams = {"video": Stream(torch.zeros(clips, 3, data.frames, h, w, dtype=torch.uint8), time=time)}
    over = (data.frames, *cells((h, w)))
    if "motion" in needs:
        streams["motion"] = Stream(torch.zeros(clips, 2, *over), valid=time > 0, time=time, kind="flow")
    if "map" in needs:
        streams["map"] = Stream(torch.zeros(clips, 1, *over), time=time, kind="score")
    text = ("",) * clips if "text" in needs else ()
    return Batch(streams, {"class": torch.zeros(clips, dtype=torch.int64)}, torch.arange(clips), text=text)


def first_step(train: TrainSettings, batch: Batch) -> Step:
    """The clock of a run's first step."""
    return Step(0, 0, 0.0, 0.0, CounterDraw(train.seed, batch.sample))


def cost_line(yardstick: Yardstick, plan: Plan) -> str:
    """``3.4 GFLOP a clip and forward pass, 12 PFLOP in all; MFU against ...``."""
    each, whole = yardstick.forward_flops, 3 * yardstick.forward_flops * plan.total_samples
    against = f"; MFU against {yardstick.peak[0]}, {_flops(yardstick.peak[1])}/s" if yardstick.peak else ""
    return f"{_flops(each)} a clip and forward pass, {_flops(whole)} in all{against}"


def _flops(count: float) -> str:
    """``3.4 GFLOP``: three digits and a unit."""
    power = max(0, min(6, int(math.log10(max(count, 1))) // 3))
    return f"{count / 1000**power:.3g} {' kMGTPE'[power].strip()}FLOP"
