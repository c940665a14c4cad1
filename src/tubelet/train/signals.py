"""Requests to stop, as a flag that the loop reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Signals:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a flag that the loop reads between steps. A second Ctrl-C interrupts at once."""

    names = ("SIGINT", "SIGTERM", "SIGUSR1")

    def __init__(self) -> None:
        self.got = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in self.names:
                number = getattr(signal, name, None)
                if number is not None:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.got and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.got = self.got or number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
