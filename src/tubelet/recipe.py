"""Recipes: YAML files that say how a paper (or a small machine) trains, as a list of stages."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from tubelet.config import Family, Settings, did_you_mean, overlay, parse, read_yaml
from tubelet.core.stage import Stage
from tubelet.data.settings import DataSettings
from tubelet.errors import ConfigError
from tubelet.train.settings import TrainSettings

SIZES = ("tiny", "small", "base", "large", "huge", "giant")


class StageSettings(Settings):
    """One stage: what is trained, on what, how."""

    name: str = "pretrain"
    run: Literal["train"] = "train"
    init: dict[str, str] = Field(default_factory=dict, description="module -> earlier stage's module, e.g. {encoder: pretrain.encoder}")
    method: Annotated[SerializeAsAny[Settings], Family("tubelet.methods")]
    masking: Annotated[SerializeAsAny[Settings], Family("tubelet.masking")] | None = None
    data: DataSettings = Field(default_factory=lambda: DataSettings.model_validate({}))
    train: TrainSettings

    @field_validator("method")
    @classmethod
    def _reads_clips(cls, method: Any) -> Any:
        if "frames" not in inspect.signature(method.build).parameters:
            raise ValueError(f"{method.kind} is built on a trained encoder, not on clips, so it cannot be a stage of pre-training")
        return method


class Recipe(Settings):
    """``table``: what of the paper it copies. ``deviations``: where it differs, one line each."""

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


def names() -> list[str]:
    """The recipes that come with Tubelet."""
    return sorted(p.name.removesuffix(".yaml") for p in (resources.files("tubelet") / "recipes").iterdir() if p.name.endswith(".yaml"))


def path_of(recipe: str | Path) -> Path:
    """The file of a recipe name, or a user's own file. Raises ConfigError naming the likely one."""
    if str(recipe).endswith((".yaml", ".yml")):
        return Path(recipe)
    if str(recipe) not in names():
        hint = did_you_mean(str(recipe), names())
        raise ConfigError(f"unknown recipe {str(recipe)!r}{hint}; there are {', '.join(names())}, or give a .yaml file")
    with resources.as_file(resources.files("tubelet") / "recipes" / f"{recipe}.yaml") as path:
        return path


def load(recipe: str | Path, settings: Sequence[str] = (), *, size: str | None = None) -> Recipe:
    """A recipe with ``path.to.setting=value`` overrides.

    A path names a setting of the only stage (``masking.ratio``) or, with several, of ``stage.path``. ``size`` sets ``method.size``.
    A file with one stage may leave out ``stages`` and give the stage's settings at the top. Raises one ConfigError for all mistakes.
    """
    path = path_of(recipe)
    data = read_yaml(path)
    if "stages" not in data:
        top = {k: data.pop(k) for k in list(data) if k not in Recipe.model_fields}
        data["stages"] = [top]
    stages = data["stages"]
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        raise ConfigError(f"{path}: stages must be a list of mappings")
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
        return [overlay(stages[0], [_short(s) for s in settings])]
    known = {str(s.get("name", i)): i for i, s in enumerate(stages)}
    out, problems = list(stages), []
    for text in settings:
        head, _, rest = text.partition(".")
        if head not in known:
            problems.append(f"--set {text}: start with a stage's name{did_you_mean(head, known)}; there are {', '.join(known)}")
            continue
        out[known[head]] = overlay(out[known[head]], [_short(rest)])
    if problems:
        raise ConfigError(problems)
    return out


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
