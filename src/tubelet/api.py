"""The public functions. Each command of the command line is a thin face of one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tubelet import recipe as recipe_book
from tubelet.config import import_file, kinds, overlay, parse
from tubelet.core import Batch, Method, Stream, Tokens
from tubelet.data.evaluation import EvalFeed, Views, windows
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table_for
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.playground import write as write_playground
from tubelet.pretraining import Sources, build, say, shown
from tubelet.recipe import StageSettings
from tubelet.tasks import Score
from tubelet.tasks.embed import Embeddings, writable
from tubelet.tasks.embed import embed as embed_table
from tubelet.tasks.knn import score_knn
from tubelet.tasks.probe import score_probe
from tubelet.train.checkpoint import Checkpoints, read_meta, read_tensors
from tubelet.train.distributed import pick_device


def recipes() -> list[tuple[str, str]]:
    """Name and one-line description of every recipe that comes with Tubelet."""
    return [(name, str(yaml.safe_load(recipe_book.path_of(name).read_text(encoding="utf-8"))["about"])) for name in recipe_book.names()]


def show_recipe(name: str) -> str:
    """A recipe's YAML text. Raises ConfigError for an unknown name."""
    return recipe_book.path_of(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Loaded:
    """A trained (or, with ``random``, untrained) model, ready to encode.

    ``model``: the Method in eval mode on its device. ``data``: how its clips are made. ``config``: the resolved settings.
    """

    model: Method
    data: DataSettings
    config: Mapping[str, Any]
    path: Path

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> Tokens:
        """Tokens of clips: (B, 3, T, H, W), uint8 0..255 or float [0, 1]. Raises ValueError for another layout or size."""
        sample = torch.zeros(video.shape[0], dtype=torch.int64)
        return self.model.encode(Batch({"video": Stream(video)}, {}, sample).to(self.device))


def load(
    run: str | Path, *, weights: str = "auto", device: str = "auto", random: bool = False, imports: Sequence[str | Path] = ()
) -> Loaded:
    """The model of a run folder, or of one of its .safetensors files.

    ``weights``: auto (model.safetensors, or the newest checkpoint of an unfinished run) | ema. ``random``: the same architecture with
    random weights, as a control. ``imports``: your own files whose method the run used. Raises CheckpointError, ConfigError.
    """
    for file in imports:
        import_file(file)
    path = _weights_file(Path(run), weights)
    meta = read_meta(path)
    config = dict(meta.get("config", {}))
    if (config.get("masking") or {}).get("kind") not in kinds("tubelet.masking"):
        config["masking"] = None  # a user's own file, which encoding does not need
    stage = parse(StageSettings, {k: config[k] for k in ("method", "masking", "data", "train", "init") if k in config}, where=str(path))
    model = build(stage)
    if not isinstance(model, Method):
        raise CheckpointError(f"{path} holds a {config.get('method', {}).get('kind', 'model')}, which has no encoder to load")
    if not random:
        tensors = read_tensors(path)
        if any(k.startswith("model/") for k in tensors):
            tensors = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit its own settings: {error}") from None
    return Loaded(model.to(pick_device(device, "device")).eval(), stage.data, config, path)


def _weights_file(run: Path, weights: str) -> Path:
    if weights not in ("auto", "ema"):
        raise ConfigError(f"weights={weights!r}: there are auto and ema")
    if run.is_file():
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder or .safetensors file")
    name = "model_ema.safetensors" if weights == "ema" else "model.safetensors"
    if (run / name).exists():
        return run / name
    if weights == "ema":
        raise CheckpointError(f"{run} has no {name}: the run is not complete, or train.ema was not set")
    newest = Checkpoints(run, 1).latest(say)
    if newest is None:
        stages = sorted(p.parent.name for p in run.glob("*/model.safetensors"))
        hint = f"; it holds the stages {', '.join(stages)}: give {run / stages[-1]}" if stages else ""
        raise CheckpointError(f"{run} holds neither model.safetensors nor a checkpoint{hint}")
    say(f"{run} is not complete: using {newest.path.name}")
    return newest.path


def _evaluation_data(loaded: Loaded, settings: Sequence[str], split: str | None) -> tuple[DataSettings, Views]:
    """Data settings of an evaluation: the run's own, centre crop, no cache; ``views.*`` and data settings can be overridden."""
    base = loaded.data.model_dump(mode="json") | {"crop": "centre", "cache": "none", "clips_per_video": 1, "split": split, "augment": {}}
    plain = overlay({"data": base, "views": {}}, [t if t.startswith(("views.", "data.")) else f"data.{t}" for t in settings])
    return parse(DataSettings, plain["data"], where="--set"), parse(Views, plain["views"], where="--set")


def embed(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    out: str | Path | None = None,
    pool: str = "mean",
    seconds: float | None = None,
    hop: float | None = None,
    batch: int = 8,
    device: str = "auto",
    split: str | None = None,
    settings: Sequence[str] = (),
    random: bool = False,
    imports: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """One vector for each video (or for each window of ``seconds``, every ``hop``), with key and time stamps.

    ``pool``: mean | slots | class. ``out``: .npz or .parquet. ``settings``: data settings and ``views.clips=4`` ... Videos that cannot
    be read are listed in ``failures``, never replaced. Raises ConfigError, DataError, CheckpointError.
    """
    if out is not None:
        writable(out, overwrite=overwrite)
    loaded = run if isinstance(run, Loaded) else load(run, device=device, random=random, imports=imports)
    data, views = _evaluation_data(loaded, settings, split)
    table = open_table_for(sources, data)
    for name, value in (("seconds", seconds), ("hop", hop)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be more than 0, got {value:g}")
    if seconds is not None:
        table = windows(table, seconds=seconds, hop=hop, settings=data)
    elif hop is not None:
        raise ConfigError("hop needs seconds: the length of a window")
    feed = EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device))
    result = embed_table(loaded.model, feed, table, pool=pool, device=loaded.device, progress=progress)
    if out is not None:
        result.save(Path(out), overwrite=overwrite)
    return result


def _labelled(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    pool: str,
    train: str,
    test: str,
    test_sources: Sources | None,
    batch: int,
    device: str,
    random: bool,
    imports: Sequence[str | Path],
    settings: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[Embeddings, Embeddings]:
    """Vectors of the training and the test items: two splits of one source, or two sources with the same classes."""
    loaded = run if isinstance(run, Loaded) else load(run, device=device, random=random, imports=imports)
    apart = test_sources is not None
    data, views = _evaluation_data(loaded, settings, None if apart else train)
    first = open_table_for(sources, data)
    if apart:
        second = open_table_for(test_sources, data, classes=first.classes)
    else:
        second = open_table_for(sources, data.model_copy(update={"split": test}))
    for table, where in ((first, sources), (second, test_sources or sources)):
        if not table.classes:
            raise DataError(
                f"{shown(where)}: no labels found; a probe needs a folder per class or a manifest with a label column (data.labels)"
            )
    total = len(first) + len(second)
    halves = []
    for table, before in ((first, 0), (second, len(first))):
        feed = EvalFeed(table, data, views=views, batch=batch, device=str(loaded.device))
        step = None if progress is None else lambda done, _, before=before: progress(before + done, total)
        halves.append(embed_table(loaded.model, feed, table, pool=pool, device=loaded.device, progress=step))
    return halves[0], halves[1]


def knn(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    k: int = 20,
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Top-1 of a weighted ``k``-nearest-neighbour vote on frozen features; nothing is fitted.

    ``train`` and ``test`` name splits of ``sources``; or give ``test_sources``, and all of ``sources`` is the training set. ``pool``:
    mean | slots | class. ``random``: the control with random weights. Raises ConfigError, DataError, CheckpointError.
    """
    pair = _labelled(
        run, sources, pool=pool, train=train, test=test, test_sources=test_sources, batch=batch, device=device, random=random,
        imports=imports, settings=settings, progress=progress,
    )  # fmt: skip
    return _saved(score_knn(*pair, k=k), json_out)


def probe(
    run: str | Path | Loaded,
    sources: Sources,
    *,
    pool: str = "mean",
    train: str = "train",
    test: str = "test",
    test_sources: Sources | None = None,
    batch: int = 8,
    device: str = "auto",
    random: bool = False,
    imports: Sequence[str | Path] = (),
    seed: int = 0,
    settings: Sequence[str] = (),
    json_out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Top-1 of a linear probe on frozen features; its strength is chosen on a seeded split of the training set.

    Parameters as for :func:`knn`; ``seed``: of that split. Raises ConfigError, DataError, CheckpointError.
    """
    pair = _labelled(
        run, sources, pool=pool, train=train, test=test, test_sources=test_sources, batch=batch, device=device, random=random,
        imports=imports, settings=settings, progress=progress,
    )  # fmt: skip
    return _saved(score_probe(*pair, seed=seed), json_out)


def _saved(score: Score, path: str | Path | None) -> Score:
    if path is not None:
        score.save_json(Path(path))
    return score


def make_playground(
    out: str | Path,
    *,
    clips: int,
    seed: int = 0,
    scene: str = "full",
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``clips`` generated videos with true masks, flow, events, captions and sound into ``out``; returns its manifest.csv.

    ``scene``: easy | full. ``size``: side or (height, width) in pixels. See :func:`tubelet.playground.write`.
    """
    return write_playground(
        out, clips=clips, seed=seed, scene=scene, verify=verify, overwrite=overwrite, progress=progress, size=size, frames=frames, fps=fps
    )
