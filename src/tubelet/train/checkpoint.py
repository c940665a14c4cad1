"""Checkpoints: one safetensors file each, written atomically, with the settings and the data's identity in its header."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from tubelet.config import differences
from tubelet.errors import CheckpointError

FORMAT = 1


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well: whole or not at all, also after a power cut.

    Raises CheckpointError with the free space where the disk is full; the file that was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)  # of a write that was killed
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, safetensors.SafetensorError) as error:
        full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(error)
        free = shutil.disk_usage(path.parent).free / 2**20
        why = f"the disk is full ({free:.0f} MiB free)" if full else str(error)
        raise CheckpointError(f"cannot write {path}: {why}") from error
    finally:
        temporary.unlink(missing_ok=True)


class _Sink(io.RawIOBase):
    """Takes everything, and keeps the first error: torch's archive writer ends the process where its file raises one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        if self.error is None:
            try:
                self.file.write(block)
            except OSError as error:
                self.error = error
        return len(block)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """``torch.export.save`` rewinds what it has written."""
        return 0 if self.error else self.file.seek(offset, whence)


@contextlib.contextmanager
def torch_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file for ``torch.save`` and ``torch.export.save``. Raises OSError at its end where writing failed."""
    with open(path, "wb") as file:
        sink = _Sink(file)
        yield cast(IO[bytes], sink)
        if sink.error is not None:
            raise sink.error


def write_text(path: Path, text: str) -> None:
    """A small text file, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Tensors and a JSON-able ``meta`` as one safetensors file, atomically."""
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        owned[name] = value.clone() if value.untyped_storage().data_ptr() in storages else value  # the format refuses shared memory
        storages.add(value.untyped_storage().data_ptr())
    with atomic(path) as temporary:
        safetensors.torch.save_file(owned, temporary, metadata={"tubelet": json.dumps(dict(meta))})


def read_meta(path: Path) -> dict[str, Any]:
    """The ``meta`` of a file. Raises CheckpointError for what is missing, damaged or not ours."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = (file.metadata() or {}).get("tubelet")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error})") from None
    if meta is None:
        raise CheckpointError(f"{path} is a safetensors file, but Tubelet did not write it: its header has no 'tubelet' entry")
    try:
        found = json.loads(meta)
        version = found.get("format", FORMAT)
    except (json.JSONDecodeError, AttributeError):
        raise CheckpointError(f"{path}: the 'tubelet' entry of its header is damaged") from None
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version of Tubelet reads format {FORMAT}")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the host. Raises CheckpointError."""
    read_meta(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None


@dataclass(frozen=True)
class Checkpoint:
    """A file of a run's ``checkpoints`` folder. ``step``: optimiser steps it holds."""

    path: Path
    step: int


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.folder, self.keep = run_dir / "checkpoints", keep

    def all(self) -> list[Checkpoint]:
        """Oldest first."""
        found = []
        for path in self.folder.glob("step-*.safetensors"):
            with contextlib.suppress(ValueError):
                found.append(Checkpoint(path, int(path.stem.removeprefix("step-"))))
        return sorted(found, key=lambda c: c.step)

    def clean(self) -> None:
        """Remove what writes that were killed have left behind."""
        for leftover in self.folder.glob(".step-*.tmp"):
            leftover.unlink(missing_ok=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write one, then delete those beyond the last ``keep``. Raises CheckpointError; older ones then stay as they were."""
        path = self.folder / f"step-{step:08d}.safetensors"
        try:
            write_tensors(path, tensors, {**meta, "format": FORMAT, "step": step})
        except CheckpointError as error:
            last = self.all()
            kept = f"the last good checkpoint is {last[-1].path.name}" if last else "there is no earlier checkpoint"
            raise CheckpointError(f"{error}; {kept}. Free some space, then continue with --resume") from error
        for old in self.all()[: -self.keep]:
            if old.path != path:
                old.path.unlink(missing_ok=True)
        return path

    def latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest that can be read; damaged ones are named through ``warn``. Raises CheckpointError if all are damaged."""
        found = self.all()
        for checkpoint in reversed(found):
            try:
                read_meta(checkpoint.path)
            except CheckpointError as error:
                warn(f"{error}; using the one before it")
                continue
            return checkpoint
        if found:
            raise CheckpointError(f"none of the {len(found)} checkpoints in {self.folder} can be read; start again with another --out")
        return None


def explain_mismatch(saved: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str], usual: Collection[str] = ()) -> list[str]:
    """One line for each setting in which a checkpoint and the present call differ, but for the ``free`` ones.

    ``usual``: paths at which this call holds defaults. A checkpoint that does not know such a setting was written before there was one,
    and a new setting's default is what was done before, so they agree.
    """
    lines = []
    for path, old, new in differences(saved, now):
        if any(path == f or path.startswith(f + ".") for f in free) or (path in usual and not _known(saved, path)):
            continue
        lines.append(f"{path}: the checkpoint has {_shown(old)}, this call {_shown(new)}")
    return lines


def _known(saved: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(saved, Mapping) or part not in saved:
            return False
        saved = saved[part]
    return True


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
