"""In which shard each item of a table begins: what the shuffle by shards needs to know."""

from __future__ import annotations

import numpy as np

from tubelet.data.prepared.index import open_prepared
from tubelet.data.prepared.paths import split_path
from tubelet.data.prepared.store import Store
from tubelet.data.table import KINDS, Table


def shards_of_table(table: Table, *, store: Store, timeout: float) -> np.ndarray:
    """(n,) int64 shard numbers, unique over all sets of the table and the same wherever these lie. All items must be of prepared sets.

    Opens the sets, so that processes that are forked later share what is mapped. Raises DataError.
    """
    assert (table.kinds == KINDS.index("prepared")).all()
    places = [split_path(path) or ("", 0) for path in table.paths]
    rows: dict[str, list[int]] = {}
    for row, (name, _) in enumerate(places):
        rows.setdefault(name, []).append(row)
    out, first = np.zeros(len(table), np.int64), 0
    for name, members in rows.items():
        opened = open_prepared(name, store=store, timeout=timeout)
        origins = np.array([places[row][1] for row in members], np.int64)
        out[members] = first + opened.first_shards(origins, table.spans[members, 0])
        first += len(opened.shards)
    return out
