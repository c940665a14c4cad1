"""run.json: what a run is, on what it ran, how far it came. Written when it starts, with every checkpoint and when it ends."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import CheckpointError
from tubelet.train.checkpoint import write_text

NAME = "run.json"


def read_run(folder: Path) -> dict[str, Any]:
    """A run's description; empty where there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def machine(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What a run's figures depend on besides its settings."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": str(device),
        "processes": processes,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFile:
    """The file of one run. ``about``: what the caller knows of it. A run that goes on keeps its start, and its seconds add up; those of a
    session that was killed count as far as its last checkpoint. A file that cannot be written is said once: the run does not need it."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, resumed: bool, say: Callable[[str], None]) -> None:
        before = read_run(folder) if resumed else {}
        self.path, self.say, self.began, self.failed = folder / NAME, say, time.monotonic(), False
        self.seconds_before = float(before.get("seconds") or 0.0)
        self.content: dict[str, Any] = {
            **before,
            "tubelet": version("tubelet"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            **about,
            "started": before.get("started") or _now(),
            "sessions": int(before.get("sessions") or 0) + 1,
            "ended": None,
            "stopped_by": None,
            "error": None,
        }

    def write(self, *, ended: bool = False, **more: Any) -> None:
        """Bring it up to date."""
        self.content |= {
            **more,
            "seconds": round(self.seconds_before + time.monotonic() - self.began, 3),
            "ended": _now() if ended else None,
        }
        try:
            write_text(self.path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        except CheckpointError as error:
            if not self.failed:
                self.say(f"watching: {error}; the run goes on")
            self.failed = True
