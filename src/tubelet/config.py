"""Settings: frozen pydantic models beside the classes they configure, families by ``kind``, YAML in and out, explained errors.

A family is a package; the file name is the kind: ``masking/tube.py`` is ``{kind: tube}`` and holds a class ``Config``. A user's own
file joins with :func:`import_file` (``--import my_mask.py`` is kind ``my_mask``).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tubelet.errors import ConfigError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: immutable, unknown names refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")


_user_kinds: dict[str, types.ModuleType] = {}
FAMILIES = ("tubelet.masking", "tubelet.methods", "tubelet.playground", "tubelet.guides")


def import_file(path: str | Path) -> str:
    """Load a user's Python file so that its stem can be used as a ``kind``. Returns the kind. Raises ConfigError."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--import {path}: no such file")
    taken = [family for family in FAMILIES if path.stem in kinds(family, own=False)]
    if taken:
        raise ConfigError(f"--import {path}: {path.stem!r} is a kind of {taken[0]} already; give your file another name")
    spec = importlib.util.spec_from_file_location(f"tubelet_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ConfigError(f"--import {path}: {type(error).__name__} while loading it: {error}") from error
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Settings) and hasattr(config, "build")):
        raise ConfigError(f"--import {path}: it must define `class Config(tubelet.config.Settings)` with a `build` method")
    _user_kinds[path.stem] = module
    return path.stem


def kinds(package: str, *, own: bool = True) -> list[str]:
    """All kinds of a family: the modules of the package, then (``own``) the user's own files."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    return sorted(m.name for m in pkgutil.iter_modules(places) if not m.name.startswith("_")) + sorted(_user_kinds if own else ())


def config_class(package: str, kind: object) -> type[Settings]:
    """The ``Config`` of one kind; imports that one module. Raises ConfigError naming the kinds there are."""
    if not isinstance(kind, str) or kind not in kinds(package):
        known = kinds(package)
        own = "" if did_you_mean(str(kind), known) else ", or give a file of your own with --import"
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(str(kind), known)}; there are {', '.join(known)}{own}")
    module = _user_kinds.get(kind) or importlib.import_module(f"{package}.{kind}")
    config: type[Settings] = module.Config
    if "kind" not in config.model_fields:
        # A user's file need not repeat its own name; what is saved must hold it.
        named: Any = Literal[kind]  # pyright: ignore[reportInvalidTypeForm] (the literal is a value known only now)
        config = pydantic.create_model(config.__name__, __base__=config, kind=(named, kind))
        vars(module)["Config"] = config
    return config


class Family:
    """Marks a field whose value is ``{kind: ..., settings}`` or just the kind's name:
    ``masking: Annotated[SerializeAsAny[Settings], Family("tubelet.masking")] | None = None``. ``default``: the kind of settings that do not
    name one."""

    def __init__(self, package: str, default: str | None = None) -> None:
        self.package, self.default = package, default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.choose, handler(source))

    def choose(self, value: Any) -> Any:
        if isinstance(value, Settings):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if isinstance(value, Mapping) and "kind" not in value and self.default:
            value = {"kind": self.default, **value}
        if not isinstance(value, Mapping) or "kind" not in value:
            names = ", ".join(kinds(self.package))
            raise PydanticCustomError(
                "kind_missing", "give a kind ({names}), e.g. kind: {first}", {"names": names, "first": kinds(self.package)[0]}
            )
        try:
            cls = config_class(self.package, value["kind"])
        except ConfigError as error:
            raise PydanticCustomError("kind_unknown", "{text}", {"text": str(error)}) from error
        return cls.model_validate(dict(value))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse(cls: type[S], data: object, where: str = "") -> S:
    """Settings from plain data. Raises one ConfigError that lists every mistake with its dotted path and the likely name."""
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        raise ConfigError(explain(cls, data, error), where=where) from None


def explain(cls: type[BaseModel], data: object, error: pydantic.ValidationError) -> list[str]:
    """One line for each mistake in a ValidationError."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            owner = _owner(cls, data, item["loc"][:-1])
            known = list(owner.model_fields) if owner else []
            name = str(item["loc"][-1])
            sections = [(*item["loc"][:-1], field) for field in known]
            below = [".".join(map(str, (*at, name))) for at in sections if name in _fields(_owner(cls, data, at))]
            hint = f"; write {' or '.join(below)}" if below else did_you_mean(name, known)
            hint = hint or (f"; known here: {', '.join(known)}" if known else "")
            lines.append(f"{path}: unknown setting{hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: must be given")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            value = item.get("input")
            shown = (
                f", got {value!r}" if item["type"] != "value_error" and isinstance(value, (str, int, float, bool, list, type(None))) else ""
            )
            lines.append(f"{path}: {message}{shown}" if path else message)
    return lines


