"""tubelet embed, knn, probe: what a frozen encoder says about videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.options import (
    DATA,
    FEATURES,
    OUTPUT,
    RUN,
    Batch,
    DataSet,
    Device,
    Download,
    Import,
    Json,
    Overwrite,
    Pool,
    Random,
    Seed,
    Sha256,
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

PROBES = ("linear", "attentive")
Model = Annotated[
    str,
    typer.Argument(
        help="Run folder of tubelet pretrain, one of its files, an official VideoMAE .pth, a folder of transformers, an image ViT, "
        "or hf://NAME",
        metavar="RUN",
    ),
]
Details = Annotated[bool, flag("Also print recall by class, the most confused classes and the hardest clips.", "--details", panel=OUTPUT)]
Picture = Annotated[Path | None, option("Also draw the confusion matrix into this file (.png).", "--picture", panel=OUTPUT, metavar="FILE")]

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
    run: Model,
    sources: Sources,
    out: Annotated[str, option("File to write: .npz, or .parquet (needs pyarrow).", "--out", panel=OUTPUT, metavar="FILE")],
    pool: Pool = "mean",
    seconds: Annotated[
        float | None,
        option("Cut every video into windows of this length, one row each.", "--seconds", panel=FEATURES, min=0.001, metavar="S"),
    ] = None,
    hop: Annotated[
        float | None,
        option("Seconds from one window to the next; default: no gap, no overlap.", "--hop", panel=FEATURES, min=0.001, metavar="S"),
    ] = None,
    batch: Batch = 8,
    device: Device = "auto",
    split: Annotated[
        str | None, option("Only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME")
    ] = None,
    settings: DataSet = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    random: Random = False,
    sha256: Sha256 = None,
    download: Download = False,
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
            sha256=sha256,
            download=download,
            overwrite=overwrite,
            progress=step,
        )
    if not quiet:
        typer.echo(f"{result} -> {out}")
    list_failures(result.failures, result.n_total)


def _evaluate(
    name: str,
    run: str,
    sources: Sequence[str],
    json_out: Path | None,
    picture: Path | None,
    details: bool,
    test_sources: Sequence[str],
    doing: str = "embedding",
    **more: Any,
) -> None:
    """What knn and probe share."""
    with progress(doing, quiet=False) as step:
        score: Score = getattr(tubelet, name)(
            run, sources, test_sources=list(test_sources) or None, json_out=json_out, picture=picture, progress=step, **more
        )
    typer.echo(str(score))
    if details:
        show_details(score)
    list_failures(score.failures, score.n_total, "test items")
    list_failures(score.details.get("train_failures", []), score.details.get("n_train_total", 0), "training items")


def show_details(score: Score) -> None:
    """Tables on stdout; 100 columns where that is no terminal."""
    from rich.console import Console

    from tubelet.tasks.details import tables

    console = Console(file=sys.stdout, highlight=False)
    console.print(tables(score), width=None if console.is_terminal else 100)


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet knn runs/first labelled.csv",
        "tubelet knn runs/first labelled.csv --random",
        "tubelet knn official.pth labelled.csv --set frames=16 --set size=224",
        "tubelet knn runs/first videos/train --test-sources videos/test --pool slots --json knn.json",
    ),
)
def knn(
    run: Model,
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
    sha256: Sha256 = None,
    download: Download = False,
    settings: DataSet = [],  # noqa: B006
    json_out: Json = None,
    details: Details = False,
    picture: Picture = None,
) -> None:
    """Score an encoder by the classes of each video's nearest neighbours.

    Cosine similarity, votes weighted by exp(similarity / 0.07) as in DINO. Needs labels: a manifest with a label column, or class folders.
    """
    _evaluate(
        "knn", run, sources, json_out, picture, details, test_sources,
        k=k, pool=pool, train=train, test=test, batch=batch, device=device, random=random, imports=imports, settings=settings,
        sha256=sha256, download=download,
    )  # fmt: skip


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet probe runs/first labelled.csv --pool slots",
        "tubelet probe runs/first labelled.csv --pool slots --random",
        "tubelet probe runs/first labelled.csv --kind attentive --details --picture confusion.png",
        "tubelet probe runs/first labelled.csv --train train --test val --json probe.json",
    ),
)
def probe(
    run: Model,
    sources: Sources,
    kind: Annotated[
        str,
        option(
            "linear: on pooled vectors; attentive: a learned query reads all tokens.",
            "--kind",
            panel=FEATURES,
            metavar="|".join(PROBES),
            callback=one_of(*PROBES),
        ),
    ] = "linear",
    pool: Pool = "mean",
    train: TrainSplit = "train",
    test: TestSplit = "test",
    test_sources: TestSources = [],  # noqa: B006
    batch: Batch = 8,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
    random: Random = False,
    sha256: Sha256 = None,
    download: Download = False,
    seed: Seed = 0,
    groups: Annotated[
        str | None,
        option(
            "Column of the manifest (source_video, subject) whose items stay together where settings are chosen.",
            "--groups",
            panel=FEATURES,
            metavar="COLUMN",
        ),
    ] = None,
    memory: Annotated[
        float,
        option("GiB of tokens that an attentive probe keeps in memory; more go into a file.", "--memory", panel=RUN, min=0, metavar="GIB"),
    ] = 4.0,
    settings: DataSet = [],  # noqa: B006
    json_out: Json = None,
    details: Details = False,
    picture: Picture = None,
) -> None:
    """Score an encoder by a small classifier on its frozen features.

    Its settings are chosen inside the training split; the test split is read once. Needs labels, as knn does.
    """
    _evaluate(
        "probe", run, sources, json_out, picture, details, test_sources, doing="probing" if kind == "attentive" else "embedding",
        kind=kind, memory=memory, pool=pool, train=train, test=test, batch=batch, device=device, random=random, imports=imports, seed=seed,
        groups=groups, settings=settings, sha256=sha256, download=download,
    )  # fmt: skip
