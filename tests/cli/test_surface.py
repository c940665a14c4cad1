"""The command line does not change by accident, helps, and starts fast."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from surface import commands, surface

import tubelet

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "cli.md"


def test_frozen():
    assert surface() == (HERE / "surface.txt").read_text(encoding="utf-8"), "changed on purpose? see the top of surface.py"


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
@pytest.mark.parametrize("help_flag", ["-h", "--help"])
def test_help_of_every_command(cli, path: tuple[str, ...], help_flag: str):
    got = cli(*path[1:], help_flag)
    assert got.code == 0
    assert got.err == ""
    assert f"Usage: {' '.join(path)}" in got.out


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=[" ".join(p) for p, _ in commands()])
def test_every_option_is_explained_in_help_and_docs(path: tuple[str, ...], command):
    written = DOCS.read_text(encoding="utf-8")
    if len(path) > 1:
        assert f"`{' '.join(path)}" in written
    section = written.partition(f"## `{' '.join(path[:2])}")[2].partition("\n## ")[0] if len(path) > 1 else written
    for p in command.params:
        assert p.help, p.name
        if p.param_type_name == "option" and p.name not in ("install_completion", "show_completion"):
            assert f"`{max(p.opts, key=len)}" in section, f"docs/cli.md does not mention {p.opts} of {' '.join(path)}"


def test_examples_in_help_are_right_command_lines(cli, public):
    """Each example of an epilog parses: its public function is reached."""
    from tubelet.errors import ConfigError

    for name in (
        "pretrain", "plan", "replay", "report", "reconstruct", "masks", "check", "embed", "knn", "probe", "finetune", "evaluate",
        "retrieve", "zeroshot", "guide", "caption", "export", "convert",
        "make_playground", "demo", "recipes", "show_recipe", "prepare", "merge_prepared", "bench_data",
    ):  # fmt: skip
        public(name, gives=ConfigError("reached"))
    seen = 0
    for _, command in commands():
        for line in (command.epilog or "").split("\n\n")[1:]:
            words = shlex.split(line)
            got = cli(*words[words.index("tubelet") + 1 :][: words.index(">") - 1 if ">" in words else None])
            assert got.err == "error: reached\n", line
            seen += 1
    assert seen > 12


def test_version(cli):
    assert cli("--version").out == f"tubelet {tubelet.__version__}\n"
    got = cli("version")
    assert got.code == 0
    assert "torch" in got.out
    assert "python" in got.out


def test_nothing_asked_shows_help(cli):
    assert "pretrain" in cli().out


def test_help_starts_fast_and_loads_no_torch():
    heavy = "*[m for m in ('torch', 'av', 'sklearn', 'numpy') if m in sys.modules]"
    script = f"import sys; from tubelet.cli import run; code = run(['--help']); print({heavy}, file=sys.stderr); sys.exit(code)"
    best = float("inf")
    for _ in range(3):  # seconds of the processor, best of three: other processes share the machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr.split() == []
    assert best < 0.5


def test_module_and_console_script_are_the_same():
    done = subprocess.run([sys.executable, "-m", "tubelet", "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"tubelet {tubelet.__version__}\n"


def test_completion_answers():
    env = {"_TUBELET_COMPLETE": "complete_bash", "COMP_WORDS": "tubelet pre", "COMP_CWORD": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-m", "tubelet"], capture_output=True, text=True, timeout=60, env=env)
    assert "pretrain" in done.stdout


def test_the_mistakes_in_the_docs_are_reported_as_they_say(cli):
    call, *lines = DOCS.read_text(encoding="utf-8").partition("```text\n$ ")[2].partition("\n```")[0].split("\n")
    got = cli(*call.split()[1:]).err.splitlines()
    assert got[:-1] == lines[:-1]
    assert got[-1].startswith(lines[-1].removesuffix("..."))
