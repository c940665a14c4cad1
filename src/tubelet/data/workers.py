"""Decoding processes: jobs in order through a DataLoader, and its ways to fail as clear errors."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from tubelet.errors import DataError


class Jobs(Protocol):
    """What the processes run. It is copied into each, and answers must not depend on which process gives them."""

    def __getitems__(self, numbers: list[int]) -> Any: ...

    def __len__(self) -> int: ...

    def lose(self, row: int, reason: str) -> None:
        """From now on an item counts as broken: a process did not survive reading it."""
        ...


def auto_workers() -> int:
    """Processes for ``workers = auto`` where nothing was measured: :func:`spare_cores`, at most 16."""
    return min(16, spare_cores())


def spare_cores() -> int:
    """This rank's share of the cores, one left for the training process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, cores // local_ranks() - 1)


def local_ranks() -> int:
    """Training processes on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))


def batch_memory(shape: Sequence[int]) -> Tensor:
    """uint8 memory of this shape for a batch, with any content. In a decoding process it is shared with the training process, so that what
    is written there is handed over without a copy."""
    if get_worker_info() is None:
        return torch.empty(*shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch's own collation does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(*shape)


def run_jobs(
    jobs: Jobs, schedule: Iterable[Sequence[int]], *, workers: int, prefetch: int, pin: bool = False, remote: bool = False
) -> Iterator[Any]:
    """``jobs.__getitems__(numbers)`` for each list of the schedule, in its order. ``workers = 0``: in this process.

    Processes are forked on Linux: they start in milliseconds and share the table and the frame cache without a copy, and they use no
    CUDA. With ``remote`` sources they are spawned, because fsspec's network threads do not survive a fork. An item that kills the process
    that reads it, by a crash or by blocking it beyond its time, is lost (:meth:`Jobs.lose`) and the processes start again where they were;
    a process that dies otherwise raises DataError within some seconds. Closing the iterator ends the processes.
    """
    if workers == 0:
        for numbers in schedule:
            yield jobs.__getitems__(list(numbers))
        return
    waiting: deque[list[int]] = deque()  # handed out and not answered
    rest = iter(schedule)

    def noted() -> Iterator[list[int]]:
        for numbers in [*waiting]:
            yield numbers
        for numbers in rest:
            waiting.append(list(numbers))
            yield waiting[-1]

    while True:
        answers = _Answers(jobs, noted(), workers=workers, prefetch=prefetch, pin=pin, remote=remote)
        try:
            for answer in answers:
                waiting.popleft()
                yield answer
            return
        except DataError:
            killers = answers.killers()
            if not killers:
                raise
            for row, reason in killers:
                jobs.lose(row, reason)
        finally:
            answers.end()


class _Answers:
    """The answers of one set of processes."""

    def __init__(self, jobs: Jobs, schedule: Iterator[list[int]], *, workers: int, prefetch: int, pin: bool, remote: bool) -> None:
        self.rows = torch.full((workers,), -1).share_memory_()  # what each process is reading
        loader = DataLoader(
            jobs,  # type: ignore[arg-type]  # a map-style dataset with __getitems__ is all that is used
            batch_sampler=_Lists(schedule),  # type: ignore[arg-type]  # typed as Sampler, used as an iterable
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_same,
            pin_memory=pin,
            worker_init_fn=partial(_init, self.rows),
            multiprocessing_context="fork" if sys.platform == "linux" and not remote else "spawn",
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*worker processes in total.*", category=UserWarning)  # the user chose the number
            with _sigint_held():
                self.answers = _without_sigchld(loader)

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                answer = next(self.answers)
            except StopIteration:
                return
            except (RuntimeError, EOFError, ConnectionError) as error:
                failure = worker_failure(error)
                if failure is None:
                    raise
                raise failure from None
            yield answer

    def killers(self) -> list[tuple[int, str]]:
        """(table row, what happened) of the items that processes were reading when they died of it."""
        found = []
        for process, row in zip(getattr(self.answers, "_workers", []), self.rows.tolist(), strict=False):
            process.join(1)
            number = -(process.exitcode or 0)
            if row >= 0 and number in _FATAL:
                how = f"by signal {signal.Signals(number).name}"
                why = "it blocked the decoder or the file system" if number == signal.SIGALRM else "the decoder crashed on it"
                found.append((row, f"the process that read it died {how}: {why}"))
        return found

    def end(self) -> None:
        """End the processes now; leaving it to the garbage collector would wait for whoever holds a traceback."""
        shutdown = getattr(self.answers, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Ctrl-C waits meanwhile, also in processes that are started, until they say that it is not for them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _without_sigchld(loader: DataLoader[Any]) -> Iterator[Any]:
    """torch tells of a dead process by an error from a signal handler, wherever the program happens to be, again and again. Without its
    handler the same error comes from waiting for the next answer."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    answers = iter(loader)
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return answers


def worker_failure(error: BaseException) -> DataError | None:
    """A DataError if an error of torch says that a decoding process died, or that it died while it handed over a batch, else None."""
    text = str(error).strip()
    told = isinstance(error, RuntimeError) and "DataLoader worker" in text
    cut_off = isinstance(error, (EOFError, ConnectionError))
    if text.startswith("Caught") or not (told or cut_off):  # "Caught": an error of the job itself, with its traceback
        return None
    if "shared memory" in text:
        return DataError(
            "a decoding process ran out of shared memory (/dev/shm): enlarge it (docker: --shm-size), or use fewer data.workers"
        )
    causes = (
        "memory ran out (use fewer data.workers or a smaller data.prefetch), or a file blocked it for more than twice data.decode_timeout"
    )
    return DataError(f"a decoding process died; the likely causes: {causes} ({text.splitlines()[0] if text else type(error).__name__})")


@contextmanager
def killed_after(seconds: float, row: int) -> Iterator[None]:
    """In a decoding process, end the process if the work on item ``row`` takes longer: a read that blocks inside the system can be ended by
    nothing less. Does nothing in the training process."""
    global _patience
    info = get_worker_info()
    if _rows is None or info is None:
        yield
        return
    _rows[info.id] = row
    _patience = seconds
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        _patience = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        _rows[info.id] = -1


def still_moving(row: int | None = None) -> None:
    """Inside :func:`killed_after`: its time begins again, for what is slow (a shard that is fetched) does move. ``row``: the item that the
    process works on from now."""
    if _patience:
        signal.setitimer(signal.ITIMER_REAL, _patience)
        info = get_worker_info()
        if row is not None and _rows is not None and info is not None:
            _rows[info.id] = row


class _Lists:
    """The schedule as the DataLoader wants it; read lazily, a few batches ahead."""

    def __init__(self, schedule: Iterable[Sequence[int]]) -> None:
        self._schedule = schedule

    def __iter__(self) -> Iterator[list[int]]:
        return (list(numbers) for numbers in self._schedule)


def _same(answer: Any) -> Any:
    return answer


_rows: Tensor | None = None  # in a decoding process: what each process is reading
_FATAL = {getattr(signal, name) for name in ("SIGALRM", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL") if hasattr(signal, name)}
_patience = 0.0  # seconds of the killed_after that is running, 0 = none


def _init(rows: Tensor, _: int) -> None:
    global _rows
    if hasattr(signal, "setitimer"):
        _rows = rows
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the training process, which ends these
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.excepthook = _only_ours
    torch.set_num_threads(1)


def _only_ours(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what went wrong, but for the thread that hands batches over when the training process went away meanwhile."""
    if isinstance(error, OSError | EOFError) and threading.current_thread() is not threading.main_thread():
        return
    sys.__excepthook__(kind, error, trace)
