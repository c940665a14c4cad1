"""The errors a user can meet. Each message says what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class TubeletError(ValueError):
    """Root of all errors that are the input's fault, not a bug; the command line prints them without a traceback."""


class ConfigError(TubeletError):
    """One or more wrong settings. ``problems`` holds one line for each, all found at once."""

    def __init__(self, problems: str | Sequence[str], *, where: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.where = where
        if len(self.problems) == 1:
            text = f"{where}: {self.problems[0]}" if where else self.problems[0]
        else:
            head = f"{len(self.problems)} problems" + (f" in {where}" if where else "") + ":"
            text = "\n".join([head, *(f"  - {p}" for p in self.problems)])
        super().__init__(text)


class DataError(TubeletError):
    """A data source that cannot be used: missing, empty, malformed, or too many bad items."""


class DecodeError(DataError):
    """One file that cannot be decoded (or not within the time limit)."""


class CheckpointError(TubeletError):
    """A checkpoint or weight file that is missing, damaged, unsafe, or made for something else."""


class NonFiniteError(TubeletError):
    """Training met a loss or gradient that is not finite; the message names the step."""
