"""Recipes of fine-tuning: YAML files that say how a classifier is trained on a pre-trained encoder, and how it is tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from tubelet import recipe as recipe_book
from tubelet.config import Settings, parse, read_yaml
from tubelet.data.settings import DataSettings, Views
from tubelet.errors import ConfigError
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.train.settings import TrainSettings, WatchSettings

INHERITED = ("frames", "size", "stride", "fps")  # what the encoder is used to


class LookSettings(WatchSettings):
    """When the held-out part is looked at, by default ten times in a run, and where figures go."""

    pictures: int = Field(default=0, description="fine-tuning has no reconstructions to draw")
    probe: int = Field(default=0, description="fine-tuning shows the accuracy on val_share instead")
    every_minutes: float | None = Field(default=None, gt=0, description="minutes between looks")


class FinetuneRecipe(Settings):
    """``about``: one line for lists. ``table``: what of the paper it copies. ``deviations``: where it differs, one line each.

    ``classifier``: what follows the encoder. Of ``data``, the frames, size, stride and fps that are not given are those of the
    pre-training run. ``views``: how test videos are
    looked at. ``val_share``: the part of the training set that is held out, by class and ``train.seed``, to choose settings by.
    """

    about: str
    table: str = ""
    deviations: tuple[str, ...] = ()
    classifier: ClassifierConfig = Field(default_factory=lambda: ClassifierConfig.model_validate({}))
    data: DataSettings = Field(default_factory=lambda: DataSettings.model_validate({}))
    views: Views = Views()
    val_share: float = Field(0.0, ge=0, lt=1)
    val_groups: str | None = Field(
        None, description="column of the manifest (source_video, subject) whose items `val_share` keeps together"
    )
    train: TrainSettings
    watch: LookSettings = LookSettings()

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneRecipe:
        problems = []
        if self.classifier.smoothing and self.data.augment.mixes:
            problems.append("classifier.smoothing acts on class numbers, but data.augment makes soft targets; use data.augment.smoothing")
        if self.watch.pictures or self.watch.probe:
            problems.append("watch.pictures and watch.probe are for pre-training; fine-tuning shows the accuracy on val_share")
        if self.val_groups is not None and not self.val_share:
            problems.append(f"val_groups={self.val_groups} keeps items together in what val_share holds out, and val_share is 0: set both")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def inherited(self) -> list[str]:
        """The data settings that are not given here, and are those of the encoder's run."""
        given = self.data.model_fields_set
        wanted = [name for name in INHERITED if name not in given]
        if "stride" in given or self.data.sampling != "window":
            wanted = [name for name in wanted if name != "fps"]
        if "fps" in given:
            wanted = [name for name in wanted if name != "stride"]
        return wanted

    def on(self, trained: DataSettings) -> FinetuneRecipe:
        """The recipe for an encoder that was trained on such clips. ``fps`` is only taken over together with ``stride`` and where
        ``data.sampling`` knows it."""
        taken = {name: getattr(trained, name) for name in self.inherited}
        return self.model_copy(update={"data": parse(DataSettings, {**self.data.model_dump(exclude_unset=True), **taken}, where="data")})


def names() -> list[str]:
    """The fine-tuning recipes that come with Tubelet."""
    return recipe_book.names(finetune=True)


def load(recipe: str | Path, settings: Sequence[str] = ()) -> FinetuneRecipe:
    """A recipe with ``path.to.setting=value`` overrides. Settings of train, data and classifier may leave their section out.

    Raises one ConfigError for all mistakes.
    """
    path = recipe_book.path_of(recipe)
    data = read_yaml(path)
    if "classifier" not in data:
        raise ConfigError(f"{recipe} is no recipe of fine-tuning (it has no classifier); finetune takes {', '.join(names())}")
    return parse(FinetuneRecipe, recipe_book.lay(data, [_whole(text) for text in settings]), where=str(recipe))


def origins(recipe: str | Path, settings: Sequence[str], trained: DataSettings) -> dict[str, str]:
    """Where the value of every setting of ``load(recipe, settings).on(trained)`` comes from: dotted path -> ``recipe NAME``,
    ``file PATH``, ``--set``, ``the encoder's run`` or ``default``."""
    loaded = load(recipe, settings)
    given, source = read_yaml(recipe_book.path_of(recipe)), recipe_book.said_source(recipe)
    found = recipe_book.origins_of(loaded.on(trained).model_dump(mode="json"), given, [_whole(text) for text in settings], source)
    taken = {f"data.{name}" for name in loaded.inherited}
    return {leaf: "the encoder's run" if {leaf, leaf.rpartition(".")[0]} & taken else origin for leaf, origin in found.items()}


def clips_of(settings: Sequence[str]) -> list[str]:
    """Of settings, those of the frames and the size of clips."""
    whole = [_whole(text) for text in settings]
    return [text for text in whole if text.partition("=")[0].strip() in ("data.frames", "data.size")]


def _whole(text: str) -> str:
    """``epochs=5`` says ``train.epochs=5``."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or "." in key or key in FinetuneRecipe.model_fields:
        return text
    sections = {"train": TrainSettings, "data": DataSettings, "classifier": ClassifierConfig}
    found = next((name for name, cls in sections.items() if key in cls.model_fields), None)
    return f"{found}.{key}={value}" if found else text
