"""The commands. Each one calls one public function and prints what it returned."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tubelet
from tubelet.cli.collect import CHECKS, SETTINGS, Command, Group, one_of
from tubelet.cli.faults import say, speaks
from tubelet.cli.options import (
    DATA,
    FEATURES,
    MODEL,
    OUTPUT,
    RUN,
    SIZES,
    Batch,
    DataSet,
    Device,
    Import,
    Json,
    Overwrite,
    Pool,
    Random,
    RunDir,
    Seed,
    Set,
    Sources,
    TestSources,
    TestSplit,
    TrainSplit,
    check_size,
    examples,
    flag,
    option,
)  # fmt: skip
from tubelet.cli.show import duration, list_failures, progress
from tubelet.errors import ConfigError

if TYPE_CHECKING:
    from tubelet.tasks import Score
    from tubelet.train.loop import Result

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="tubelet",
    cls=Group,
    context_settings=HELP,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Self-supervised learning from video: pre-train an encoder on your own videos, then embed, probe and compare.",
    epilog="First steps: [bold]tubelet demo[/] shows the whole road in minutes. [bold]tubelet COMMAND --help[/] has examples.",
)
recipes_app = typer.Typer(cls=Group, context_settings=HELP, rich_markup_mode="rich", invoke_without_command=True)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tubelet {tubelet.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version, metavar="")
    ] = False,
) -> None:
    """Self-supervised learning from video."""


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet pretrain videos/ --out runs/first",
        "tubelet pretrain train.csv --out runs/second --recipe small-data --size small --set epochs=800 --set masking.ratio=0.9",
        "tubelet pretrain train.csv --out runs/second --resume",
        "torchrun --nproc-per-node 2 -m tubelet pretrain train.csv --out runs/two-gpus",
    ),
)
def pretrain(
    context: typer.Context,
    sources: Sources,
    out: Annotated[str, option("Folder of the run: settings, checkpoints, metrics, model.", "--out", panel=OUTPUT, metavar="FOLDER")],
    recipe: Annotated[
        str | None,
        option(
            "Name (tubelet recipes lists them) or a YAML file. Default: one-gpu, without a GPU tiny-cpu.",
            "--recipe",
            panel=MODEL,
            metavar="NAME|FILE",
        ),
    ] = None,
    size: Annotated[
        str | None, option(f"Size of the model: {', '.join(SIZES)}.", "--size", panel=MODEL, metavar="SIZE", callback=one_of(*SIZES))
    ] = None,
    settings: Set = [],  # noqa: B006 (Typer reads it; nobody changes it)
    imports: Import = [],  # noqa: B006
    exclude: Annotated[
        list[str], option("Leave out items whose key matches, e.g. '*/broken/*'. Repeat.", "--exclude", panel=DATA, metavar="PATTERN")
    ] = [],  # noqa: B006
    device: Annotated[
        str | None, option("auto, cpu, cuda or cuda:N; short for --set train.device.", "--device", panel=RUN, metavar="NAME")
    ] = None,
    resume: Annotated[bool, flag("Go on from the newest checkpoint in --out.", "--resume", panel=RUN)] = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> int:
    """Pre-train an encoder on videos, without labels.

    Stopped by Ctrl-C, SIGTERM or SIGUSR1 it saves its state first; --resume goes on as if nothing had happened.
    """
    asked = [*settings, *([f"train.device={device}"] if device else [])]
    result = tubelet.pretrain(
        sources, out=out, recipe=recipe, size=size, settings=asked, resume=resume, imports=imports, exclude=exclude, quiet=quiet
    )
    return _ended(result, out, context.find_root().obj, quiet)


def _ended(result: Result, out: str, args: Sequence[str], quiet: bool) -> int:
    """Say how a run ended; its exit code."""
    if result.stopped_by:
        again = [*args, *([] if "--resume" in args else ["--resume"])]
        launch = "" if "RANK" not in os.environ else "torchrun with the same options -m "
        if speaks():
            at = f"saved at step {result.step} of {result.total_steps}"
            say(f"stopped by {result.stopped_by}: {at}; continue with:\n  {launch}tubelet {shlex.join(again)}")
        return 128 + signal.Signals[result.stopped_by].value
    if speaks() and not quiet:
        typer.echo(f"done: {result.step} steps, {result.samples} clips in {duration(result.seconds)}; the run is in {out}")
    return 0


def _check_pretrain(given: Mapping[str, Any]) -> list[str]:
    """Mistakes in --import, --recipe and --set, for a call that has others."""
    from tubelet import recipe as book

    wrong = _check_imports(given)
    if given.get("recipe") or given.get("settings"):
        name = given.get("recipe") or "tiny-cpu"
        wrong += _problems(lambda: book.load(name, given.get("settings") or [], size=given.get("size")))
    return wrong


def _check_imports(given: Mapping[str, Any]) -> list[str]:
    from tubelet import config

    return [problem for path in given.get("imports") or [] for problem in _problems(lambda path=path: config.import_file(path))]


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return error.problems
    return []


def _data_settings() -> set[str]:
    from tubelet.data.settings import DataSettings

    return set(DataSettings.model_fields)


def _run_settings() -> set[str]:
    from tubelet.train.settings import TrainSettings

    return {"method", "masking", "data", "train", *_data_settings(), *TrainSettings.model_fields}


CHECKS.update({"pretrain": _check_pretrain, **dict.fromkeys(("embed", "knn", "probe"), _check_imports)})
SETTINGS.update({"pretrain": _run_settings, **dict.fromkeys(("embed", "knn", "probe"), _data_settings)})


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet embed runs/first videos/ --out videos.npz",
        "tubelet embed runs/first long.mp4 --seconds 4 --hop 2 --out windows.parquet",
        "tubelet embed runs/first videos/ --pool slots --set views.clips=4 --out videos.npz --overwrite",
    ),
)
def embed(
    run: RunDir,
    sources: Sources,
    out: Annotated[str, option("File to write: .npz, or .parquet (needs pyarrow).", "--out", panel=OUTPUT, metavar="FILE")],
    pool: Pool = "mean",
    seconds: Annotated[
        float | None, option("Cut every video into windows of this length, one row each.", "--seconds", panel=FEATURES, metavar="S")
    ] = None,
    hop: Annotated[
        float | None, option("Seconds from one window to the next; default: no gap, no overlap.", "--hop", panel=FEATURES, metavar="S")
    ] = None,
    batch: Batch = 8,
    device: Device = "auto",
    split: Annotated[
        str | None, option("Only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME")
    ] = None,
    settings: DataSet = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    random: Random = False,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, flag("Print nothing but errors.", "--quiet", panel=OUTPUT)] = False,
) -> None:
    """Write one vector for each video, or for each window of it.

    Several views of a video (--set views.clips=4, views.crops=3) are averaged. Videos that cannot be read are listed and have no row.
    """
    with progress("embedding", quiet) as step:
        result = tubelet.embed(
            run,
            sources,
            out=out,
            pool=pool,
            seconds=seconds,
            hop=hop,
            batch=batch,
            device=device,
            split=split,
            settings=settings,
            random=random,
            imports=imports,
            overwrite=overwrite,
            progress=step,
        )
    if not quiet:
        typer.echo(f"{result} -> {out}")
    list_failures(result.failures, result.n_total)


def _evaluate(name: str, run: str, sources: Sequence[str], json_out: Path | None, test_sources: Sequence[str], **more: Any) -> None:
    """What knn and probe share."""
    with progress("embedding", quiet=False) as step:
        score: Score = getattr(tubelet, name)(
            run, sources, test_sources=list(test_sources) or None, json_out=json_out, progress=step, **more
        )
    typer.echo(str(score))
    list_failures(score.failures, score.n_total, "test items")
    list_failures(score.details.get("train_failures", []), score.details.get("n_train_total", 0), "training items")


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet knn runs/first labelled.csv",
        "tubelet knn runs/first labelled.csv --random",
        "tubelet knn runs/first videos/train --test-sources videos/test --pool slots --json knn.json",
    ),
)
def knn(
    run: RunDir,
    sources: Sources,
    k: Annotated[int, option("Neighbours that vote.", "-k", "--k", panel=FEATURES, min=1, metavar="N")] = 20,
    pool: Pool = "mean",
    train: TrainSplit = "train",
    test: TestSplit = "test",
    test_sources: TestSources = [],  # noqa: B006
    batch: Batch = 8,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
    random: Random = False,
    settings: DataSet = [],  # noqa: B006
    json_out: Json = None,
) -> None:
    """Score an encoder by the classes of each video's nearest neighbours.

    Cosine similarity, votes weighted by exp(similarity / 0.07) as in DINO. Needs labels: a manifest with a label column, or class folders.
    """
    _evaluate(
        "knn", run, sources, json_out, test_sources,
        k=k, pool=pool, train=train, test=test, batch=batch, device=device, random=random, imports=imports, settings=settings,
    )  # fmt: skip


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet probe runs/first labelled.csv --pool slots",
        "tubelet probe runs/first labelled.csv --pool slots --random",
        "tubelet probe runs/first labelled.csv --train train --test val --json probe.json",
    ),
)
def probe(
    run: RunDir,
    sources: Sources,
    pool: Pool = "mean",
    train: TrainSplit = "train",
    test: TestSplit = "test",
    test_sources: TestSources = [],  # noqa: B006
    batch: Batch = 8,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
    random: Random = False,
    seed: Seed = 0,
    settings: DataSet = [],  # noqa: B006
    json_out: Json = None,
) -> None:
    """Score an encoder by a linear classifier on its frozen features.

    The penalty is chosen inside the training split; the test split is read once. Needs labels, as knn does.
    """
    _evaluate(
        "probe", run, sources, json_out, test_sources,
        pool=pool, train=train, test=test, batch=batch, device=device, random=random, imports=imports, seed=seed,
        settings=settings,
    )  # fmt: skip


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


@app.command(cls=Command, context_settings=HELP, epilog=examples("tubelet demo", "tubelet demo --quick --out /tmp/demo"))
def demo(
    out: Annotated[str, option("Folder for everything that the demo makes.", "--out", panel=OUTPUT, metavar="FOLDER")] = "tubelet-demo",
    quick: Annotated[bool, flag("Less training: to see that it runs.", "--quick", panel=RUN)] = False,
) -> None:
    """The whole road on rendered videos: pre-train, look, embed, probe."""
    typer.echo(f"the demo is in {tubelet.demo(out, quick=quick)}")


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


def _sides(size: str | None) -> int | tuple[int, int] | None:
    """``64`` or ``120x160`` (height x width), checked by the option's callback."""
    if size is None:
        return None
    sides = [int(side) for side in size.split("x")]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
