"""The feed of the training loop: global sample numbers in, batches out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tubelet.core import Batch, CounterDraw, Stream
from tubelet.data.cache import FrameCache, Progress, build_cache
from tubelet.data.clip import Clips, Plan, TrainDraws, clips_of_frames, make_clips, to_batch
from tubelet.data.faults import BadVideos, Fault
from tubelet.data.files import TimedOut
from tubelet.data.order import Order
from tubelet.data.places import is_url
from tubelet.data.reader import Decoder, choose_decoder, open_item
from tubelet.data.settings import DataSettings
from tubelet.data.table import KINDS, Table
from tubelet.data.workers import auto_workers, killed_after, run_jobs
from tubelet.errors import DataError, DecodeError

if TYPE_CHECKING:
    from tubelet.data.prepared.grouping import Grouping

REPLACEMENTS = 10  # videos tried for one sample before the run stops


@dataclass(frozen=True)
class Parcel:
    """What a decoding process sends: a batch (None where no item of an evaluation batch could be read), its faults, or why it gave up."""

    batch: Batch | None
    faults: list[Fault]
    error: str | None = None

    def pin_memory(self) -> Parcel:
        """Called by the DataLoader's pinning thread."""
        if self.batch is None:
            return self

        def pin(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.pin_memory()

        streams = {k: Stream(s.data.pin_memory(), pin(s.valid), pin(s.time), pin(s.crop)) for k, s in self.batch.streams.items()}
        labels = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in self.batch.labels.items()}
        return replace(self, batch=Batch(streams, labels, self.batch.sample.pin_memory(), self.batch.key))


