"""Videos re-encoded for training: pieces of the training size in tar shards, many times faster to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tubelet.api._common import Sources, shown
from tubelet.config import did_you_mean, parse
from tubelet.data.check import count, size_of
from tubelet.data.prepared.make import Engine, Job, Part
from tubelet.data.prepared.merge import Made, merge
from tubelet.data.prepared.options import PrepareSettings
from tubelet.data.source import Images, open_table
from tubelet.data.workers import auto_workers
from tubelet.errors import ConfigError

ENGINES = ("processes", "ray")


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made in ``out``. ``made``: None where other parts are still to be done."""

    out: Path
    part: str
    made: Made | None

    def __str__(self) -> str:
        if self.made is None:
            return f"part {self.part} of {self.out} is done; when all are, run: tubelet prepare {self.out} --merge"
        m = self.made
        text = f"{self.out}: {count(m.items, 'item')}, {m.seconds / 3600:.3g} h in {count(m.pieces, 'piece')}, "
        text += f"{size_of(m.bytes)} in {count(m.shards, 'shard')}"
        return text + (f"; {len(m.bad)} bad, {len(m.partial)} partly" if m.bad or m.partial else "")


def prepare(
    sources: Sources,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    size: int | None = None,
    split: str | None = None,
    labels: str = "auto",
    images: Images = "ignore",
    exclude: Sequence[str] = (),
    part: str | None = None,
    engine: Engine = "processes",
    workers: int | Literal["auto"] = "auto",
    timeout: float = 120.0,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Prepared:
    """Re-encode videos to training size into ``out``, which is then a source like any other: the same items, order and frames, read faster.

    ``sources``, ``split``, ``labels``, ``images``, ``exclude``: as for training. ``size``: short side in pixels, see
    :class:`~tubelet.data.prepared.options.PrepareSettings` for it and for what else ``settings`` (``["crf=20", ...]``) takes. ``part``:
    ``"3/16"`` makes one of 16 parts, for as many machines; :func:`merge_prepared` joins them. ``engine``: ``ray`` spreads the work over a
    Ray cluster (``tubelet[ray]``). ``timeout``: seconds without an answer after which a file counts as broken. ``progress(doing, done,
    total)``, ``say(text)``.

    Stopped at any moment, the same call goes on where it was. Files that cannot be read are listed in ``out``/bad.txt. Raises ConfigError,
    DataError (also where nothing could be prepared, the disk is full, or ``out`` was begun with other settings).
    """
    wrong = []
    if engine not in ENGINES:
        wrong.append(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}{did_you_mean(str(engine), ENGINES)}")
    if workers != "auto" and not (isinstance(workers, int) and 1 <= workers <= 512):
        wrong.append(f"workers must be auto or 1..512, got {workers!r}")
    if not (math.isfinite(timeout) and timeout > 0):
        wrong.append(f"timeout must be more than 0 seconds, got {timeout:g}")
    chosen = _settings(settings, size, wrong)
    piece = Part()
    try:
        piece = Part.read(part) if part is not None else piece
    except ConfigError as error:
        wrong += error.problems
    if wrong or chosen is None:
        raise ConfigError(wrong, where="prepare")
    table = open_table(sources, split=split, labels=labels, images=images, exclude=exclude, missing="keep")
    processes = auto_workers() + 1 if workers == "auto" else workers
    out = Path(out)
    job = Job(table, out, chosen, piece, processes, timeout, engine, progress or (lambda *_: None), say or (lambda text: None))
    job.run()
    if piece.count > 1:
        return Prepared(out, f"{piece.number}/{piece.count}", None)
    return Prepared(out, "1/1", merge(out, shown(sources)))


def merge_prepared(out: str | Path) -> Prepared:
    """Join the parts that machines have written into ``out``, or write the index of a set again. Raises DataError naming missing parts."""
    return Prepared(Path(out), "", merge(Path(out)))


def _settings(texts: Sequence[str], size: int | None, wrong: list[str]) -> PrepareSettings | None:
    from tubelet.config import overlay

    try:
        given = overlay({} if size is None else {"size": size}, texts)
        return parse(PrepareSettings, given)
    except ConfigError as error:
        wrong += error.problems
        return None
