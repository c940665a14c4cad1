"""The shards that a process has open: few of them, the least recently used closed first."""

from __future__ import annotations

import os
import resource
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from tubelet.data.prepared.store import mark_used

MOST = 128
FRESH = 5.0  # seconds for which a mark in the cache folder is good enough


class Handle:
    """An open file. It is closed when nothing refers to it any more, so that one which is dropped here can be read to the end elsewhere."""

    def __init__(self, fd: int, *, kept: bool) -> None:
        self._fd, self._kept, self._marked = fd, kept, time.monotonic()
        self.bytes = os.fstat(fd).st_size
        weakref.finalize(self, os.close, fd)

    def read(self, at: int, count: int) -> bytes:
        """``count`` bytes from ``at``, fewer where the file ends. Raises OSError."""
        return os.pread(self._fd, count, at)

    def touch(self) -> None:
        """Keep a fetched file from being dropped while it is in use."""
        if self._kept and (now := time.monotonic()) - self._marked > FRESH:
            self._marked = now
            mark_used(self._fd)

    @property
    def dropped(self) -> bool:
        """Whether the file lost its name, so that its room on the disk is free once it is closed."""
        return os.fstat(self._fd).st_nlink == 0


class Handles:
    """At most ``most`` open files, None = a quarter of what the process may open, at most 128."""

    def __init__(self, most: int | None = None) -> None:
        self._most, self._open, self._lock = most, OrderedDict[Any, Handle](), threading.Lock()

    @property
    def most(self) -> int:
        """How many may be open."""
        if self._most is None:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._most = MOST if soft == resource.RLIM_INFINITY else max(2, min(MOST, soft // 4))
        return self._most

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: Any, make: Callable[[], Handle]) -> Handle:
        """The file of that name; ``make`` opens it where it is not open."""
        with self._lock:
            found = self._open.get(name)
            if found is not None:
                self._open.move_to_end(name)
        if found is not None:
            found.touch()
            return found
        with self._lock:
            for old in [n for n, handle in self._open.items() if handle.dropped]:
                del self._open[old]
        made = make()
        with self._lock:
            made = self._open.setdefault(name, made)
            while len(self._open) > self.most:
                self._open.popitem(last=False)
        return made


shards = Handles()
