"""Recipes: YAML files that say how a paper (or a small machine) trains, as a list of stages."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, field_validator

from tubelet.config import Family, Settings, did_you_mean, overlay, parse, read_yaml
from tubelet.core.stage import Stage
from tubelet.data.settings import DataSettings
from tubelet.errors import ConfigError
from tubelet.train.settings import TrainSettings, WatchSettings

SIZES = ("tiny", "small", "base", "large", "huge", "giant")


class StageSettings(Settings):
    """One stage: what is trained, on what, how.

    ``name``: of its folder, and what a later stage's ``init`` says. ``run``: training is the only kind so far. ``method``: the network and
    what it predicts. ``masking``: what is hidden, None for methods that hide nothing.
    """

    name: str = "pretrain"
    run: Literal["train"] = "train"
    init: dict[str, str] = Field(default_factory=dict, description="module -> earlier stage's module, e.g. {encoder: pretrain.encoder}")
    method: Annotated[SerializeAsAny[Settings], Family("tubelet.methods")]
    masking: Annotated[SerializeAsAny[Settings], Family("tubelet.masking")] | None = None
    data: DataSettings = Field(default_factory=lambda: DataSettings.model_validate({}))
    train: TrainSettings
    watch: WatchSettings = WatchSettings()

    @field_validator("method")
    @classmethod
    def _reads_clips(cls, method: Any) -> Any:
        if "frames" not in inspect.signature(method.build).parameters:
            raise ValueError(f"{method.kind} is built on a trained encoder, not on clips, so it cannot be a stage of pre-training")
        return method


class Recipe(Settings):
    """``about``: one line for lists. ``table``: what of the paper it copies. ``deviations``: where it differs, one line each."""

    about: str
    table: str = ""
    deviations: tuple[str, ...] = ()
    stages: tuple[StageSettings, ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _unique(cls, stages: tuple[StageSettings, ...]) -> tuple[StageSettings, ...]:
        names = [s.name for s in stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ: {', '.join(names)}")
        for i, stage in enumerate(stages):
            for target, origin in stage.init.items():
                if origin.partition(".")[0] not in names[:i]:
                    raise ValueError(f"stage {stage.name}: init {target}: {origin} must start with an earlier stage's name")
        return stages

    def plan(self) -> tuple[Stage, ...]:
        """The stages as the core's nouns, in order."""
        return tuple(Stage(s.name, s.run, {k: getattr(s, k) for k in ("method", "masking", "data", "train")}, s.init) for s in self.stages)


def names(*, finetune: bool = False) -> list[str]:
    """The recipes that come with Tubelet, for pre-training or for fine-tuning (those are called ``finetune-...``)."""
    found = sorted(p.name.removesuffix(".yaml") for p in (resources.files("tubelet") / "recipes").iterdir() if p.name.endswith(".yaml"))
    return [name for name in found if name.startswith("finetune-") == finetune]


def path_of(recipe: str | Path) -> Path:
    """The file of a recipe name, or a user's own file. Raises ConfigError naming the likely one."""
    if str(recipe).endswith((".yaml", ".yml")):
        return Path(recipe)
    known = names() + names(finetune=True)
    if str(recipe) not in known:
        hint = did_you_mean(str(recipe), known)
        raise ConfigError(f"unknown recipe {str(recipe)!r}{hint}; there are {', '.join(known)}, or give a .yaml file")
    with resources.as_file(resources.files("tubelet") / "recipes" / f"{recipe}.yaml") as path:
        return path


def _said(path: Path) -> str:
    """A file as a message names it: by its recipe's name where it is one of ours."""
    return path.stem if path == Path(str(resources.files("tubelet") / "recipes" / path.name)) else str(path)


def load(recipe: str | Path, settings: Sequence[str] = (), *, size: str | None = None) -> Recipe:
    """A recipe with ``path.to.setting=value`` overrides.

    A path names a setting of the only stage (``masking.ratio``) or, with several, of ``stage.path``. ``size`` sets ``method.size``.
    A file with one stage may leave out ``stages`` and give the stage's settings at the top. Raises one ConfigError for all mistakes.
    """
    data = _read(path_of(recipe))
    stages = data["stages"]
    if size is not None:
        if size not in SIZES:
            raise ConfigError(f"--size {size}: unknown size{did_you_mean(size, SIZES)}; there are {', '.join(SIZES)}")
        stages = data["stages"] = [_resized(s, size) for s in stages]
    data["stages"] = _with_settings(stages, list(settings))
    problems: list[str] = []
    for i, stage in enumerate(data["stages"]):
        prefix = f"{stage.get('name', i)}." if len(stages) > 1 else ""
        try:
            parse(StageSettings, stage)
        except ConfigError as error:
            problems += [prefix + p for p in error.problems]
    rest = {k: v for k, v in data.items() if k != "stages"}
    try:
        parse(Recipe, {**rest, "stages": [_probe_stage()]})
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, where=str(recipe))
    return parse(Recipe, data, where=str(recipe))


def origins(recipe: str | Path, settings: Sequence[str] = (), size: str | None = None) -> dict[str, str]:
    """Where the value of every setting of :func:`load` with the same arguments comes from: dotted path -> ``recipe NAME``, ``file PATH``,
    ``--set``, ``--size`` or ``default``.

    Paths are those of ``--set``: ``masking.ratio`` with one stage, ``STAGE.masking.ratio`` with several. A list is one setting. What a
    recipe gives for one kind of a family is not the origin of another kind's settings. Raises ConfigError as :func:`load` does.
    """
    resolved = load(recipe, settings, size=size)
    path = path_of(recipe)
    source = said_source(recipe)
    stages = _read(path)["stages"]
    found: dict[str, str] = {}
    for i, (given, stage) in enumerate(zip(stages, resolved.stages, strict=True)):
        head = f"{given.get('name', i)}."
        mine = list(settings) if len(stages) == 1 else [s.removeprefix(head) for s in settings if s.startswith(head)]
        known = origins_of(stage.model_dump(mode="json"), given, [_short(s) for s in mine], source, size)
        found |= {(f"{stage.name}." if len(stages) > 1 else "") + leaf: origin for leaf, origin in known.items()}
    return found


