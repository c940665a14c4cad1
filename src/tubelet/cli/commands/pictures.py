"""tubelet reconstruct: what a model imagines."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.options import DATA, MODEL, OUTPUT, Device, Import, Overwrite, RunDir, Seed, Sources, examples, flag, option
from tubelet.cli.show import list_failures, progress

CHECKS["reconstruct"] = check_imports
SETTINGS["reconstruct"] = lambda: {"masking", *data_settings()}
Picture = Annotated[str, option("File to write: .png, .gif or .mp4.", "--out", panel=OUTPUT, metavar="FILE")]
Start = Annotated[
    float | None, option("Where the clip starts, in seconds. Default: in the middle.", "--start", panel=DATA, min=0, metavar="S")
]


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet reconstruct runs/first my_video.mp4 --out imagined.png",
        "tubelet reconstruct runs/first my_video.mp4 --out imagined.mp4 --start 12 --set masking=random --set masking.ratio=0.5",
        "tubelet reconstruct runs/first long.mp4 --out whole.mp4 --whole",
    ),
)
def reconstruct(
    run: RunDir,
    sources: Sources,
    out: Picture,
    settings: Annotated[
        list[str],
        option("The masking (masking.ratio=0.5) or a data setting (fps=8). Repeat.", "--set", panel=MODEL, metavar="PATH=VALUE"),
    ] = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    statistics: Annotated[
        str,
        option(
            "Brightness and contrast of normalised predictions: visible tubelets nearby, or the hidden ones' own.",
            "--statistics",
            panel=OUTPUT,
            metavar="visible|own",
            callback=one_of("visible", "own"),
        ),
    ] = "visible",
    start: Start = None,
    whole: Annotated[bool, flag("Clip after clip over the whole video (.mp4, .gif).", "--whole", panel=DATA)] = False,
    frames: Annotated[int, option("Columns of a .png.", "--frames", panel=OUTPUT, min=1, metavar="N")] = 8,
    seed: Seed = 0,
    limit: Annotated[int, option("At most so many videos, the first by name.", "--limit", panel=DATA, min=1, metavar="N")] = 8,
    split: Annotated[
        str | None, option("Only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> None:
    """Show videos, what the model sees of them, and what it imagines.

    Also says how wrong the model is beside answers that need no model: the mean of what is visible, a copy of the nearest visible tubelet.
    """
    with progress("reconstructing", quiet) as step:
        result = tubelet.reconstruct(
            run,
            sources,
            out=out,
            settings=settings,
            imports=imports,
            statistics=statistics,  # pyright: ignore[reportArgumentType] (its callback knows the two)
            start=start,
            whole=whole,
            frames=frames,
            seed=seed,
            limit=limit,
            split=split,
            device=device,
            overwrite=overwrite,
            progress=step,
        )
    if not quiet:
        typer.echo(f"{result}\n-> {out}")
    list_failures(result.failures, result.n_total, "videos")
