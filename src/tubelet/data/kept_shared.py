"""One cache in main memory for all training processes of a machine: the first one decodes, the others look at the same pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tubelet.data.clip import Look
from tubelet.data.kept import FrameCache, cut_in_memory
from tubelet.data.workers import local_ranks
from tubelet.errors import DataError, TubeletError

_PATIENCE = timedelta(days=2)  # decoding a large set takes hours; a process that died is noticed at once


@dataclass(frozen=True)
class _Ticket:
    """Where the frames are, for the other processes. ``path``: of the memory, as long as its owner keeps it open."""

    path: str
    size: int
    places: dict[int, tuple[int, torch.Size]]
    known: dict[int, Any]
    failed: dict[int, str]


class SharedCache(FrameCache):
    """In memory without a name (memfd), that ends with the last process that uses it."""

    def __init__(self) -> None:
        super().__init__()
        self._file: int | None = os.memfd_create("tubelet-cache")
        self._places: dict[int, tuple[int, torch.Size]] = {}
        self._size = 0
        self._frames: dict[int, Tensor] = {}

    @classmethod
    def mapped(cls, ticket: _Ticket) -> SharedCache:
        """What another process filled."""
        cache = cls.__new__(cls)
        FrameCache.__init__(cache)
        cache._file, cache._places, cache._size = None, ticket.places, ticket.size
        cache._known, cache._failed = ticket.known, ticket.failed
        cache._map(ticket.path)
        return cache

    @property
    def bytes(self) -> int:
        return self._size

    def _keep(self, row: int, frames: Tensor) -> None:
        assert self._file is not None, "only the process that made it adds to it"
        with open(self._file, "wb", closefd=False) as file:
            file.seek(self._size)
            file.write(frames.contiguous().numpy().data)
        self._places[row] = (self._size, frames.shape)
        self._size += frames.numel()

    def seal(self, free: int) -> None:
        self._map(f"/proc/self/fd/{self._file}")

    def _map(self, path: str) -> None:
        every = torch.from_file(path, shared=True, size=self._size, dtype=torch.uint8)
        self._frames = {row: every[at : at + shape.numel()].view(shape) for row, (at, shape) in self._places.items()}

    def ticket(self) -> _Ticket:
        """For the other processes of this machine."""
        return _Ticket(f"/proc/{os.getpid()}/fd/{self._file}", self._size, self._places, self._known, self._failed)

    def handed_over(self) -> None:
        """The others have it: no new ones can come."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def cut(self, looks: Sequence[Look], out: tuple[int, int]) -> Tensor:
        return cut_in_memory(self._frames, looks, out)


def sharing() -> bool:
    """Whether torchrun started several processes on this machine, which can share memory."""
    started = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and local_ranks() > 1
    return started and hasattr(os, "memfd_create") and {"LOCAL_RANK", "GROUP_RANK"} <= os.environ.keys()


def fill_together(fill: Callable[[Callable[[], SharedCache]], SharedCache]) -> SharedCache:
    """The cache that ``fill(make an empty one)`` fills in the first process of each machine. To be called by all processes. An error of one
    ends all, with the same message."""
    # It stays until the process ends: processes that are forked after a group was destroyed were seen to hang.
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, dist.ProcessGroup), "every process is in it"
    machine, first = int(os.environ["GROUP_RANK"]), int(os.environ["LOCAL_RANK"]) == 0

    def together(mine: _Ticket | TubeletError | None) -> list[_Ticket]:
        """The tickets of all machines. Raises DataError."""
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, (machine, mine), group=group)
        for _, answer in every:
            if isinstance(answer, TubeletError):
                raise DataError(str(answer))
        return [answer for number, answer in every if number == machine and answer is not None]

    cache = _attempt(lambda: fill(SharedCache)) if first else None
    (ticket,) = together(cache.ticket() if isinstance(cache, SharedCache) else cache)
    cache = cache or _attempt(lambda: SharedCache.mapped(ticket))
    together(cache if isinstance(cache, TubeletError) else None)
    assert isinstance(cache, SharedCache), "or an error was raised"
    cache.handed_over()
    return cache


def _attempt(job: Callable[[], SharedCache]) -> SharedCache | TubeletError:
    try:
        return job()
    except TubeletError as error:
        return error
    except OSError as error:
        return DataError(f"data.cache = memory: the training processes of this machine cannot share it ({error}); set data.cache = none")
