"""The labelled items of a classification task: what is trained on, what settings are chosen by, what is tested."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.api._common import Sources, shown
from tubelet.config import did_you_mean
from tubelet.data.places import is_url
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.errors import DataError
from tubelet.tasks.probe import grouped, held_out

EVERYTHING = "all"


@dataclass(frozen=True)
class LabelledTables:
    """All have the same classes: those that occur in the training split, in the source's order."""

    train: Table
    val: Table | None
    test: Table | None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def open_labelled(
    sources: Sources,
    data: DataSettings,
    *,
    train: str | None,
    test: str | None,
    test_sources: Sources | None,
    val_share: float,
    seed: int,
    val_groups: str | None = None,
    exclude: Sequence[str] = (),
) -> LabelledTables:
    """The tables of a fine-tuning run. ``train``: a split, None = everything. ``test``: a split of ``sources``, or None; with
    ``test_sources`` all of those. ``val_share``: of every class of the training split, by ``seed``; items of one value of the
    column ``val_groups`` stay together.

    Raises DataError for splits that are not there, missing labels, fewer than two classes, test classes that training lacks, and items that
    are in both.
    """
    first = _split(sources, data, train, exclude, "training", "--train NAME, or take everything with --train all")
    if not first.classes:
        raise DataError(
            f"{shown(sources)}: no labels found; fine-tuning needs a folder per class, or a manifest with a label column (data.labels)"
        )
    classes = [name for i, name in enumerate(first.classes) if (first.labels == i).any()]
    if len(classes) < 2:
        raise DataError(f"all {len(first)} training items are of one class, {classes[0]!r}; there must be at least two")
    first = Table(first.rows(), classes, first.notes)
    second = open_test(sources, data, classes, test=test, test_sources=test_sources, exclude=exclude)
    if second is not None and (both := sorted(_places(first) & _places(second))):
        names = ", ".join(path for path, _, _ in both[:3])
        raise DataError(f"{len(both)} test items are also training items ({names}{', ...' if len(both) > 3 else ''}); give disjoint splits")
    val = None
    if val_share:
        groups = None if val_groups is None else grouped(first.groups(val_groups), first.keys)
        out = held_out(first.labels, seed, val_share, groups)
        if not out.any():
            lacks = "two training items" if val_groups is None else f"training items of two {val_groups}"
            raise DataError(f"val_share {val_share:g} holds nothing out: no class has {lacks}")
        first, val = first.select(np.flatnonzero(~out)), first.select(np.flatnonzero(out))
    return LabelledTables(first, val, second)


def open_test(
    sources: Sources,
    data: DataSettings,
    classes: Sequence[str],
    *,
    test: str | None,
    test_sources: Sources | None = None,
    exclude: Sequence[str] = (),
) -> Table | None:
    """The items to test on, numbered by ``classes``. Raises DataError for a missing split, missing labels, or unknown classes."""
    if test_sources is not None:
        table = _split(test_sources, data, None, exclude, "test", "--test-sources")
    elif test is not None:
        table = _split(sources, data, test, exclude, "test", "--test NAME, give --test-sources, or leave the test out with --no-test")
    else:
        return None
    where = shown(test_sources if test_sources is not None else sources)
    if not table.classes:
        raise DataError(f"{where}: the test items have no labels; give a folder per class, or a manifest with a label column (data.labels)")
    names = [table.classes[i] for i in table.labels]
    unknown = sorted(set(names) - set(classes))
    if unknown:
        lines = [f"{name!r} ({names.count(name)} items{_near(name, classes)})" for name in unknown[:5]]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(f"{where}: {len(unknown)} test classes do not occur in training: {', '.join(lines)}{more}")
    return Table(table.rows(), classes, table.notes)


def _near(name: str, classes: Sequence[str]) -> str:
    found = did_you_mean(name, classes)
    return f", {found[2:-1]}" if found else ""


def _split(sources: Sources, data: DataSettings, split: str | None, exclude: Sequence[str], role: str, remedy: str) -> Table:
    def opened(name: str | None) -> Table:
        return open_table(sources, split=name, labels=data.labels, images=data.images, exclude=exclude)

    try:
        return opened(split)
    except DataError as error:
        if split is None:
            raise
        opened(None)  # what is wrong with the source itself is said as it is
        raise DataError(f"no {role} split: {error}. Name it with {remedy}") from None


def _places(table: Table) -> set[tuple[str, float, float]]:
    """Where each item is: file and segment, -1 = open."""
    spans = np.nan_to_num(table.spans, nan=-1.0).tolist()
    return {(p if is_url(p) else os.path.normpath(os.path.abspath(p)), *s) for p, s in zip(table.paths, spans, strict=True)}
