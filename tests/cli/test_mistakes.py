"""Whatever is typed: one message that names every mistake, exit code 2, no traceback."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tubelet.cli.collect import Options, closest, read
from tubelet.errors import ConfigError

# The words of a wrong number are Typer's and differ between its versions: only the option and the value are asserted there.
WRONG = [
    ("pretrain videos --recpie small-data --out x", ["--recpie: unknown option (did you mean '--recipe'?)"]),
    ("pretrain videos --recipe small-dta --oot x", ["(did you mean '--out'?)", "unknown recipe 'small-dta' (did you mean 'small-data'?)"]),
    ("pretran videos --oot x", ["pretran: unknown command (did you mean 'pretrain'?)", "(did you mean '--out'?)"]),
    ("frobnicate --now", ["frobnicate: unknown command; there are pretrain, check, plan"]),
    ("pretrain", ["SOURCES: must be given", "--out: must be given"]),
    ("pretrain v --out", ["--out: needs a value"]),
    ("pretrain v --out --resume", ["--out: needs a value, found the option --resume"]),
    ("pretrain v --out x --resume=yes", ["--resume: takes no value, got 'yes'"]),
    ("pretrain v --out x --size medium", ["'medium' is not one of tiny, small"]),
    ("pretrain v --out x --size bse", ["(did you mean 'base'?)"]),
    ("pretrain v --out x --epochs 5 --batch=64", ["it is a setting: --set epochs=5", "it is a setting: --set batch=64"]),
    ("pretrain v --out x --masking.ratio 0.9", ["it is a setting: --set masking.ratio=0.9"]),
    ("pretrain v --out x --btach 64", ["--btach: unknown option (did you mean --set batch=64?)"]),
    (
        "pretrain v --otu x --recipe tiny-cpu --set train.lrr=3 --set masking.ratio=high --import nofile.py",
        [
            "(did you mean '--out'?)",
            "train.lrr: unknown setting (did you mean 'lr'?)",
            "masking.ratio: must be a valid number",
            "nofile.py: no such file",
        ],
    ),
    ("knn run videos --k zero --pool slot", ["--k: ", "'zero'", "(did you mean 'slots'?)"]),
    ("knn run videos --k 0", ["--k: "]),
    ("knn run videos -kfive", ["--k: ", "'five'"]),
    ("knn", ["RUN: must be given", "SOURCES: must be given"]),
    ("probe run", ["SOURCES: must be given"]),
    ("probe run v --seed -3 --test-sorces w", ["--seed: ", "(did you mean '--test-sources'?)"]),
    ("embed run v --out x.npz --seconds long --batch 0", ["--seconds: ", "'long'", "--batch: "]),
    ("embed run v --frames 8", ["it is a setting: --set frames=8", "--out: must be given"]),
    ("playground", ["OUT: must be given", "--clips: must be given"]),
    (
        "playground out --clips many --size 12y --fps fast",
        ["--clips: ", "'many'", "'12y' is not a number of pixels", "--fps: ", "'fast'"],
    ),
    ("playground out --clips 0 --scene eazy --fps -1", ["--clips: ", "unknown scene 'eazy' (did you mean 'easy'?)", "fps: "]),
    ("playground out extra --clips 3", ["extra: more arguments than this command takes"]),
    ("demo videos", ["videos: more arguments than this command takes"]),
    ("recipes shwo small-data", ["shwo: unknown command (did you mean 'show'?)"]),
    ("recipes show", ["NAME: must be given"]),
    ("recipes --bogus", ["--bogus: unknown option"]),
    ("--verison", ["(did you mean '--version'?)"]),
    ("--quiet pretrain v --oot x", ["--quiet: unknown option; options of a command come after its name", "(did you mean '--out'?)"]),
    ("--bogus", ["--bogus: unknown option"]),
    ("--", ["a command must be given; there are pretrain"]),
    ("-- pretran v --out x", ["pretran: unknown command (did you mean 'pretrain'?)"]),
    ("version --long", ["--long: unknown option"]),
    ("embed r v --import nofile.py --pol mean", ["--out: must be given", "--import nofile.py: no such file", "did you mean '--pool'?"]),
    ("pretrain --hlep v", ["(did you mean '--help'?)", "--out: must be given"]),
]


@pytest.mark.parametrize(("line", "expected"), WRONG, ids=[line for line, _ in WRONG])
def test_every_mistake_is_named(cli, public, line: str, expected: list[str]):
    calls = [public(name) for name in ("pretrain", "embed", "knn", "probe", "make_playground", "demo")]
    got = cli(*line.split())
    assert got.code == 2
    assert got.out == ""
    assert got.err.startswith("error: ")
    assert "Traceback" not in got.err
    assert [e for e in expected if e not in got.err] == []
    named = {e.partition(":")[0] for e in expected if e.startswith("-")}
    if len(named) > 1:
        count = int(got.err.split()[1])
        assert count >= len(named)
        assert got.err.count("\n  - ") == count
    assert not any(recorder.calls for recorder in calls)


def test_a_mistake_in_settings_comes_from_the_public_function(cli, public):
    public("pretrain", gives=ConfigError(["masking.rato: unknown setting", "train.lr: must be a number"], where="tiny-cpu"))
    got = cli("pretrain", "v", "--out", "x", "--set", "masking.rato=1")
    assert got.code == 2
    assert got.err == "error: 2 problems in tiny-cpu:\n  - masking.rato: unknown setting\n  - train.lr: must be a number\n"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            [
                "pretrain",
                "knn",
                "probe",
                "embed",
                "recipes",
                "show",
                "--out",
                "--k",
                "-k",
                "--set",
                "--",
                "-",
                "--pool",
                "x",
                "--=",
                "=",
                "--quiet",
                "",
                "é",
                "-1",
            ]
        ),
        max_size=6,
    )
)
def test_no_sequence_of_words_breaks_the_parser(cli, public, words: list[str]):
    for name in ("pretrain", "embed", "knn", "probe"):
        public(name, gives=ConfigError("stopped before the work"))
    public("recipes", gives=[("a", "b")])
    public("show_recipe", gives="about: x")
    got = cli(*words)
    assert got.code in (0, 2)
    assert "Traceback" not in got.err
    assert "unexpected" not in got.err


class Param:
    def __init__(self, *opts: str, is_flag: bool = False) -> None:
        self.opts, self.secondary_opts, self.is_flag, self.is_eager = list(opts), [], is_flag, False
        self.param_type_name = "option"


OPTIONS = Options([Param("--out"), Param("-k", "--k"), Param("--quiet", is_flag=True)])


@given(st.lists(st.sampled_from(["a", "b.mp4", "--out=x", "--quiet", "-k5", "-"]), max_size=8))
def test_right_arguments_are_left_alone(args: list[str]):
    clean, problems = read(args, OPTIONS)
    assert problems == []
    assert "".join(clean) == "".join(a.replace("=", "") if a.startswith("--") else a for a in args)


def test_values_may_look_like_anything_but_a_known_option():
    assert read(["--out", "-5"], OPTIONS) == (["--out", "-5"], [])
    assert read(["--out", "--odd"], OPTIONS) == (["--out", "--odd"], [])
    assert read(["--", "--out"], OPTIONS) == (["--", "--out"], [])
    assert read(["--out", "--quiet"], OPTIONS)[1] == ["--out: needs a value, found the option --quiet"]


def test_dashes_are_no_likeness():
    assert closest("--pol", ["--import", "--pool"]) == "--pool"
    assert closest("--pol", ["--import"]) is None
