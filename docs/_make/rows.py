"""Settings classes as rows of tables, read from the pydantic models.

A setting is described by ``Field(description=...)`` or by a sentence of its class's docstring that starts with its name in double
backticks; the rest of the docstring is about the whole.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import annotated_types as bound
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tubelet.config import Family, Settings, kinds


@dataclass(frozen=True)
class Row:
    """One setting as the reader sees it. ``nested``: the class of the settings below it."""

    path: str
    type: str
    default: str
    bounds: str
    text: str
    nested: type[BaseModel] | None = None


def rows(cls: type[BaseModel], prefix: str = "", homes: Mapping[type[BaseModel], str] = MappingProxyType({})) -> Iterator[Row]:
    """Every setting of a class, those of nested settings by their dotted path. ``homes``: nested classes that have a page of their own,
    which is linked instead."""
    _, told = docstring(cls)
    for name, info in cls.model_fields.items():
        if name == "kind":
            continue
        nested = None if family_of(info) else settings_in(info.annotation)
        home = homes.get(nested) if nested is not None else None
        text = info.description or told.get(name, "") or (docstring(nested)[0] if nested is not None else "")
        said = f"[settings]({home})" if home else type_of(info)
        yield Row(f"{prefix}{name}", said, default_of(info), bounds_of(info), sentence(markdown(text)), nested)
        if nested is not None and not home and get_origin(info.annotation) is not tuple:
            yield from rows(nested, f"{prefix}{name}.", homes)


def docstring(cls: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """A class's docstring: what is about the whole, and what is about single settings (at most to the end of a paragraph)."""
    about: list[str] = []
    told: dict[str, str] = {}
    for owner in reversed([c for c in cls.__mro__ if issubclass(c, Settings) and c is not Settings]):
        name = "(?:" + "|".join(map(re.escape, cls.model_fields)) + ")" if cls.model_fields else "(?!)"
        starts = rf"((?:``{name}``(?:,? and |, )?)+|{name}(?:, {name})*(?=: ))"
        for paragraph in inspect.cleandoc(owner.__dict__.get("__doc__") or "").split("\n\n"):
            for part in re.split(rf"(?<=[.;])\s+(?={starts})", paragraph)[::2]:
                match = re.match(starts, part)
                if match is None:
                    about.append(part)
                    continue
                words = part.removesuffix(";")
                rest = words[match.end() :]
                for field in re.findall(rf"\b{name}\b", match[1]):
                    told[field] = rest[1:].strip() if rest.startswith(":") else words
    return markdown(" ".join(a for a in about if a)), told


def markdown(text: str) -> str:
    """A docstring's markup as Markdown, in the words of YAML."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"\bNone\b", "`null`", text.replace("``", "`"))


def sentence(text: str) -> str:
    """With a full stop, and a capital unless it starts with a value or a name (``auto: ...``, ``bf16 = ...``)."""
    text = " ".join(text.split())
    if not text:
        return ""
    value = re.match(r"[\w.]*[\d._][\w.]*|\w+ ?[:=|]|\w+ ->", text)
    return (text if value else text[0].upper() + text[1:]) + ("" if text[-1] in ".!?)" else ".")


def metadata_of(annotation: Any) -> list[Any]:
    """Everything said beside a type with Annotated, also inside unions and lists."""
    found: list[Any] = []
    for item in getattr(annotation, "__metadata__", ()):
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return found + [m for arg in get_args(annotation) if get_origin(annotation) is not Literal for m in metadata_of(arg)]


def family_of(info: FieldInfo) -> str | None:
    """The package of kinds that a field chooses from."""
    return next((m.package for m in [*info.metadata, *metadata_of(info.annotation)] if isinstance(m, Family)), None)


def settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := settings_in(arg))), None)


def type_of(info: FieldInfo) -> str:
    package = family_of(info)
    if package is None:
        return type_name(info.annotation)
    optional = " or null" if type(None) in get_args(info.annotation) else ""
    return "one of " + ", ".join(f"`{k}`" for k in kinds(package, own=False)) + optional


def type_name(annotation: Any) -> str:
    """A type in words that a writer of YAML understands."""
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any", Path: "path"}
    args = get_args(annotation)
    origin = get_origin(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_name(args[0])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(f"`{a}`" for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(a) for a in args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return f"list of {many(type_name(args[0]))}"
    if origin is tuple and len(set(args)) == 1:
        return f"list of {len(args)} {many(type_name(args[0]))}"
    if origin is tuple:
        return "[" + ", ".join(type_name(a) for a in args) + "]"
    if origin in (list, Sequence):
        return f"list of {many(type_name(args[0]))}"
    if origin is dict:
        return f"mapping of {type_name(args[0])} to {type_name(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings"
    return plain.get(annotation, f"`{getattr(annotation, '__name__', annotation)}`")


def many(name: str) -> str:
    return f"{name}s" if name.endswith("number") else name


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "must be given"
    value = info.default if info.default is not PydanticUndefined else info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        given = value.model_dump(mode="json", exclude_unset=True)
        return f"`{{{', '.join(f'{k}: {yaml_value(v)}' for k, v in given.items())}}}`" if given else ""
    if isinstance(value, tuple) and len(value) > 8:
        return f"`[{', '.join(map(yaml_value, value[:4]))}, …]`, {len(value)} of them"
    return f"`{yaml_value(value)}`"


def yaml_value(value: Any) -> str:
    if isinstance(value, float):
        return format(value, ".6g")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(yaml_value(v) for v in value) + "]"
    return value if isinstance(value, str) and value else json.dumps(value)


def bounds_of(info: FieldInfo) -> str:
    """``≥ 1, ≤ 64`` or nothing."""
    said = []
    for item in [*info.metadata, *metadata_of(info.annotation)]:
        for kind, name, sign in ((bound.Ge, "ge", "≥"), (bound.Gt, "gt", ">"), (bound.Le, "le", "≤"), (bound.Lt, "lt", "<")):
            if isinstance(item, kind):
                said.append(f"{sign} {getattr(item, name):g}")
        if isinstance(item, bound.MinLen):
            said.append(f"at least {item.min_length} of them")
    return ", ".join(dict.fromkeys(said))


def table(found: Sequence[Row]) -> list[str]:
    lines = ["| setting | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    return lines + [f"| `{r.path}` | {r.type} | {r.default} | {r.bounds} | {cell(r.text)} |" for r in found]


def cell(text: str) -> str:
    """On one line, with its bars made harmless. In code a backslash is shown by some readers, and a bare bar ends the cell in others."""
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda m: f"<code>{escape(m[1])}</code>".replace("|", "&#124;"), " ".join(text.split()))
    return text.replace("|", "\\|")


def section(
    title: str,
    cls: type[BaseModel],
    prefix: str = "",
    intro: str = "",
    homes: Mapping[type[BaseModel], str] = MappingProxyType({}),
) -> list[str]:
    """A heading, what the class says of itself, its table."""
    about, _ = docstring(cls)
    found = list(rows(cls, prefix, homes))
    above = [line for text in (intro, about) if text for line in (text, "")]
    return [f"## {title}", "", *above, *(table(found) if found else ["It has no settings."]), ""]
