"""The pages of docs/settings, and the short tables of docs/data.md."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import yaml
from pydantic import BaseModel

import tubelet
from _make import BY, END, MADE, marked
from _make.rows import cell, family_of, markdown, rows, section, settings_in
from tubelet import recipe as recipes
from tubelet.config import Settings, config_class, kinds
from tubelet.data.settings import AugmentSettings, DataSettings, Views
from tubelet.playground import scene_kinds
from tubelet.train.settings import TrainSettings


def page(title: str, intro: str, *sections: list[str]) -> str:
    lines = [MADE, "", f"# {title}", "", intro, "", *[line for part in sections for line in part]]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def family_page(package: str, path: str, title: str, intro: str) -> str:
    """One section for each kind of a family."""
    found = [(kind, config_class(package, kind)) for kind in kinds(package, own=False)]
    return page(title, intro, *(section(f"`{kind}`", cls, f"{path}.", about_module(package, kind)) for kind, cls in found))


def about_module(package: str, kind: str) -> str:
    """The first paragraph of a kind's module."""
    text = inspect.cleandoc(importlib.import_module(f"{package}.{kind}").__doc__ or "")
    return markdown(text.partition("\n\n")[0])


def method_page() -> str:
    return family_page(
        "tubelet.methods",
        "method",
        "Method settings",
        "`--set method.SETTING=VALUE`. A method is one stage of one paper; [a page for each](../methods/videomae.md) says what it is. "
        "[Your own](../adding-a-method.md) is one file.",
    )


def masking_page() -> str:
    return family_page(
        "tubelet.masking",
        "masking",
        "Masking settings",
        "`--set masking=KIND` chooses a strategy, `--set masking.SETTING=VALUE` changes it. [Your own](../adding-a-mask.md) is one file.",
    )


def guide_page() -> str:
    return family_page(
        "tubelet.guides",
        "masking.guide",
        "Guide settings",
        "What tells a masking where the interesting regions are: `--set masking.guide=KIND`, `--set masking.guide.SETTING=VALUE`. "
        "`tubelet guide VIDEO --kind KIND` shows what one says; a file of your own joins with `--import`.",
    )


def scene_page() -> str:
    intro = "Scenes of [the playground](../playground.md), as `tubelet playground --scene KIND` and `tubelet.playground.build(KIND, ...)`."
    return page("Scene settings", intro, *(scene_section(kind) for kind in scene_kinds()))


def scene_section(kind: str) -> list[str]:
    return section(f"`{kind}`", config_class("tubelet.playground", kind), "", about_module("tubelet.playground", kind))


def data_page() -> str:
    return page(
        "Data settings",
        "`--set data.SETTING=VALUE`; `data.` may be left out (`--set fps=8`). [Your own data](../data.md) explains the ideas.",
        section("Clips", DataSettings, "data."),
        section("Views in evaluation", Views, "views.", "For `embed`, `knn` and `probe`: `--set views.clips=4`, or `Views(clips=4)`."),
    )


def train_page() -> str:
    intro = "`--set train.SETTING=VALUE`; `train.` may be left out (`--set epochs=800`)."
    return page("Training settings", intro, section("The loop", TrainSettings, "train."), *stage_sections())


def homes() -> dict[type[BaseModel], str]:
    """Classes of settings with a page of their own."""
    found: dict[type[BaseModel], str] = {
        DataSettings: "data.md#clips",
        Views: "data.md#views-in-evaluation",
        TrainSettings: "train.md#the-loop",
    }
    found |= {cls: f"train.md#{name}" for name, cls in stage_parts()}
    for package, name in (("tubelet.methods", "method"), ("tubelet.masking", "masking"), ("tubelet.guides", "guides")):
        found |= {config_class(package, kind): f"{name}.md#{kind}" for kind in kinds(package, own=False)}
    return found


def stage_parts() -> list[tuple[str, type[BaseModel]]]:
    """A stage's settings that are neither data nor the loop nor a family."""
    found = [(name, settings_in(info.annotation)) for name, info in recipes.StageSettings.model_fields.items() if not family_of(info)]
    return [(name, cls) for name, cls in found if cls is not None and cls not in (DataSettings, TrainSettings)]


def stage_sections() -> list[list[str]]:
    return [section(f"`{name}`", cls, f"{name}.") for name, cls in stage_parts()]