def _fields(owner: type[BaseModel] | None) -> Iterable[str]:
    return owner.model_fields if owner else ()


def _owner(cls: type[BaseModel], data: object, loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The settings class at a path; families are resolved by the kind that the data names."""
    current: Any = cls
    for part in loc:
        if isinstance(part, int):
            data = data[part] if isinstance(data, Sequence) else None
            continue
        value = data.get(part) if isinstance(data, Mapping) else None
        info = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if info is None:
            return None
        mark = next((m for m in _metadata(info) if isinstance(m, Family)), None)
        if mark is not None:
            kind = value.get("kind", mark.default) if isinstance(value, Mapping) else value
            current = config_class(mark.package, kind) if kind in kinds(mark.package) else None
        else:
            current = _settings_in(info.annotation)
        data = value
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _metadata(info: Any) -> list[Any]:
    """Annotated metadata of a field, also inside ``X | None``."""
    found = list(info.metadata)
    for arg in typing.get_args(info.annotation):
        found += getattr(arg, "__metadata__", ())
    return found


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _settings_in(arg))), None)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises ConfigError with the line of a syntax error."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(data).__name__}")
    return data


def to_yaml(settings: BaseModel | Mapping[str, Any]) -> str:
    """Settings as YAML text that reads back to the same settings."""
    data = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else dict(settings)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def overlay(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of nested data with ``a.b=value`` assignments applied; values are YAML. Raises one ConfigError for all that do not parse.

    Assigning a family's ``kind`` (``masking.kind=random`` or ``masking=random``) drops the settings of the old kind.
    """
    out: dict[str, Any] = _deep_copy(data)
    problems = []
    for text in assignments:
        path, equals, raw = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"--set {text}: write it as path.to.setting=value")
            continue
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError:
            problems.append(f"--set {text}: the value is not valid YAML")
            continue
        node = out
        for i, key in enumerate(keys[:-1]):
            child = node.get(key)
            if isinstance(child, str) and keys[i + 1] != "kind":
                child = {"kind": child}
            if not isinstance(child, dict | str | None):
                problems.append(f"--set {text}: {'.'.join(keys[: i + 1])} is {child!r}, which has no settings of its own")
            node[key] = child if isinstance(child, dict) else {}
            node = node[key]
        old = node.get(keys[-1])
        if keys[-1] == "kind" and node.get("kind") not in (None, value):
            node.clear()
        if isinstance(old, dict) and "kind" in old and isinstance(value, str):
            value = old if old["kind"] == value else {"kind": value}
        node[keys[-1]] = value
    if problems:
        raise ConfigError(problems)
    return out


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return [_deep_copy(v) for v in value] if isinstance(value, list) else value


def at_default(settings: BaseModel, prefix: str = "") -> set[str]:
    """Dotted paths of all settings that hold their default, within sections too."""
    found = set()
    for name, field in type(settings).model_fields.items():
        value, path = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            found |= at_default(value, path + ".")
        if not field.is_required() and value == field.get_default(call_default_factory=True, validated_data={}):
            found.add(path)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted path, old, new) of every leaf in which two nested mappings differ; a missing one is None."""
    out = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, path + ".")
        elif a != b:
            out.append((path, a, b))
    return out
