"""Processes started by torchrun: who we are, and agreeing on small things."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from tubelet.errors import ConfigError, TubeletError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``. ``control``: a CPU group for agreeing on flags beside the device's work."""

    rank: int = 0
    world: int = 1
    local: int = 0
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def agree(self, flags: list[int]) -> list[int]:
        """The largest value of each flag over all processes."""
        if self.world == 1:
            return flags
        seen = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=self.control)
        return seen.tolist()

    def together(self, job: Callable[[], T]) -> T:
        """Do something on every process that may fail on one; a TubeletError then ends all of them, with the same message."""
        if self.world == 1:
            return job()
        mine: TubeletError | None = None
        result: list[T] = []
        try:
            result.append(job())
        except TubeletError as error:
            mine = error
        if self.agree([int(mine is not None)])[0]:
            said: list[str | None] = [None] * self.world
            dist.all_gather_object(said, None if mine is None else str(mine), group=self.control)
            raise mine or TubeletError(next(text for text in said if text is not None))
        return result[0]


def pick_device(name: str, where: str = "train.device") -> torch.device:
    """``auto`` = this process's GPU where there is one, else the CPU. ``where``: what a message calls it. Raises
    ConfigError for a device that is not there."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{where}: unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"{where}={name}: this machine shows no CUDA device; use {where}=cpu")
        if device.index is None:
            device = torch.device("cuda", local)
        if device.index >= torch.cuda.device_count():
            raise ConfigError(f"{where}={name}: there are {torch.cuda.device_count()} GPUs, for {local + 1} or more local processes")
    return device


def _control() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every process is in the control group"
    return group


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started (environment RANK, WORLD_SIZE ...); alone, do nothing.

    A group that the caller already made is used and left as it is.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)), _control())
        return
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
    yield Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", 0)), _control())
    dist.destroy_process_group()  # after an error the process ends; waiting for peers that may be gone would hang it
