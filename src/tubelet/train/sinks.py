"""Where a run's figures go: metrics.jsonl always, TensorBoard event files, Weights & Biases when asked."""

from __future__ import annotations

import contextlib
import importlib.util
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tubelet.errors import ConfigError
from tubelet.train.checkpoint import write_text
from tubelet.train.monitor import MetricsFile
from tubelet.train.settings import WatchSettings

WANDB_ID = "wandb_run_id"


class Sink(Protocol):
    """Somewhere that gets a copy of every row."""

    def write(self, row: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def check(settings: WatchSettings) -> None:
    """Before anything is read or trained. Raises ConfigError where W&B is asked for and not installed."""
    if settings.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"watch.wandb={settings.wandb}: the package wandb is not installed; install it (pip install wandb) or leave watch.wandb out"
        )


class Sinks:
    """One row to all places, from the first process. metrics.jsonl must be written (CheckpointError where it cannot be); another place that
    fails is named once through ``say`` and left out from then on.

    ``resume_step``: the checkpoint's step; what was written after it is dropped, so that every step is there once. None = a new run.
    """

    def __init__(
        self, run_dir: Path, settings: WatchSettings, *, resume_step: int | None, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.metrics = MetricsFile(run_dir / "metrics.jsonl", resume_step=resume_step)
        self.run_dir, self.say = run_dir, say
        self.copies: dict[str, Sink] = {}
        if settings.tensorboard:
            self._try("TensorBoard", lambda: self.copies.update({"TensorBoard": TensorBoard(run_dir / "tensorboard", resume_step)}))
        if settings.wandb:
            project = settings.wandb if isinstance(settings.wandb, str) else "tubelet"
            self._try("W&B", lambda: self.copies.update({"W&B": Wandb(run_dir, project, resume_step, config)}))

    def write(self, row: Mapping[str, Any]) -> None:
        """``row`` has "step"; numbers are curves, a Path is a picture inside the run folder."""
        self.metrics.write({k: v.relative_to(self.run_dir).as_posix() if isinstance(v, Path) else v for k, v in row.items()})
        for name, copy in list(self.copies.items()):
            self._try(name, lambda copy=copy: copy.write(row))

    def flush(self) -> None:
        """What was written so far is on disk: before a checkpoint that will go on after it."""
        for name, copy in list(self.copies.items()):
            self._try(name, copy.flush)

    def close(self) -> None:
        for name, copy in list(self.copies.items()):
            self._try(name, copy.close)
        self.metrics.close()

    def _try(self, name: str, job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 (a full disk or a lost network there must not end the run)
            self.copies.pop(name, None)
            self.say(f"watching: {name} is left out from here on, the run goes on ({type(error).__name__}: {error})")


class TensorBoard:
    """Event files. On resume a new file begins with a mark by which readers drop what was written after the checkpoint."""

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        before = any(folder.glob("events.out.tfevents.*"))
        self.writer = SummaryWriter(str(folder), purge_step=(resume_step or -1) + 1 if before else None, flush_secs=30)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                tag = name if "/" in name else f"train/{name}"
                self.writer.add_scalar(tag, value, row["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A W&B run of the folder's name that goes on when the run does. WANDB_MODE=offline and wandb's other variables hold as usual."""

    def __init__(self, run_dir: Path, project: str, resume_step: int | None, config: Mapping[str, Any]) -> None:
        import wandb

        known = run_dir / WANDB_ID
        if resume_step is None or not known.exists():
            write_text(known, uuid.uuid4().hex[:12] + "\n")
        self.wandb, self.run_dir = wandb, run_dir
        self.run = wandb.init(
            project=project,
            name=run_dir.name,
            id=known.read_text(encoding="utf-8").strip(),
            dir=str(run_dir),
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """W&B passes over steps that it has already; after a resume those are the same figures again."""
        self.run.log({k: self.wandb.Image(str(v)) if isinstance(v, Path) else v for k, v in row.items() if k != "step"}, step=row["step"])

    def flush(self) -> None:
        """It writes as it goes."""

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.run.finish()
