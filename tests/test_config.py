"""Settings: all mistakes at once, with their paths and the likely names; families by file name; YAML and overrides."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SerializeAsAny

from tubelet import recipe
from tubelet.config import (
    Family,
    Settings,
    at_default,
    config_class,
    did_you_mean,
    differences,
    import_file,
    kinds,
    overlay,
    parse,
    read_yaml,
    to_yaml,
)
from tubelet.errors import ConfigError


class Inner(Settings):
    rate: float = 1.0
    many: int = 2


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    masking: Annotated[SerializeAsAny[Settings], Family("tubelet.masking")] | None = None


def test_every_mistake_is_listed_with_its_path():
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"nam": "x", "inner": {"raet": 2, "many": "lots"}, "masking": {"kind": "tube", "ration": 0.5}}, where="my.yaml")
    text = str(caught.value)
    assert text.startswith("5 problems in my.yaml:")
    assert "nam: unknown setting (did you mean 'name'?)" in text
    assert "name: must be given" in text
    assert "inner.raet: unknown setting (did you mean 'rate'?)" in text
    assert "inner.many: must be a valid integer" in text
    assert "got 'lots'" in text
    assert "masking.ration: unknown setting (did you mean 'ratio'?)" in text


def test_families_take_a_name_or_settings_and_keep_their_kind():
    assert kinds("tubelet.masking") == ["adamae", "frame", "mgm", "mgmae", "random", "tgm", "tube"]
    short = parse(Outer, {"name": "x", "masking": "tube"})
    assert parse(Outer, short.model_dump(mode="json")) == short
    assert short.model_dump()["masking"]["kind"] == "tube"
    with pytest.raises(ConfigError, match="unknown kind 'tubes' \\(did you mean 'tube'\\?\\)"):
        parse(Outer, {"name": "x", "masking": {"kind": "tubes"}})
    with pytest.raises(ConfigError, match="give a kind"):
        parse(Outer, {"name": "x", "masking": {"ratio": 0.5}})


def test_a_users_file_is_a_kind(tmp_path):
    path = tmp_path / "my_mask.py"
    path.write_text(
        "from tubelet.config import Settings\nclass Config(Settings):\n    share: float = 0.5\n    def build(self): return self\n"
    )
    assert import_file(path) == "my_mask"
    settings = parse(Outer, {"name": "x", "masking": {"kind": "my_mask", "share": 0.25}})
    assert settings.model_dump()["masking"] == {"kind": "my_mask", "share": 0.25}
    assert config_class("tubelet.masking", "my_mask").model_fields["share"].default == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("x = 1", "must define `class Config"), ("1/0", "ZeroDivisionError"), ("def", "SyntaxError")],
)
def test_a_users_file_that_does_not_work_is_explained(tmp_path, content, message):
    path = tmp_path / "broken_mask.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        import_file(path)


def test_overrides():
    data = {"masking": {"kind": "tube", "ratio": 0.9}, "train": {"lr": 1.0}}
    assert overlay(data, ["masking.ratio=0.5"])["masking"] == {"kind": "tube", "ratio": 0.5}
    assert overlay(data, ["masking=random", "masking.ratio=0.75"])["masking"] == {"kind": "random", "ratio": 0.75}
    assert overlay(data, ["masking.kind=random"])["masking"] == {"kind": "random"}
    assert overlay(data, ["masking=tube"])["masking"] == data["masking"]
    assert overlay(data, ["train.betas=[0.9, 0.95]"])["train"]["betas"] == [0.9, 0.95]
    assert data == {"masking": {"kind": "tube", "ratio": 0.9}, "train": {"lr": 1.0}}
    with pytest.raises(ConfigError) as caught:
        overlay(data, ["masking.ratio", "train..lr=3", "train.x=[1"])
    assert len(caught.value.problems) == 3


def test_yaml_mistakes_are_explained(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1\nb: 2")
    (tmp_path / "b.yaml").write_text("- 1")
    for name, message in (("a.yaml", "not valid YAML.*line 2"), ("b.yaml", "must hold a mapping"), ("c.yaml", "no such file")):
        with pytest.raises(ConfigError, match=r"(?s)" + message):
            read_yaml(tmp_path / name)


trees = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3), lambda c: st.dictionaries(st.sampled_from("abc"), c, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_differences_are_none_only_between_equals(a, b):
    assert differences(a, a) == []
    if a != b and not {str(k) for k in a} ^ {str(k) for k in b}:
        assert differences(a, b)


def test_no_hint_where_nothing_is_close():
    assert did_you_mean("zzz", ["ratio"]) == ""


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_are_valid_and_survive_a_round_trip(name, tmp_path):
    one = recipe.load(name)
    (tmp_path / "x.yaml").write_text(to_yaml(one))
    assert recipe.load(tmp_path / "x.yaml") == one
    assert one.about
    assert one.table


def test_recipes_hold_the_papers_numbers():
    """VideoMAE, arXiv 2203.12602, pre-training settings."""
    k400, ssv2, ucf, hmdb = (recipe.load(n).stages[0] for n in ("videomae", "videomae-ssv2", "videomae-ucf101", "videomae-hmdb51"))
    assert (k400.data.stride, ssv2.data.stride, ucf.data.stride, hmdb.data.stride) == (4, 2, 4, 2)
    assert [s.masking.ratio for s in (k400, ssv2, ucf, hmdb)] == [0.9, 0.9, 0.75, 0.75]
    assert [s.train.epochs for s in (k400, ssv2, ucf, hmdb)] == [800, 800, 3200, 4800]
    assert [s.train.batch for s in (k400, ssv2, ucf, hmdb)] == [1024, 1024, 192, 192]
    assert [s.train.lr for s in (k400, ssv2, ucf, hmdb)] == [1.5e-4, 1.5e-4, 3e-4, 3e-4]
    for s in (k400, ssv2, ucf, hmdb):
        assert s.train.betas == (0.9, 0.95)
        assert (s.train.weight_decay, s.train.warmup_epochs, s.train.min_lr, s.train.clip) == (0.05, 40, 1e-5, None)
        assert (s.data.frames, s.data.hw) == (16, (224, 224))


def test_recipe_mistakes_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        recipe.load("tiny-cpu", ["masking.raito=1", "train.epoch=5", "data.size=-3", "metod.dim=4"])
    text = str(caught.value)
    for part in (
        "masking.raito",
        "did you mean 'ratio'",
        "train.epoch",
        "did you mean 'epochs'",
        "size must be 1..8192 pixels, got -3",
        "metod",
        "did you mean 'method'",
    ):
        assert part in text, text
    with pytest.raises(ConfigError, match="did you mean 'tiny-cpu'"):
        recipe.load("tiny_cpu")
    with pytest.raises(ConfigError, match="did you mean 'base'"):
        recipe.load("tiny-cpu", size="bse")


def test_a_named_size_replaces_the_recipes_own_dimensions():
    method: Any = recipe.load("tiny-cpu", ["method.heads=12"], size="small").stages[0].method
    assert (method.width, method.depth, method.heads, method.decoder.dim) == (384, None, 12, None)


def test_a_setting_without_its_section_is_told_with_it():
    with pytest.raises(ConfigError) as told:
        recipe.load("tiny-cpu", ["dim=3", "pach=3", "data.rand=x"])
    assert told.value.problems == [
        "data.rand: unknown setting; write data.augment.rand",
        "dim: unknown setting; write method.dim",
        "pach: unknown setting (did you mean 'watch'?)",
    ]


def test_a_length_in_steps_replaces_the_recipes_epochs():
    train = recipe.load("tiny-cpu", ["steps=3"]).stages[0].train
    assert (train.steps, train.epochs) == (3, None)
    assert recipe.origins("tiny-cpu", ["steps=3"])["train.epochs"] == "default"
    assert recipe.load("tiny-cpu", ["train.epochs=2"]).stages[0].train.epochs == 2
    with pytest.raises(ConfigError, match="either epochs or steps"):
        recipe.load("tiny-cpu", ["steps=3", "epochs=2"])


def test_steps_replace_epochs_in_fine_tuning_too():
    from tubelet import finetune_recipe

    train = finetune_recipe.load("finetune-tiny-cpu", ["steps=3"]).train
    assert (train.steps, train.epochs) == (3, None)


def test_settings_at_their_defaults_are_named_with_their_sections():
    assert at_default(Outer(name="x")) == {"inner", "inner.rate", "inner.many", "masking"}
    tuned = parse(Outer, {"name": "x", "inner": {"rate": 2.0}, "masking": {"kind": "tube", "ratio": 0.5}})
    found = at_default(tuned, "config.")
    assert {"config.inner.many", "config.masking.kind"} <= found
    assert not found & {"config.name", "config.inner", "config.inner.rate", "config.masking", "config.masking.ratio"}
