"""Weight files that others wrote, opened without running anything they hold."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tubelet.errors import CheckpointError, ConfigError

ENDINGS = (".pth", ".pt", ".bin", ".ckpt")  # of pickled files; .safetensors is the other kind
BESIDE = (".json", ".txt", ".model")  # settings, vocabularies and merges beside a model's weights
# Of a transformers model's folder, the preferred first.
FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = ".index.json"  # ends the name of a model's table of parts
KEYS = ("model", "module", "state_dict")
PREFIXES = ("module.", "_orig_mod.", "encoder.", "backbone.", "model.")
_WRITER = "If you trust it, save its tensors alone, with safetensors.torch.save_file or as a plain dict"


class _Passed:
    """Built in place of what official files hold beside tensors; keeps nothing, so that a hostile state reaches no real object."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# Under NumPy's names before and since 2. NumPy's own functions would read states that a file made up, in C.
PASSED = ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


@contextmanager
def _nothing_else() -> Iterator[None]:
    """Only these names beside torch's own, also where other code of the process has allowed more; that is restored."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([(_Passed, name) for name in PASSED]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols; what cannot be read is reported
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or a .pth / .pt / .bin / .ckpt file, on the host, under the file's own names.

    A pickled file may hold the state dict itself or keep it under ``model``, ``module`` or ``state_dict``. Nothing in it is executed:
    only tensors and plain containers are built; argparse.Namespace and NumPy's scalars and dtypes may be there and are passed over.
    Raises CheckpointError for a file that is missing, empty, damaged, unsafe or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with open(path, "rb") as file:
        head = file.read(8)
    if not head:
        raise CheckpointError(f"{path} is empty: it was not written, or not fetched, to its end")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in ENDINGS:
        raise CheckpointError(f"{path}: weights are read from .safetensors and {', '.join(ENDINGS)} files")
    return _state_dict(path, _read_pickled(path, head))


def weights_of(folder: str | Path) -> Path | None:
    """The file of weights of a transformers model's folder, or the index of its parts; None where it holds neither."""
    return next((Path(folder) / name for name in FOLDER_FILES if (Path(folder) / name).is_file()), None)


def _parts(index: Path) -> dict[str, str]:
    """Tensor -> the name of its file, which lies beside the index. Raises CheckpointError."""
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = {str(name): str(part) for name, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index} is no index of a model's parts: it has no weight_map") from None
    strange = sorted({part for part in named.values() if Path(part).name != part or part in ("", "..") or not part.isprintable()})
    if strange:
        first = strange[0] if strange[0] and strange[0].isprintable() else ascii(strange[0])
        raise CheckpointError(f"{index} names the part {first}, which does not lie beside it; nothing of it was read")
    return named


def read_sharded(index: str | Path) -> dict[str, Tensor]:
    """The state dict of a model in parts, of its ``*.index.json`` (``weight_map``: tensor -> file beside it), each part read by
    :func:`read_weights`. Raises CheckpointError for parts that are missing, elsewhere, or lack one of their tensors."""
    index = Path(index)
    named = _parts(index)
    found: dict[str, Tensor] = {}
    for part in sorted(set(named.values())):
        held = read_weights(index.parent / part)
        wanted = [name for name, of in named.items() if of == part]
        lost = [name for name in wanted if name not in held]
        if lost:
            raise CheckpointError(f"{index.parent / part} lacks {lost[0]}, which {index.name} says it holds")
        found |= {name: held[name] for name in wanted}
    return found


def is_foreign(path: Path) -> bool:
    """Whether a .safetensors file can be read and was written by another program than Tubelet."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "tubelet" not in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error})") from None


def _read_pickled(path: Path, head: bytes) -> Any:
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and head[:1] != b"\x80":  # every pickle that torch writes starts with its protocol
        raise CheckpointError(f"{path} is not a checkpoint: it is neither torch's zip format nor a pickle{_looks(head)}")
    try:
        with _nothing_else():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # noqa: BLE001 (damaged bytes can make the reader raise anything)
        raise CheckpointError(f"{path} {_why(str(error))}") from None


def _looks(head: bytes) -> str:
    if head.lstrip().startswith(b"<"):
        return "; it looks like a web page, perhaps an error that was saved in place of the file"
    return "; it looks like text" if all(9 <= byte < 127 for byte in head) else ""


def _why(said: str) -> str:
    """What is wrong with a pickled file, from the words of torch's restricted reader."""
    if unsafe := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", said):
        return (
            f"was not read: opening it would run or build {unsafe[1]}, which is neither a tensor nor plain data, and nothing of it was "
            f"run. {_WRITER}"
        )
    if "TorchScript" in said:
        return "is a TorchScript program, not a file of weights"
    if re.search(r"reduce for|Can only (build|create|append|extend|SETITEM)|persistent", said):
        return f"was not read: it holds what no file of weights holds ({said.splitlines()[-1][:200]}), and nothing of it was run. {_WRITER}"
    first = next((line.strip() for line in said.splitlines() if line.strip()), "no more is known")
    return f"is damaged or cut short ({first.split('. ')[0][:200]})"


