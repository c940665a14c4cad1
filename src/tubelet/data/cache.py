"""All videos decoded once and kept: in main memory, shared by forked processes without a copy, or on the training device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tubelet.data.kept import FrameCache, Kept, MemoryCache
from tubelet.data.kept_on_device import DeviceCache
from tubelet.data.kept_shared import fill_together, sharing
from tubelet.data.picture import Picture
from tubelet.data.reader import Decoder, open_item, read_chosen, source_size
from tubelet.data.settings import DataSettings
from tubelet.data.table import Table
from tubelet.data.transform import Box
from tubelet.data.vectors import UNIT, cells
from tubelet.data.workers import killed_after, local_ranks, run_jobs
from tubelet.errors import DataError, DecodeError

Progress = Callable[[int, int, str], None]
_PROBES = 24
MOVING = 13 / 12  # of the pixels' memory, with motion: four bytes for each 16 pixels of three
_BLOCK = 2**26  # bytes that a device cache grows by, or an eighth of the whole


class _Decode:
    """Job of a decoding process: one whole item, scaled. ``motion``: with what the codec says of it."""

    def __init__(self, table: Table, settings: DataSettings, decoder: Decoder, motion: bool) -> None:
        self.table, self.settings, self.motion = table, settings, motion
        self.decoder: Decoder = decoder
        self._lost: dict[int, str] = {}

    def lose(self, row: int, reason: str) -> None:
        self._lost[row] = f"{self.table.paths[row]}: {reason}"

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, numbers: list[int]) -> Kept | str:
        if numbers[0] in self._lost:
            return self._lost[numbers[0]]
        try:
            return self._whole(numbers[0])
        except DecodeError as error:
            return str(error)

    def _whole(self, row: int) -> Kept:
        item, s = self.table.item(row), self.settings
        frames: list[Tensor] = []
        moves: list[np.ndarray | None] = []
        source = (0, 0)

        def choose(times: np.ndarray) -> list[np.ndarray]:
            frames.clear()
            moves.clear()
            return [np.arange(len(times))]

        def take(_: int, picture: Picture) -> None:
            nonlocal source
            source = source_size(reader, picture.shape)
            box, size = Box(0, 0, *picture.shape), kept_size(*picture.shape, s.short_side)
            frames.append(picture.cut(box, size).contiguous())
            if self.motion:
                moves.append(picture.motion(box, size))

        with (
            killed_after(2 * s.decode_timeout + 1, row),
            open_item(
                item,
                decoder=self.decoder,
                timeout=s.decode_timeout,
                folder_fps=s.folder_fps,
                store=s.store,
                vectors=self.motion,
            ) as reader,
        ):
            _, times, _ = read_chosen(reader, item, choose, take)
        kept = Kept(torch.stack(frames), times, source)
        return replace(kept, **_packed(moves, kept.frames)) if self.motion else kept


def _packed(moves: list[np.ndarray | None], frames: Tensor) -> dict[str, np.ndarray]:
    """``motion`` and ``known`` of :class:`Kept`."""
    rows, columns = cells((int(frames.shape[1]), int(frames.shape[2])))
    motion = np.zeros((len(moves), rows, columns, 2), np.int16)
    for i, field in enumerate(moves):
        if field is not None:
            motion[i] = np.clip(np.round(field.transpose(1, 2, 0) * UNIT), -(2**15), 2**15 - 1)
    return {"motion": motion, "known": np.array([field is not None for field in moves])}


def kept_size(h: int, w: int, short: int) -> tuple[int, int]:
    """(h, w) scaled so that the short side is ``short``; smaller frames stay as they are."""
    scale = short / min(h, w)
    return (h, w) if scale >= 1 else (max(1, round(h * scale)), max(1, round(w * scale)))


def estimate_bytes(table: Table, settings: DataSettings) -> int:
    """What the cache of a table will take, from the frame counts and sizes of some of its items."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(_PROBES, len(table))).astype(int))
    sizes = []
    for row in rows:
        item = table.item(int(row))
        shape = (0, 0)

        def take(_: int, picture: Picture) -> None:
            nonlocal shape
            shape = picture.shape

        try:
            with open_item(item, timeout=settings.decode_timeout, folder_fps=settings.folder_fps, store=settings.store) as reader:
                _, times, _ = read_chosen(reader, item, lambda times: [np.zeros(1, np.int64)], take)
        except DecodeError:
            continue
        h, w = kept_size(*shape, settings.short_side)
        sizes.append(len(times) * h * w * 3)
    return int(np.mean(sizes) * len(table)) if sizes else 0


