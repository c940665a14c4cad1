"""tubelet recipes, version."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.collect import Command, Group
from tubelet.cli.options import (
    examples,
)

recipes_app = typer.Typer(cls=Group, context_settings=HELP, rich_markup_mode="rich", invoke_without_command=True)


@recipes_app.callback(epilog=examples("tubelet recipes", "tubelet recipes show small-data > mine.yaml"))
def recipes(context: typer.Context) -> None:
    """List the recipes, or show one: the settings of a paper or of a small machine."""
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list", cls=Command, context_settings=HELP)
def list_recipes() -> None:
    """Names and what they are for."""
    from tubelet.api import recipes as known  # not tubelet.recipes: that name is the package of YAML files once it is imported

    found = known()
    width = max(len(name) for name, _ in found)
    for name, about in found:
        typer.echo(f"{name:<{width}}  {about}")


@recipes_app.command("show", cls=Command, context_settings=HELP)
def show_recipe(name: Annotated[str, typer.Argument(help="Name of a recipe", metavar="NAME")]) -> None:
    """A recipe as YAML, to read or to start your own from."""
    typer.echo(tubelet.show_recipe(name).rstrip("\n"))


app.add_typer(recipes_app, name="recipes")


@app.command(cls=Command, context_settings=HELP)
def version() -> None:
    """Versions of Tubelet and of what it runs on, for a bug report."""
    import platform
    from importlib.metadata import version as of

    parts = [f"{name} {of(name)}" for name in ("torch", "av", "numpy")]
    typer.echo(
        f"tubelet {tubelet.__version__}\npython {platform.python_version()} on {platform.system()} {platform.machine()}\n"
        + "\n".join(parts)
    )