def said_source(recipe: str | Path) -> str:
    """``recipe NAME`` or ``file PATH``."""
    return f"file {recipe}" if path_of(recipe) == Path(recipe) else f"recipe {recipe}"


def origins_of(
    resolved: dict[str, Any], given: dict[str, Any], settings: Sequence[str], source: str, size: str | None = None
) -> dict[str, str]:
    """The origin of every leaf of ``resolved`` settings: ``source`` for what a file ``given``, then ``--size`` and ``--set``."""
    known = _given(given, settings, source, size)
    return {leaf: known.get(leaf) or _kind_of(known, leaf) or "default" for leaf in _leaves(resolved)}


def _given(stage: dict[str, Any], settings: Sequence[str], source: str, size: str | None) -> dict[str, str]:
    """The origin of every leaf that a stage's file, ``--size`` or ``--set`` gives."""
    origin = dict.fromkeys(_leaves(stage), source)
    if size is not None:
        stage = _resized(stage, size)
        origin = {leaf: origin.get(leaf) or _kind_of(origin, leaf) or "--size" for leaf in _leaves(stage)} | {"method.size": "--size"}
    for text in settings:
        stage = lay(stage, [text])
        path = text.partition("=")[0].strip()
        value: Any = stage
        for key in path.split("."):
            value = value[key]
        chosen = yaml.safe_load(text.partition("=")[2])
        if isinstance(chosen, str) and isinstance(value, dict):  # masking=tube: other settings of the same kind stay as they were given
            path += ".kind"
        here = [leaf for leaf in _leaves(stage) if leaf == path or leaf.startswith(f"{path}.")]
        origin = {leaf: origin.get(leaf) or _kind_of(origin, leaf) or "--set" for leaf in _leaves(stage)} | dict.fromkeys(here, "--set")
    return origin


def _kind_of(origin: dict[str, str], leaf: str) -> str | None:
    """``masking: tube`` gives ``masking.kind``."""
    return origin.get(leaf.removesuffix(".kind")) if leaf.endswith(".kind") else None


def _leaves(value: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of nested settings. Lists and empty mappings are leaves."""
    found = []
    for key, child in value.items():
        found += _leaves(child, f"{prefix}{key}.") if isinstance(child, dict) and child else [f"{prefix}{key}"]
    return found


def _read(path: Path) -> dict[str, Any]:
    """A recipe's file as it is written, with its ``stages`` as a list. Raises ConfigError."""
    data = read_yaml(path)
    if "classifier" in data:
        raise ConfigError(f"{_said(path)} is a recipe of fine-tuning: use it with tubelet finetune; pretrain takes {', '.join(names())}")
    if "stages" not in data:
        top = {k: data.pop(k) for k in list(data) if k not in Recipe.model_fields}
        data["stages"] = [top]
    if not isinstance(data["stages"], list) or not all(isinstance(s, dict) for s in data["stages"]):
        raise ConfigError(f"{path}: stages must be a list of mappings")
    return data


def _resized(stage: dict[str, Any], size: str) -> dict[str, Any]:
    """A stage whose method has a named size; single dimensions that the recipe gave make room for it."""
    given = stage.get("method")
    method: dict[str, Any] = {"kind": given} if isinstance(given, str) else dict(given or {})
    for name in ("dim", "depth", "heads", "mlp_ratio"):
        method.pop(name, None)
    decoder = method.get("decoder")
    if isinstance(decoder, dict):
        method["decoder"] = {k: v for k, v in decoder.items() if k not in ("dim", "depth", "heads", "mlp_ratio")}
    return {**stage, "method": {**method, "size": size}}


def _probe_stage() -> dict[str, Any]:
    return {"method": "videomae", "train": {"steps": 1}}


def _with_settings(stages: list[dict[str, Any]], settings: list[str]) -> list[dict[str, Any]]:
    if len(stages) == 1:
        return [lay(stages[0], [_short(s) for s in settings])]
    known = {str(s.get("name", i)): i for i, s in enumerate(stages)}
    out, problems = list(stages), []
    chosen: dict[str, list[str]] = {}
    for text in settings:
        head, _, rest = text.partition(".")
        if head not in known:
            problems.append(f"--set {text}: start with a stage's name{did_you_mean(head, known)}; there are {', '.join(known)}")
            continue
        chosen.setdefault(head, []).append(_short(rest))
    for head, texts in chosen.items():
        out[known[head]] = lay(out[known[head]], texts)
    if problems:
        raise ConfigError(problems)
    return out


def lay(stage: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """A stage with settings laid over it. A length given in steps replaces the recipe's in epochs, and the other way round."""
    stage = overlay(stage, texts)
    train = stage.get("train")
    if isinstance(train, dict):
        given = {text.partition("=")[0].strip().removeprefix("train.") for text in texts if text.strip().startswith("train.")}
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if one in given and other not in given and train.get(one) is not None:
                train.pop(other, None)
    return stage


def _short(text: str) -> str:
    """``epochs=5`` says ``train.epochs=5`` where the short name is clear: settings of train and data may leave their section out."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or "." in key or key in StageSettings.model_fields:
        return text
    for section, cls in (("train", TrainSettings), ("data", DataSettings)):
        if key in cls.model_fields:
            return f"{section}.{key}={value}"
    return text
