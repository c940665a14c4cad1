"""tubelet reconstruct, masks: what a model imagines, and what masking strategies hide."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.options import DATA, MODEL, OUTPUT, Device, Import, Overwrite, RunDir, Seed, Sources, examples, flag, option
from tubelet.cli.show import list_failures, progress

CHECKS.update(dict.fromkeys(("reconstruct", "masks"), check_imports))
SETTINGS["reconstruct"] = lambda: {"masking", *data_settings()}
Picture = Annotated[str, option("File to write: .png, .gif or .mp4.", "--out", panel=OUTPUT, metavar="FILE")]
Start = Annotated[
    float | None, option("Where the clip starts, in seconds. Default: in the middle.", "--start", panel=DATA, min=0, metavar="S")
]


def _numbers(*counts: int, like: str) -> Callable[[str], tuple[int, ...]]:
    """A callback that reads ``2x16x16``; ``counts``: how many numbers there may be."""

    def read(value: str) -> tuple[int, ...]:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", value) or value.count("x") + 1 not in counts:
            raise typer.BadParameter(f"{value!r} is not written as {like}")
        return tuple(int(part) for part in value.split("x"))

    return read


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


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet masks my_video.mp4 --out masks.png",
        "tubelet masks my_video.mp4 --out masks.mp4 --ratio 0.75 --set tube.ratio=0.9 --import my_mask.py",
    ),
)
def masks(
    video: Annotated[str, typer.Argument(help="A video, or a source with one", metavar="VIDEO")],
    out: Picture,
    ratio: Annotated[float | None, option("Masking ratio of all kinds that have one.", "--ratio", panel=MODEL, metavar="R")] = None,
    settings: Annotated[
        list[str], option("A setting of one kind, such as tube.ratio=0.9. Repeat.", "--set", panel=MODEL, metavar="KIND.SETTING=VALUE")
    ] = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    frames: Annotated[int, option("Frames of the clip.", "--frames", panel=DATA, min=1, metavar="N")] = 16,
    size: Annotated[
        Any,
        typer.Option(
            "--size",
            help="Side in pixels, or HEIGHTxWIDTH.",
            rich_help_panel=DATA,
            metavar="N|HxW",
            parser=str,
            callback=_numbers(1, 2, like="a number of pixels such as 64, or HEIGHTxWIDTH such as 120x160"),
        ),
    ] = "224",
    patch: Annotated[
        Any,
        typer.Option(
            "--patch",
            help="Frames, rows and columns of a tubelet.",
            rich_help_panel=DATA,
            metavar="TxHxW",
            parser=str,
            callback=_numbers(3, like="FRAMESxROWSxCOLUMNS such as 2x16x16"),
        ),
    ] = "2x16x16",
    stride: Annotated[int, option("Frames of the video from frame to frame of the clip.", "--stride", panel=DATA, min=1, metavar="N")] = 1,
    start: Start = None,
    columns: Annotated[int, option("Columns of a .png.", "--columns", panel=OUTPUT, min=1, metavar="N")] = 8,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> None:
    """Show what every masking kind hides of a clip, side by side, with exact counts.

    Kinds that need more than a video are listed with the reason. No run is needed.
    """  # fmt: skip
    result = tubelet.masks(
        video,
        out=out,
        ratio=ratio,
        settings=settings,
        imports=imports,
        frames=frames,
        size=size if len(size) == 2 else size[0],
        patch=patch,
        stride=stride,
        start=start,
        columns=columns,
        seed=seed,
        overwrite=overwrite,
    )
    if not quiet:
        typer.echo(f"{result}\n-> {out}")
