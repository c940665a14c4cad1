"""Every command's arguments and options, read from the Typer app, put into the hand-written docs/cli.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from _make import BY, END, marked
from _make.rows import cell
from tubelet.cli import commands as _registered  # noqa: F401

LAST = "## `tubelet version`"  # new sections stand before it


def commands(command: Any = None, path: tuple[str, ...] = ("tubelet",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, command) of all commands, groups first."""
    if command is None:
        import typer

        from tubelet.cli import commands as _registered  # noqa: F401
        from tubelet.cli.app import app

        command = typer.main.get_command(app)
    yield path, command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, (*path, name))


def options(command: Any) -> list[str]:
    """A table of a command's arguments and options."""
    shown = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    return ["| | value | default | meaning |", "|---|---|---|---|", *map(row, shown)] if shown else []


def row(p: Any) -> str:
    """One argument or option."""
    option = p.param_type_name == "option"
    names = sorted(p.opts, key=len, reverse=True) if option else [str(p.metavar or p.name).strip("[]")]
    value = "" if not option or getattr(p, "is_flag", False) else f"`{p.metavar or p.name.upper()}`"
    many = " (repeatable)" if p.multiple or p.nargs == -1 else ""
    nothing = p.default is None or p.default is False or p.default in ((), []) or callable(p.default)
    default = "must be given" if p.required else "" if nothing else f"`{p.default}`"
    return f"| {', '.join(f'`{n}`' for n in names)} | {cell(value + many)} | {default} | {cell(plain(p.help or ''))} |"


def plain(text: str) -> str:
    """Help text without the markup of terminals."""
    return re.sub(r"\[/?[a-z]*\]", "", text)


def cli_page(text: str) -> str:
    """The hand-written page with every command's table put in; a command that has no section gets one."""
    known = {" ".join(path) for path, _ in commands()}
    gone = [name for name in re.findall(rf"<!-- options of (.+?){BY}", text) if name not in known]
    if gone:
        raise SystemExit(f"docs/cli.md has sections for {', '.join(gone)}, which are no commands (any more): take them out")
    for path, command in commands():
        body = options(command)
        name = " ".join(path)
        heading = re.compile(rf"^## `{re.escape(' '.join(path[:2]))}[ `]", re.MULTILINE)
        if len(path) == 2 and not heading.search(text):
            before, last, after = text.partition(LAST)
            text = before.rstrip("\n") + "\n\n" + new_section(path, command) + "\n" + last + after
        if not body or len(path) == 1:
            continue
        if len(path) > 2:
            body = [f"`{usage(path, command)}`:", "", *body]
        text = put(text, f"options of {name}", body, heading)
    return text


def put(text: str, name: str, body: list[str], heading: re.Pattern[str]) -> str:
    """Lines in place of those of the same name, else at the end of the section."""
    start = f"<!-- {name}{BY}"
    if start in text:
        before, _, after = text.partition(start)
        return before + marked(name, body) + after.partition(END)[2]
    found = heading.search(text)
    assert found is not None
    section, more, rest = text[found.start() :].partition("\n## ")
    return text[: found.start()] + section.rstrip("\n") + "\n\n" + marked(name, body) + "\n" + more + rest


def usage(path: tuple[str, ...], command: Any) -> str:
    words = [str(p.metavar or p.name).upper() + ("..." if p.nargs == -1 else "") for p in command.params if p.param_type_name == "argument"]
    return " ".join([*path, *words])


def new_section(path: tuple[str, ...], command: Any) -> str:
    told = inspect.cleandoc(plain(command.help or "")).replace("``", "`")
    return f"## `{usage(path, command)}`\n\n{told}\n"
