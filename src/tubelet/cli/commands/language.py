"""tubelet retrieve, zeroshot: what a model that aligns videos with texts says about them."""

from __future__ import annotations

from typing import Annotated

import typer

import tubelet
from tubelet.cli.app import HELP, app
from tubelet.cli.checks import check_imports, data_settings
from tubelet.cli.collect import CHECKS, SETTINGS, Command
from tubelet.cli.commands.features import Details, Picture, show_details
from tubelet.cli.commands.finetune import Exclude
from tubelet.cli.options import DATA, FEATURES, Batch, DataSet, Device, Import, Json, Random, Sources, examples, option
from tubelet.cli.show import list_failures, progress

Aligned = Annotated[
    str, typer.Argument(help="Run folder of a model trained with text (recipe tgm, dual), or one of its .safetensors files", metavar="RUN")
]
Split = Annotated[str | None, option("Only this split: a manifest's split, or a sub-folder.", "--split", panel=DATA, metavar="NAME")]
Limit = Annotated[int | None, option("At most so many videos, spread evenly over all.", "--limit", panel=DATA, min=1, metavar="N")]

CHECKS.update(dict.fromkeys(("retrieve", "zeroshot"), check_imports))
SETTINGS.update(dict.fromkeys(("retrieve", "zeroshot"), data_settings))


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet retrieve runs/tgm captioned.csv --split test",
        "tubelet retrieve runs/tgm captioned.csv --split test --random",
        "tubelet retrieve runs/tgm captioned.csv --limit 1000 --set views.clips=4 --json ranks.json",
    ),
)
def retrieve(
    run: Aligned,
    sources: Sources,
    split: Split = None,
    limit: Limit = None,
    exclude: Exclude = [],  # noqa: B006
    batch: Batch = 8,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
    random: Random = False,
    settings: DataSet = [],  # noqa: B006
    json_out: Json = None,
) -> None:
    """Find videos by their captions, and captions by their videos.

    R@1, R@5, R@10 and the median rank, by cosine. Needs captions: a manifest with a caption column, one text or a JSON list.
    """
    with progress("embedding", quiet=False) as step:
        found = tubelet.retrieve(
            run, sources, split=split, limit=limit, exclude=exclude, batch=batch, device=device, imports=imports, random=random,
            settings=settings, json_out=json_out, progress=step,
        )  # fmt: skip
    typer.echo(str(found))
    list_failures(found.failures, found.n_total, "videos")


@app.command(
    cls=Command,
    context_settings=HELP,
    epilog=examples(
        "tubelet zeroshot runs/tgm labelled.csv --split test",
        'tubelet zeroshot runs/tgm labelled.csv --prompt "a video of {}" --prompt "a person is {}" --details',
        "tubelet zeroshot runs/tgm videos/ --set views.clips=4 --json zeroshot.json --picture confusion.png",
    ),
)
def zeroshot(
    run: Aligned,
    sources: Sources,
    prompts: Annotated[
        list[str],
        option(
            "A sentence with {} where the class's name goes. Repeat: they are averaged. Default: three plain ones.",
            "--prompt",
            panel=FEATURES,
            metavar="TEXT",
        ),
    ] = [],  # noqa: B006
    split: Split = None,
    limit: Limit = None,
    exclude: Exclude = [],  # noqa: B006
    batch: Batch = 8,
    device: Device = "auto",
    imports: Import = [],  # noqa: B006
    random: Random = False,
    settings: DataSet = [],  # noqa: B006
    json_out: Json = None,
    details: Details = False,
    picture: Picture = None,
) -> None:
    """Classify videos by the names of their classes; nothing is fitted.

    Each video gets the class whose prompts are nearest by cosine. Needs labels to score by, as knn does.
    """
    given = {"prompts": list(prompts)} if prompts else {}
    with progress("embedding", quiet=False) as step:
        score = tubelet.zeroshot(
            run, sources, split=split, limit=limit, exclude=exclude, batch=batch, device=device, imports=imports, random=random,
            settings=settings, json_out=json_out, picture=picture, progress=step, **given,
        )  # fmt: skip
    typer.echo(str(score))
    if details:
        show_details(score)
    list_failures(score.failures, score.n_total, "videos")
