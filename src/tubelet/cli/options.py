"""What options look like, and those that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tubelet.cli.collect import one_of

SIZES = ("tiny", "small", "base", "large", "huge", "giant")
POOLS = ("mean", "slots", "class")


def examples(*lines: str) -> str:
    """An epilog: every line a paragraph of its own."""
    return "[bold]Examples[/]\n\n" + "\n\n".join(lines)


def option(help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option of a command."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def flag(help: str, *names: str, panel: str | None = None) -> Any:
    """A switch without its opposite."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar="")


MODEL, DATA, RUN, OUTPUT, FEATURES = "Model and training", "Data", "Run", "Output", "Features"
Sources = Annotated[list[str], typer.Argument(help="Folders, videos, manifests (.csv .jsonl), lists (.txt) or URLs", metavar="SOURCES")]
RunDir = Annotated[str, typer.Argument(help="Run folder of tubelet pretrain, or one of its .safetensors files", metavar="RUN")]
Set = Annotated[list[str], option("A setting by its path, as path=value. Repeat for several.", "--set", panel=MODEL, metavar="PATH=VALUE")]
DataSet = Annotated[
    list[str],
    option("A data setting (fps=8), or views.clips=4 for several views of each video. Repeat.", "--set", panel=DATA, metavar="PATH=VALUE"),
]
Import = Annotated[
    list[str],
    option("Your own Python file with a masking or method; its name is the kind. Repeat.", "--import", panel=MODEL, metavar="FILE"),
]
Device = Annotated[str, option("auto, cpu, cuda or cuda:N.", "--device", panel=RUN, metavar="NAME")]
Random = Annotated[bool, flag("Use the same architecture with random weights: the control.", "--random", panel=MODEL)]
Sha256 = Annotated[
    str | None, option("Refuse a file of weights that has another sha256, before it is opened.", "--sha256", panel=MODEL, metavar="HEX")
]
Download = Annotated[
    bool, flag("Fetch hf:// weights that the local cache lacks; without it nothing touches the network.", "--download", panel=MODEL)
]
Pool = Annotated[
    str,
    option(
        "mean of all tokens; slots: one mean per time slot; class token.",
        "--pool",
        panel=FEATURES,
        metavar="|".join(POOLS),
        callback=one_of(*POOLS),
    ),
]
TrainSplit = Annotated[str, option("Split to fit on: a manifest's split, or a sub-folder.", "--train", panel=DATA, metavar="NAME")]
TestSplit = Annotated[str, option("Split to score.", "--test", panel=DATA, metavar="NAME")]
TestSources = Annotated[
    list[str], option("Score these sources instead of a split. Repeat.", "--test-sources", panel=DATA, metavar="SOURCE")
]
Batch = Annotated[int, option("Items encoded at once.", "--batch", panel=RUN, min=1, metavar="N")]
Overwrite = Annotated[bool, flag("Replace what --out already holds.", "--overwrite", panel=OUTPUT)]
Seed = Annotated[int, option("Seed of whatever is drawn.", "--seed", panel=RUN, min=0, metavar="N")]
Json = Annotated[Path | None, option("Also write the result with every prediction as JSON.", "--json", panel=OUTPUT, metavar="FILE")]


def check_size(value: str | None) -> str | None:
    """Pixels of a side, or HEIGHTxWIDTH."""
    if value is not None and not re.fullmatch(r"\d+(x\d+)?", value):
        raise typer.BadParameter(f"{value!r} is not a number of pixels such as 64, or HEIGHTxWIDTH such as 120x160")
    return value
