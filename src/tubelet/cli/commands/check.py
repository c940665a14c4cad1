"""tubelet check."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import Command, one_of
from tubelet.cli.faults import say
from tubelet.cli.options import DATA, OUTPUT, RUN, Sources, examples, flag, option
from tubelet.cli.show import progress
from tubelet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tubelet.api.checking import Report
    from tubelet.data.check import Checked
    from tubelet.data.source import Images

IMAGES = ("ignore", "items", "frames")
SHOWN = 20  # bad items listed on the terminal


def _writable(path: Path | None) -> Path | None:
    """Refuses, before minutes of work, a file that could not be written after them."""
    if path is not None and path != Path("-"):
        folder = next((p for p in path.absolute().parents if p.exists()), path)
        if path.is_dir():
            raise typer.BadParameter(f"'{path}' is a folder; give a file")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise typer.BadParameter(f"'{path}' cannot be written: no permission in {folder}, or it is no folder")
    return path


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet check videos/",
        "tubelet check train.csv --split train --frames 64 --bad bad.txt --json check.json",
        "tubelet pretrain train.csv --out runs/first --exclude @bad.txt",
    ),
)
def check(
    sources: Sources,
    bad: Annotated[
        Path | None,
        option("Write the keys of bad items, for pretrain --exclude @FILE.", "--bad", panel=OUTPUT, metavar="FILE", callback=_writable),
    ] = None,
    json_out: Annotated[
        Path | None,
        option("Everything that is known of every item, as JSON; - prints it.", "--json", panel=OUTPUT, metavar="FILE", callback=_writable),
    ] = None,
    split: Annotated[
        str | None, option("Only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME")
    ] = None,
    frames: Annotated[
        int | None,
        option("Warn of items with fewer frames; clips of 16 at stride 4 want 64.", "--frames", panel=DATA, min=1, metavar="N"),
    ] = None,
    images: Annotated[
        str,
        option(
            "Picture files in a folder: ignore; items: each one an item; frames: each folder one clip.",
            "--images",
            panel=DATA,
            metavar="|".join(IMAGES),
            callback=one_of(*IMAGES),
        ),
    ] = "ignore",
    exclude: Annotated[
        list[str],
        option(
            "Leave out items whose key matches a pattern, or is listed in @FILE. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"
        ),
    ] = [],  # noqa: B006 (Typer reads it; nobody changes it)
    workers: Annotated[int | None, option("Processes; default: one a core.", "--workers", panel=RUN, min=0, max=512, metavar="N")] = None,
    timeout: Annotated[float, option("Seconds after which a file counts as broken.", "--timeout", panel=RUN, min=0.1, metavar="S")] = 30.0,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> int:
    """Look at videos before training on them: what cannot be read, what is odd.

    Decodes the first, middle and last frame of every item as training would.

    Exit code 0: all can be read, 1: some are bad, 2: nothing was checked.
    """
    try:
        with progress("checking", quiet) as step:
            report: Report = tubelet.check(
                sources,
                split=split,
                frames=frames,
                images=cast("Images", images),
                workers="auto" if workers is None else workers,
                timeout=timeout,
                exclude=exclude,
                progress=step,
            )
    except DataError as error:  # 1 would say that the report is there
        raise ConfigError(str(error)) from None
    if bad is not None:
        report.write_bad(bad)
    if json_out == Path("-"):
        typer.echo(json.dumps(report.as_dict(), indent=1, allow_nan=False))
    elif json_out is not None:
        report.save_json(json_out)
    if not quiet and json_out != Path("-"):
        _show(report, bad)
    return 1 if report.n_bad else 0


def _show(report: Report, bad: Path | None) -> None:
    """The table, then what is bad, then what is odd."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for note in report.notes:
        say(note)
    console = Console()
    about = Table(box=box.SIMPLE, show_header=False)
    about.add_column(style="bold", no_wrap=True)
    about.add_column(overflow="fold")
    for name, text in report.overview():
        about.add_row(name, Text(text))
    console.print(about)
    _show_bad(report.bad, bad)
    if found := _examples(report.items):
        odd = Table(box=box.SIMPLE, title="Training reads these, but you may want to know", title_justify="left", title_style="bold")
        for column in ("warning", "items", "for example"):
            odd.add_column(column, overflow="fold", justify="right" if column == "items" else "left")
        for what, items in found.items():
            odd.add_row(what, f"{len(items):,}", Text(f"{_printable(items[0][0])}: {_printable(items[0][1])}"))
        console.print(odd)
    if report.duplicates:
        twin = ", ".join(_printable(key) for key in report.duplicates[0][:3])
        more = f", and {len(report.duplicates) - 1} more such groups" if len(report.duplicates) > 1 else ""
        typer.echo(f"files with the same content: {twin}{more}")


def _show_bad(items: Sequence[Checked], file: Path | None) -> None:
    from tubelet.data.check import PROBLEMS

    if not items:
        return
    typer.secho(f"{len(items)} bad:", fg="red", bold=True)
    for item in items[:SHOWN]:
        if item.problem is not None:
            typer.echo(f"  {_printable(item.key)}: {PROBLEMS[item.problem.code]}: {_printable(item.problem.text)}")
    if len(items) > SHOWN:
        typer.echo(f"  ... and {len(items) - SHOWN} more")
    typer.echo(f"train without them: pretrain --exclude @{file}" if file else "--bad bad.txt lists them for pretrain --exclude @bad.txt")


def _examples(items: Sequence[Checked]) -> dict[str, list[tuple[str, str]]]:
    """For each kind of warning, what it is called, and (key, text) of the items that have it."""
    from tubelet.data.check import WARNINGS

    found: dict[str, list[tuple[str, str]]] = {what: [] for what in WARNINGS.values()}
    for item in items:
        for warning in item.warnings:
            found[WARNINGS[warning.code]].append((item.key, warning.text))
    return {what: items for what, items in found.items() if items}


def _printable(text: str) -> str:
    """File names may hold anything: line breaks, terminal codes, bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
