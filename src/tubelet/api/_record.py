"""What the run folder of any training says of itself: its command, its sources, its page."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tubelet.api._common import Sources, say
from tubelet.api.reporting import report
from tubelet.errors import CheckpointError, TubeletError


def write_report(out: Path, quiet: bool, *, failed: bool = False) -> None:
    """The run as one page. A page that cannot be written does not make a finished run a failed one.

    ``failed``: the run's own error is about to be said; that the same disk has no room for the page either is not worth a second message.
    """
    try:
        path = report(out)
    except CheckpointError as error:
        if not failed:
            say(f"report.html could not be written ({error})")
        return
    except Exception as error:  # noqa: BLE001 (see above; what is wrong is said)
        say(f"report.html could not be written ({type(error).__name__}: {error})")
        return
    if not quiet:
        say(f"report: {path}")


@contextlib.contextmanager
def reported(folder: Path, out: Path) -> Iterator[None]:
    """A run that ends in an error leaves its page in ``out``, too: how far it came and why it ended. ``folder``: of the running stage."""
    try:
        yield
    except TubeletError:
        if (folder / "run.json").exists() and int(os.environ.get("RANK", 0)) == 0:
            write_report(out, quiet=True, failed=True)
        raise


def command_line() -> list[str]:
    """The command line, as it can be typed again."""
    first = Path(sys.argv[0])
    ours = first.stem == "tubelet" or first.parts[-2:] == ("tubelet", "__main__.py")
    return ["tubelet" if ours else str(first), *sys.argv[1:]]


def listed(sources: Sources) -> list[str]:
    return [str(s) for s in ([sources] if isinstance(sources, str | Path) else sources)]