def unplaced() -> list[type[BaseModel]]:
    """Settings of the package that no other page shows, and that are not part of another such class."""
    for module in pkgutil.walk_packages(tubelet.__path__, "tubelet."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    scenes = [config_class("tubelet.playground", kind) for kind in scene_kinds()]
    shown = within([recipes.Recipe, recipes.StageSettings, *homes(), *scenes])
    left = {c for c in subclasses(Settings) if c not in shown and own(c)}
    outer = {c for c in left if not any(c in within([other]) for other in left - {c})}
    return sorted(outer, key=lambda c: (c.__module__, c.__name__))


def within(classes: list[type[BaseModel]]) -> set[type[BaseModel]]:
    """These classes, those that they inherit from, and those of their nested settings."""
    found: set[type[BaseModel]] = set()
    todo = list(classes)
    while todo:
        cls = todo.pop()
        found.update(c for c in cls.__mro__ if issubclass(c, Settings))
        todo += [n for info in cls.model_fields.values() if (n := settings_in(info.annotation)) is not None and n not in found]
    return found


def subclasses(cls: type) -> set[type]:
    below = set(cls.__subclasses__())
    return below.union(*(subclasses(c) for c in below))


def own(cls: type) -> bool:
    return cls.__module__.startswith("tubelet.") and not cls.__name__.startswith("_")


INDEX = """
Every setting, written from the code. A run takes its settings from a [recipe](recipes.md); each can be changed by its path:
`--set masking.ratio=0.95 --set data.fps=8 --set epochs=800`, or in Python `settings=["masking.ratio=0.95"]`. Values are YAML, `null`
means none. All mistakes of a call are reported at once, with the name that was probably meant. The resolved settings lie in the run's
`config.yaml` and in every checkpoint.

| | |
|---|---|
| [Recipes](recipes.md) | whole lists of settings: papers, small machines |
| [Method settings](method.md) | `method.*`: the network and what it predicts |
| [Masking settings](masking.md) | `masking.*`: what is hidden |
| [Guide settings](guides.md) | `masking.guide.*`: what a guided masking follows |
| [Data settings](data.md) | `data.*`: how videos become clips; `views.*` in evaluation |
| [Training settings](train.md) | `train.*`: length, batch, optimiser, what is saved |
| [Scene settings](scenes.md) | of the playground's generated videos |
| [Commands](../cli.md) | every option of every command |
"""
RECIPES = """
`tubelet pretrain my_videos/ --recipe NAME`; those called `finetune-...` are for `tubelet finetune`. `tubelet recipes` lists them;
`tubelet recipes show NAME > mine.yaml` starts your own (`--recipe mine.yaml`). What a recipe leaves out has the default of
[its page](index.md).
"""


def index_page() -> str:
    linked = {**homes(), recipes.StageSettings: "#a-stage"}
    others = [["#" + head, *rest] for head, *rest in (section(f"`{c.__name__}` in `{c.__module__}`", c, homes=linked) for c in unplaced())]
    if others:
        others.insert(0, ["## Others", "", "Settings of single functions and tasks, by the class that holds them.", ""])
    whole = section("A recipe", recipes.Recipe, homes=linked)
    return page("Settings", INDEX.strip(), whole, section("A stage", recipes.StageSettings, homes=linked), *others)


def recipe_page() -> str:
    """Every recipe: what it is for, what it copies, where it differs, and the file itself."""
    head = ["| recipe | for |", "|---|---|"]
    parts: list[list[str]] = []
    for name in [*recipes.names(), *recipes.names(finetune=True)]:
        text = recipes.path_of(name).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        head.append(f"| [`{name}`](#{name}) | {cell(data['about'])} |")
        differs = [f"- {line}" for line in data.get("deviations", ())]
        copies = [f"**Copies**: {data['table']}", ""] if data.get("table") else []
        parts.append([
            f"## {name}", "", f"{data['about']}.", "", *copies,
            *(["**Differs**:", "", *differs, ""] if differs else ["It names no deviations.", ""]),
            "```yaml", text.rstrip("\n"), "```", "",
        ])  # fmt: skip
    return page("Recipes", RECIPES.strip(), [*head, ""], *parts)


def data_tables(text: str) -> str:
    """docs/data.md with its short tables of settings."""
    for name, cls, prefix in (("clips", DataSettings, ""), ("device", AugmentSettings, "augment."), ("views", Views, "views.")):
        defaults = {r.path: r.default.strip("`") for r in rows(cls)}
        lines = [f"| `{prefix}{field}` | {defaults[field]} | {cell(info.description or '')} |" for field, info in cls.model_fields.items()]
        before, mark, after = text.partition(f"<!-- settings of {name}{BY}")
        assert mark, f"docs/data.md has lost its mark for the settings of {name}"
        text = (
            before + marked(f"settings of {name}", ["| setting | default | meaning |", "|---|---|---|", *lines]) + after.partition(END)[2]
        )
    return text
