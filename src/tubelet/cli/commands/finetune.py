"""tubelet finetune, evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings, problems_of
from tubelet.cli.collect import CHECKS, SETTINGS, Command, one_of
from tubelet.cli.commands.features import Details, Picture, show_details
from tubelet.cli.commands.pretrain import _ended
from tubelet.cli.faults import say, speaks
from tubelet.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    RUN,
    DataSet,
    Device,
    Download,
    Import,
    Json,
    Set,
    Sha256,
    Sources,
    TestSources,
    examples,
    flag,
    option,
)
from tubelet.cli.show import list_failures, progress

WEIGHTS = ("auto", "ema")
Exclude = Annotated[
    list[str],
    option("Leave out items: a pattern, '*/broken/*', or @FILE of keys. Repeat.", "--exclude", panel=DATA, metavar="PATTERN|@FILE"),
]
Weights = Annotated[
    str,
    option(
        "auto: the last weights; ema: their average over training.",
        "--weights",
        panel=MODEL,
        metavar="|".join(WEIGHTS),
        callback=one_of(*WEIGHTS),
    ),
]


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet finetune runs/first labelled.csv --out runs/tuned",
        "tubelet finetune runs/first labelled.csv --out runs/trial --val-share 0.2 --no-test --set classifier.layer_decay=0.65",
        "tubelet finetune runs/first labelled.csv --out runs/scratch --random",
        "tubelet finetune runs/first videos/train --test-sources videos/test --out runs/tuned --recipe finetune-k400",
        "tubelet finetune runs/first labelled.csv --out runs/tuned --resume",
    ),
)
def finetune(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            help="Run folder to start from, one of its files, an official VideoMAE .pth, a folder of transformers, an image ViT, "
            "or hf://NAME",
            metavar="RUN",
        ),
    ],
    sources: Sources,
    out: Annotated[
        str, option("Folder of the run: settings, checkpoints, metrics, model, results.", "--out", panel=OUTPUT, metavar="FOLDER")
    ],
    recipe: Annotated[
        str | None,
        option(
            "Name (tubelet recipes lists them) or a YAML file. Default: finetune-small, without a GPU finetune-tiny-cpu.",
            "--recipe",
            panel=MODEL,
            metavar="NAME|FILE",
        ),
    ] = None,
    settings: Set = [],  # noqa: B006 (Typer reads it; nobody changes it)
    random: Annotated[bool, flag("Start from random weights: the from-scratch control.", "--random", panel=MODEL)] = False,
    weights: Weights = "auto",
    sha256: Sha256 = None,
    download: Download = False,
    train: Annotated[
        str | None,
        option("Split to train on, or all. Default: train; with --test-sources all.", "--train", panel=DATA, metavar="NAME"),
    ] = None,
    test: Annotated[str, option("Split to test on, once, when training is done.", "--test", panel=DATA, metavar="NAME")] = "test",
    test_sources: TestSources = [],  # noqa: B006
    no_test: Annotated[bool, flag("Train only: choose settings by --val-share, and test later.", "--no-test", panel=DATA)] = False,
    val_share: Annotated[
        float | None,
        option("Hold out this share of the training split, to choose settings by.", "--val-share", panel=DATA, min=0, max=0.9, metavar="X"),
    ] = None,
    exclude: Exclude = [],  # noqa: B006
    imports: Import = [],  # noqa: B006
    device: Annotated[
        str | None, option("auto, cpu, cuda or cuda:N; short for --set train.device.", "--device", panel=RUN, metavar="NAME")
    ] = None,
    resume: Annotated[bool, flag("Go on from the newest checkpoint in --out.", "--resume", panel=RUN)] = False,
    quiet: Annotated[bool, flag("Print nothing but the result and errors.", "--quiet", panel=OUTPUT)] = False,
) -> int:
    """Fine-tune an encoder on labelled videos, and test it.

    The paper's protocol by default. Stopped by a signal it saves its state first, as pretrain does; --resume goes on exactly.
    """
    if no_test and test_sources:
        train = train or "all"  # as with the test that is left out
    done = tubelet.finetune(
        run, sources, out=out, recipe=recipe, settings=[*settings, *([f"train.device={device}"] if device else [])], train=train,
        test=None if no_test else test, test_sources=None if no_test else list(test_sources) or None, val_share=val_share, random=random,
        weights=weights, resume=resume, imports=imports, sha256=sha256, download=download, exclude=exclude, quiet=quiet,
    )  # fmt: skip
    code = _ended(done.result, out, context.find_root().obj, quiet)
    for score, what in ((done.validation, "held-out items"), (done.score, "test items")):
        if score is not None and speaks():
            typer.echo(str(score))
            list_failures(score.failures, score.n_total, what)
    if done.score is not None and speaks() and not quiet:
        say(f"every prediction is in {out}/results.json")
    return code


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet evaluate runs/tuned labelled.csv",
        "tubelet evaluate runs/tuned other/ --test all --set views.clips=10 --set views.crops=3 --json other.json",
    ),
)
def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder of tubelet finetune, or one of its .safetensors files", metavar="RUN")],
    sources: Sources,
    test: Annotated[str, option("Split to score, or all.", "--test", panel=DATA, metavar="NAME")] = "test",
    weights: Weights = "auto",
    settings: DataSet = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    batch: Annotated[int, option("Views in one forward pass.", "--batch", panel=RUN, min=1, metavar="N")] = 16,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
    json_out: Json = None,
    details: Details = False,
    picture: Picture = None,
) -> None:
    """Test a fine-tuned classifier on labelled videos.

    Views are those of its recipe unless --set views.clips and views.crops say otherwise; their probabilities are averaged.
    """
    with progress("testing", quiet=False) as step:
        score = tubelet.evaluate(
            run, sources, test=test, weights=weights, settings=settings, batch=batch, device=device, imports=imports, exclude=exclude,
            json_out=json_out, picture=picture, progress=step,
        )  # fmt: skip
    if speaks():
        typer.echo(str(score))
        if details:
            show_details(score)
        list_failures(score.failures, score.n_total, "test items")


def _check(given: Mapping[str, Any]) -> list[str]:
    """Mistakes in --import, --recipe and --set, for a call that has others."""
    from tubelet import finetune_recipe as book

    wrong = check_imports(given)
    if given.get("recipe") or given.get("settings"):
        own = [text for text in given.get("settings") or [] if not text.startswith("method.")]
        wrong += problems_of(lambda: book.load(given.get("recipe") or "finetune-tiny-cpu", own))
    return wrong


def _settings() -> set[str]:
    from tubelet.finetune_recipe import FinetuneRecipe
    from tubelet.methods.classifier import Config
    from tubelet.train.settings import TrainSettings

    return {*FinetuneRecipe.model_fields, "method", *data_settings(), *TrainSettings.model_fields, *Config.model_fields}


CHECKS["finetune"] = _check
SETTINGS["finetune"] = _settings
CHECKS["evaluate"] = check_imports
SETTINGS["evaluate"] = data_settings
