"""How fast videos become training clips on this machine, and how many cores a GPU needs for that."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tubelet import recipe as recipe_book
from tubelet.api._bench_report import DataBench, Need, Sample, Scaling
from tubelet.api._bench_sample import sample_of
from tubelet.api._common import Sources, shown
from tubelet.api.planning import ASSUMED_GPU
from tubelet.api.planning import plan as plan_run
from tubelet.config import import_file
from tubelet.data.loader import VideoFeed
from tubelet.data.pace import Pacer, Rate, interleaved
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.data.table import KINDS, Table
from tubelet.errors import ConfigError, DataError
from tubelet.recipe import Recipe
from tubelet.train.checkpoint import write_text

CLIPS = (1, 4)  # cut from each opened file
ROWS = 512  # of a table that are looked at, at most
Progress = Callable[[str, int, int], None]


def bench_data(
    sources: Sources,
    *,
    recipe: str | Path | None = None,
    size: str | None = None,
    settings: Sequence[str] = (),
    gpu: str | None = None,
    mfu: float = 0.35,
    workers: int | None = None,
    seconds: float = 8.0,
    prepared: bool = True,
    exclude: Sequence[str] = (),
    imports: Sequence[str | Path] = (),
    json_out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataBench:
    """Measure how fast ``sources`` become the clips that a recipe trains on. Nothing is trained or changed.

    On one core, with 1 and with 4 clips from each opened file: clips a second, bytes read, what the time goes into. With 1, 2, 4 ... up to
    ``workers`` decoding processes (None = one for each core): clips a second. ``prepared``: encode some seconds of a few videos to a
    temporary folder, as :func:`tubelet.prepare` does, and measure those, too; sources that are a prepared set are only measured. ``gpu``,
    ``mfu``: as for :func:`tubelet.plan`; from its yardstick follows how many cores keep that GPU busy. ``seconds``: of each of the three
    measurements. ``json_out``: write all figures there. ``progress(doing, done, total)``.

    Files that cannot be read are listed in ``failures``. Raises ConfigError, DataError (also where none can be read).
    """
    problems = _problems(mfu, workers, seconds, json_out, overwrite)
    resolved = None
    try:
        for path in imports:
            import_file(path)
        resolved = recipe_book.load(recipe or "one-gpu", settings, size=size)
    except ConfigError as error:
        problems += error.problems
    if problems or resolved is None:
        raise ConfigError(problems, where="bench data")
    data = resolved.stages[0].data
    table = open_table(sources, split=data.split, labels="none", images=data.images, exclude=exclude)
    need, notes = _need(resolved, recipe, size, settings, gpu, mfu, len(table))
    if data.cache != "none":
        notes.append(f"the recipe keeps decoded videos (data.cache={data.cache}); what is measured here is decoding them")
    plain = data.model_copy(update={"cache": "none", "max_bad_rate": 1.0, "repeats": 1})
    found = _Bench(table, plain, seconds, progress or (lambda *_: None))
    rates = found.rates()
    most = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    scaling = found.scaling(most, notes)
    kinds = {KINDS[kind] for kind in table.kinds}
    sample = found.sample(notes) if prepared and kinds == {"video"} else None
    result = DataBench(
        sources=shown(sources),
        items=len(table),
        source="prepared" if kinds == {"prepared"} else "mixed" if "prepared" in kinds else "raw",
        clip=(data.frames, *data.hw),
        decoder=found.pacer.decoder,
        rates=rates,
        scaling=scaling,
        sample=sample,
        need=need,
        failures=tuple((table.keys[row], reason) for row, reason in sorted(found.pacer.failures.items())),
        notes=(*table.notes, *dict.fromkeys(notes)),
    )
    if json_out is not None:
        write_text(Path(json_out), json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def _problems(mfu: float, workers: int | None, seconds: float, json_out: str | Path | None, overwrite: bool) -> list[str]:
    wrong = []
    if not 0 < mfu <= 1:
        wrong.append(f"mfu is a share of the peak, above 0 and at most 1, got {mfu:g}")
    if workers is not None and not 1 <= workers <= 512:
        wrong.append(f"workers must be 1..512, got {workers}")
    if not 0 < seconds <= 3600:
        wrong.append(f"seconds must be above 0 and at most 3600, got {seconds:g}")
    if json_out is not None and Path(json_out).exists() and not overwrite:
        wrong.append(f"{json_out} exists already; give another name, or replace it with --overwrite")
    return wrong


def _need(
    resolved: Recipe, recipe: str | Path | None, size: str | None, settings: Sequence[str], gpu: str | None, mfu: float, items: int
) -> tuple[Need | None, list[str]]:
    """Clips a second that one GPU trains on, by the yardstick of ``tubelet plan``."""
    notes = []
    if gpu is None and not torch.cuda.is_available():
        gpu = ASSUMED_GPU
        notes.append(f"no GPU is here and none was named: {gpu} is assumed (--gpu)")
    stage = plan_run(None, recipe=recipe or "one-gpu", size=size, settings=settings, gpu=gpu, mfu=mfu, items=items).stages[0]
    if stage.time.compute is None:
        notes.append(f"how many cores the GPU needs is not known: {stage.time.basis}")
        return None, notes
    name = resolved.stages[0].name
    if len(resolved.stages) > 1:
        notes.append(f"the figures are for the first stage of the recipe, {name}")
    return Need(stage.machine.title, str(recipe or "one-gpu"), stage.batch / stage.time.compute, stage.time.basis), notes


class _Bench:
    """The measurements, one after the other."""

    def __init__(self, table: Table, settings: DataSettings, seconds: float, progress: Progress) -> None:
        self.table, self.settings, self.seconds, self.progress = table, settings, seconds, progress
        self.pacer = Pacer(table, settings)
        n = min(len(table), ROWS)
        self.rows = [i * len(table) // n for i in range(n)]

    def rates(self) -> tuple[Rate, ...]:
        """On one core, of rows from all over the table. Raises DataError where none of them can be read."""
        (found,) = self._interleaved("one core", [self.pacer])
        good = tuple(rate for rate in found if rate is not None)
        if not good:
            row, reason = next(iter(self.pacer.failures.items()))
            raise DataError(
                f"none of the {len(self.pacer.failures)} files that were tried can be read, e.g. {self.table.keys[row]}: {reason}"
            )
        return good

    def _interleaved(self, doing: str, pacers: Sequence[Pacer], rows: Sequence[int] | None = None) -> list[list[Rate | None]]:
        began = time.monotonic()

        def tick() -> None:
            self.progress(doing, min(int(1000 * (time.monotonic() - began) / self.seconds), 1000), 1000)

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a decoding process
        try:
            return interleaved(pacers, CLIPS, self.rows if rows is None else rows, seconds=self.seconds, tick=tick)
        finally:
            torch.set_num_threads(threads)

    def scaling(self, most: int, notes: list[str]) -> tuple[Scaling, ...]:
        """Clips a second of wall time by the number of decoding processes, as a training run gets them."""
        counts = sorted({2**i for i in range(most.bit_length())} | {most})
        good = [row for row in self.rows if row not in self.pacer.failures]
        found: list[Scaling] = []
        for done, count in enumerate(counts):
            self.progress("processes", done, len(counts))
            try:
                found.append(Scaling(count, self._throughput(self.table.select(good), count)))
            except DataError as error:
                notes.append(f"{count} processes could not be measured: {error}")
        self.progress("processes", len(counts), len(counts))
        return tuple(found)

    def _throughput(self, table: Table, workers: int) -> float:
        k, batch = self.settings.clips_per_video, 8
        batch = -(-batch // k) * k
        with VideoFeed(table, self.settings.model_copy(update={"workers": workers, "prefetch": 2}), seed=0) as feed:
            batches = feed.batches(range(i, i + batch) for i in range(0, 10**9, batch))
            for _ in range(2 * workers):  # until all processes are at work and what they had ready is gone
                next(batches)
            began, clips = time.perf_counter(), 0
            while time.perf_counter() - began < self.seconds / 2 or clips < 2 * workers * batch:
                clips += len(next(batches))
            return clips / (time.perf_counter() - began)

    def sample(self, notes: list[str]) -> Sample | None:
        """The same seconds of a few videos, raw and prepared."""
        with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as folder:
            try:
                good = [row for row in self.rows if row not in self.pacer.failures]
                made = sample_of(self.table, good, self.settings, Path(folder), lambda done, total: self.progress("preparing", done, total))
            except DataError as error:
                notes.append(f"what a prepared set would bring could not be measured: {error}")
                return None
            pacers = [Pacer(made.raw, self.settings), Pacer(made.prepared, self.settings)]
            raw, prepared = self._interleaved("prepared", pacers, range(len(made.raw)))
        if None in raw or None in prepared:
            notes.append("what a prepared set would bring could not be measured: none of the sample could be read again")
            return None
        return Sample(
            items=len(made.raw),
            seconds=made.seconds,
            raw=tuple(rate for rate in raw if rate is not None),
            prepared=tuple(rate for rate in prepared if rate is not None),
            size=made.size,
            hour=made.hour,
            encoding=made.encoding,
        )
