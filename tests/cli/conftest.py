"""Run command lines in this process, with the public functions replaced by recorders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import tubelet
from tubelet.cli import run


@dataclass
class Run:
    code: int
    out: str
    err: str


@dataclass
class Recorder:
    """Calls of one public function. ``gives``: its result, or the exception that it raises."""

    gives: Any = None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        if isinstance(self.gives, BaseException):
            raise self.gives
        return self.gives


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    for name in ("RANK", "TUBELET_DEBUG", "_TUBELET_COMPLETE"):
        monkeypatch.delenv(name, raising=False)

    def call(*args: str) -> Run:
        capsys.readouterr()
        code = run(args)
        out, err = capsys.readouterr()
        return Run(code, out, err)

    return call


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """``public("knn", gives=...)`` replaces tubelet.knn."""

    def replace(name: str, gives: Any = None) -> Recorder:
        recorder = Recorder(gives)
        if name == "recipes":  # tubelet.recipes is a package, too
            monkeypatch.setattr("tubelet.api.recipes", recorder)
        else:
            monkeypatch.setitem(vars(tubelet), name, recorder)
        return recorder

    return replace
