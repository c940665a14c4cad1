"""tubelet embed, knn, probe: what a frozen encoder says about videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings
from tubelet.cli.collect import CHECKS, SETTINGS, Command
from tubelet.cli.options import (
    DATA,
    FEATURES,
    OUTPUT,
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
    Sources,
    TestSources,
    TestSplit,
    TrainSplit,
    examples,
    flag,
    option,
)
from tubelet.cli.show import list_failures, progress

if TYPE_CHECKING:
    from tubelet.tasks import Score

CHECKS.update(dict.fromkeys(("embed", "knn", "probe"), check_imports))
SETTINGS.update(dict.fromkeys(("embed", "knn", "probe"), data_settings))


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