def _state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    tensors = _tensors(found)
    if not tensors and isinstance(found, Mapping):
        tensors = next((inner for key in KEYS if (inner := _tensors(found.get(key)))), {})
    if not tensors:
        holds = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            holds = f"the keys {', '.join(sorted(map(str, found))[:12]) or 'of an empty dict'}"
        raise CheckpointError(f"{path} holds no state dict under {', '.join(KEYS)} or at its top; it holds {holds}")
    return tensors


def _tensors(found: Any) -> dict[str, Tensor]:
    """The plain tensors of a mapping by name; empty for anything else."""
    items = found.items() if isinstance(found, Mapping) else ()
    named = {name: value.detach() for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    return {name: value for name, value in named.items() if value.layout == torch.strided and not (value.is_meta or value.is_quantized)}


def prefix_of(state: Mapping[str, Tensor], marker: str) -> str | None:
    """What stands before ``marker`` (a name that every file of a family holds once): any run of ``module.``, ``_orig_mod.``, ``encoder.``,
    ``backbone.`` and ``model.``; None where no name fits."""
    wrappers = "|".join(map(re.escape, PREFIXES))
    found = [match[1] for name in state if (match := re.fullmatch(f"((?:{wrappers})*){re.escape(marker)}", name))]
    return found[0] if len(found) == 1 else None


def without_prefix(state: Mapping[str, Tensor], prefix: str, where: str | Path) -> dict[str, Tensor]:
    """The names without ``prefix`` where they have it. Raises CheckpointError where two names become one."""
    plain = {name.removeprefix(prefix): value for name, value in state.items()}
    if len(plain) < len(state):
        twice = min(name.removeprefix(prefix) for name in state if name.startswith(prefix) and name.removeprefix(prefix) in state)
        raise CheckpointError(f"{where} holds {prefix}{twice} and {twice}: two models in one file; save the wanted one alone")
    return plain


def sha256_of(path: str | Path) -> str:
    """Of a file; of a model in parts, by its ``*.index.json``: of the index and, by name, all its parts; or of a model's folder: its
    weights, settings and vocabularies by name. Raises CheckpointError where there are no weights."""
    path = Path(path)
    if path.name.endswith(INDEX) and path.is_file():
        files = [path, *(path.parent / part for part in sorted(set(_parts(path).values())))]
    elif path.is_file():
        files = [path]
    else:
        files = sorted(p for p in path.glob("*") if p.suffix in (".safetensors", *ENDINGS, *BESIDE))
    if not any(p.suffix not in BESIDE for p in files):
        raise CheckpointError(f"{path}: no weights there (.safetensors, {', '.join(ENDINGS)})")
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as data:
                while block := data.read(2**20):
                    digest.update(block)
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file, and {path.name} names it") from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def verified(path: str | Path, expected: str | None) -> str:
    """The sha256 of a file of weights as :func:`sha256_of` counts it, which must be ``expected`` (None = any), before it is opened.

    Raises ConfigError for what is no sha256, CheckpointError that names both where they differ.
    """
    asked = None if expected is None else expected.strip().lower().removeprefix("sha256:")
    if asked is not None and not re.fullmatch(r"[0-9a-f]{64}", asked):
        raise ConfigError(f"sha256={expected!r} is no sha256: it has 64 hexadecimal digits (sha256sum FILE prints it)")
    found = sha256_of(path)
    if asked is not None and asked != found:
        raise CheckpointError(f"{path} was not read: its sha256 is {found}, and {asked} was asked for; it is damaged or another file")
    return found
