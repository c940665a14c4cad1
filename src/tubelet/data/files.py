"""Opening files so that a broken or stalled one cannot hang a run: deadlines, watched reads, reasons in plain words."""

from __future__ import annotations

import io
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import av
import av.error
import av.logging
from av.container import InputContainer

from tubelet.errors import DecodeError

MAX_PIXELS = 2**27  # 134 million: a header that claims more is damaged, and its frames would not fit in memory


class Deadline:
    """A time limit for everything that is done with one file. Raises DecodeError when it has passed."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left. Raises DecodeError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error()
        return left

    def renew(self) -> None:
        """Begin again: something came."""
        self._end = time.monotonic() + self.seconds

    def error(self) -> DecodeError:
        what = "the file is broken or its storage stalls (raise decode_timeout if it is only slow)"
        return TimedOut(f"{self.path}: not done after {self.seconds:g} s; {what}")


class TimedOut(DecodeError):
    """The time limit of one file was passed; unlike other faults it may go away."""


class WatchedFile:
    """A remote file whose reads give up at a deadline: they run in a thread of their own, because a stalled read cannot be interrupted."""

    def __init__(self, path: str, deadline: Deadline) -> None:
        self._deadline, self._jobs, self._path = deadline, queue.SimpleQueue(), path
        self.failure: Exception | None = None
        threading.Thread(target=self._serve, daemon=True).start()
        self._file = self._do(lambda: _open_url(path))

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, answer = job
            try:
                answer.put((work(), None))
            except Exception as error:  # noqa: BLE001 - carried to the thread that asked
                answer.put((None, error))

    def _do(self, work: Callable[[], Any]) -> Any:
        answer: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._jobs.put((work, answer))
        try:
            value, error = answer.get(timeout=self._deadline.left())
        except (queue.Empty, TimedOut):
            value, error = None, self._deadline.error()
        if error is not None:
            self.failure = self.failure or error
            raise error
        return value

    def check(self) -> None:
        """Raise what a read raised before: FFmpeg takes a failed read for the end of the file and says nothing."""
        if self.failure is not None:
            raise explain(self._path, self.failure, b"", self._deadline)

    def read(self, size: int = -1) -> bytes:
        return self._do(lambda: self._file.read(size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._do(lambda: self._file.seek(offset, whence))

    def tell(self) -> int:
        return self._do(self._file.tell)

    def size(self) -> int:
        """Bytes in the file."""

        def measure() -> int:
            here = self._file.tell()
            end = self._file.seek(0, io.SEEK_END)
            self._file.seek(here)
            return end

        return self._do(measure)

    def close(self) -> None:
        """Does not wait for a read that hangs."""
        self._jobs.put((self._file.close, queue.SimpleQueue()))
        self._jobs.put(None)


def _open_url(path: str) -> Any:
    import fsspec

    return cast(Any, fsspec.open(path, "rb")).open()


def open_container(path: str, deadline: Deadline) -> tuple[InputContainer, int, WatchedFile | None]:
    """The opened container, its size in bytes, and the file to close after it. Raises DecodeError with the reason in plain words."""
    av.logging.set_level(av.logging.PANIC)  # FFmpeg writes to the terminal otherwise; its last error comes with the exception
    watched, head, size = None, b"", 0
    try:
        if "://" in path:
            watched = WatchedFile(path, deadline)
            size, head = watched.size(), watched.read(512)
            watched.seek(0)
        else:
            size, head = _look(path)
        if size == 0:
            raise DecodeError(f"{path}: the file is empty (0 bytes)")
        left = deadline.left()
        options = {"metadata_errors": "replace", "timeout": (left, left)}
        container = av.open(watched or path, buffer_size=1 << 18, **options) if watched else av.open(path, **options)
        return container, size, watched
    except Exception as error:  # noqa: BLE001 - fsspec's backends raise anything; the reason is told and the file closed
        failure = error
        if watched is not None:
            watched.close()
            failure = watched.failure or error
        raise explain(path, failure, head, deadline) from None


def _look(path: str) -> tuple[int, bytes]:
    """Size and first bytes of a local file; refuses what is not a regular file before opening it, for a pipe would block."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise DecodeError(f"{path}: is a folder, pipe, socket or device, not a regular file")
    with open(path, "rb") as file:
        return info.st_size, file.read(512)


def explain(path: str, error: Exception, head: bytes, deadline: Deadline) -> DecodeError:
    """A DecodeError for whatever opening or reading a file raised."""
    if isinstance(error, DecodeError):
        return error
    text = str(error)
    if isinstance(error, (av.error.ExitError, av.error.TimeoutError, TimeoutError)):
        return deadline.error()
    if isinstance(error, (FileNotFoundError, PermissionError)) and not isinstance(error, av.error.FFmpegError):
        return DecodeError(f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else 'no permission to read it'}")
    if "moov atom not found" in text and not _is_text(head):
        return DecodeError(f"{path}: the index (moov) is missing: the file was cut off or never finished")
    if _is_text(head):
        return DecodeError(f"{path}: holds text, not a video")
    if isinstance(error, (av.error.FFmpegError, OSError, ValueError)):
        reason = getattr(error, "strerror", None) or text.splitlines()[0] if text else type(error).__name__
        log = getattr(error, "log", None)
        detail = f" ({log[2].strip()})" if log and log[2].strip() else ""
        return DecodeError(f"{path}: {reason}{detail}")
    return DecodeError(f"{path}: {type(error).__name__}: {text}")


def _is_text(head: bytes) -> bool:
    return bool(head) and all(32 <= b < 127 or b in b"\t\n\r\f" or b >= 128 for b in head) and _is_utf8(head)


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character cut by the end of the sample
    return True
