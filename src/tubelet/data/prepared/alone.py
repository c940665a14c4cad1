"""One process at a time: locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tubelet.errors import DataError


@contextmanager
def alone(path: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` during the block. ``busy``: what to say where another process holds it; empty = wait for that one.

    A record lock: unlike flock's it is not inherited by forked workers, which outlive a killed parent by seconds, and network file systems
    know it. Where the file system has no locks, nothing is held. Raises DataError with ``busy``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except ImportError:
            pass  # no such locks on this system
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise DataError(busy) from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise
        yield
