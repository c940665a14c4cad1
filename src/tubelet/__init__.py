"""Tubelet: self-supervised learning from video. Every name is loaded on first use; importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tubelet.errors import CheckpointError, ConfigError, DataError, DecodeError, NonFiniteError, TubeletError

if TYPE_CHECKING:
    from tubelet.api import (
        Finetuned,
        Loaded,
        LoadedClassifier,
        bench_data,
        caption,
        check,
        convert,
        embed,
        evaluate,
        export,
        finetune,
        guide,
        knn,
        load,
        load_classifier,
        make_playground,
        masks,
        merge_prepared,
        plan,
        prepare,
        pretrain,
        probe,
        recipes,
        reconstruct,
        replay,
        report,
        retrieve,
        show_recipe,
        zeroshot,
    )
    from tubelet.first_run import demo

__version__ = "0.1.0"

_WHERE = {
    "tubelet.api": (
        "Finetuned",
        "Loaded",
        "LoadedClassifier",
        "bench_data",
        "caption",
        "check",
        "convert",
        "embed",
        "evaluate",
        "export",
        "finetune",
        "guide",
        "knn",
        "load",
        "load_classifier",
        "make_playground",
        "masks",
        "merge_prepared",
        "plan",
        "prepare",
        "pretrain",
        "probe",
        "recipes",
        "reconstruct",
        "replay",
        "report",
        "retrieve",
        "show_recipe",
        "zeroshot",
    ),
    "tubelet.first_run": ("demo",),
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DecodeError",
    "Finetuned",
    "Loaded",
    "LoadedClassifier",
    "NonFiniteError",
    "TubeletError",
    "__version__",
    "bench_data",
    "caption",
    "check",
    "convert",
    "demo",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "guide",
    "knn",
    "load",
    "load_classifier",
    "make_playground",
    "masks",
    "merge_prepared",
    "plan",
    "prepare",
    "pretrain",
    "probe",
    "recipes",
    "reconstruct",
    "replay",
    "report",
    "retrieve",
    "show_recipe",
    "zeroshot",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
