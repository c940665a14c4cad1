"""tubelet export: a trained model for others."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.options import MODEL, OUTPUT, Download, Import, Sha256, examples, flag, option

TARGETS = ("hf", "official", "safetensors", "onnx", "torch-export")
POOLS = ("tokens", "mean", "slots", "class")
WEIGHTS = ("auto", "ema")
CHECKS["export"] = check_imports
SETTINGS["export"] = data_settings


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet export runs/first exported/ --to hf",
        "tubelet export runs/first encoder/ --to hf --encoder",
        "tubelet export runs/tuned tuned.pth --to official --weights ema",
        "tubelet export runs/tuned tuned.onnx --to onnx",
        "tubelet export runs/first encoder.pt2 --to torch-export --pool mean",
    ),
)
def export(
    run: Annotated[
        str, typer.Argument(help="Run folder, one of its .safetensors files, or weights of others that tubelet embed reads", metavar="RUN")
    ],
    out: Annotated[
        str,
        typer.Argument(help="Folder (hf) or file to write: .pth, .safetensors, .onnx, .pt2 (torch-export)", metavar="OUT"),
    ],
    to: Annotated[
        str,
        option(
            "hf: a folder for transformers; official: a file with VideoMAE's names; safetensors: one file for tubelet; "
            "onnx, torch-export: a graph that runs without tubelet.",
            "--to",
            panel=OUTPUT,
            metavar="|".join(TARGETS),
            callback=one_of(*TARGETS),
        ),
    ] = "hf",
    encoder: Annotated[bool, flag("The encoder alone, without decoder, head, masking and alignment.", "--encoder", panel=MODEL)] = False,
    pool: Annotated[
        str | None,
        option(
            "What a graph of an encoder answers. Default: tokens; of a fine-tuned run logits.",
            "--pool",
            panel=MODEL,
            metavar="|".join(POOLS),
            callback=one_of(*POOLS),
        ),
    ] = None,
    weights: Annotated[
        str,
        option(
            "auto: the last ones; ema: their average over training.",
            "--weights",
            panel=MODEL,
            metavar="|".join(WEIGHTS),
            callback=one_of(*WEIGHTS),
        ),
    ] = "auto",
    settings: Annotated[
        list[str],
        option("A setting that weights of others do not say (method.heads=6). Repeat.", "--set", panel=MODEL, metavar="PATH=VALUE"),
    ] = [],  # noqa: B006
    download: Download = False,
    imports: Import = [],  # noqa: B006
    sha256: Sha256 = None,
    overwrite: Annotated[bool, flag("Replace what OUT already holds.", "--overwrite", panel=OUTPUT)] = False,
) -> None:
    """Write a trained model for others: transformers, the official code, or one file.

    A folder for transformers opens with from_pretrained of VideoMAEForPreTraining, of VideoMAEForVideoClassification (a fine-tuned run) or
    of VideoMAEModel (an encoder), and gives the same features. What the target cannot express is named, and nothing is written.
    """
    found = tubelet.export(
        run,
        out,
        to=cast(Any, to),
        weights=weights,
        encoder=encoder,
        pool=pool,
        overwrite=overwrite,
        imports=imports,
        settings=settings,
        download=download,
        sha256=sha256,
    )
    typer.echo(str(found))
