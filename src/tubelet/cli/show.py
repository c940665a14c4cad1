"""What commands show besides their results: a bar, and what could not be read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tubelet.cli.faults import say, speaks


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's stderr, in items; nothing elsewhere."""
    if quiet or not speaks() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def list_failures(failures: Sequence[Sequence[str]], total: int, what: str = "items", shown: int = 5) -> None:
    """The first few on stderr, and how many there are."""
    if not failures:
        return
    lines = [f"{len(failures)} of {total} {what} could not be read:", *(f"  {key}: {reason}" for key, reason in failures[:shown])]
    if len(failures) > shown:
        lines.append(f"  ... and {len(failures) - shown} more")
    say("\n".join(lines))


def duration(seconds: float) -> str:
    """``45 s``, ``12 min 05 s``, ``3 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