class ItemReader:
    """Clips of a table's items, from the cache or by decoding: opened again once where that fails. Remembers what is broken."""

    def __init__(self, table: Table, settings: DataSettings, decoder: Decoder, cache: FrameCache | None = None) -> None:
        self.table, self.settings, self.cache = table, settings, cache
        self.decoder: Decoder = decoder
        self._broken: dict[int, str] = {}

    def clips(self, row: int, plan: Plan) -> Clips:
        """Raises DecodeError. A time-out is not remembered: it may go away."""
        if self.cache is not None:
            kept = self.cache[row]
            return clips_of_frames(kept.frames, kept.times, kept.source, plan, self.settings.hw)
        if row in self._broken:
            raise DecodeError(self._broken[row])
        try:
            return self._decode(row, plan)
        except DecodeError:
            try:
                return self._decode(row, plan)
            except TimedOut:
                raise
            except DecodeError as error:
                self._broken[row] = str(error)
                raise

    def lose(self, row: int, reason: str) -> None:
        """An item that killed the process that read it. See :func:`tubelet.data.workers.run_jobs`."""
        self._broken[row] = f"{self.table.paths[row]}: {reason}"

    def _decode(self, row: int, plan: Plan) -> Clips:
        item, s = self.table.item(row), self.settings
        with (
            killed_after(2 * s.decode_timeout + 1, row),
            open_item(item, decoder=self.decoder, timeout=s.decode_timeout, folder_fps=s.folder_fps, store=s.store) as reader,
        ):
            return make_clips(reader, item, plan, s.hw)

    def labels(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """``item``: table rows (B,) int64; ``class`` (B,) int64 where the table is labelled."""
        out = {"item": torch.tensor(rows, dtype=torch.int64)}
        if self.table.classes and (self.table.labels >= 0).all():
            out["class"] = torch.from_numpy(self.table.labels[list(rows)])
        return out


class ClipMaker:
    """Job of a decoding process: a training batch as a pure function of its sample numbers."""

    def __init__(self, reader: ItemReader, order: Order) -> None:
        self.reader, self.order = reader, order

    def __len__(self) -> int:
        return len(self.order)

    def lose(self, row: int, reason: str) -> None:
        self.reader.lose(row, reason)

    def __getitems__(self, numbers: list[int]) -> Parcel:
        places = [self.order[k] for k in numbers]
        sample = torch.tensor(numbers, dtype=torch.int64)
        settings, seed = self.reader.settings, self.order.seed
        draws = TrainDraws(settings, CounterDraw(seed, sample), CounterDraw(seed, sample - sample % settings.repeats))
        clips: list[Clips] = []
        rows: list[int] = []
        faults: list[Fault] = []
        for visit, group in groupby(range(len(numbers)), key=lambda i: places[i].visit):
            positions = list(group)
            plan = draws.plan(positions)
            row = places[positions[0]].row
            for attempt in range(1, REPLACEMENTS + 2):
                try:
                    clips.append(self.reader.clips(row, plan))
                    break
                except DecodeError as error:
                    first = attempt == 1
                    faults += [self._fault(row, error, numbers[i], first) for i in (positions if first else positions[:1])]
                    row = self.replacement(visit, attempt)
                except DataError as error:  # not of this item: of its whole set, or of the folder that keeps fetched shards
                    return Parcel(None, faults, str(error))
            else:
                return Parcel(None, faults, f"{REPLACEMENTS + 1} videos in a row cannot be read, the last: {faults[-1].reason}")
            rows += [row] * len(positions)
        keys = [self.reader.table.keys[row] for row in rows]
        return Parcel(to_batch(clips, sample=sample, key=keys, labels=self.reader.labels(rows)), faults)

    def replacement(self, visit: int, attempt: int) -> int:
        """The row to try instead: a function of seed, visit and attempt alone, never of what happened before."""
        counter = torch.tensor([visit * self.order.clips], dtype=torch.int64)
        return int(CounterDraw(self.order.seed, counter).integers(f"data/replace/{attempt}", self.order.items)[0])

    def _fault(self, row: int, error: DecodeError, sample: int, first: bool) -> Fault:
        table = self.reader.table
        return Fault(row, table.keys[row], table.paths[row], str(error), sample, first)


def shards_to_mix(table: Table, settings: DataSettings) -> Grouping | None:
    """The shards of the items where the order is by shards, None where it is by items. Raises DataError where shards were asked for
    and some items lie in none."""
    prepared = np.array([kind == "prepared" for kind in KINDS])[table.kinds]
    if settings.shuffle == "shards" and not prepared.all():
        first = table.keys[int(np.flatnonzero(~prepared)[0])]
        raise DataError(
            f"data.shuffle = shards: {int((~prepared).sum())} of {len(table)} items are not of prepared sets, e.g. {first}; set "
            "data.shuffle = items"
        )
    if settings.shuffle == "items" or not prepared.all() or (settings.shuffle == "auto" and not all(map(is_url, table.paths))):
        return None
    from tubelet.data.prepared.grouping import Grouping

    return Grouping.of(table, store=settings.store, timeout=settings.decode_timeout)


class VideoFeed:
    """Batches of training clips: a pure function of seed, table, settings and sample numbers.

    Sample k is position k % len(feed) of epoch k // len(feed); ``clips_per_video`` x ``repeats`` neighbours share one video and one decode
    where they are in the same list, and ``repeats`` of them one clip. Batches are on the CPU, pinned where ``device`` is CUDA; with
    ``cache = device`` they are on the device.
    ``run_dir``: where bad_videos.jsonl goes. ``progress(done, total, text)`` is told how the cache fills. Raises DataError, ConfigError.
    """

    def __init__(
        self,
        table: Table,
        settings: DataSettings,
        *,
        seed: int,
        run_dir: Path | None = None,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ) -> None:
        if not len(table):
            raise DataError("the data table is empty")
        self.table, self.settings, self.seed, self.device = table, settings, seed, torch.device(device)
        self.decoder: Decoder = choose_decoder(settings.decoder)
        self.workers = auto_workers() if settings.workers == "auto" else settings.workers
        self._remote = any("://" in path for path in table.paths)
        cache = None
        if settings.cache != "none":
            cache = build_cache(table, settings, decoder=self.decoder, device=self.device, workers=self.workers, progress=progress)
            self._remote = False  # nothing is fetched any more
        if settings.cache == "device":
            self.workers = 0
        self._bad = BadVideos(run_dir / "bad_videos.jsonl" if run_dir is not None else None, settings.max_bad_rate)
        visit = settings.clips_per_video * settings.repeats
        self._groups = shards_to_mix(table, settings)
        shards = self._groups.shards if self._groups is not None else None
        order = Order(len(table), seed=seed, clips_per_video=visit, shards=shards, mixed=settings.shuffle_shards)
        self._maker = ClipMaker(ItemReader(table, settings, self.decoder, cache), order)
        self._running: list[Iterator[Any]] = []

    def __len__(self) -> int:
        """Samples in one epoch: items x clips_per_video x repeats."""
        return len(self._maker)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on with the same samples."""
        names = {"frames", "stride", "fps", "sampling", "crop", "multiscale", "area", "ratio", "folder_fps", "cache"}
        names |= {"clips_per_video", "repeats"}
        chosen = self.settings.model_dump(mode="json", include=names)
        kept = self.settings.short_side if self.settings.cache != "none" else None
        order = self._maker.order.fingerprint()
        own = {"seed": self.seed, "size": list(self.settings.hw), "cache_size": kept, "decoder": self.decoder}
        return {**self.table.fingerprint(), **chosen, **own, **order}

    def keys(self) -> Sequence[str]:
        """Names of the items in table order."""
        return self.table.keys

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """One batch for each list of global sample numbers, in order. Raises DataError where too many videos are bad or a process dies."""
        if self._groups is not None and self.settings.cache == "none":
            schedule = self._groups.ahead(self._maker.order, schedule)
        pin = self.device.type == "cuda" and self.settings.cache != "device"
        parcels = run_jobs(self._maker, schedule, workers=self.workers, prefetch=self.settings.prefetch, pin=pin, remote=self._remote)
        self._running.append(parcels)
        try:
            for parcel in parcels:
                yield self._receive(parcel)
        finally:
            self._running.remove(parcels)
            parcels.close()  # type: ignore[attr-defined]  # a generator

    def _receive(self, parcel: Parcel) -> Batch:
        samples = len(parcel.batch) if parcel.batch is not None else sum(f.first for f in parcel.faults)
        self._bad.add(samples, parcel.faults)
        if parcel.error is not None or parcel.batch is None:
            raise DataError(parcel.error or "a decoding process sent no batch")
        return parcel.batch.to(self.device) if self.settings.cache == "device" else parcel.batch

    def report(self) -> dict[str, Any]:
        """Counts of samples seen, replaced, bad videos and the commonest reasons."""
        return {**self._bad.report(), "workers": self.workers, "decoder": self.decoder}

    def close(self) -> None:
        """End the decoding processes of iterations that were left half way."""
        for parcels in list(self._running):
            try:
                parcels.close()  # type: ignore[attr-defined]  # a generator
            except ValueError:
                continue  # it is being advanced right now and ends by itself

    def __enter__(self) -> VideoFeed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
