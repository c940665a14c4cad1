"""A run folder as one page to read, keep or send."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import ConfigError, DataError
from tubelet.train.checkpoint import write_text
from tubelet.viz.report import is_run, render


def report(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write ``report.html`` of a run folder: how it ended, curves, probes, pictures, settings and their origins, cost, bad videos, and
    the commands that come next. Returns its path.

    One file of a few MB at most that needs no network. Any run folder will do: unfinished, stopped, failed, of several stages, of an
    earlier version; what it lacks is said to be missing. ``out``: another file. Raises DataError for a folder that is no run, ConfigError
    for an ``out`` that cannot be a file, CheckpointError where it cannot be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder" if not run.exists() else f"{run} is a file; give the run folder")
    if not is_run(run):
        inside = sorted(p.name for p in run.iterdir() if p.is_dir() and is_run(p))
        hint = f"; it holds the runs {', '.join(inside[:5])}: give {run / inside[0]}" if inside else ""
        raise DataError(f"{run} is not a run folder: it holds no config.yaml, metrics.jsonl, run.json, checkpoint or model{hint}")
    path = run / "report.html" if out is None else Path(out)
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; give a file such as {path / 'report.html'}")
    # Names of files may hold bytes that are no text.
    write_text(path, render(run).encode("utf-8", "replace").decode("utf-8"))
    return path
