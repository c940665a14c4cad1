"""tubelet convert: weights of others in another layout."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import data_settings
from tubelet.cli.collect import SETTINGS, Command, one_of
from tubelet.cli.options import MODEL, OUTPUT, Download, Sha256, examples, flag, option

FORMS = ("hf", "official")
SETTINGS["convert"] = data_settings


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet convert official.pth folder/",
        "tubelet convert folder/ official.safetensors",
        "tubelet convert odd.pth folder/ --set method.heads=6 --set method.decoder.heads=3 --set frames=8 --set size=112",
    ),
)
def convert(
    source: Annotated[str, typer.Argument(help="Official VideoMAE file, folder of a VideoMAE of transformers, or hf://NAME", metavar="IN")],
    out: Annotated[str, typer.Argument(help="File (.pth, .safetensors) or folder to write", metavar="OUT")],
    to: Annotated[
        str | None,
        option(
            "hf: a folder for transformers; official: a file with VideoMAE's names. Default: by OUT's ending.",
            "--to",
            panel=OUTPUT,
            metavar="|".join(FORMS),
            callback=one_of(*FORMS),
        ),
    ] = None,
    settings: Annotated[
        list[str],
        option("What an official file does not say (method.heads=6, frames=8). Repeat.", "--set", panel=MODEL, metavar="PATH=VALUE"),
    ] = [],  # noqa: B006
    download: Download = False,
    sha256: Sha256 = None,
    overwrite: Annotated[bool, flag("Replace what OUT already holds.", "--overwrite", panel=OUTPUT)] = False,
) -> None:
    """Write weights of others in another layout, with decoder or head, bit for bit.

    An official file of VideoMAE becomes a folder that transformers opens, and the other way round. What was converted, dropped and taken
    for granted is printed; what the target cannot express is named, and nothing is written.
    """
    found = tubelet.convert(source, out, to=cast(Any, to), overwrite=overwrite, settings=settings, download=download, sha256=sha256)
    typer.echo(str(found))
