"""Decoding processes: jobs in order through a DataLoader, and its ways to fail as clear errors."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from tubelet.errors import DataError


class Jobs(Protocol):
    """What the processes run. It is copied into each, and answers must not depend on which process gives them."""

    def __getitems__(self, numbers: list[int]) -> Any: ...

    def __len__(self) -> int: ...


def auto_workers() -> int:
    """Processes for ``workers = auto``: this rank's share of the cores, one left for the training process, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(16, cores // local_ranks() - 1))


def local_ranks() -> int:
    """Training processes on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))


def run_jobs(
    jobs: Jobs, schedule: Iterable[Sequence[int]], *, workers: int, prefetch: int, timeout: float, pin: bool = False, remote: bool = False
) -> Iterator[Any]:
    """``jobs.__getitems__(numbers)`` for each list of the schedule, in its order. ``workers = 0``: in this process.

    Processes are forked on Linux: they start in milliseconds and share the table and the frame cache without a copy, and they use no
    CUDA. With ``remote`` sources they are spawned, because fsspec's network threads do not survive a fork. ``timeout``: seconds
    without any answer after which DataError is raised; a process that dies raises it at once. Closing the iterator ends the processes.
    """
    if workers == 0:
        for numbers in schedule:
            yield jobs.__getitems__(list(numbers))
        return
    start = "fork" if sys.platform == "linux" and not remote else "spawn"
    loader = DataLoader(
        jobs,  # type: ignore[arg-type]  # a map-style dataset with __getitems__ is all that is used
        batch_sampler=_Lists(schedule),  # type: ignore[arg-type]  # typed as Sampler, used as an iterable
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_same,
        pin_memory=pin,
        timeout=timeout,
        worker_init_fn=_init,
        multiprocessing_context=start,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*worker processes in total.*", category=UserWarning)  # the user chose the number
        answers = iter(loader)
    try:
        while True:
            try:
                answer = next(answers)
            except StopIteration:
                return
            except RuntimeError as error:
                failure = worker_failure(error)
                if failure is None:
                    raise
                raise failure from None
            yield answer
    finally:
        del answers  # ends the processes


def worker_failure(error: BaseException) -> DataError | None:
    """A DataError if a RuntimeError of torch says that a decoding process died or fell silent, else None.

    torch raises it from a signal handler, so it can also surface in the middle of a training step.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader" not in text:
        return None
    if "timed out" in text:
        return DataError("no batch came from the decoding processes in time: the storage stalls, or data.decode_timeout is far too short")
    if "bus error" in text or "shared memory" in text:
        return DataError(
            "a decoding process ran out of shared memory (/dev/shm): enlarge it (docker: --shm-size), or use fewer data.workers"
        )
    if "killed by signal" in text or "exited unexpectedly" in text:
        first = text.strip().splitlines()[0]
        return DataError(
            f"a decoding process died, most likely memory ran out: use fewer data.workers or a smaller data.prefetch ({first})"
        )
    return None


class _Lists:
    """The schedule as the DataLoader wants it; read lazily, a few batches ahead."""

    def __init__(self, schedule: Iterable[Sequence[int]]) -> None:
        self._schedule = schedule

    def __iter__(self) -> Iterator[list[int]]:
        return (list(numbers) for numbers in self._schedule)


def _same(answer: Any) -> Any:
    return answer


def _init(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the training process, which ends these
    torch.set_num_threads(1)
