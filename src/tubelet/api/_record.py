"""What the run folder of any training says of itself: its command, its sources, its page."""

from __future__ import annotations

import sys
from pathlib import Path

from tubelet.api._common import Sources, say
from tubelet.api.reporting import report


def write_report(out: Path, quiet: bool) -> None:
    """The run as one page. A page that cannot be written does not make a finished run a failed one."""
    try:
        path = report(out)
    except Exception as error:  # noqa: BLE001 (see above; what is wrong is said)
        say(f"report.html could not be written ({type(error).__name__}: {error})")
        return
    if not quiet:
        say(f"report: {path}")


def command_line() -> list[str]:
    """The command line, as it can be typed again."""
    first = Path(sys.argv[0])
    ours = first.stem == "tubelet" or first.parts[-2:] == ("tubelet", "__main__.py")
    return ["tubelet" if ours else str(first), *sys.argv[1:]]


def listed(sources: Sources) -> list[str]:
    return [str(s) for s in ([sources] if isinstance(sources, str | Path) else sources)]
