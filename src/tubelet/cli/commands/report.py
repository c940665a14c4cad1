"""tubelet report."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import Command
from tubelet.cli.faults import say
from tubelet.cli.options import OUTPUT, examples, flag, option


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples("tubelet report runs/first", "tubelet report runs/first --open", "tubelet report runs/first --out first.html"),
)
def report(
    run: Annotated[str, typer.Argument(help="Run folder, finished or not", metavar="RUN")],
    out: Annotated[
        str | None, option("File to write. Default: report.html in the run folder.", "--out", panel=OUTPUT, metavar="FILE")
    ] = None,
    open_it: Annotated[bool, flag("Show it in the browser.", "--open", panel=OUTPUT)] = False,
) -> None:
    """Write a run as one page: curves, probes, pictures, settings, cost.

    It needs no network and no other file, so it can be sent and kept. pretrain writes it at the end of a run.
    """
    path = tubelet.report(run, out=out)
    typer.echo(str(path))
    if open_it:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            say(f"no browser was found here; open {path} yourself")
