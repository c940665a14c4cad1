"""The command line's root. Commands join it from :mod:`tubelet.cli.commands`, one file a concern."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.collect import Group

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="tubelet",
    cls=Group,
    context_settings=HELP,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Self-supervised learning from video: pre-train an encoder on your own videos, then embed, probe and compare.",
    epilog="First steps: [bold]tubelet demo[/] shows the whole road in minutes. [bold]tubelet COMMAND --help[/] has examples.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tubelet {tubelet.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version, metavar="")
    ] = False,
) -> None:
    """Self-supervised learning from video."""
