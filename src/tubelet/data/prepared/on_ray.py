"""The same tasks on a Ray cluster: pieces come back through its object store, a bounded number at a time."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from tubelet.data.guarded import Lost
from tubelet.data.prepared.encode import Answer, encode_task
from tubelet.data.prepared.options import PrepareSettings
from tubelet.data.prepared.plan import Task
from tubelet.errors import ConfigError

AHEAD = 2  # tasks for each processor that are handed out: what is waiting to be written is bounded by it


def run_on_ray(tasks: Sequence[Task], settings: PrepareSettings, timeout: float) -> Iterator[tuple[int, Answer | Lost]]:
    """``(number, answer)`` of all tasks, in the order in which they are done. Their files must be readable from every node.

    The cluster is the one that RAY_ADDRESS names or that this process is connected to, else a local one. Raises ConfigError without ray.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise ConfigError("engine = ray needs Ray; install it with: pip install 'tubelet[ray]' (or use engine = processes)") from None
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        remote: Any = ray.remote(max_retries=1)(encode_task)
        at_once = max(1, int(ray.cluster_resources().get("CPU", 1))) * AHEAD
        left, running = deque(enumerate(tasks)), {}
        while left or running:
            while left and len(running) < at_once:
                number, task = left.popleft()
                running[remote.remote(task, settings, timeout)] = number
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                number = running.pop(reference)
                try:
                    yield number, ray.get(reference)
                except RayError as error:
                    reason = str(error).strip().splitlines()[0]
                    yield number, Lost(False, f"the Ray worker that read it ended: {reason}")
    finally:
        if own:
            ray.shutdown()
