"""Pictures and folders of frames, read like videos."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, cast

import numpy as np
from PIL import Image, ImageOps

from tubelet.data.files import MAX_PIXELS, Deadline, WatchedFile
from tubelet.data.manifest import IMAGE, suffix
from tubelet.data.picture import PixelPicture
from tubelet.data.timeline import Timeline
from tubelet.errors import DecodeError


class StillReader:
    """A picture (one frame at 0 s) or a folder of them in natural order (2 before 10) at ``fps`` frames a second.

    Frames of another size than the first are scaled to it. Raises DecodeError naming the picture.
    """

    def __init__(self, path: str, *, folder: bool, fps: float = 25.0, timeout: float = 30.0) -> None:
        self.path, self.fps, self.deadline = path, fps, Deadline(path, timeout)
        self._files = self._list() if folder else [path]
        self._size: tuple[int, int] | None = None

    def _list(self) -> list[str]:
        try:
            if "://" in self.path:
                import fsspec

                fs, root = fsspec.core.url_to_fs(self.path)
                names = [fs.unstrip_protocol(p) for p in fs.ls(root, detail=False)]
            else:
                names = [os.path.join(self.path, name) for name in os.listdir(self.path)]
        except OSError as error:
            raise DecodeError(f"{self.path}: the folder cannot be read: {error.strerror or error}") from None
        found = [name for name in names if suffix(name) in IMAGE and not name.rsplit("/", 1)[-1].startswith(".")]
        if not found:
            raise DecodeError(f"{self.path}: this folder holds no pictures ({' '.join(sorted(IMAGE))})")
        return sorted(found, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)])

    def timelines(self) -> Iterator[Timeline]:
        yield Timeline(np.arange(len(self._files)) / self.fps, "decoded")

    def frames(self, timeline: Timeline, index: Sequence[int] | np.ndarray) -> Iterator[tuple[int, PixelPicture]]:
        """(index, picture)."""
        for i in index:
            self.deadline.left()
            yield int(i), PixelPicture(self._read(self._files[int(i)]))

    def _read(self, path: str) -> np.ndarray:
        remote = WatchedFile(path, self.deadline) if "://" in path else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # own limit below
                with Image.open(cast(IO[bytes], remote) if remote else path) as image:
                    if image.width * image.height > MAX_PIXELS:
                        raise DecodeError(f"{path}: {image.width}x{image.height} pixels are not believable")
                    image.load()
                    upright = ImageOps.exif_transpose(image)
        except DecodeError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything from SyntaxError to struct.error on damaged files
            raise DecodeError(f"{path}: not a readable picture: {error}") from None
        finally:
            if remote is not None:
                remote.close()
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        rgb = upright.convert("RGB")
        self._size = self._size or rgb.size
        return np.asarray(rgb if rgb.size == self._size else rgb.resize(self._size, Image.Resampling.BILINEAR))

    def __enter__(self) -> StillReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None
