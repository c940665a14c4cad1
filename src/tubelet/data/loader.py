"""The feed of the training loop: global sample numbers in, batches out."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tubelet.core import Batch, CounterDraw
from tubelet.data.beside import Beside
from tubelet.data.cache import Progress, build_cache
from tubelet.data.clip import Clips, Look, Plan, TrainDraws, make_clips, to_batch
from tubelet.data.decode import Mismatch, PyavReader
from tubelet.data.faults import BadVideos, Fault
from tubelet.data.files import TimedOut
from tubelet.data.kept import FrameCache
from tubelet.data.order import Order
from tubelet.data.places import is_url
from tubelet.data.reader import Decoder, open_item
from tubelet.data.settings import DataSettings
from tubelet.data.stills import StillReader
from tubelet.data.supply import Pace, Supply
from tubelet.data.table import KINDS, Item, Table
from tubelet.data.together import read_together
from tubelet.data.workers import auto_workers, killed_after, run_jobs, still_moving
from tubelet.errors import DataError, DecodeError

if TYPE_CHECKING:
    from tubelet.data.prepared.grouping import Grouping
    from tubelet.data.prepared.reader import PreparedReader

REPLACEMENTS = 10  # videos tried for one sample before the run stops
_GROUPS, _CACHED_GROUP = 256, 16  # what is timed at most, and clips at once


@dataclass(frozen=True)
class Parcel:
    """What a decoding process sends: a batch (None where no item of an evaluation batch could be read), its faults, or why it gave up."""

    batch: Batch | None
    faults: list[Fault]
    error: str | None = None

    def tensors(self) -> list[Tensor]:
        """All of its batch."""
        if self.batch is None:
            return []
        parts = [part for s in self.batch.streams.values() for part in (s.data, s.valid, s.time, s.crop)]
        return [x for x in (*parts, *self.batch.labels.values(), self.batch.sample) if isinstance(x, Tensor)]

    def pin_memory(self) -> Parcel:
        """What lies in main memory, pinned. Called by the DataLoader's pinning thread."""
        if self.batch is None:
            return self

        def pin(x: Tensor) -> Tensor:
            return x.pin_memory() if x.device.type == "cpu" else x

        streams = {k: s.map(pin) for k, s in self.batch.streams.items()}
        labels = {k: pin(v) if isinstance(v, Tensor) else v for k, v in self.batch.labels.items()}
        return replace(self, batch=replace(self.batch, streams=streams, labels=labels, sample=pin(self.batch.sample)))


