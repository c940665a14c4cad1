"""Weights by their name on the Hugging Face hub, ``hf://ORGANISATION/NAME`` or ``hf://ORGANISATION/NAME@REVISION``: a folder of its local
cache. Nothing is fetched unasked, and of a repository its settings and weights alone: no code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.errors import CheckpointError, ConfigError
from tubelet.weights import FOLDER_FILES, weights_of

SETTINGS = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json")
SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
_MARK = re.compile(r"hf:/*")  # a Path keeps one slash of two
_NAME = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"(?P<name>(?:{_NAME}/)?{_NAME})(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """``name``: ORGANISATION/NAME. ``revision``: a branch, tag or commit, None = the main one."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


def hub_id(text: str | Path) -> HubId | None:
    """What ``hf://...`` names; None for a path. Raises ConfigError for what is no name of the hub."""
    plain = str(text)
    if not (mark := _MARK.match(plain)) or (mark[0] == "hf:" and Path(plain).exists()):
        return None
    match = _ID.fullmatch(plain[mark.end() :])
    if match is None or ".." in plain or "--" in match["name"]:
        raise ConfigError(f"{plain!r} is no name on the hub: write hf://ORGANISATION/NAME, or hf://ORGANISATION/NAME@REVISION")
    return HubId(match["name"], match["revision"])


def snapshot(wanted: HubId, *, download: bool = False) -> Path:
    """The folder of the local cache (HF_HOME) that holds a model's settings and weights; its name is the commit.

    ``download``: ask the hub, and fetch what the cache lacks, .safetensors rather than pickled files. Without it nothing touches the
    network. Raises ConfigError where huggingface_hub is not installed; CheckpointError that says what to do where the cache does not hold
    it, the hub cannot be reached, or has no such model, revision or weights, or wants to know who asks.
    """
    folder = _fetch(wanted, (*SETTINGS, *SAFE), download)
    if weights_of(folder) is None and download:
        folder = _fetch(HubId(wanted.name, folder.name), (*SETTINGS, *PICKLED), download)
    if weights_of(folder) is None:
        if download:
            raise CheckpointError(
                f"{wanted} has no weights that are read: at commit {folder.name} it holds none of {', '.join(FOLDER_FILES)}"
            )
        raise CheckpointError(f"{wanted} is in the local cache ({folder}) without its weights: {_ASK}")
    return folder


def origin(path: str | Path) -> str | None:
    """``hf://NAME@COMMIT`` of a file in the cache; None for other files."""
    parts = Path(path).absolute().parts
    if len(parts) < 4 or parts[-3] != "snapshots" or not parts[-4].startswith("models--"):
        return None
    return str(HubId(parts[-4].removeprefix("models--").replace("--", "/"), parts[-2]))


_ASK = "nothing is downloaded unasked; add --download (Python: download=True), or give a folder with its config.json and weights"


def _elsewhere(wanted: HubId) -> str:
    call = f"hf download {wanted.name}" + (f" --revision {wanted.revision}" if wanted.revision else "")
    return f"fetch it on a machine that reaches the hub ({call} --local-dir FOLDER) and give that folder in its place"


def _fetch(wanted: HubId, patterns: Sequence[str], download: bool) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise ConfigError(f"{wanted} needs the package huggingface_hub: pip install 'tubelet[hub]'; or {_elsewhere(wanted)}") from None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                wanted.name, revision=wanted.revision, allow_patterns=list(patterns), local_files_only=not download
            )
        )
    except errors.HFValidationError as error:
        raise ConfigError(f"{str(wanted)!r} is no name on the hub: {_first(error)}") from None
    except errors.GatedRepoError:
        why = f"{wanted} is gated: accept its terms at https://huggingface.co/{wanted.name} and sign in (hf auth login, or HF_TOKEN)"
    except errors.RevisionNotFoundError:
        why = f"{wanted}: the model is there, and has no revision {wanted.revision or 'main'}; branches, tags and commits are revisions"
    except errors.RepositoryNotFoundError:
        why = f"{wanted}: the hub has no such model, or it is private: see to its name, or sign in (hf auth login, or HF_TOKEN)"
    except Exception as error:  # noqa: BLE001 (versions of the hub's client raise what their transport raises)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if not download:
            part = "only in part " if type(error).__name__ == "IncompleteSnapshotError" else "not "
            why = f"{wanted} is {part}in the local cache ({constants.HF_HUB_CACHE}), and {_ASK}"
        elif status in (401, 403):
            why = f"{wanted}: the hub answers {status} to who asks: sign in (hf auth login, or HF_TOKEN), or {_elsewhere(wanted)}"
        else:
            why = (
                f"{wanted} could not be fetched, and the local cache ({constants.HF_HUB_CACHE}) does not hold it: {_reason(error)}; "
                f"{_elsewhere(wanted)}"
            )
    raise CheckpointError(why)


def _reason(error: BaseException) -> str:
    """The cause rather than what was made of it."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}, {_first(cause)}"


def _first(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no more is known").rstrip(".")
