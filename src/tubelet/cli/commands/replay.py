"""tubelet replay: one step of a run again."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports
from tubelet.cli.collect import CHECKS, Command
from tubelet.cli.faults import say
from tubelet.cli.options import DATA, OUTPUT, RUN, Device, Import, examples, flag, option


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet replay runs/first 731",
        "tubelet replay runs/first 731 --no-train",
        "tubelet replay runs/first 731 --sources /new/place/videos --out look/",
    ),
)
def replay(
    run: Annotated[str, typer.Argument(help="Run folder of tubelet pretrain", metavar="RUN")],
    step: Annotated[int, typer.Argument(help="Number of the step, as the message about it says (the first is 0)", metavar="STEP", min=0)],
    no_train: Annotated[
        bool,
        flag("Take a checkpoint's weights as they are, instead of training the steps from there to STEP again.", "--no-train", panel=RUN),
    ] = False,
    sources: Annotated[
        list[str], option("Where the videos are now, if they were moved. Repeat for several.", "--sources", panel=DATA, metavar="SOURCE")
    ] = [],  # noqa: B006
    pictures: Annotated[
        int, option("Clips drawn with their masks, the worst first; 0 = none.", "--pictures", panel=OUTPUT, min=0, metavar="N")
    ] = 8,
    out: Annotated[
        str | None,
        option("Folder for the picture and the JSON file; by default replay/ in the run.", "--out", panel=OUTPUT, metavar="FOLDER"),
    ] = None,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
) -> None:
    """Do one step of a run again and say where it stops being finite.

    The same videos, clips, masks and weights as in the run: shows the step's input, losses and gradients, the first module and parameter
    that are not finite, and the clips with the largest loss.
    """
    result = tubelet.replay(
        run, step, train=not no_train, sources=list(sources) or None, out=out, pictures=pictures, device=device, imports=imports, say=say
    )
    typer.echo(str(result))


CHECKS["replay"] = check_imports
