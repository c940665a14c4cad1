"""In which shard each item of a table begins, and fetching the shards that come next: the shuffle by shards."""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.data.order import Order
from tubelet.data.prepared.index import Prepared, open_prepared
from tubelet.data.prepared.paths import split_path
from tubelet.data.prepared.store import Store
from tubelet.data.table import KINDS, Table
from tubelet.errors import DataError

STREAMS = 4  # shards that are fetched ahead at a time


@dataclass(frozen=True)
class Grouping:
    """``shards`` (n,) int64: the shard that each item of a table begins in, numbered over all its sets, the same wherever these lie.
    ``owners``: the set and the number in it of each of those numbers. ``store``: where fetched ones are kept.
    ``timeout``: seconds in which something must arrive."""

    shards: np.ndarray
    owners: Sequence[tuple[Prepared, int]]
    store: Store
    timeout: float

    @classmethod
    def of(cls, table: Table, *, store: Store, timeout: float) -> Grouping:
        """All items must be of prepared sets. Opens these: processes that are forked later share what is mapped. Raises DataError."""
        assert (table.kinds == KINDS.index("prepared")).all()
        places = [split_path(path) or ("", 0) for path in table.paths]
        rows: dict[str, list[int]] = {}
        for row, (name, _) in enumerate(places):
            rows.setdefault(name, []).append(row)
        shards, owners = np.zeros(len(table), np.int64), []
        for name, members in rows.items():
            opened = open_prepared(name, store=store, timeout=timeout)
            origins = np.array([places[row][1] for row in members], np.int64)
            shards[members] = len(owners) + opened.first_shards(origins, table.spans[members, 0])
            owners += [(opened, number) for number in range(len(opened.shards))]
        return cls(shards, owners, store, timeout)

    def ahead(self, order: Order, schedule: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """The schedule, while the shards of a window are fetched from the time on when the one before it begins. Only a help: what fails
        is left to the process that needs it. Does nothing but warn where two windows are more than the store may hold."""
        remote = np.array([owner.place.remote for owner, _ in self.owners])
        sizes = np.array([owner.shards[number].bytes for owner, number in self.owners])
        need = 2 * order.mixed * int(sizes[remote].max(initial=0))
        if not remote.any() or min(need, int(sizes[remote].sum())) > self.store.limit:
            if remote.any():
                warnings.warn(
                    f"data.cache_limit = {self.store.limit / 2**30:.3g} GiB does not hold two windows of data.shuffle_shards = "
                    f"{order.mixed} shards ({need / 2**30:.3g} GiB): nothing is fetched ahead, and shards may be fetched again",
                    stacklevel=2,
                )
            return iter(schedule)
        return self._fetching(order, schedule)

    def _fetching(self, order: Order, schedule: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        jobs: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        over = threading.Event()
        for _ in range(STREAMS):
            threading.Thread(target=self._serve, args=(jobs, over), daemon=True).start()
        asked: list[int] = []
        try:
            for numbers in schedule:
                if len(numbers):
                    now, after = order.shards_from(max(numbers))
                    for shard in (*now, *after):
                        if shard not in asked:
                            jobs.put(shard)
                    asked = [*now, *after]
                yield numbers
        finally:
            over.set()
            for _ in range(STREAMS):
                jobs.put(None)

    def _serve(self, jobs: queue.SimpleQueue[int | None], over: threading.Event) -> None:
        while (shard := jobs.get()) is not None and not over.is_set():
            owner, number = self.owners[shard]
            try:
                if owner.place.remote:
                    os.close(owner.fetched(number, self.timeout))
            except DataError:
                continue  # told by the process that needs it
