"""tubelet bench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import CHECKS, SETTINGS, Command, Group, one_of
from tubelet.cli.faults import speaks
from tubelet.cli.options import DATA, MODEL, OUTPUT, RUN, SIZES, Import, Overwrite, Set, Sources, examples, flag, option
from tubelet.cli.show import list_failures, progress

bench = typer.Typer(name="bench", cls=Group, context_settings=HELP, help="Measure on this machine.", rich_markup_mode="rich")
app.add_typer(bench)


@bench.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet bench data videos/",
        "tubelet bench data train.csv --recipe videomae --gpu h100 --set data.split=train",
        "tubelet bench data prepared/ --workers 8 --json pace.json",
    ),
)
def data(
    sources: Sources,
    recipe: Annotated[
        str | None,
        option("Name (tubelet recipes lists them) or a YAML file. Default: one-gpu.", "--recipe", panel=MODEL, metavar="NAME|FILE"),
    ] = None,
    size: Annotated[
        str | None, option(f"Size of the model: {', '.join(SIZES)}.", "--size", panel=MODEL, metavar="SIZE", callback=one_of(*SIZES))
    ] = None,
    settings: Set = [],  # noqa: B006 (Typer reads it; nobody changes it)
    imports: Import = [],  # noqa: B006
    exclude: Annotated[
        list[str],
        option(
            "Leave out items whose key matches a pattern, or is listed in @FILE. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"
        ),
    ] = [],  # noqa: B006
    gpu: Annotated[
        str | None,
        option("The GPU to feed: a100-80, h100, rtx4090, ... Default: the one here, or a100-80.", "--gpu", panel=RUN, metavar="NAME"),
    ] = None,
    mfu: Annotated[float, option("Assumed share of the peak that training reaches.", "--mfu", panel=RUN, metavar="SHARE")] = 0.35,
    workers: Annotated[
        int | None, option("Most decoding processes to try; default: one a core.", "--workers", panel=RUN, min=1, max=512, metavar="N")
    ] = None,
    seconds: Annotated[float, option("Of each of the three measurements.", "--seconds", panel=RUN, min=0.1, max=3600, metavar="S")] = 8.0,
    no_prepared: Annotated[bool, flag("Do not prepare a sample to see what that would bring.", "--no-prepared", panel=RUN)] = False,
    json_out: Annotated[Path | None, option("Also write all figures as JSON.", "--json", panel=OUTPUT, metavar="FILE")] = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, flag("Print nothing but the figures.", "--quiet", panel=OUTPUT)] = False,
) -> int:
    """Say how fast videos become training clips here, what the time goes into, and how many cores a GPU needs.

    Measures one core with 1 and 4 clips from each opened file, several decoding processes, and what preparing the videos would bring.

    Exit code 0: all files that were tried could be read, 1: some could not.
    """
    with _bars(quiet) as step:
        found = tubelet.bench_data(
            sources,
            recipe=recipe,
            size=size,
            settings=settings,
            gpu=gpu,
            mfu=mfu,
            workers=workers,
            seconds=seconds,
            prepared=not no_prepared,
            exclude=exclude,
            imports=imports,
            json_out=json_out,
            overwrite=overwrite,
            progress=step,
        )
    typer.echo(str(found))
    if json_out is not None and not quiet:
        typer.echo(f"written: {json_out}")
    list_failures(found.failures, found.items)
    return 1 if found.failures else 0


@contextmanager
def _bars(quiet: bool) -> Iterator[Any]:
    """One bar at a time, for what is being measured."""
    if quiet or not speaks():
        yield None
        return
    with ExitStack() as bars:
        now: tuple[str, Any] = ("", None)

        def step(doing: str, done: int, total: int) -> None:
            nonlocal now
            if doing != now[0]:
                bars.close()
                now = doing, bars.enter_context(progress(doing, quiet))
            if now[1] is not None:
                now[1](done, total)

        yield step


CHECKS["data"] = CHECKS["pretrain"]
SETTINGS["data"] = SETTINGS["pretrain"]
