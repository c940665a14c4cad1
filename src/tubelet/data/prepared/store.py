"""Files behind URLs, kept in a folder of limited size that all processes of a machine share."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.data.files import Deadline, TimedOut, WatchedFile, explain
from tubelet.data.workers import still_moving
from tubelet.errors import DataError, DecodeError

CHUNK = 4 * 2**20  # bytes asked for at a time: each has the whole time limit to arrive
ATTEMPTS = 3  # a network that fails is asked again, from where it stopped
PAUSE = 0.05  # seconds between two looks at what another process does
_ADMITTED = 0o640  # mode of a part that counts against the limit; before it is admitted a part has 0o600
_PART = re.compile(r"(?P<name>.+)\.(?P<bytes>\d+)\.part")


def default_folder() -> Path:
    """``tubelet/shards`` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "tubelet" / "shards"


@dataclass(frozen=True)
class Store:
    """Whole files, fetched once and kept until the room is needed; the least recently used go first.

    ``folder/SET/shards/NAME`` is a file that is complete. ``NAME.BYTES.part`` beside it is being fetched by the process that holds its
    lock (flock), or was left by one that died, and is continued. A file that is dropped while a process reads it stays readable there,
    because it is open. ``limit``: bytes of all files together. Used by any number of processes and threads at the same time.
    """

    folder: Path = field(default_factory=default_folder)
    limit: int = 32 * 2**30

    def place(self, url: str, head: bytes) -> Path:
        """Where a set's files go: another folder whenever the set's head changes, so that files of two versions are never mixed."""
        digest = hashlib.blake2b(url.encode() + b"\0" + head, digest_size=8).hexdigest()
        name = re.sub(r"[^\w.-]", "_", url.rstrip("/").rsplit("/", 1)[-1])[:60]
        return self.folder / f"{name}-{digest}"

    def open(self, url: str, path: Path, size: int, timeout: float) -> int:
        """A descriptor, to be closed by the caller, of the file at ``path``, fetched from ``url`` where it is not there.

        ``size``: its bytes. ``timeout``: seconds in which something must arrive. Raises DecodeError (TimedOut where trying again may
        help) for what is wrong with the source, DataError for what is wrong with the folder.
        """
        if size > self.limit:
            raise DataError(
                f"{url} has {size / 2**30:.3g} GiB, data.cache_limit = {self.limit / 2**30:.3g} GiB cannot hold it; raise the limit, "
                "or prepare the set with smaller shards"
            )
        try:
            while True:
                fd = _complete(path, size)
                if fd is not None:
                    return fd
                self._fetch(url, path, size, timeout)
        except OSError as error:
            raise self._broken(error) from None

    def _broken(self, error: OSError) -> DataError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DataError(
                f"{self.folder}: the disk is full while shards are fetched; free some of it, lower data.cache_limit (now "
                f"{self.limit / 2**30:.3g} GiB), or set data.cache_dir to a larger disk"
            )
        return DataError(f"{self.folder}: shards cannot be kept there: {error.strerror or error}; set data.cache_dir to a folder of yours")

    def _fetch(self, url: str, path: Path, size: int, timeout: float) -> None:
        """Fetch the file, or wait until the process that fetches it is done."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{size}.part")
        fd = os.open(part, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if not _wait_for_lock(fd, Deadline(url, timeout)) or not _is_at(fd, part) or path.exists():
                return
            self._admit(fd, size, Deadline(url, timeout))
            _receive(url, fd, size, timeout)
            os.fsync(fd)
            with self._locked():  # whoever counts what is there must not miss it between its two names
                os.rename(part, path)
        finally:
            os.close(fd)

    def _admit(self, fd: int, size: int, deadline: Deadline) -> None:
        """Wait until there is room for ``size`` bytes besides what is kept and being fetched, and take it."""
        seen = -1
        while True:
            with self._locked():
                others = [f for f in self._files() if f.inode != os.fstat(fd).st_ino]
                if self._make_room(size, others):
                    os.fchmod(fd, _ADMITTED)
                    return
            if seen != (seen := sum(f.received for f in others)):
                deadline.renew()
            deadline.left()
            still_moving()
            time.sleep(PAUSE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time looks for room."""
        fd = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _make_room(self, size: int, others: Sequence[_File]) -> bool:
        """Drop files until ``size`` more bytes fit; whether they do."""
        used = sum(f.bytes for f in others)
        for file in sorted(others, key=lambda f: f.used):
            if used + size <= self.limit:
                break
            if file.drop():
                used -= file.bytes
        return used + size <= self.limit

    def _files(self) -> Iterator[_File]:
        for path in self.folder.glob("*/*/*"):
            try:
                info = path.stat()
            except FileNotFoundError:
                continue  # dropped from outside
            match = _PART.fullmatch(path.name)
            if match is None:
                yield _File(path, info.st_size, info.st_size, info.st_mtime, info.st_ino, False)
            elif info.st_mode & 0o777 == _ADMITTED:
                yield _File(path, int(match["bytes"]), info.st_size, info.st_mtime, info.st_ino, True)