def build_cache(
    table: Table,
    settings: DataSettings,
    *,
    decoder: Decoder,
    device: str | torch.device,
    workers: int,
    progress: Progress | None = None,
    motion: bool = False,
) -> FrameCache:
    """Decode everything. ``motion``: keep what the codec says of it, too. Raises DataError where it does not fit into free memory, before
    and while it is filled. In main memory, the training processes of a machine have one cache together, and all must call this."""
    say = progress or (lambda done, total, text: None)
    filling = _Filling(table, settings, decoder, workers, say, motion)
    if settings.cache == "device":
        target = torch.device(device)
        return filling.fill(lambda need: DeviceCache(target, block=max(_BLOCK, need // 8)), target)
    target = torch.device("cpu")
    if sharing():
        return fill_together(lambda make: filling.fill(lambda need: make(), target, processes=local_ranks()))
    return filling.fill(lambda need: MemoryCache(), target)


C = TypeVar("C", bound=FrameCache)


@dataclass(frozen=True)
class _Filling:
    table: Table
    settings: DataSettings
    decoder: Decoder
    workers: int
    say: Progress
    motion: bool = False

    def fill(self, make: Callable[[int], C], target: torch.device, *, processes: int = 1) -> C:
        """The cache that ``make(bytes it will take, about)`` begins. ``processes``: that use it, and can lend their cores and their shares
        of the memory."""
        table, settings = self.table, self.settings
        free, need = free_bytes(target) * processes, int(estimate_bytes(table, settings) * (MOVING if self.motion else 1))
        workers = (self.workers + 1) * processes - 1 if self.workers else 0
        place = "main memory" if target.type == "cpu" else f"memory of {target}"
        slow = " (on the CPU, cache = memory is faster)" if settings.cache == "device" and target.type == "cpu" else ""
        size = f"about {need / 2**30:.2f} of {free / 2**30:.1f} GiB free {place}"
        self.say(0, len(table), f"caching {len(table)} videos at {settings.short_side} px: {size}{slow}")
        _refuse(need, free, place, settings)
        cache, why = make(need), ""
        jobs = _Decode(table, settings, self.decoder, self.motion)
        remote = any("://" in path for path in table.paths)
        for row, answer in enumerate(run_jobs(jobs, ([i] for i in range(len(table))), workers=workers, prefetch=2, remote=remote)):
            if isinstance(answer, str):
                why = why or answer
            cache.add(row, answer)
            _refuse(cache.bytes, free, place, settings)
            self.say(row + 1, len(table), "")
        if not len(cache):
            raise DataError(f"none of the {len(table)} videos can be read: {why}")
        cache.seal(free_bytes(target))
        return cache


def _refuse(need: int, free: int, place: str, settings: DataSettings) -> None:
    if need > 0.8 * free:
        raise DataError(
            f"data.cache = {settings.cache}: {need / 2**30:.2f} GiB of frames do not fit into the {free / 2**30:.2f} GiB of free {place} "
            f"(with a fifth to spare); lower data.cache_size (now {settings.short_side}) or set data.cache = none"
        )


def free_bytes(device: torch.device) -> int:
    """Free memory for this training process: the device's, or its share of main memory within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 2**62
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free // local_ranks()
