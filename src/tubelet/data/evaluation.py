"""Every item once, nothing drawn, nothing replaced: what embedding, retrieval and probes read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tubelet.core import Batch
from tubelet.data.clip import Clips, to_batch, view_plan
from tubelet.data.faults import Fault
from tubelet.data.loader import ItemReader, Parcel
from tubelet.data.reader import Decoder, choose_decoder, open_item
from tubelet.data.sampling import frame_gap
from tubelet.data.settings import DataSettings, Views
from tubelet.data.table import Row, Table
from tubelet.data.workers import auto_workers, run_jobs
from tubelet.errors import DataError, DecodeError


class ViewMaker:
    """Job of a decoding process: all views of some items; those that cannot be read are left out and named."""

    def __init__(self, reader: ItemReader, views: Views) -> None:
        self.reader, self.views = reader, views
        self.plan = view_plan(reader.settings, views)

    def __len__(self) -> int:
        return len(self.reader.table)

    def lose(self, row: int, reason: str) -> None:
        self.reader.lose(row, reason)

    def __getitems__(self, numbers: list[int]) -> Parcel:
        table, per_item = self.reader.table, self.views.clips * self.views.crops
        clips: list[Clips] = []
        faults: list[Fault] = []
        scored: list[int] = []
        for row in numbers:
            try:
                clips.append(self.reader.clips(row, self.plan))
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
        return Parcel(to_batch(clips, sample=sample, key=[table.keys[row] for row in rows], labels=labels), faults)


class EvalFeed:
    """Batches of all items in table order, ``batch`` items at a time with all their views as neighbouring rows.

    labels: ``item`` (table row), ``view`` (0 .. clips x crops - 1, crops fastest), ``class`` where the table is labelled. What cannot be
    read is left out: after an iteration ``failures`` holds (key, reason) and ``n_scored`` of ``n_total`` items were given. The frame
    cache, augmentations and training crops of the settings do not apply. ``device``: CUDA pins the batches' memory; they stay on the CPU.
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

    @property
    def n_total(self) -> int:
        """Items of the table."""
        return len(self.table)

    def __len__(self) -> int:
        """Batches, if none of them fails as a whole."""
        return -(-self.n_total // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        self.failures, self.n_scored = [], 0
        maker = ViewMaker(ItemReader(self.table, self.settings, self.decoder), self.views)
        schedule = (range(i, min(i + self.batch, self.n_total)) for i in range(0, self.n_total, self.batch))
        s = self.settings
        remote = any("://" in path for path in self.table.paths)
        parcels = run_jobs(maker, schedule, workers=self.workers, prefetch=s.ahead, pin=self.device.type == "cuda", remote=remote)
        for parcel in parcels:
            self.failures += [(fault.key, fault.reason) for fault in parcel.faults]
            if parcel.error is not None:
                raise DataError(parcel.error)
            if parcel.batch is not None:
                self.n_scored += len(parcel.batch) // (self.views.clips * self.views.crops)
                yield parcel.batch


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
            Row(row.path, f"{name}#{s:010.3f}-{s + seconds:010.3f}", row.kind, s, s + seconds, row.label, row.where, row.extra)
            for s in starts
        ]
    return Table(rows, table.classes, table.notes)