@dataclass(frozen=True)
class _File:
    """``bytes``: that it will have, ``received``: that it has. ``used``: when."""

    path: Path
    bytes: int
    received: int
    used: float
    inode: int
    is_part: bool

    def drop(self) -> bool:
        """Remove it, unless a process is fetching it."""
        if not self.is_part:
            self.path.unlink(missing_ok=True)
            return True
        try:
            fd = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, self.path):
                self.path.unlink()
                return True
            return False
        except BlockingIOError:
            return False
        finally:
            os.close(fd)


def _complete(path: Path, size: int) -> int | None:
    """A descriptor of a complete file, marked as used; None where it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(fd).st_size == size:
        mark_used(fd)
        return fd
    os.close(fd)
    path.unlink(missing_ok=True)  # damaged from outside
    return None


def mark_used(fd: int) -> None:
    """Move a kept file to the end of the line of those that are dropped."""
    try:
        os.utime(fd)
    except OSError:
        return  # another user's: theirs to mark


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _wait_for_lock(fd: int, deadline: Deadline) -> bool:
    """Lock a part; whether it could be done without waiting for another process to finish with it. Raises TimedOut where that one
    receives nothing for the time limit."""
    waited, seen = False, -1
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited, size = True, os.fstat(fd).st_size
            if size != seen:
                seen = size
                deadline.renew()
            deadline.left()
            still_moving()
            time.sleep(PAUSE)
            continue
        return not waited


def _receive(url: str, fd: int, size: int, timeout: float) -> None:
    """Append to the descriptor what it lacks of ``size`` bytes."""
    for attempt in range(1, ATTEMPTS + 1):
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, 0)
        try:
            return _stream(url, fd, os.fstat(fd).st_size, size, timeout)
        except _Gone:
            raise
        except DecodeError as error:
            if attempt == ATTEMPTS:
                raise error if isinstance(error, TimedOut) else TimedOut(str(error)) from None
        time.sleep(0.2 * 2**attempt)


def _stream(url: str, fd: int, have: int, size: int, timeout: float) -> None:
    deadline, source = Deadline(url, timeout), None
    try:
        source = WatchedFile(url, deadline)
        source.seek(have)
        while have < size:
            deadline.renew()
            still_moving()
            data = source.read(min(CHUNK, size - have))
            if not data:
                raise _Gone(f"{url}: {have:,} bytes long, shorter than the {size:,} that its index says")
            _write(fd, data, have)
            have += len(data)
    except _DiskError as error:
        raise error.error from None
    except FileNotFoundError:
        raise _Gone(f"{url}: no such file") from None
    except Exception as error:  # noqa: BLE001 - fsspec's backends raise anything
        raise explain(url, error, b"", deadline) from None
    finally:
        if source is not None:
            source.close()


class _Gone(DecodeError):
    """What is not there at the source: asking again does not help."""


class _DiskError(Exception):
    """A failure of the disk that is written to, not of what is read."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _write(fd: int, data: bytes, at: int) -> None:
    try:
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done
    except OSError as error:
        raise _DiskError(error) from None
