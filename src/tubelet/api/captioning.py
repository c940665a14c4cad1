"""Captions for videos that have none, by an image captioner on a few frames of each (TGM section 3a)."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tubelet.api._caption_files import Journal, manifest
from tubelet.api._common import Sources, shown
from tubelet.data.keyframes import read_key_frames
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.data.workers import auto_workers
from tubelet.errors import ConfigError, DataError
from tubelet.interop.captioner import Describe, open_captioner
from tubelet.train.checkpoint import write_text
from tubelet.train.distributed import pick_device

Progress = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Captioned:
    """``captions``: of every video that could be read, by key, each sentence once. ``failures``: (key, reason). ``n_total``: videos that
    were to be captioned. ``out``: the manifest. ``seconds``: of this call, in which ``new`` videos were captioned by ``n_asked``
    sentences. ``notes``: about the sources."""

    captions: dict[str, tuple[str, ...]]
    failures: tuple[tuple[str, str], ...]
    n_total: int
    new: int
    n_asked: int
    seconds: float
    out: Path
    notes: tuple[str, ...] = ()

    @property
    def n_silent(self) -> int:
        """Videos that could be read and of which nothing was said."""
        return sum(not texts for texts in self.captions.values())

    def __str__(self) -> str:
        head = f"{len(self.captions)} / {self.n_total} videos captioned"
        head += f", {self.n_silent} of them without words" if self.n_silent else ""
        if self.new:
            before = f"{self.new} in this call, " if self.new < len(self.captions) else ""
            head += f"; {before}{self.n_asked / max(self.seconds, 1e-9):.2f} captions a second"
        some = [f'  {_printable(key)}: "{_printable(texts[0])}"' for key, texts in self.captions.items() if texts][:3]
        return "\n".join([head, *some])


def caption(
    sources: Sources,
    *,
    model: str | Path | Describe,
    out: str | Path,
    frames: int = 3,
    batch: int = 8,
    prompt: str | None = None,
    max_tokens: int = 30,
    split: str | None = None,
    device: str = "auto",
    exclude: Sequence[str] = (),
    workers: int | Literal["auto"] = "auto",
    overwrite: bool = False,
    progress: Progress = None,
) -> Captioned:
    """Write a manifest with a ``caption`` column: for each video a JSON list of what ``model`` says of ``frames`` frames, evenly spread.

    ``model``: folder of an image captioner of transformers (BLIP, BLIP-2, GIT ...), or a function from pictures (h, w, 3) uint8 to as many
    sentences. ``batch``: pictures at once, also of several videos. ``prompt``: words that the model continues; ``max_tokens`` of an answer.
    ``split``: caption its videos only. ``workers``: processes that decode, 0 = none. ``progress(done, total)`` counts videos.

    The manifest has the same items as the sources (keys, labels, segments, splits), so it can be used in their place; videos of other
    splits keep the captions that they have. A video that cannot be read is listed and has none. A call that was stopped goes on where it
    was. Raises ConfigError, CheckpointError (also for a full disk; what is done stays), DataError.
    """
    out = Path(out)
    _check(out, overwrite, workers, frames=frames, batch=batch, max_tokens=max_tokens)
    items = _items(sources, split, exclude)
    table, rows, keys = items.table, items.rows, [items.table.keys[row] for row in items.rows]

    def text(captions: dict[str, tuple[str, ...]]) -> str:
        return manifest(table, captions, out, captioned=set(keys), split=split, labels=items.labels)

    text({})  # what cannot be written is told before the work
    describe, where = _describer(model, device, prompt, max_tokens)
    about = {"model": getattr(describe, "sha256", None), "frames": frames, "prompt": prompt, "max_tokens": max_tokens}
    about |= {"sources": table.fingerprint()["hash"]}
    if workers == "auto":  # at least one, so that no file can hang this process; on the CPU the model wants the other cores
        workers = max(1, auto_workers() if where.type == "cuda" else min(auto_workers(), 2))
    failures: dict[str, str] = {}
    began, new, asked = time.monotonic(), 0, 0
    with Journal(out, about, overwrite=overwrite) as journal:
        todo = [row for row in rows if table.keys[row] not in journal.done]
        with closing(_described(table, todo, describe, frames=frames, batch=batch, workers=workers)) as answers:
            for row, answer in answers:
                if isinstance(answer, str):
                    failures[table.keys[row]] = answer
                else:
                    journal.add(table.keys[row], _distinct(answer))
                    new, asked = new + 1, asked + len(answer)
                if progress is not None:
                    progress(len(rows) - len(todo) + new + len(failures), len(rows))
        captions = {key: tuple(journal.done[key]) for key in keys if key in journal.done}
        if not captions:
            raise DataError(f"{shown(sources)}: none of the {len(rows)} videos can be read, e.g. {': '.join(next(iter(failures.items())))}")
        write_text(out, text(captions))
        journal.remove()
    lost = tuple((key, failures[key]) for key in keys if key in failures)
    return Captioned(captions, lost, len(rows), new, asked, time.monotonic() - began, out, items.notes)


def _check(out: Path, overwrite: bool, workers: int | str, **counts: int) -> None:
    """Raises ConfigError for all that is wrong with the call."""
    wrong = [f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1]
    if workers != "auto" and not (isinstance(workers, int) and 0 <= workers <= 512):
        wrong.append(f"workers must be auto or 0..512, got {workers!r}")
    if out.is_dir():
        wrong.append(f"--out {out} is a folder; give a file such as {out / 'captioned.csv'}")
    elif out.suffix != ".csv":
        wrong.append(f"--out {out}: captions are written as a manifest, a .csv")
    elif out.exists() and not overwrite:
        wrong.append(f"--out {out} exists; give another name, or --overwrite")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        wrong.append(f"--out {out} cannot be written: no permission in {folder}, or it is no folder")
    if wrong:
        raise ConfigError(wrong)


@dataclass(frozen=True)
class _Items:
    """``table``: all items. ``rows``: those that are to be captioned. ``labels``: whether the labels are known."""

    table: Table
    rows: list[int]
    labels: bool
    notes: tuple[str, ...]


def _items(sources: Sources, split: str | None, exclude: Sequence[str]) -> _Items:
    """What the sources hold. Labels that cannot be used (some are missing) are no obstacle: their columns are passed on as they are."""
    labels, notes = True, ()
    try:
        chosen = open_table(sources, split=split, exclude=exclude)
    except DataError as error:
        labels, notes = False, (f"labels are not looked at: {error}",)
        chosen = open_table(sources, split=split, exclude=exclude, labels="none")
    notes = (*chosen.notes, *notes)
    if split is None:
        return _Items(chosen, list(range(len(chosen))), labels, notes)
    # Files of the other splits need not be here.
    table = open_table(sources, exclude=exclude, labels="auto" if labels else "none", missing="keep")
    wanted = {(item.path, item.start, item.end) for item in map(chosen.item, range(len(chosen)))}
    items = map(table.item, range(len(table)))
    rows = [row for row, item in enumerate(items) if (item.path, item.start, item.end) in wanted]
    return _Items(table, rows, labels, notes)


def _describer(model: str | Path | Describe, device: str, prompt: str | None, max_tokens: int) -> tuple[Describe, torch.device]:
    """What is asked, and where it runs."""
    if not isinstance(model, str | Path):
        if prompt is not None:
            raise ConfigError("prompt is for a model in a folder; a function gets the pictures alone")
        return model, torch.device("cpu")
    where = pick_device(device, "device")
    return open_captioner(model, device=where, prompt=prompt, max_tokens=max_tokens), where


def _described(
    table: Table, rows: Sequence[int], describe: Describe, *, frames: int, batch: int, workers: int
) -> Generator[tuple[int, list[str] | str], None, None]:
    """(row, a sentence for each of its pictures, or why there are none). ``describe`` gets ``batch`` pictures, of whatever rows."""
    waiting: deque[tuple[int, int]] = deque()  # rows whose sentences are not complete, with how many pictures they have
    pictures: list[np.ndarray] = []
    said: list[str] = []  # of the waiting rows, in their order

    def ask() -> Iterator[tuple[int, list[str]]]:
        answers = describe(pictures[:batch])
        if len(answers) != len(pictures[:batch]):
            raise ConfigError(f"the model said {len(answers)} sentences of {len(pictures[:batch])} pictures; one for each is needed")
        said.extend(answers)
        del pictures[:batch]
        while waiting and waiting[0][1] <= len(said):
            row, n = waiting.popleft()
            yield row, said[:n]
            del said[:n]

    with closing(read_key_frames(table, rows, count=frames, workers=workers)) as looks:
        for row, seen in looks:
            if isinstance(seen, str):
                yield row, seen
                continue
            waiting.append((row, len(seen)))
            pictures += seen
            while len(pictures) >= batch:
                yield from ask()
        while pictures:
            yield from ask()


def _distinct(said: Sequence[str]) -> list[str]:
    """Every sentence once, without those that say nothing."""
    return list(dict.fromkeys(text.strip() for text in said if text.strip()))


def _printable(text: str) -> str:
    """File names may hold anything: line breaks, terminal codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
