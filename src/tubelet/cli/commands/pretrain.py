"""tubelet pretrain."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings, problems_of
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.faults import say, speaks
from tubelet.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    RUN,
    SIZES,
    Import,
    Set,
    Sources,
    examples,
    flag,
    option,
)
from tubelet.cli.show import duration

if TYPE_CHECKING:
    from tubelet.train.loop import Result


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet pretrain videos/ --out runs/first",
        "tubelet pretrain train.csv --out runs/second --recipe small-data --size small --set epochs=800 --set masking.ratio=0.9",
        "tubelet pretrain train.csv --out runs/second --resume",
        "torchrun --nproc-per-node 2 -m tubelet pretrain train.csv --out runs/two-gpus",
    ),
)
def pretrain(
    context: typer.Context,
    sources: Sources,
    out: Annotated[str, option("Folder of the run: settings, checkpoints, metrics, model.", "--out", panel=OUTPUT, metavar="FOLDER")],
    recipe: Annotated[
        str | None,
        option(
            "Name (tubelet recipes lists them) or a YAML file. Default: one-gpu, without a GPU tiny-cpu.",
            "--recipe",
            panel=MODEL,
            metavar="NAME|FILE",
        ),
    ] = None,
    size: Annotated[
        str | None, option(f"Size of the model: {', '.join(SIZES)}.", "--size", panel=MODEL, metavar="SIZE", callback=one_of(*SIZES))
    ] = None,
    settings: Set = [],  # noqa: B006 (Typer reads it; nobody changes it)
    imports: Import = [],  # noqa: B006
    exclude: Annotated[
        list[str],
        option("Leave out items: a pattern, '*/broken/*', or @FILE of keys. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"),
    ] = [],  # noqa: B006
    device: Annotated[
        str | None, option("auto, cpu, cuda or cuda:N; short for --set train.device.", "--device", panel=RUN, metavar="NAME")
    ] = None,
    resume: Annotated[bool, flag("Go on from the newest checkpoint in --out.", "--resume", panel=RUN)] = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> int:
    """Pre-train an encoder on videos, without labels.

    Stopped by Ctrl-C, SIGTERM or SIGUSR1 it saves its state first; --resume goes on as if nothing had happened.
    """
    asked = [*settings, *([f"train.device={device}"] if device else [])]
    result = tubelet.pretrain(
        sources, out=out, recipe=recipe, size=size, settings=asked, resume=resume, imports=imports, exclude=exclude, quiet=quiet
    )
    return _ended(result, out, context.find_root().obj, quiet)


def _ended(result: Result, out: str, args: Sequence[str], quiet: bool) -> int:
    """Say how a run ended; its exit code."""
    if result.stopped_by:
        again = [*args, *([] if "--resume" in args else ["--resume"])]
        launch = "" if "RANK" not in os.environ else "torchrun with the same options -m "
        if speaks():
            at = f"saved at step {result.step} of {result.total_steps}"
            say(f"stopped by {result.stopped_by}: {at}; continue with:\n  {launch}tubelet {shlex.join(again)}")
        return 128 + signal.Signals[result.stopped_by].value
    if speaks() and not quiet:
        typer.echo(f"done: {result.step} steps, {result.samples} clips in {duration(result.seconds)}; the run is in {out}")
    return 0


def _check_pretrain(given: Mapping[str, Any]) -> list[str]:
    """Mistakes in --import, --recipe and --set, for a call that has others."""
    from tubelet import recipe as book

    wrong = check_imports(given)
    if given.get("recipe") or given.get("settings"):
        name = given.get("recipe") or "tiny-cpu"
        wrong += problems_of(lambda: book.load(name, given.get("settings") or [], size=given.get("size")))
    return wrong


def _run_settings() -> set[str]:
    from tubelet.train.settings import TrainSettings

    return {"method", "masking", "data", "train", "watch", *data_settings(), *TrainSettings.model_fields}


CHECKS["pretrain"] = _check_pretrain
SETTINGS["pretrain"] = _run_settings