class ItemReader:
    """Clips of a table's items, from the cache or by decoding: opened again once where that fails. Remembers what is broken. ``beside``:
    what comes with the pixels, None = nothing."""

    def __init__(
        self, table: Table, settings: DataSettings, decoder: Decoder, cache: FrameCache | None = None, beside: Beside | None = None
    ) -> None:
        self.table, self.settings, self.cache, self.beside = table, settings, cache, beside or Beside(decoder)
        self.decoder: Decoder = decoder
        self._broken: dict[int, str] = {}

    def visit(self, row: int, plan: Plan) -> Clips | list[Look]:
        """The clips of a visit: decoded, or from the cache and not cut yet. Raises DecodeError, DataError for what lies beside them."""
        if self.cache is None:
            return self.clips(row, plan)
        return self.beside.looks(self.cache.looks(row, plan, self.settings.hw), self.settings.hw)

    def cut(self, visits: Sequence[Clips | list[Look]]) -> list[Clips]:
        """The clips of visits, in order; those from the cache are all cut at once."""
        looks = [look for visit in visits if isinstance(visit, list) for look in visit]
        if not looks or self.cache is None:
            return [visit for visit in visits if isinstance(visit, Clips)]
        return [self.cache.clips(looks, self.settings.hw, motion=self.beside.motion)]

    def clips(self, row: int, plan: Plan) -> Clips:
        """Decoded clips. Raises DecodeError, DataError for what lies beside them. A time-out is not remembered: it may go away."""
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

    def together(self, rows: Sequence[int], plan: Plan) -> dict[int, Clips]:
        """Decoded clips of rows of one file, in one pass. Those that are absent have to be read by :meth:`clips`, which says what is wrong
        with them. Every item has the time that it has alone. Raises DataError for what is wrong with a whole set."""
        found: dict[int, Clips] = {}
        if any(row in self._broken for row in rows):
            return found
        s, items = self.settings, [self.table.item(row) for row in rows]
        try:
            with (
                killed_after(2 * s.decode_timeout + 1, rows[0]),
                self._open(items[0]) as reader,
            ):

                def reading(i: int) -> None:
                    reader.deadline.renew()
                    still_moving(rows[i])

                def done(i: int, clips: Clips) -> None:
                    found[rows[i]] = self.beside.clips(rows[i], clips, s.hw)

                read_together(reader, items, plan, s.hw, motion=self.beside.motion, reading=reading, done=done)
        except (DecodeError, Mismatch):
            pass  # the rest is read item by item
        return found

    def lose(self, row: int, reason: str) -> None:
        """An item that killed the process that read it. See :func:`tubelet.data.workers.run_jobs`."""
        self._broken[row] = f"{self.table.paths[row]}: {reason}"

    def _decode(self, row: int, plan: Plan) -> Clips:
        item, s = self.table.item(row), self.settings
        with killed_after(2 * s.decode_timeout + 1, row), self._open(item) as reader:
            clips = make_clips(reader, item, plan, s.hw, self.beside.motion)
        return self.beside.clips(row, clips, s.hw)

    def _open(self, item: Item) -> PyavReader | StillReader | PreparedReader:
        s, vectors = self.settings, self.beside.motion
        limit = s.decode_timeout
        return open_item(item, decoder=self.decoder, timeout=limit, folder_fps=s.folder_fps, store=s.store, vectors=vectors)

    def labels(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """``item``: table rows (B,) int64; ``class`` (B,) int64 where the table is labelled."""
        out = {"item": torch.tensor(rows, dtype=torch.int64)}
        if self.table.classes and (self.table.labels >= 0).all():
            out["class"] = torch.from_numpy(self.table.labels[list(rows)])
        return out


class ClipMaker:
    """Job of a decoding process: a training batch as a pure function of its sample numbers. ``replacements``: videos that are tried in the
    place of one that cannot be read."""

    def __init__(self, reader: ItemReader, order: Order, *, replacements: int = REPLACEMENTS) -> None:
        self.reader, self.order, self.replacements = reader, order, replacements

    def __len__(self) -> int:
        return len(self.order)

    def lose(self, row: int, reason: str) -> None:
        self.reader.lose(row, reason)

    def __getitems__(self, numbers: list[int]) -> Parcel:
        places = [self.order[k] for k in numbers]
        sample = torch.tensor(numbers, dtype=torch.int64)
        settings, seed = self.reader.settings, self.order.seed
        draw = CounterDraw(seed, sample)
        draws = TrainDraws(settings, draw, CounterDraw(seed, sample - sample % settings.repeats))
        visits: list[Clips | list[Look]] = []
        rows: list[int] = []
        faults: list[Fault] = []
        for visit, group in groupby(range(len(numbers)), key=lambda i: places[i].visit):
            positions = list(group)
            plan = draws.plan(positions)
            row = places[positions[0]].row
            for attempt in range(1, self.replacements + 2):
                try:
                    visits.append(self.reader.visit(row, plan))
                    break
                except DecodeError as error:
                    first = attempt == 1
                    faults += [self._fault(row, error, numbers[i], first) for i in (positions if first else positions[:1])]
                    row = self.replacement(visit, attempt)
                except DataError as error:  # not of this item: of its whole set, or of the folder that keeps fetched shards
                    return Parcel(None, faults, str(error))
            else:
                return Parcel(None, faults, f"{self.replacements + 1} videos in a row cannot be read, the last: {faults[-1].reason}")
            rows += [row] * len(positions)
        keys = [self.reader.table.keys[row] for row in rows]
        text, labels = self.reader.beside.text(rows, draw), self.reader.labels(rows)
        return Parcel(to_batch(self.reader.cut(visits), sample=sample, key=keys, labels=labels, text=text), faults)

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


def _beside(parcels: Iterator[Parcel], device: torch.device) -> Iterator[Parcel]:
    """Parcels that are made on a GPU, on a stream of their own, each while the one before it is in use."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # the frames were written on that one

    def make() -> tuple[Parcel | None, torch.cuda.Event]:
        ready = torch.cuda.Event()
        with torch.cuda.stream(stream):
            parcel = next(parcels, None)
            if parcel is not None and parcel.batch is not None:
                moved = parcel.pin_memory().batch
                assert moved is not None
                parcel = replace(parcel, batch=moved.to(device))
            ready.record(stream)
        return parcel, ready

    parcel, ready = make()
    while parcel is not None:
        after = make()
        user = torch.cuda.current_stream(device)
        user.wait_event(ready)
        for tensor in parcel.tensors():
            tensor.record_stream(user)  # so that its memory is not given to the next batch while it is read
        yield parcel
        parcel, ready = after


class VideoFeed:
    """Batches of training clips: a pure function of seed, table, settings and sample numbers.

    Sample k is position k % len(feed) of epoch k // len(feed); ``clips_per_video`` x ``repeats`` neighbours share one video and one decode
    where they are in the same list, and ``repeats`` of them one clip. Batches are on the CPU, pinned where ``device`` is CUDA; with
    ``cache = device`` they are on the device.
    ``needs``: what batches bring: "video", "motion" (a stream of displacements), "text", "map" (a stream of scores).
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
        needs: Collection[str] = ("video",),
    ) -> None:
        if not len(table):
            raise DataError("the data table is empty")
        self.table, self.settings, self.seed, self.device = table, settings, seed, torch.device(device)
        beside = Beside.of(table, settings, needs)
        beside.check_cache(settings.cache)
        self.decoder: Decoder = beside.decoder
        self.workers = auto_workers() if settings.workers == "auto" else settings.workers
        self.remote = any("://" in path for path in table.paths)
        cache = None
        if settings.cache != "none":
            cache = build_cache(
                table,
                settings,
                decoder=self.decoder,
                device=self.device,
                workers=self.workers,
                progress=progress,
                motion=beside.motion,
            )
            self.remote = False  # nothing is fetched any more
        if settings.cache == "device":
            self.workers = 0
        self.prefetch = settings.ahead
        self._bad = BadVideos(run_dir / "bad_videos.jsonl" if run_dir is not None else None, settings.max_bad_rate)
        visit = settings.clips_per_video * settings.repeats
        self._groups = shards_to_mix(table, settings)
        shards = self._groups.shards if self._groups is not None else None
        order = Order(len(table), seed=seed, clips_per_video=visit, shards=shards, mixed=settings.shuffle_shards)
        self._cache, self._beside = cache, beside
        self._maker = ClipMaker(ItemReader(table, settings, self.decoder, cache, beside), order)
        self._running: list[Iterator[Any]] = []

    def __len__(self) -> int:
        """Samples in one epoch: items x clips_per_video x repeats."""
        return len(self._maker)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user may want to know of what comes beside the pixels."""
        return self._beside.notes

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on with the same samples."""
        names = {"frames", "stride", "fps", "sampling", "crop", "multiscale", "area", "ratio", "folder_fps", "cache"}
        names |= {"clips_per_video", "repeats"}
        chosen = self.settings.model_dump(mode="json", include=names)
        kept = self.settings.short_side if self.settings.cache != "none" else None
        order = self._maker.order.fingerprint()
        own = {"seed": self.seed, "size": list(self.settings.hw), "cache_size": kept, "decoder": self.decoder}
        return {**self.table.fingerprint(), **chosen, **own, **order, **self._beside.fingerprint()}

    def keys(self) -> Sequence[str]:
        """Names of the items in table order."""
        return self.table.keys

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """One batch for each list of global sample numbers, in order. Raises DataError where too many videos are bad or a process dies."""
        if self._groups is not None and self.settings.cache == "none":
            schedule = self._groups.ahead(self._maker.order, schedule)
        gpu, on_device = self.device.type == "cuda", self.settings.cache == "device"
        parcels = run_jobs(
            self._maker, schedule, workers=self.workers, prefetch=self.prefetch, pin=gpu and not on_device, remote=self.remote
        )
        self._running.append(parcels)
        try:
            for parcel in _beside(parcels, self.device) if gpu and on_device else parcels:
                yield self._receive(parcel)
        finally:
            self._running.remove(parcels)
            parcels.close()  # type: ignore[attr-defined]  # a generator

    def pace(self, *, seconds: float, batch: int) -> Pace:
        """How long making clips takes one process: some of the run's own are made for about ``seconds``, up to ``batch`` at once where
        frames are cached, else one video's. Nothing is counted or remembered of it."""
        s, visit = self.settings, self._maker.order.clips
        settings = s.model_copy(update={"decode_timeout": min(s.decode_timeout, seconds)})
        maker = ClipMaker(ItemReader(self.table, settings, self.decoder, self._cache, self._beside), self._maker.order, replacements=0)
        group = visit if self._cache is None else -(-min(batch, _CACHED_GROUP) // visit) * visit
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        took: list[float] = []
        try:
            began = time.monotonic()
            while len(took) < 2 or (time.monotonic() - began < seconds and len(took) < _GROUPS):
                mark = time.monotonic()
                maker.__getitems__(list(range(len(took) * group, (len(took) + 1) * group)))
                took.append(time.monotonic() - mark)
                if took[-1] > seconds:
                    break
        finally:
            torch.set_num_threads(threads)
        return Pace(group, np.array(took[1:] or took))  # the first one warms up

    def use(self, supply: Supply) -> None:
        """Take this many workers and batches ahead from the next iteration on."""
        self.workers, self.prefetch = supply.workers, supply.prefetch

    def _receive(self, parcel: Parcel) -> Batch:
        samples = len(parcel.batch) if parcel.batch is not None else sum(f.first for f in parcel.faults)
        self._bad.add(samples, parcel.faults)
        if parcel.error is not None or parcel.batch is None:
            raise DataError(parcel.error or "a decoding process sent no batch")
        return parcel.batch.to(self.device) if self.settings.cache == "device" else parcel.batch

    def report(self) -> dict[str, Any]:
        """Counts of samples seen, replaced, bad videos and the commonest reasons."""
        return {**self._bad.report(), "workers": self.workers, "prefetch": self.prefetch, "decoder": self.decoder}

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
