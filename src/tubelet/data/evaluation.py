"""Every item once, nothing drawn, nothing replaced: what embedding, retrieval and probes read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tubelet.core import Batch, Stream
from tubelet.data.cache import free_bytes
from tubelet.data.clip import Clips, to_batch, view_plan
from tubelet.data.faults import Fault
from tubelet.data.loader import ItemReader, Parcel
from tubelet.data.reader import Decoder, choose_decoder, open_item
from tubelet.data.sampling import frame_gap
from tubelet.data.settings import DataSettings, Views
from tubelet.data.supply import MEMORY_SHARE, batch_room
from tubelet.data.table import Row, Table
from tubelet.data.together import files, jobs
from tubelet.data.workers import auto_workers, run_jobs
from tubelet.errors import DataError, DecodeError

CHUNK = 64 * 2**20  # bytes of clips that are cut in one pass over a file
LEAST = 8  # items of a file that are worth a pass


class ViewMaker:
    """Job of a decoding process: all views of some items; those that cannot be read are left out and named."""

    def __init__(self, reader: ItemReader, views: Views) -> None:
        self.reader, self.views = reader, views
        self.plan = view_plan(reader.settings, views)
        self._alone: set[str] = set()  # files whose items are not read together

    def __len__(self) -> int:
        return len(self.reader.table)

    def lose(self, row: int, reason: str) -> None:
        """An item that killed the process that read it: where its file was read for several items at once, they are first read one by one,
        so that it is clear which of them does it."""
        where = self.reader.table.paths[row]
        neighbours = [near for near in (row - 1, row + 1) if 0 <= near < len(self)]
        if where not in self._alone and any(self.reader.table.paths[near] == where for near in neighbours):
            self._alone.add(where)
        else:
            self.reader.lose(row, reason)

    def __getitems__(self, numbers: list[int]) -> Parcel:
        table, per_item = self.reader.table, self.views.clips * self.views.crops
        clips: list[Clips] = []
        faults: list[Fault] = []
        scored: list[int] = []
        for rows in files(table, numbers):
            try:
                found = self.reader.together(rows, self.plan) if len(rows) > 1 and table.paths[rows[0]] not in self._alone else {}
                for row in rows:
                    try:
                        clips.append(found.pop(row) if row in found else self.reader.clips(row, self.plan))
                        scored.append(row)
                    except DecodeError as error:
                        faults.append(Fault(row, table.keys[row], table.paths[row], str(error), row * per_item, True))
            except DataError as error:  # not of this item: of its whole set, or of the folder that keeps fetched shards
                return Parcel(None, faults, str(error))
        if not scored:
            return Parcel(None, faults)
        rows = [row for row in scored for _ in range(per_item)]
        labels = self.reader.labels(rows)
        labels["view"] = torch.arange(per_item).repeat(len(scored))
        sample = labels["item"] * per_item + labels["view"]
        keys, text = [table.keys[row] for row in rows], self.reader.beside.text(rows)
        return Parcel(to_batch(clips, sample=sample, key=keys, labels=labels, text=text), faults)


class EvalFeed:
    """Batches of all items in table order, ``batch`` items at a time with all their views as neighbouring rows.

    labels: ``item`` (table row), ``view`` (0 .. clips x crops - 1, crops fastest), ``class`` where the table is labelled. What cannot be
    read is left out: after an iteration ``failures`` holds (key, reason) and ``n_scored`` of ``n_total`` items were given. The frame
    cache, augmentations and training crops of the settings do not apply. ``device``: CUDA pins the batches' memory; they stay on the CPU.

    Items that follow each other in one file (the windows of a long video) are read in one pass, some :data:`CHUNK` bytes of clips at a
    time; those chunks are spread over the processes, and batches are filled from them across files.
    """

    def __init__(
        self, table: Table, settings: DataSettings, *, views: Views | None = None, batch: int = 8, device: str | torch.device = "cpu"
    ) -> None:
        if not len(table):
            raise DataError("the data table is empty")
        if batch < 1:
            raise DataError(f"batch must be at least 1 item, got {batch}")
        self.table, self.settings, self.batch, self.device = table, settings, batch, torch.device(device)
        self.views = views or Views()
        self.workers = auto_workers() if settings.workers == "auto" else settings.workers
        self.decoder: Decoder = choose_decoder(settings.decoder)
        self.failures: list[tuple[str, str]] = []
        self.n_scored = 0
        self.seen: dict[int, tuple[float, float]] = {}  # row -> seconds of the first and the last frame that its views show

    @property
    def n_total(self) -> int:
        """Items of the table."""
        return len(self.table)

    def __len__(self) -> int:
        """Batches, if none of them fails as a whole."""
        return -(-self.n_total // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        self.failures, self.n_scored, self.seen = [], 0, {}
        maker = ViewMaker(ItemReader(self.table, self.settings, self.decoder), self.views)
        schedule, per_item = self._jobs(), self.views.clips * self.views.crops
        remote, pin = any("://" in path for path in self.table.paths), self.device.type == "cuda"
        parcels = run_jobs(maker, schedule, workers=self.workers, prefetch=self.settings.ahead, pin=pin, remote=remote)
        parts: list[Batch] = []  # of the batch that is being filled
        for rows, parcel in zip(schedule, parcels, strict=True):
            self.failures += [(fault.key, fault.reason) for fault in parcel.faults]
            if parcel.error is not None:
                raise DataError(parcel.error)
            coming = self._by_batch(parcel.batch) if parcel.batch is not None else {}
            for number in range(rows.start // self.batch, -(-rows.stop // self.batch)):
                parts += [coming[number]] if number in coming else []
                if parts and min((number + 1) * self.batch, self.n_total) <= rows.stop:
                    batch = joined(parts, pin=pin)
                    parts = []
                    self.n_scored += len(batch) // per_item
                    self._note(batch)
                    yield batch

    def _note(self, batch: Batch) -> None:
        items, time = batch.labels["item"], batch.stream("video").time
        assert isinstance(items, Tensor)
        if time is not None:
            for row, first, last in zip(items.tolist(), time.amin(1).tolist(), time.amax(1).tolist(), strict=True):
                before = self.seen.get(row, (first, last))
                self.seen[row] = (min(before[0], first), max(before[1], last))

    def _jobs(self) -> list[range]:
        """Rows that a process reads at a time. What all processes have ready takes a part of the free memory only, and long videos are cut
        small enough that every process has some of them."""
        h, w = self.settings.hw
        item = self.views.clips * self.views.crops * self.settings.frames * h * w * 3
        room = CHUNK
        if self.workers:
            free = batch_room(free_bytes(torch.device("cpu")))
            room = min(CHUNK, int(MEMORY_SHARE * free) // (self.workers * self.settings.ahead))
        share = max(LEAST, -(-self.n_total // (4 * self.workers))) if self.workers > 1 else self.n_total
        return jobs(self.table, batch=self.batch, most=max(1, min(room // item, share)))

    def _by_batch(self, batch: Batch) -> dict[int, Batch]:
        """The parts of what a process sent, by the number of the batch that they belong to."""
        items = batch.labels["item"]
        assert isinstance(items, Tensor)
        numbers, counts = (items // self.batch).unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        return {n: batch.rows(end - c, end) for n, c, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True)}


def joined(parts: Sequence[Batch], *, pin: bool = False) -> Batch:
    """One batch of evaluation from parts of it, in order."""
    if len(parts) == 1:
        return parts[0]
    streams = [part.stream("video") for part in parts]
    pixels = [stream.data.permute(0, 2, 3, 4, 1) for stream in streams]  # as they lie in memory
    data = torch.empty(sum(map(len, pixels)), *pixels[0].shape[1:], dtype=torch.uint8, pin_memory=pin)
    torch.cat(pixels, out=data)
    video = Stream(
        data.permute(0, 4, 1, 2, 3),
        time=torch.cat([stream.time for stream in streams if stream.time is not None]),
        crop=torch.cat([stream.crop for stream in streams if stream.crop is not None]),
    )
    labels = {name: torch.cat([part.labels[name] for part in parts]) for name in parts[0].labels}  # type: ignore[misc]  # tensors here
    return Batch({"video": video}, labels, torch.cat([part.sample for part in parts]), tuple(key for part in parts for key in part.key))


def windows(table: Table, *, seconds: float, hop: float | None = None, settings: DataSettings) -> Table:
    """A table of segments that cover every video: ``seconds`` long, one every ``hop`` seconds (default: end to end).

    A rest shorter than a window becomes a window that ends with the video; videos shorter than one stay whole. Extra columns and labels
    are kept. Items that cannot be opened stay as they are, so that whoever reads them reports them. Raises DataError.
    """
    step = seconds if hop is None else hop
    if not (seconds > 0 and step > 0):
        raise DataError(f"windows need seconds > 0 and hop > 0, got {seconds:g} and {step:g}")
    rows: list[Row] = []
    for i, row in enumerate(table.rows()):
        try:
            with open_item(table.item(i), timeout=settings.decode_timeout, folder_fps=settings.folder_fps, store=settings.store) as reader:
                times = next(reader.timelines()).times
        except DecodeError:
            rows.append(row)
            continue
        begin = max(float(times[0]), row.start or 0.0)
        end = min(float(times[-1]) + frame_gap(times), np.inf if row.end is None else row.end)
        starts = [begin + k * step for k in range(max(1, 1 + int((end - begin - seconds) / step + 1e-6)))]
        if end - begin <= seconds:
            rows.append(row)
            continue
        if starts[-1] + seconds < end - 1e-6:
            starts.append(end - seconds)
        name = row.key.split("#")[0]
        rows += [
            Row(row.path, f"{name}#{s:010.3f}-{s + seconds:010.3f}", row.kind, s, s + seconds, row.label, row.where, row.extra, row.folder)
            for s in starts
        ]
    return Table(rows, table.classes, table.notes)
