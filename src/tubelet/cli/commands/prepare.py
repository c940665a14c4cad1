"""tubelet prepare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import problems_of
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.faults import say, speaks
from tubelet.cli.options import DATA, OUTPUT, RUN, examples, flag, option
from tubelet.cli.show import list_failures, progress
from tubelet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tubelet.data.source import Images

ENGINES = ("processes", "ray")
IMAGES = ("ignore", "items", "frames")


def _part(value: str | None) -> str | None:
    if value is not None:
        from tubelet.data.prepared.make import Part

        try:
            Part.read(value)
        except ConfigError as error:
            raise typer.BadParameter(error.problems[0]) from None
    return value


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet prepare videos/ prepared/",
        "tubelet prepare train.csv prepared/ --size 128 --set crf=20",
        "tubelet prepare videos/ prepared/ --part 3/16",
        "tubelet prepare prepared/ --merge",
        "tubelet pretrain prepared/ --out runs/first",
    ),
)
def prepare(
    paths: Annotated[
        list[str], typer.Argument(help="Folders, videos, manifests or URLs, and last the folder to write", metavar="SOURCES... OUT")
    ],
    size: Annotated[
        int | None,
        option("Short side, 1.15 times the training crop; default 256.", "--size", panel=OUTPUT, min=16, metavar="PIXELS"),
    ] = None,
    settings: Annotated[
        list[str],
        option(
            "crf=20, gop=8, shard_mib=512, audio=false, motion=true ... Repeat.",
            "--set",
            panel=OUTPUT,
            metavar="NAME=VALUE",
        ),
    ] = [],  # noqa: B006 (Typer reads it; nobody changes it)
    split: Annotated[
        str | None, option("Only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME")
    ] = None,
    labels: Annotated[str, option("auto, none, folder, or a manifest's column.", "--labels", panel=DATA, metavar="NAME")] = "auto",
    images: Annotated[
        str, option("Picture files in a folder.", "--images", panel=DATA, metavar="|".join(IMAGES), callback=one_of(*IMAGES))
    ] = "ignore",
    exclude: Annotated[
        list[str],
        option(
            "Leave out items whose key matches a pattern, or is listed in @FILE. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"
        ),
    ] = [],  # noqa: B006
    part: Annotated[
        str | None,
        option("Make part i of n; --merge joins them.", "--part", panel=RUN, metavar="I/N", callback=_part),
    ] = None,
    merge: Annotated[bool, flag("Join the parts in OUT, or write its index again.", "--merge", panel=RUN)] = False,
    engine: Annotated[
        str,
        option(
            "processes, or a Ray cluster (tubelet[ray]).",
            "--engine",
            panel=RUN,
            metavar="processes|ray",
            callback=one_of("processes", "ray"),
        ),
    ] = "processes",
    workers: Annotated[int | None, option("Processes; default: one a core.", "--workers", panel=RUN, min=1, max=512, metavar="N")] = None,
    timeout: Annotated[
        float, option("Seconds without an answer after which a file counts as broken.", "--timeout", panel=RUN, min=0.1, metavar="S")
    ] = 120.0,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> int:
    """Re-encode videos to training size, so that training reads them many times faster.

    OUT is then a source like any other: the same items, labels, order and frames. Stopped at any moment, the same command goes on. For
    several machines, each makes a part (--part 3/16 on the third of 16), and --merge joins them.

    Exit code 0: all was prepared, 1: some videos could not be read, or only in part, 2: it stopped, and the message says why.
    """
    try:
        return _prepare(
            paths,
            merge=merge,
            quiet=quiet,
            settings=settings,
            size=size,
            split=split,
            labels=labels,
            images=cast("Images", images),
            exclude=exclude,
            part=part,
            engine=cast(Any, engine),
            workers="auto" if workers is None else workers,
            timeout=timeout,
        )
    except DataError as error:  # 1 would say that the set is there
        raise ConfigError(str(error)) from None


def _prepare(paths: Sequence[str], *, merge: bool, quiet: bool, **how: Any) -> int:
    *sources, out = paths
    if merge:
        if sources:
            raise ConfigError(f"--merge takes the prepared folder alone; {' '.join(sources)} is not needed", where="tubelet prepare")
        found = tubelet.merge_prepared(out)
    else:
        if not sources:
            raise ConfigError(f"give the videos and then the folder to write: tubelet prepare {out} prepared/", where="tubelet prepare")
        with _bar(quiet) as step:
            found = tubelet.prepare(sources, out, progress=step, say=None if quiet else say, **how)
    if not quiet:
        typer.echo(str(found))
    made = found.made
    if made is None:
        return 0
    list_failures(made.bad, made.items + len(made.bad))
    list_failures(made.partial, made.items, what="items, some frames of them,")
    return 1 if made.bad or made.partial else 0


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    """A bar for each of the two passes."""
    if quiet or not speaks():
        yield None
        return
    with progress("looking", quiet) as looking, progress("encoding (frames)", quiet) as encoding:
        bars = {"looking": looking, "encoding": encoding}

        def step(doing: str, done: int, total: int) -> None:
            bar = bars[doing]
            if bar is not None:
                bar(done, total)

        yield step


def _check(given: Mapping[str, Any]) -> list[str]:
    from tubelet.config import overlay, parse
    from tubelet.data.prepared.options import PrepareSettings

    return problems_of(lambda: parse(PrepareSettings, overlay({}, given.get("settings") or [])))


def _names() -> set[str]:
    from tubelet.data.prepared.options import PrepareSettings

    return set(PrepareSettings.model_fields)


CHECKS["prepare"] = _check
SETTINGS["prepare"] = _names
