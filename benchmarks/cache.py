"""What a clip from a cache costs: paired, interleaved, medians of the processor's time.

    python benchmarks/cache.py [--sizes 112 224] [--batch 16] [--repeats 9] [--device cpu]

Videos of 96 frames, 16:9, a sixth larger than the clips (16 frames at stride 4, VideoMAE's multi-scale crop) are kept, and whole batches
are cut from them, ready to be handed over:

- ``plain``: what one writes first: take the clip's frames, crop, resize, stack the clips, and let the DataLoader copy them into shared
  memory;
- ``memory``: ``data.cache = memory``, as a decoding process does it;
- ``device``: ``data.cache = device`` with ``--device``. On a GPU the time is that of the wall, to the end of the last kernel; ``host`` is
  what the training process spends on it.

One core, or one GPU. The result is one line of JSON with milliseconds a clip, clips a second, and the medians of the paired ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.core import CounterDraw
from tubelet.data.clip import TrainDraws
from tubelet.data.kept import FrameCache, Kept, MemoryCache
from tubelet.data.kept_on_device import DeviceCache
from tubelet.data.loader import ClipMaker, ItemReader
from tubelet.data.order import Order
from tubelet.data.settings import DataSettings
from tubelet.data.table import Row, Table
from tubelet.data.workers import run_jobs

VIDEOS, LENGTH = 12, 96


class Batches:
    """Job of a decoding process: cut the same batch in several ways, one after the other, and say how long each took."""

    def __init__(self, ways: dict[str, Callable[[list[int]], Any]]) -> None:
        self.ways = ways

    def __len__(self) -> int:
        return VIDEOS

    def __getitems__(self, numbers: list[int]) -> dict[str, float]:
        seconds = {}
        for name, way in self.ways.items():
            began = time.process_time()
            way(numbers)
            seconds[name] = time.process_time() - began
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, one core"
    results = {str(size): measured(size, args, device) for size in args.sizes}
    print(json.dumps({"machine": name, "torch": torch.__version__, "batch": args.batch} | results))


def measured(size: int, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All ways at one size of clip."""
    settings = DataSettings(size=size, stride=4)
    table = Table([Row(f"{i}.mp4", f"{i}.mp4") for i in range(VIDEOS)])
    shape = (LENGTH, settings.short_side, settings.short_side * 16 // 9, 3)
    videos = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(VIDEOS)]
    memory, on_device = MemoryCache(), DeviceCache(device, block=2**28)
    makers = {name: _maker(cache, videos, table, settings) for name, cache in (("memory", memory), ("device", on_device))}
    ways: dict[str, Callable[[list[int]], Any]] = {
        "plain": lambda numbers: _plain(videos, table, settings, numbers),
        "memory": makers["memory"].__getitems__,
    }
    if device.type == "cpu":
        ways["device"] = makers["device"].__getitems__
    schedule = [list(range(i * args.batch, (i + 1) * args.batch)) for i in range(args.repeats + 2)]
    rounds = list(run_jobs(Batches(ways), schedule, workers=1, prefetch=1))[2:]  # the first two warm up
    if device.type == "cuda":
        for row, numbers in zip(rounds, schedule[2:], strict=True):
            row |= _on_gpu(makers["device"], numbers, device)
    ms = {name: 1e3 * statistics.median(r[name] for r in rounds) / args.batch for name in rounds[0]}
    spread = {name: 1e3 * (max(r[name] for r in rounds) - min(r[name] for r in rounds)) / args.batch for name in rounds[0]}
    ratio = {name: statistics.median(r["plain"] / r[name] for r in rounds) for name in ms if name != "plain"}
    return {
        "ms_a_clip": _rounded(ms),
        "spread_ms": _rounded(spread),
        "clips_per_s": {k: round(1e3 / v) for k, v in ms.items()},
        "times_plain": _rounded(ratio),
    }


def _maker(cache: FrameCache, videos: Sequence[Tensor], table: Table, settings: DataSettings) -> ClipMaker:
    for row, frames in enumerate(videos):
        cache.add(row, Kept(frames, np.arange(LENGTH) / 25, (int(frames.shape[1]), int(frames.shape[2]))))
    cache.seal(2**62)
    return ClipMaker(ItemReader(table, settings, "pyav", cache), Order(VIDEOS, seed=0))


def _plain(videos: Sequence[Tensor], table: Table, settings: DataSettings, numbers: list[int]) -> Tensor:
    """The same clips in the obvious way."""
    order, clips = Order(len(table), seed=0), []
    sample = torch.tensor(numbers)
    draws = TrainDraws(settings, CounterDraw(0, sample))
    for i, number in enumerate(numbers):
        frames, plan = videos[order[number].row], draws.plan([i])
        ((y, x, h, w),) = plan.boxes(*frames.shape[1:3])[0]
        shown = frames[torch.from_numpy(plan.windows(np.arange(LENGTH) / 25)[0])]
        part = shown[:, y : y + h, x : x + w].permute(0, 3, 1, 2)
        clips.append(F.interpolate(part, settings.hw, mode="bilinear", antialias=True).permute(0, 2, 3, 1)[None])
    return torch.cat([torch.stack([clip[0]]) for clip in clips]).share_memory_()


def _on_gpu(maker: ClipMaker, numbers: list[int], device: torch.device) -> dict[str, float]:
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    maker.__getitems__(numbers)
    host = time.perf_counter() - began
    torch.cuda.synchronize(device)
    return {"device": time.perf_counter() - began, "host": host}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in values.items()}


if __name__ == "__main__":
    main()
