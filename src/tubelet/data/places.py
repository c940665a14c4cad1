"""Where sources are: files and folders on this machine, or behind an fsspec URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tubelet.data.manifest import IMAGE, VIDEO, suffix
from tubelet.errors import DataError


def is_url(path: str) -> bool:
    """Whether a path goes through fsspec."""
    return "://" in path


def open_place(source: str) -> Place:
    """The file or folder of that name. Raises DataError where there is none."""
    return Remote(source) if is_url(source) else Local(source)


class Local:
    """A source on this machine's file system."""

    def __init__(self, source: str) -> None:
        self.name = source
        try:
            mode = os.stat(source).st_mode
        except OSError as error:
            raise DataError(f"{source}: {'no such file or folder' if isinstance(error, FileNotFoundError) else error.strerror}") from None
        self.is_folder = stat.S_ISDIR(mode)
        if not self.is_folder and not stat.S_ISREG(mode):
            raise DataError(f"{source} is a pipe, socket or device; give a regular file")

    def read(self) -> bytes:
        try:
            return Path(self.name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}") from None

    def find(self) -> Iterator[tuple[str, str]]:
        """(path, key) of all regular files that are not hidden. Links to folders are followed, each folder once."""
        todo, seen = [(self.name, "")], set()
        while todo:
            folder, prefix = todo.pop()
            try:
                with os.scandir(folder) as entries:
                    found = list(entries)
                info = os.stat(folder)
            except OSError as error:
                raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from None
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            for entry in found:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    todo.append((entry.path, f"{prefix}{entry.name}/"))
                elif suffix(entry.name) in VIDEO | IMAGE and entry.is_file():
                    yield entry.path, prefix + entry.name

    def has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.name, name))

    def read_in(self, name: str) -> bytes | None:
        """Content of a file of this folder, None where there is none."""
        return Local(os.path.join(self.name, name)).read() if self.has(name) else None

    def resolve(self, path: str) -> str:
        return path if is_url(path) or os.path.isabs(path) else os.path.join(os.path.dirname(self.name), path)


class Remote:
    """A source behind an fsspec URL."""

    def __init__(self, source: str) -> None:
        import fsspec

        self.name = source
        try:
            self.fs, self.root = fsspec.core.url_to_fs(source)
            self.is_folder = self.fs.isdir(self.root)
            there = self.is_folder or self.fs.exists(self.root)
        except ImportError as error:
            kind = source.partition("://")[0]
            wants = (
                "pip install 'tubelet[remote]'" if kind in ("http", "https") else f"pip install the package that fsspec uses for {kind}://"
            )
            raise DataError(f"{source}: cannot be opened: {error}; {wants}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{source}: cannot be opened: {error}") from None
        if not there:
            raise DataError(f"{source}: no such file or folder")

    def read(self) -> bytes:
        try:
            return self.fs.cat_file(self.root)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error}") from None

    def find(self) -> Iterator[tuple[str, str]]:
        base = self.root.rstrip("/") + "/"
        for path in self.fs.find(self.root):
            key = path[len(base) :] if path.startswith(base) else path
            if not any(part.startswith(".") for part in key.split("/")) and suffix(key) in VIDEO | IMAGE:
                yield self.fs.unstrip_protocol(path), key

    def has(self, name: str) -> bool:
        return bool(self.fs.isfile(f"{self.root.rstrip('/')}/{name}"))

    def read_in(self, name: str) -> bytes | None:
        """Content of a file of this folder, None where there is none."""
        return Remote(f"{self.name.rstrip('/')}/{name}").read() if self.has(name) else None

    def resolve(self, path: str) -> str:
        return path if is_url(path) else self.name.rsplit("/", 1)[0] + "/" + path


Place = Local | Remote
