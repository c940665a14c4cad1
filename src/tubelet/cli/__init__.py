"""The command line: thin faces of the public functions. Loads no torch before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main", "run"]


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error is reported, none is raised."""
    import typer

    from tubelet.cli import commands as commands  # they join the app
    from tubelet.cli import faults
    from tubelet.cli.app import app

    try:
        command = typer.main.get_command(app)
        with command.make_context("tubelet", list(args), obj=list(args)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return faults.INTERRUPTED
    except BrokenPipeError as error:
        if not faults.reader_gone():
            return faults.report(error)
        faults.hush()
        return faults.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 (the one place where all errors end)
        return faults.report(error)


def main() -> NoReturn:
    """Entry point of the ``tubelet`` command."""
    if "_TUBELET_COMPLETE" in os.environ:  # the shell asks for completions
        from tubelet.cli import commands as commands
        from tubelet.cli.app import app

        app(prog_name="tubelet")
    sys.exit(run(sys.argv[1:]))
