"""Short trials on this machine that a plan rests on: decoding a sample of the sources, and a few real training steps."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

import torch

from tubelet.api._common import build
from tubelet.api._cost import black
from tubelet.api._run_plan import GIB, Decoding, period
from tubelet.core import Batch, CounterDraw, Step
from tubelet.data.augment import Augment
from tubelet.data.cache import estimate_bytes, free_bytes
from tubelet.data.loader import VideoFeed
from tubelet.data.table import Table
from tubelet.errors import ConfigError
from tubelet.recipe import StageSettings
from tubelet.train.loop import apply_switches
from tubelet.train.step import Stepper

CLIPS = 4  # that are looked at: memory is a straight line through half of them and all
DECODE_SECONDS, DECODE_WALL, DECODE_CLIPS, CACHED_VIDEOS = 3.0, 8.0, 512, 6
STEP_SECONDS, TRIAL_SECONDS, LONGEST_CLIP = 4.0, 8.0, 30.0


def clock(s: StageSettings) -> Step:
    """The first step of a run."""
    return Step(0, 0, 0.0, 0.0, CounterDraw(s.train.seed, torch.zeros(1, dtype=torch.int64)))


def prepared(s: StageSettings, batch: Batch, classes: int) -> Batch:
    """A batch as the model gets it: augmented."""
    return Augment(s.data.augment, classes=classes)(batch, clock(s).draw.bind(batch.sample, 0))


def blank(s: StageSettings, needs: Collection[str] = ("video",)) -> Batch:
    """Black clips, where there are no videos to take some from."""
    return black(s.data, CLIPS, needs)


def decode_sample(s: StageSettings, table: Table, needs: Collection[str] = ("video",)) -> tuple[Batch, Decoding]:
    """Decode clips of some items for a few seconds in this process, as a worker does. The first of them come back as well.

    Items are taken from all over the table. With a cache, some whole videos are decoded first, and clips are then cut from those. Time is
    that of the processor, so other programs do not count. Raises DataError where the sources cannot be read.
    """
    visit = s.data.clips_per_video * s.data.repeats
    cached = s.data.cache != "none"
    rows = table.select(_spread(len(table), CACHED_VIDEOS if cached else 512))
    update = {"workers": 0, "max_bad_rate": 1.0, "cache": "memory" if cached else "none"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        began, fill = time.process_time(), None
        with VideoFeed(rows, s.data.model_copy(update=update), seed=s.train.seed, needs=needs) as feed:
            if cached:
                fill = (time.process_time() - began) / len(rows) * len(table)
            size = -(-CLIPS // visit) * visit
            groups = (range(i, i + size) for i in range(0, DECODE_CLIPS, size))  # few items come again
            some: Batch | None = None
            clips, began, wall = 0, time.process_time(), time.monotonic()
            for batch in feed.batches(groups):
                clips += len(batch)
                some = some or batch
                if time.process_time() - began > DECODE_SECONDS or time.monotonic() - wall > DECODE_WALL:
                    break
            worked, wall = time.process_time() - began, time.monotonic() - wall
            report = feed.report()
    finally:
        torch.set_num_threads(threads)
    videos = -(-clips // visit)
    found = Decoding(
        rate=clips / max(worked, 1e-6),
        clips=clips,
        videos=min(videos, len(rows)),
        seconds=wall,
        waited=max(0.0, 1 - worked / wall),
        bad=int(report["bad_videos"]),
        decoder=str(report["decoder"]),
        fill=fill,
        cache_bytes=estimate_bytes(table, s.data) if cached else None,
    )
    assert some is not None
    return first(some, CLIPS), found


def _spread(total: int, wanted: int) -> list[int]:
    """Rows from all over a table."""
    n = min(total, wanted)
    return [i * total // n for i in range(n)]


def taken(batch: Batch, which: torch.Tensor) -> Batch:
    """The samples at positions ``which``, repeats allowed."""
    streams = {k: s.map(lambda x: x[which]) for k, s in batch.streams.items()}
    labels = {k: v[which] if isinstance(v, torch.Tensor) else [v[i] for i in which.tolist()] for k, v in batch.labels.items()}
    return Batch(streams, labels, batch.sample[which], text=tuple(batch.text[i] for i in which.tolist()) if batch.text else ())


def first(batch: Batch, n: int) -> Batch:
    """The first ``n`` samples."""
    return taken(batch, torch.arange(n))


def timed_steps(s: StageSettings, batch: Batch, device: torch.device, micro: int, *, need: int, clip_seconds: float) -> tuple[float, str]:
    """Seconds of training on one clip, from a few real steps with up to ``micro`` clips, and how they were measured.

    ``need``: bytes that a step takes with one clip. ``clip_seconds``: what a clip takes at the very least. Raises ConfigError where the
    model is too large to be timed here.
    """
    free = free_bytes(device)
    if need > 0.8 * free:
        raise ConfigError(
            f"measure: a step with one clip takes {need / GIB:.1f} GiB, and {device} has {free / GIB:.1f} GiB free: it cannot be timed here"
        )
    if clip_seconds > LONGEST_CLIP:
        raise ConfigError(f"measure: one clip takes {period(clip_seconds)} or more on {device}: it cannot be timed here in reasonable time")
    clips = max(1, min(micro, int(STEP_SECONDS / max(clip_seconds, 1e-9))))
    batch = replace(taken(batch, torch.arange(clips) % len(batch)), sample=torch.arange(clips)).to(device)
    model = build(s).to(device).train()
    apply_switches(model, s.train)
    stepper = Stepper(model, s.train, lambda at, schedule: 0.0, device=device)
    at = clock(s)
    at = replace(at, draw=at.draw.bind(batch.sample, 0))
    stepper.step([batch], at)
    _wait(device)
    began, worked, steps = time.monotonic(), time.process_time(), 0
    while steps < 2 or (steps < 20 and time.monotonic() - began < TRIAL_SECONDS):
        stepper.step([batch], at)
        steps += 1
        _wait(device)
    seconds = time.monotonic() - began
    ours = (time.process_time() - worked) / seconds / torch.get_num_threads()
    busy = f" (other programs had {1 - ours:.0%} of the processor meanwhile)" if device.type == "cpu" and ours < 0.7 else ""
    return seconds / steps / clips, f"measured here: {steps} steps with {clips} clip{'s' * (clips > 1)} each{busy}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
