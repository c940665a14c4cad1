"""Work on many items in processes, each of which can hang or crash on its item without harm to the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from tubelet.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Lost:
    """No answer for an item: its process was ended at the time limit (``late``) or died. ``reason``: in plain words."""

    late: bool
    reason: str


def run_guarded(
    work: Callable[[int], T], numbers: Sequence[int], *, workers: int, limit: float, remote: bool = False
) -> Generator[tuple[int, T | Lost], None, None]:
    """``(number, work(number))`` for all numbers, in the order in which they are done.

    A process that takes longer than ``limit`` seconds for a number, or dies, is replaced, and the number's answer is Lost. ``workers = 0``:
    in this process, without a guard. ``work`` is copied into each process: forked on Linux, spawned elsewhere and for ``remote`` sources,
    because fsspec's network threads do not survive a fork. Closing the iterator ends the processes. Raises DataError where they cannot
    start.
    """
    if workers == 0:
        for number in numbers:
            yield number, work(number)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" and not remote else "spawn")
    todo = deque(numbers)
    running = {p.pipe: p for p in (_Process(context, work, limit) for _ in range(min(workers, len(todo))))}
    try:
        while running:
            pause = min(p.until for p in running.values()) - time.monotonic()
            wait(list(running), timeout=min(max(pause, 0), 60))
            for process in list(running.values()):
                if not process.pipe.poll() and time.monotonic() < process.until:
                    continue
                number, answer = process.collect()
                if isinstance(answer, Lost):
                    del running[process.pipe]
                    if todo:
                        new = _Process(context, work, limit)
                        running[new.pipe] = new
                elif todo:
                    process.give(todo.popleft())
                else:
                    process.end()
                    del running[process.pipe]
                if number is not None:
                    yield number, answer
    finally:
        for process in running.values():
            process.end()


class _Process:
    """A process and the item it works on. Its first message says that it has begun; every other one is an answer."""

    def __init__(self, context: Any, work: Callable[[int], Any], limit: float) -> None:
        self.limit, self.number, self.until = limit, cast(int | None, None), time.monotonic() + 120
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            self.process.start()
        theirs.close()

    def give(self, number: int) -> None:
        self.number, self.until = number, time.monotonic() + self.limit
        try:
            self.pipe.send(number)
        except OSError:
            self.until = 0.0  # it died between two items: collected as such in the next round

    def collect(self) -> tuple[int | None, Any]:
        """The number given before, and its answer; Lost, and the process ended, where there is none."""
        late = not self.pipe.poll()
        if not late:
            try:
                return self.number, self.pipe.recv()
            except (EOFError, OSError):
                self.process.join(5)
        code = self.process.exitcode
        self.end()
        if self.number is None:
            raise DataError(
                f"a checking process {'did not begin' if late else 'ended before it began'}; in a script, call this below "
                'if __name__ == "__main__":, or use workers = 0'
            )
        if late and code is None:
            return self.number, Lost(True, f"not done after {self.limit:g} s: it hangs inside the decoder or the file system")
        how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return self.number, Lost(False, f"the process that read it died {how}: the decoder crashed on it, or memory ran out")

    def end(self) -> None:
        """End it now. One that is stuck inside the operating system is left behind."""
        self.process.kill()
        self.process.join(1)
        self.pipe.close()


def _serve(pipe: Connection, work: Callable[[int], Any], parent: int) -> None:
    """Life of a process: answers until it is ended, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which ends this one
    pipe.send(None)
    while True:
        while not pipe.poll(2.0):
            if os.getppid() != parent:
                return
        pipe.send(work(pipe.recv()))
