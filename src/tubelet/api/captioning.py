"""Captions for videos that have none, by an image captioner on a few frames of each (TGM section 3a)."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.api._common import Sources, shown
from tubelet.data.captions import COLUMN
from tubelet.data.reader import choose_decoder, open_item, read_chosen
from tubelet.data.source import SPLITS, open_table
from tubelet.data.table import Item, Table
from tubelet.errors import CheckpointError, ConfigError, DataError, DecodeError
from tubelet.interop.captioner import open_captioner
from tubelet.train.checkpoint import write_text
from tubelet.train.distributed import pick_device

FIRST = ("path", "key", "label", "start", "end", "split", COLUMN)


@dataclass(frozen=True)
class Captioned:
    """``captions``: of every video that could be read, by key. ``failures``: (key, reason). ``out``: the manifest. ``seconds``: of this
    call, in which ``new`` videos were captioned."""

    captions: dict[str, tuple[str, ...]]
    failures: tuple[tuple[str, str], ...]
    n_total: int
    new: int
    seconds: float
    out: Path

    def __str__(self) -> str:
        none = sum(not texts for texts in self.captions.values())
        head = f"{len(self.captions)} / {self.n_total} videos captioned"
        head += f", {none} of them without words" if none else ""
        if self.new:
            head += f"; {self.new} in this call, {self.new / max(self.seconds, 1e-9):.2f} videos a second"
        some = [f'  {key}: "{texts[0]}"' for key, texts in self.captions.items() if texts][:3]
        return "\n".join([head, *some])


def caption(
    sources: Sources,
    *,
    model: str | Path | Callable[[Sequence[np.ndarray]], list[str]],
    out: str | Path,
    frames: int = 3,
    batch: int = 8,
    prompt: str | None = None,
    max_tokens: int = 30,
    split: str | None = None,
    device: str = "auto",
    exclude: Sequence[str] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Captioned:
    """Write a manifest with a ``caption`` column: for each video a JSON list of what ``model`` says of ``frames`` frames, evenly spread.

    ``model``: folder of an image captioner of transformers (BLIP, BLIP-2, GIT ...), or a function from pictures (h, w, 3) uint8 to
    sentences. ``batch``: pictures at once. ``prompt``: words that the model continues; ``max_tokens`` of an answer. The manifest has the
    same items as the sources (keys, labels, segments, splits), so it can be used in their place. A call that was stopped goes on where it
    was. Raises ConfigError, CheckpointError, DataError.
    """
    for name, value in (("frames", frames), ("batch", batch), ("max_tokens", max_tokens)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    out = Path(out)
    if out.suffix != ".csv":
        raise ConfigError(f"--out {out}: captions are written as a manifest, a .csv")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out} exists; give another name, or --overwrite")
    table = open_table(sources, split=split, labels="auto", exclude=exclude)
    describe = (
        model if callable(model) else open_captioner(model, device=pick_device(device, "device"), prompt=prompt, max_tokens=max_tokens)
    )
    about = {"frames": frames, "prompt": prompt, "max_tokens": max_tokens, "model": getattr(describe, "sha256", None)}
    began = time.monotonic()
    with _Journal(out, about | {"sources": table.fingerprint()}, overwrite) as journal:
        new = 0
        for row in range(len(table)):
            if table.keys[row] not in journal.done:
                journal.add(table.keys[row], *_describe(table.item(row), describe, frames, batch))
                new += 1
            if progress is not None:
                progress(row + 1, len(table))
        done = journal.done
    captions = {key: tuple(said) for key, (said, problem) in done.items() if problem is None}
    failures = tuple((key, str(problem)) for key, (_, problem) in done.items() if problem is not None)
    if not captions:
        raise DataError(f"{shown(sources)}: none of {len(table)} videos can be read, the first: {failures[0][1]}")
    write_text(out, _manifest(table, captions, out))
    journal.remove()
    return Captioned(captions, failures, len(table), new, time.monotonic() - began, out)


def key_frames(n: int, count: int) -> np.ndarray:
    """The middles of ``count`` equal parts of n frames; fewer where n is smaller."""
    return np.unique(((np.arange(count) + 0.5) * n / count).astype(np.int64).clip(0, n - 1))


def _describe(item: Item, describe: Callable[..., list[str]], count: int, batch: int) -> tuple[list[str], str | None]:
    """What is said of an item, each sentence once; or why it cannot be read."""
    pictures: list[np.ndarray] = []

    def choose(times: np.ndarray) -> list[np.ndarray]:
        pictures.clear()
        return [key_frames(len(times), count)]

    try:
        with open_item(item, decoder=choose_decoder("auto")) as reader:
            read_chosen(reader, item, choose, lambda _, picture: pictures.append(np.ascontiguousarray(picture.rgb())))
    except DecodeError as error:
        return [], str(error)
    said = [text for i in range(0, len(pictures), batch) for text in describe(pictures[i : i + batch])]
    return list(dict.fromkeys(text.strip() for text in said if text.strip())), None


class _Journal:
    """What is done, line by line, beside the manifest that is to be. ``done``: key -> (sentences, why not)."""

    def __init__(self, out: Path, about: dict[str, Any], overwrite: bool) -> None:
        self.path, self.about = out.with_name(f".{out.name}.part.jsonl"), about
        self.done: dict[str, tuple[list[str], str | None]] = {}
        if overwrite:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> _Journal:
        try:
            if self.path.exists():
                self._read()
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(self.about) + "\n", encoding="utf-8")
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.path}: cannot write: {error.strerror or error}") from None
        return self

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # a line that was cut off goes
        os.truncate(self.path, len(whole))
        lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
        if not lines:
            self.path.write_text(json.dumps(self.about) + "\n", encoding="utf-8")
            return
        changed = [name for name in self.about if lines[0].get(name) != self.about[name]]
        if changed:
            raise ConfigError(f"{self.path} was begun with other {' and '.join(changed)}; use the same, or --overwrite to begin anew")
        self.done = {line["key"]: (line["captions"], line["problem"]) for line in lines[1:]}

    def add(self, key: str, captions: list[str], problem: str | None) -> None:
        """Kept from now on, whatever happens."""
        try:
            self._file.write(json.dumps({"key": key, "captions": captions, "problem": problem}) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror or error}; free some space and run the same command again: "
                f"{len(self.done)} videos are done"
            ) from None
        self.done[key] = captions, problem

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()

    def remove(self) -> None:
        """The manifest is there."""
        self.path.unlink(missing_ok=True)


def _manifest(table: Table, captions: dict[str, tuple[str, ...]], out: Path) -> str:
    """The same items as CSV, with captions."""
    more = [name for name in table.extra if name not in FIRST]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIRST, *more], lineterminator="\n")
    writer.writeheader()
    for row in range(len(table)):
        item = table.item(row)
        extra = {name: column[row] for name, column in table.extra.items()}
        first = item.key.split("/")[0]
        writer.writerow(
            {name: extra[name] for name in more}
            | {
                "path": _path(item.path, out),
                "key": item.key,
                "label": table.classes[item.label] if item.label >= 0 else "",
                "start": "" if item.start is None else repr(item.start),
                "end": "" if item.end is None else repr(item.end),
                "split": extra.get("split", first if first.lower() in SPLITS and "/" in item.key else ""),
                COLUMN: json.dumps(list(captions.get(item.key, ())), ensure_ascii=False),
            }
        )
    return text.getvalue()


def _path(path: str, out: Path) -> str:
    """As the manifest's folder sees it."""
    if "://" in path:
        return path
    whole, folder = Path(path).absolute(), out.absolute().parent
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)
