"""tubelet playground, demo: generated videos, and the whole road on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import problems_of
from tubelet.cli.collect import CHECKS, Command
from tubelet.cli.options import (
    DATA,
    OUTPUT,
    RUN,
    Seed,
    check_size,
    examples,
    flag,
    option,
)
from tubelet.cli.show import progress


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet playground worlds/ --clips 200", "tubelet playground easy/ --clips 400 --scene easy --size 32 --frames 16 --seed 1"
    ),
)
def playground(
    out: Annotated[str, typer.Argument(help="Folder for the clips and their manifest", metavar="OUT")],
    clips: Annotated[int, option("How many; more than the folder holds = go on from there.", "--clips", panel=OUTPUT, min=1, metavar="N")],
    scene: Annotated[
        str, option("Kind of scene: full, or easy (still ground, one object).", "--scene", panel=DATA, metavar="NAME")
    ] = "full",
    size: Annotated[
        str | None,
        option("Side in pixels, or HEIGHTxWIDTH. Default: the scene's own.", "--size", panel=DATA, metavar="N|HxW", callback=check_size),
    ] = None,
    frames: Annotated[int | None, option("Frames of a clip. Default: the scene's own.", "--frames", panel=DATA, min=1, metavar="N")] = None,
    fps: Annotated[float | None, option("Frames a second. Default: the scene's own.", "--fps", panel=DATA, metavar="F")] = None,
    seed: Seed = 0,
    verify: Annotated[bool, flag("Check every clip against its own ground truth.", "--verify", panel=RUN)] = False,
    overwrite: Annotated[bool, flag("Replace a playground that was made with other settings.", "--overwrite", panel=OUTPUT)] = False,
) -> None:
    """Render labelled videos of moving shapes, with sound, masks and flow, to try things on."""
    with progress("rendering", quiet=False) as step:
        manifest = tubelet.make_playground(
            out,
            clips=clips,
            seed=seed,
            scene=scene,
            size=_sides(size),
            frames=frames,
            fps=fps,
            verify=verify,
            overwrite=overwrite,
            progress=step,
        )
    typer.echo(f"{clips} clips: {manifest}")


def _check(given: Mapping[str, Any]) -> list[str]:
    from tubelet.playground import scene_settings

    def settings() -> None:
        own = {"size": _sides(given.get("size")), "frames": given.get("frames"), "fps": given.get("fps")}
        scene_settings(given.get("scene") or "full", **{k: v for k, v in own.items() if v is not None})

    return problems_of(settings)


CHECKS["playground"] = _check


def _sides(size: str | None) -> int | tuple[int, int] | None:
    """``64`` or ``120x160`` (height x width), checked by the option's callback."""
    if size is None:
        return None
    sides = [int(side) for side in size.split("x")]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


@app.command(cls=Command, context_settings=HELP, epilog=examples("tubelet demo", "tubelet demo --quick --out /tmp/demo"))
def demo(
    out: Annotated[str, option("Folder for everything that the demo makes.", "--out", panel=OUTPUT, metavar="FOLDER")] = "tubelet-demo",
    quick: Annotated[bool, flag("Less training: to see that it runs.", "--quick", panel=RUN)] = False,
    text: Annotated[bool, flag("Masks that follow words: train a small dual encoder and mask by it.", "--text", panel=RUN)] = False,
) -> None:
    """The whole road on rendered videos: pre-train, look, embed, probe."""
    typer.echo(f"the demo is in {tubelet.demo(out, quick=quick, text=text)}")
