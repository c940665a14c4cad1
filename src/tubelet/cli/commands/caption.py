"""tubelet caption."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import Command
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
    split: Annotated[str | None, option("Only this split.", "--split", panel=DATA, metavar="NAME")] = None,
    exclude: Annotated[
        list[str], option("Leave out keys: a pattern, or @FILE with keys. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE")
    ] = [],  # noqa: B006
    batch: Annotated[int, option("Pictures at once.", "--batch", panel=RUN, min=1, metavar="N")] = 8,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> None:
    """Write captions for videos into a manifest, for text-guided masking and alignment.

    A call that was stopped goes on where it was. Nothing is downloaded.
    """  # fmt: skip
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
            overwrite=overwrite,
            progress=step,
        )
    if not quiet:
        typer.echo(f"{result}\n-> {out}")
    list_failures(result.failures, result.n_total, "videos")
