"""What a person sees when something goes wrong: one message, an exit code, no traceback."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tubelet.errors import ConfigError, TubeletError

USAGE, FAILURE, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


def report(error: BaseException) -> int:
    """Say what went wrong on stderr and return the exit code: 2 for wrong settings, 1 for the rest."""
    if os.environ.get("TUBELET_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, TubeletError):
        say(f"error: {error}")
        return USAGE if isinstance(error, ConfigError) else FAILURE
    if memory := _out_of_memory(error):
        say(f"error: {memory}")
    elif isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("tubelet"):
        say(f"error: the package {error.name!r} is not installed; Tubelet needs it here: pip install {str(error.name).partition('.')[0]}")
    elif isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        full = "; free some space, then start again (pretrain: with --resume)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        say(f"error: {where}{error.strerror}{full}")
    elif own := _in_imported_file(error):
        say(f"error: {own}: {type(error).__name__}: {error}\nThat file came with --import; TUBELET_DEBUG=1 shows the whole traceback.")
    else:
        kept = "" if os.environ.get("TUBELET_DEBUG") else f"\nThe full traceback is in {_keep(error)}; TUBELET_DEBUG=1 shows it here."
        first = str(error).strip().splitlines()[:1]
        say(f"error: unexpected {type(error).__name__}{': ' + first[0] if first else ''}. This looks like a bug in Tubelet.{kept}")
    return FAILURE


def say(text: str) -> None:
    """A message on stderr; under torchrun, what all processes say is said once."""
    if "RANK" not in os.environ or _first_to_say(text):
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()


def speaks() -> bool:
    """Whether this process prints results: alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def reader_gone() -> bool:
    """Whether who read our output has closed it (``tubelet recipes | head -1``)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLERR)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
        except (AttributeError, OSError, ValueError):
            continue  # no poll on this system, or no real file behind the stream
    return False


def hush() -> None:
    """Send what is still to be printed nowhere, so that the interpreter does not complain at exit."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            try:
                os.dup2(nowhere.fileno(), stream.fileno())
            except (OSError, ValueError, AttributeError):
                continue


def _first_to_say(text: str) -> bool:
    """Whether none of torchrun's processes on this machine has said this in the last two minutes."""
    launch = (str(os.getppid()), os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("MASTER_PORT", ""), text)
    mark = Path(tempfile.gettempdir()) / f"tubelet-said-{hashlib.blake2b(repr(launch).encode(), digest_size=12).hexdigest()}"
    try:
        if time.time() - mark.stat().st_mtime > 120:
            mark.unlink()
    except OSError:
        pass
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:
        return speaks()  # nowhere to leave a mark: the first process speaks
    return True


def _out_of_memory(error: BaseException) -> str | None:
    torch = sys.modules.get("torch")
    text = str(error)
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU ran out of memory. pretrain: lower --set train.micro=... (the same result in smaller pieces), or use "
            "--set train.activation_checkpointing=true, --set train.precision=bf16 or a smaller --size; embed, caption: lower --batch.\n"
            f"({text.splitlines()[0] if text else 'no more is known'})"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text):
        return (
            "this machine ran out of memory. Lower --set train.micro=..., data.workers or data.prefetch, use data.cache=none, or a smaller "
            "--size; embed, caption: lower --batch."
        )
    return None


def _in_imported_file(error: BaseException) -> str | None:
    """``mask.py, line 12, in draw``: the deepest line of a user's own file, if the error came from there or from what it called outside
    Tubelet."""
    ours = str(Path(__file__).parents[1])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(ours):
            return None
        if frame.filename in {getattr(m, "__file__", "") for name, m in sys.modules.items() if name.startswith("tubelet_user_")}:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return None


def _keep(error: BaseException) -> str:
    """Write the traceback to a file; where it is, or that it could not be written."""
    try:
        handle, name = tempfile.mkstemp(prefix="tubelet-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(f"{sys.argv}\n\n" + "".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"no file ({problem.strerror})"
    return name
