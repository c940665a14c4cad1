"""Further mistakes of a call that has some already, so that all are reported together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tubelet.errors import ConfigError


def check_imports(given: Mapping[str, Any]) -> list[str]:
    from tubelet import config

    return [problem for path in given.get("imports") or [] for problem in problems_of(lambda path=path: config.import_file(path))]


def problems_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return error.problems
    return []


def data_settings() -> set[str]:
    from tubelet.data.settings import DataSettings

    return set(DataSettings.model_fields)
