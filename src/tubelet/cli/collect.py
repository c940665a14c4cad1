"""Commands that report every mistake of a call at once, each with the name that was probably meant.

Typer's parser stops at the first mistake. Here the arguments are read against the command's own list of options first; what is left
is parsed option by option, and all that is wrong becomes one ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tubelet.errors import ConfigError

PROBLEMS = "tubelet.problems"  # in the context's meta, which a group shares with its commands
Check = Callable[[dict[str, Any]], list[str]]
SETTINGS: dict[str, Callable[[], Collection[str]]] = {}  # by command: what its --set takes under a plain name
CHECKS: dict[str, Check] = {}  # by command: more mistakes in its parameters, looked for only where something is wrong already


def hint(name: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` or nothing."""
    from tubelet.config import did_you_mean  # here: it imports pydantic, and only mistakes need it

    return did_you_mean(name, known)


def closest(name: str, known: Sequence[str]) -> str | None:
    """The known name that :func:`hint` suggests. Dashes in front do not count as likeness."""
    bare = {k.lstrip("-"): k for k in known}
    said = hint(name.lstrip("-"), list(bare))
    return next((k for b, k in bare.items() if f"'{b}'" in said), None)


def one_of(*names: str) -> Callable[[str | None], str | None]:
    """A callback that accepts these values only."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}{hint(value, names)}")
        return value

    return check


class Options:
    """The options of one command by name, read from Typer's parameters. ``settings``: names that --set takes instead."""

    def __init__(self, params: Sequence[Any], settings: Callable[[], Collection[str]] | None = None) -> None:
        self.named = {name: p for p in params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)}
        self.settings = settings

    def takes_value(self, name: str) -> bool:
        return not self.named[name].is_flag

    def acts_at_once(self, name: str) -> bool:
        """--help, --version: a misspelt one must not act."""
        return bool(self.named[name].is_eager)

    def setting(self, name: str, *, likely: bool = False) -> str | None:
        """The setting that someone wrote as an option, or the one whose name is like it."""
        plain = name.lstrip("-").replace("-", "_")
        known = list(self.settings()) if self.settings is not None else []
        if likely:
            return closest(plain, known)
        return plain if plain.partition(".")[0] in known else None


def read(args: Sequence[str], options: Options, *, stop_at_word: bool = False) -> tuple[list[str], list[str]]:
    """Arguments that the parser can take without stumbling, and what is wrong with the others, one line each.

    A misspelt option is replaced by the one it resembles, so that its value is checked, too. ``stop_at_word``: leave everything from the
    first word on as it is (a group, whose command reads the rest).
    """
    clean: list[str] = []
    problems: list[str] = []
    queue = list(args)
    while queue:
        token = queue.pop(0)
        if token == "--" or (stop_at_word and not token.startswith("-")):
            return [*clean, token, *queue], problems
        if not token.startswith("-") or token == "-":
            clean.append(token)
            continue
        name, equals, value = token.partition("=")
        if name not in options.named and not token.startswith("--") and token[:2] in options.named and options.takes_value(token[:2]):
            name, equals, value = token[:2], "=", token[2:]  # -k5
        if name not in options.named:
            guess = _unknown(name, equals, value, queue, options, problems)
            if guess is None:
                continue
            name = guess
        if not options.takes_value(name):
            if equals:
                problems.append(f"{name}: takes no value, got {value!r}")
            clean.append(name)
        elif equals:
            clean += [name, value]
        elif not queue or queue[0].partition("=")[0] in options.named:
            problems.append(f"{name}: needs a value" + (f", found the option {queue[0]}" if queue else ""))
            clean += [name, ""]
        else:
            clean += [name, queue.pop(0)]
    return clean, problems


