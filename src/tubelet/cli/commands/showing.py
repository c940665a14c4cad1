"""tubelet masks, guide: what masking strategies hide of a clip, and what guides say about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports
from tubelet.cli.collect import CHECKS, Command
from tubelet.cli.commands.pictures import Picture, Start
from tubelet.cli.options import DATA, MODEL, OUTPUT, Import, Overwrite, Seed, examples, flag, option

CHECKS.update(dict.fromkeys(("masks", "guide"), check_imports))
Video = Annotated[str, typer.Argument(help="A video, or a source with one", metavar="VIDEO")]
Columns = Annotated[int, option("Columns of a .png.", "--columns", panel=OUTPUT, min=1, metavar="N")]
Quiet = Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)]


def _numbers(*counts: int, like: str) -> Callable[[str | None], tuple[int, ...] | None]:
    """A callback that reads ``2x16x16``; ``counts``: how many numbers there may be."""

    def read(value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", value) or value.count("x") + 1 not in counts:
            raise typer.BadParameter(f"{value!r} is not written as {like}")
        return tuple(int(part) for part in value.split("x"))

    return read


_SIDES = "a number of pixels such as 64, or HEIGHTxWIDTH such as 120x160"
Size = Annotated[
    Any,
    typer.Option(
        "--size",
        help="Side in pixels, or HEIGHTxWIDTH. Default: 224.",
        rich_help_panel=DATA,
        metavar="N|HxW",
        parser=str,
        callback=_numbers(1, 2, like=_SIDES),
    ),
]


def _size(size: tuple[int, ...] | None) -> Any:
    return size if size is None or len(size) == 2 else size[0]


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet masks my_video.mp4 --out masks.png",
        'tubelet masks my_video.mp4 --out masks.png --caption "a dog catches a ball" --model clip-vit-base-patch32/',
        "tubelet masks my_video.mp4 --out masks.mp4 --ratio 0.75 --set tube.ratio=0.9 --import my_mask.py",
    ),
)
def masks(
    video: Video,
    out: Picture,
    ratio: Annotated[float | None, option("Masking ratio of all kinds that have one.", "--ratio", panel=MODEL, metavar="R")] = None,
    settings: Annotated[
        list[str], option("A setting of one kind, such as tube.ratio=0.9. Repeat.", "--set", panel=MODEL, metavar="KIND.SETTING=VALUE")
    ] = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    caption: Annotated[
        str | None, option("What text-guided masking hides. Default: what a manifest says.", "--caption", panel=MODEL, metavar="TEXT")
    ] = None,
    model: Annotated[
        str | None,
        option("CLIP-like model or run of method dual that compares it with the frames.", "--model", panel=MODEL, metavar="FOLDER"),
    ] = None,
    run: Annotated[
        str | None, option("A run, whose masking is shown as it has learned to mask.", "--run", panel=MODEL, metavar="RUN")
    ] = None,
    frames: Annotated[int | None, option("Frames of the clip. Default: 16.", "--frames", panel=DATA, min=1, metavar="N")] = None,
    size: Size = None,
    patch: Annotated[
        Any,
        typer.Option(
            "--patch",
            help="Frames, rows and columns of a tubelet. Default: 2x16x16.",
            rich_help_panel=DATA,
            metavar="TxHxW",
            parser=str,
            callback=_numbers(3, like="FRAMESxROWSxCOLUMNS such as 2x16x16"),
        ),
    ] = None,
    stride: Annotated[
        int | None, option("Frames of the video from frame to frame of the clip. Default: 1.", "--stride", panel=DATA, min=1, metavar="N")
    ] = None,
    start: Start = None,
    columns: Columns = 8,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
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
        caption=caption,
        model=model,
        run=run,
        frames=frames,
        size=_size(size),
        patch=patch,
        stride=stride,
        start=start,
        columns=columns,
        seed=seed,
        overwrite=overwrite,
    )
    if not quiet:
        typer.echo(f"{result}\n-> {out}")


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet guide my_video.mp4 --out motion.png",
        "tubelet guide my_video.mp4 --kind flow --out flow.png",
        'tubelet guide my_video.mp4 --kind similarity --set model=clip-vit-base-patch32/ --caption "a dog" --out dog.png',
    ),
)
def guide(
    video: Video,
    out: Annotated[str, option("Picture to write, .png.", "--out", panel=OUTPUT, metavar="FILE")],
    kind: Annotated[
        str, option("vectors, flow, blocks, similarity or maps, or a file of your own.", "--kind", panel=MODEL, metavar="KIND")
    ] = "vectors",
    caption: Annotated[
        str | None, option("What is looked for. Default: what a manifest says.", "--caption", panel=MODEL, metavar="TEXT")
    ] = None,
    settings: Annotated[
        list[str], option("A setting of the guide, such as model=FOLDER. Repeat.", "--set", panel=MODEL, metavar="SETTING=VALUE")
    ] = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    maps: Annotated[
        str | None, option("Column of the manifest with score maps, for kind maps.", "--maps", panel=DATA, metavar="COLUMN")
    ] = None,
    frames: Annotated[int, option("Frames of the clip.", "--frames", panel=DATA, min=1, metavar="N")] = 16,
    size: Size = None,
    stride: Annotated[int, option("Frames of the video from frame to frame of the clip.", "--stride", panel=DATA, min=1, metavar="N")] = 1,
    start: Start = None,
    columns: Columns = 8,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Show what a guide says about a clip: where it moves, or where it matches a caption."""
    result = tubelet.guide(
        video,
        kind=kind,
        out=out,
        caption=caption,
        settings=settings,
        imports=imports,
        maps=maps,
        frames=frames,
        size=_size(size) or 224,
        stride=stride,
        start=start,
        columns=columns,
        overwrite=overwrite,
    )
    if not quiet:
        typer.echo(f"{result}\n-> {out}")
