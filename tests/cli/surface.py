"""The whole command line as text: every command, argument and option with its default.

After a deliberate change: ``python tests/cli/surface.py > tests/cli/surface.txt`` (and change docs/cli.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from tubelet.cli import commands as _registered  # noqa: F401
from tubelet.cli.app import app


def commands(command: Any = None, path: tuple[str, ...] = ("tubelet",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, command) of all commands, groups first."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, (*path, name))


def surface() -> str:
    lines = []
    for path, command in commands():
        lines.append(" ".join(path))
        for p in command.params:
            if p.name in ("install_completion", "show_completion"):
                continue
            kind = "flag" if getattr(p, "is_flag", False) else "value"
            many = ", repeatable" if p.multiple or p.nargs == -1 else ""
            default = "required" if p.required else f"default {p.default!r}"
            names = " ".join(p.opts) if p.param_type_name == "option" else str(p.metavar)
            lines.append(f"  {names}: {p.param_type_name if kind == 'value' else kind}{many}, {default}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(surface())
