"""tubelet caption."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import Command
from tubelet.cli.faults import say
from tubelet.cli.options import DATA, MODEL, OUTPUT, RUN, Device, Overwrite, Sources, examples, flag, option
from tubelet.cli.show import list_failures, progress


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet caption videos/ --model blip2-opt-2.7b/ --out captioned.csv",
        'tubelet caption train.csv --model blip-base/ --out train_captions.csv --prompt "a video of"',
        "tubelet pretrain captioned.csv --recipe tgm --out runs/tgm",
    ),
)
def caption(
    sources: Sources,
    model: Annotated[str, option("Folder of an image captioner of transformers.", "--model", panel=MODEL, metavar="FOLDER")],
    out: Annotated[str, option("Manifest to write, .csv.", "--out", panel=OUTPUT, metavar="FILE")],
    frames: Annotated[int, option("Frames of each video that get a caption.", "--frames", panel=MODEL, min=1, metavar="N")] = 3,
    prompt: Annotated[str | None, option("Words that the model continues.", "--prompt", panel=MODEL, metavar="TEXT")] = None,
    max_tokens: Annotated[int, option("Longest answer, in tokens.", "--max-tokens", panel=MODEL, min=1, metavar="N")] = 30,
    split: Annotated[
        str | None,
        option("Caption only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME"),
    ] = None,
    exclude: Annotated[
        list[str],
        option(
            "Leave out items whose key matches a pattern, or is listed in @FILE. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"
        ),
    ] = [],  # noqa: B006
    batch: Annotated[int, option("Pictures that the model gets at once.", "--batch", panel=RUN, min=1, metavar="N")] = 8,
    workers: Annotated[
        int | None,
        option(
            "Decoding processes; default: by the cores, few where the model runs on the CPU.",
            "--workers",
            panel=RUN,
            min=0,
            max=512,
            metavar="N",
        ),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> None:
    """Write captions for videos into a manifest, for text-guided masking and alignment.

    Three frames of each video are shown to an image captioner (BLIP, BLIP-2, GIT ...) in a local folder. The manifest takes the place of
    SOURCES. Videos that cannot be read are listed and get no caption. The same command goes on where it was stopped. Nothing is downloaded.
    """
    with progress("captioning", quiet) as step:
        result = tubelet.caption(
            sources,
            model=model,
            out=out,
            frames=frames,
            batch=batch,
            prompt=prompt,
            max_tokens=max_tokens,
            split=split,
            device=device,
            exclude=exclude,
            workers="auto" if workers is None else workers,
            overwrite=overwrite,
            progress=step,
        )
    if not quiet:
        for note in result.notes:
            say(note)
        typer.echo(f"{result}\n-> {out}")
    list_failures(result.failures, result.n_total, "videos")
