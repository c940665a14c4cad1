"""Where the value of every setting of a recipe comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet import recipe
from tubelet.errors import ConfigError
from tubelet.recipe import origins

ONE = """
about: one small stage
method: {kind: videomae, dim: 32, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 16, depth: 1, heads: 2}}
masking: {kind: tube, ratio: 0.5}
data: {frames: 4, augment: {flip: 0.5}}
train: {steps: 6, batch: 4}
"""
TWO = """
about: two stages
stages:
  - name: first
    method: {kind: videomae, dim: 32, heads: 2}
    masking: tube
    train: {steps: 6, batch: 4}
  - name: second
    init: {encoder: first.encoder}
    method: videomae
    masking: {kind: random, ratio: 0.5}
    train: {epochs: 2, betas: [0.9, 0.95]}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "two.yaml").write_text(TWO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leaves(value: dict[str, Any], prefix: str = "") -> set[str]:
    out: set[str] = set()
    for key, child in value.items():
        out |= leaves(child, f"{prefix}{key}.") if isinstance(child, dict) and child else {f"{prefix}{key}"}
    return out


@pytest.mark.parametrize("name", recipe.names())
def test_every_leaf_of_every_recipe_has_an_origin(name: str):
    found = origins(name)
    assert found.keys() == leaves(recipe.load(name).stages[0].model_dump(mode="json"))
    assert set(found.values()) == {f"recipe {name}", "default"}
    assert found["train.batch"] == f"recipe {name}"
    assert found["train.keep"] == "default"


def test_a_file_settings_and_short_names(files: Path):
    found = origins("one.yaml", ["masking.ratio=0.9", "epochs=5", "train.steps=null", "train.betas=[0.9, 0.99]", "data.size=[32, 48]"])
    assert found["masking.kind"] == found["data.augment.flip"] == found["method.patch"] == "file one.yaml"
    assert found["masking.ratio"] == found["train.epochs"] == found["train.steps"] == "--set"
    assert found["train.betas"] == found["data.size"] == "--set", "a list is one setting"
    assert found["data.stride"] == found["data.augment.erase"] == found["init"] == "default"


def test_a_set_value_counts_as_set_even_where_the_recipe_says_the_same(files: Path):
    assert origins("one.yaml", ["masking.ratio=0.5"])["masking.ratio"] == "--set"


@pytest.mark.parametrize("text", ["masking.kind=random", "masking=random", "masking={kind: random}"])
def test_another_kind_does_not_inherit_the_old_ones_settings(files: Path, text: str):
    found = origins("one.yaml", ["masking.ratio=0.9", text])
    assert found["masking.kind"] == "--set"
    assert found["masking.ratio"] == "default"
    assert origins("one.yaml", [text, "masking.ratio=0.9"])["masking.ratio"] == "--set"


@pytest.mark.parametrize("text", ["masking.kind=tube", "masking=tube"])
def test_the_same_kind_keeps_its_settings(files: Path, text: str):
    found = origins("one.yaml", [text])
    assert (found["masking.kind"], found["masking.ratio"]) == ("--set", "file one.yaml")


def test_a_family_given_by_its_name_only(files: Path):
    found = origins("two.yaml", ["first.masking.ratio=0.9"])
    assert found["first.masking.kind"] == "file two.yaml"
    assert found["first.masking.ratio"] == "--set"
    assert found["second.method.kind"] == "file two.yaml"
    assert found["second.method.dim"] == "default"


def test_a_mapping_that_is_set_whole_replaces_what_was_given(files: Path):
    found = origins("one.yaml", ["method.decoder={depth: 3}"])
    assert found["method.decoder.depth"] == "--set"
    assert found["method.decoder.dim"] == "default"
    assert found["method.dim"] == "file one.yaml"


def test_masking_switched_off(files: Path):
    found = origins("one.yaml", ["masking=null"])
    assert found["masking"] == "--set"
    assert not [k for k in found if k.startswith("masking.")]


def test_size_takes_the_place_of_single_dimensions(files: Path):
    found = origins("one.yaml", ["method.heads=2"], "tiny")
    assert found["method.size"] == "--size"
    assert found["method.heads"] == "--set"
    assert found["method.dim"] == found["method.decoder.dim"] == "default"
    assert found["method.patch"] == found["method.kind"] == "file one.yaml"
    assert origins("two.yaml", size="tiny")["second.method.kind"] == "file two.yaml"


def test_stages_are_told_apart(files: Path):
    found = origins("two.yaml", ["second.train.batch=8", "second.frames=8", "first.masking.kind=random"])
    dumped = {s.name: s.model_dump(mode="json") for s in recipe.load("two.yaml", ["first.masking.kind=random"]).stages}
    assert found.keys() == leaves(dumped)
    assert (found["first.train.batch"], found["second.train.batch"]) == ("file two.yaml", "--set")
    assert (found["first.data.frames"], found["second.data.frames"]) == ("default", "--set")
    assert (found["first.masking.kind"], found["second.masking.kind"]) == ("--set", "file two.yaml")
    assert found["second.init.encoder"] == "file two.yaml"
    assert (found["first.init"], found["first.train.betas"]) == ("default", "default")


def test_mistakes_are_those_of_load(files: Path):
    with pytest.raises(ConfigError, match="did you mean 'ratio'"):
        origins("one.yaml", ["masking.ratoi=0.9"])
    with pytest.raises(ConfigError, match="unknown recipe"):
        origins("vidoemae")
    with pytest.raises(ConfigError, match="unknown size"):
        origins("demo", size="tny")


CHOICES = [
    "masking.ratio=0.6", "masking.kind=random", "masking=frame", "masking={kind: tube}", "method.decoder={dim: 32, heads: 2}", "frames=8",
    "train.steps=4", "data.augment={}", "data.augment.flip=0.1", "method.patch=[2, 4, 4]", "method=videomae",
]  # fmt: skip


@settings(max_examples=25)
@given(st.lists(st.sampled_from(CHOICES), max_size=5), st.sampled_from([None, "tiny"]))
def test_any_order_of_settings_names_every_leaf_and_only_changed_ones_as_set(chosen: list[str], size: str | None):
    found = origins("demo", chosen, size)
    stage = recipe.load("demo", chosen, size=size).stages[0].model_dump(mode="json")
    assert found.keys() == leaves(stage)
    plain = recipe.load("demo", size=size).stages[0].model_dump(mode="json")
    for leaf in found:
        value, before, missing = stage, plain, object()
        for key in leaf.split("."):
            value = value[key]
            before = before.get(key, missing) if isinstance(before, dict) else missing
        if found[leaf].startswith("recipe") and before is not missing:
            assert value == before, leaf
