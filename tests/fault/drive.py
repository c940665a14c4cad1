"""One training run in a process of its own, with a fault built in.

python drive.py plain ARGS...              tubelet pretrain ARGS...
python drive.py die-in-write N ARGS...     the same, but SIGKILL in the middle of the N-th checkpoint's write
python drive.py full-metrics N ARGS...      the same, but the disk is full for metrics.jsonl from its N-th line on
python drive.py record FILE ARGS...        the same, and every mask's visible tokens by sample number into FILE.RANK

With PID_FOLDER in the environment, the process first writes its id to PID_FOLDER/pid.RANK: torchrun starts processes in sessions of their
own, which a signal to the launcher's group does not reach.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch


def die_in_write(n: int) -> None:
    """Half of the N-th checkpoint's bytes reach the temporary file, then the process is gone."""
    import safetensors.torch

    save, count = safetensors.torch.save_file, 0

    def dying(tensors, filename, metadata=None):
        nonlocal count
        count += "checkpoints" in str(filename)
        save(tensors, filename, metadata)
        if count == n:
            os.truncate(filename, os.path.getsize(filename) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    safetensors.torch.save_file = dying


def full_metrics(n: int) -> None:
    """From the N-th line on, what is written goes to a device that is always full."""
    from tubelet.train.monitor import MetricsFile

    write, count = MetricsFile.write, 0

    def filling(self, row):
        nonlocal count
        count += 1
        if count == n:
            self.file.close()
            self.file = open("/dev/full", "a")  # noqa: SIM115 (the run closes it)
        write(self, row)

    MetricsFile.write = filling


def record(file: str) -> None:
    """Write each sample's visible indices as they are drawn."""
    from tubelet.masking.tube import Tube

    draw, seen = Tube.forward, {}

    def recording(self, grid, batch, stream, at, tokens=None):
        mask = draw(self, grid, batch, stream, at, tokens)
        if self.training:  # not those of pictures
            seen.update(zip(batch.sample.tolist(), mask.visible.tolist(), strict=True))
            torch.save(seen, f"{file}.{os.environ.get('RANK', 0)}")
        return mask

    Tube.forward = recording


if __name__ == "__main__":
    if "PID_FOLDER" in os.environ:
        Path(os.environ["PID_FOLDER"], f"pid.{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    mode, arguments = sys.argv[1], sys.argv[2:]
    if mode == "die-in-write":
        die_in_write(int(arguments.pop(0)))
    elif mode == "full-metrics":
        full_metrics(int(arguments.pop(0)))
    elif mode == "record":
        record(arguments.pop(0))
    from tubelet.cli import main

    sys.argv = ["tubelet", "pretrain", *arguments]
    main()