def _unknown(name: str, equals: str, value: str, queue: list[str], options: Options, problems: list[str]) -> str | None:
    """Note an unknown option; the option to take in its place, if any. The value of a setting is taken from the queue."""
    setting = options.setting(name)
    guess = closest(name, list(options.named)) if setting is None else None
    likely = options.setting(name, likely=True) if setting is None and guess is None else None
    if setting or likely:
        if not equals and queue and not queue[0].startswith("-"):
            value = queue.pop(0)
        call = f"--set {setting or likely}={value or '...'}"
        problems.append(f"{name}: unknown option" + (f"; it is a setting: {call}" if setting else f" (did you mean {call}?)"))
        return None
    problems.append(f"{name}: unknown option" + (f" (did you mean {guess!r}?)" if guess else ""))
    return None if guess is None or options.acts_at_once(guess) else guess


def _named(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name).upper()
    return max(param.opts, key=len)


def _missing(param: Any) -> str:
    about = str(param.help or "").split(". ")[0].rstrip(".")
    return f"{_named(param)}: must be given" + (f" ({about[0].lower()}{about[1:]})" if about else "")


class Command(TyperCommand):
    """A command that reports all its mistakes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # shell completion
            return super().parse_args(ctx, args)
        params = self.get_params(ctx)
        clean, problems = read(args, Options(params, SETTINGS.get(str(self.name))))
        problems = [*ctx.meta.pop(PROBLEMS, []), *problems]
        silent = {p.partition(":")[0] for p in problems if ": needs a value" in p}
        values, left, _ = self.make_parser(ctx).parse_args(args=clean)
        for param in sorted(params, key=lambda p: not p.is_eager):
            if set(param.opts) & silent:
                continue
            if param.required and values.get(param.name) in (None, (), []):
                problems.append(_missing(param))
                continue
            try:
                param.handle_parse_result(ctx, values, [])
            except typer.BadParameter as error:
                problems.append(f"{_named(param)}: {_plain(error.message, values.get(param.name))}")
        if left:
            problems.append(f"{' '.join(left)}: more arguments than this command takes")
        if problems:
            more = CHECKS.get(str(self.name))
            raise ConfigError([*problems, *(more(ctx.params) if more else [])], where=ctx.command_path)
        ctx.args = []
        return []


def _plain(message: str, value: object) -> str:
    """Typer's message on one line, in the words of the other settings, with the value that was given."""
    text = " ".join(message.split()).rstrip(".").replace("Input should be", "must be").partition(", unable to parse")[0]
    return text if repr(value) in text else f"{text}, got {value!r}"


class Group(TyperGroup):
    """A group whose wrong options, and a misspelt command's own mistakes, are reported together."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # shell completion
            return super().parse_args(ctx, args)
        if not args and not self.invoke_without_command:
            args = ["--help"]
        clean, problems = read(args, Options(self.get_params(ctx)), stop_at_word=True)
        problems = [p if "did you mean" in p else f"{p}; options of a command come after its name" for p in problems]
        rest = super().parse_args(ctx, clean)
        wrong = [*ctx.meta.get(PROBLEMS, []), *problems]
        if all(token.startswith("-") for token in clean):  # no command follows that would report what is wrong
            if not wrong and not self.invoke_without_command:
                wrong = [f"a command must be given; there are {', '.join(self.list_commands(ctx))}"]
            if wrong:
                raise ConfigError(wrong, where=ctx.command_path)
        ctx.meta[PROBLEMS] = wrong
        return rest

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        word, rest = args[0], args[1:]
        command = self.get_command(ctx, word)
        if command is not None:
            return word, command, rest
        names = self.list_commands(ctx)
        guess = closest(word, names)
        wrong = f"{word}: unknown command{hint(word, names)}"
        if guess is None:
            wrong += f"; there are {', '.join(names)}"
            raise ConfigError([*ctx.meta.get(PROBLEMS, []), wrong], where=ctx.command_path)
        ctx.meta[PROBLEMS] = [*ctx.meta.get(PROBLEMS, []), wrong]
        return guess, self.get_command(ctx, guess), [a for a in rest if a not in ("-h", "--help")]
