"""The paths of items of prepared sets: ``OUT#17`` is origin 17 of the set at ``OUT``."""

from __future__ import annotations

import os

from tubelet.data.prepared.layout import HEAD


def item_path(folder: str, origin: int) -> str:
    """The path of an origin."""
    return f"{folder.rstrip('/')}#{origin}"


def split_path(path: str) -> tuple[str, int] | None:
    """(folder or URL, origin); None for other paths."""
    name, mark, number = path.rpartition("#")
    return (name, int(number)) if mark and name and number.isascii() and number.isdigit() else None


def is_prepared(path: str) -> bool:
    """Whether a path is one of an item of a prepared set, and no file whose name happens to look like it."""
    place = split_path(path)
    if place is None:
        return False
    if "://" not in path:
        return os.path.isfile(os.path.join(place[0], HEAD))
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(place[0])
        return bool(fs.isfile(f"{root.rstrip('/')}/{HEAD}"))
    except (OSError, ValueError, ImportError):
        return False
