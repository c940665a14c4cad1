"""tubelet plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.options import DATA, MODEL, OUTPUT, RUN, SIZES, Import, Set, examples, flag, option

if TYPE_CHECKING:
    from tubelet.api.planning import RunPlan


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet plan videos/",
        "tubelet plan train.csv --recipe videomae --gpus 8 --gpu a100-80 --cores 12 --sbatch pretrain.sh",
        "tubelet plan --items 240000 --recipe videomae --size giant --gpus 64 --gpu h100 --mfu 0.4",
        "tubelet plan videos/ --recipe tiny-cpu --measure",
    ),
)
def plan(
    sources: Annotated[
        list[str] | None, typer.Argument(help="As for pretrain; without any, --items says how many there are", metavar="SOURCES")
    ] = None,
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
        option(
            "Leave out items whose key matches a pattern, or is listed in @FILE. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"
        ),
    ] = [],  # noqa: B006
    items: Annotated[int | None, option("Number of items, for a plan without sources.", "--items", panel=DATA, metavar="N")] = None,
    gpus: Annotated[int, option("GPUs in all; more than 8 stand in machines of 8.", "--gpus", panel=RUN, metavar="N")] = 1,
    gpu: Annotated[
        str | None,
        option(
            "Which: a100-80, h100, rtx4090, ... or its memory, 48GB. Default: the one here, or the CPU.", "--gpu", panel=RUN, metavar="NAME"
        ),
    ] = None,
    cores: Annotated[int | None, option("CPU cores for each GPU.", "--cores", panel=RUN, metavar="N")] = None,
    mfu: Annotated[float, option("Assumed share of the peak that training reaches.", "--mfu", panel=RUN, metavar="SHARE")] = 0.35,
    measure: Annotated[bool, flag("Time a few real steps on this machine instead of assuming.", "--measure", panel=RUN)] = False,
    out: Annotated[
        str | None, option("Run folder for the lines that start it. Default: runs/RECIPE.", "--out", panel=OUTPUT, metavar="FOLDER")
    ] = None,
    sbatch: Annotated[Path | None, option("Write a Slurm script.", "--sbatch", panel=OUTPUT, metavar="FILE")] = None,
    hours: Annotated[
        float, option("Longest job of the cluster; longer runs become a chain of jobs.", "--hours", panel=OUTPUT, metavar="H")
    ] = 24.0,
    json_out: Annotated[
        str | None, option("Write all figures as JSON; - prints them instead.", "--json", panel=OUTPUT, metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, flag("Replace files that --sbatch and --json name.", "--overwrite", panel=OUTPUT)] = False,
) -> None:
    """Say what a run will take before it is started: memory, time, cores, disk.

    Counts the model without building it, so any size can be planned anywhere, and decodes some of the videos to see how fast that is.
    """
    found: RunPlan = tubelet.plan(
        sources or None,
        recipe=recipe,
        size=size,
        settings=settings,
        gpus=gpus,
        gpu=gpu,
        items=items,
        cores=cores,
        mfu=mfu,
        measure=measure,
        out=out,
        sbatch=sbatch,
        hours=hours,
        json_out=None if json_out == "-" else json_out,
        overwrite=overwrite,
        imports=imports,
        exclude=exclude,
    )
    if json_out == "-":
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    typer.echo(str(found))
    for file in (sbatch, json_out):
        if file is not None:
            typer.echo(f"written: {file}")


CHECKS["plan"] = CHECKS["pretrain"]
SETTINGS["plan"] = SETTINGS["pretrain"]
