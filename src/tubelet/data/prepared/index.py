"""A prepared folder or URL, opened: its head, its checks, and its arrays mapped into memory."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.prepared.handles import Handle, shards
from tubelet.data.prepared.layout import FORMAT, HEAD, INDEX, ORIGIN, PACKET, PIECE, SHARDS
from tubelet.data.prepared.store import Store
from tubelet.errors import DataError, DecodeError

ARRAYS = {"origins.npy": ORIGIN, "pieces.npy": PIECE, "packets.npy": PACKET, "times.npy": np.dtype(np.float64)}
SETUPS = "extradata.json"
_KEEP = 16  # sets that a process keeps open


@dataclass(frozen=True)
class Shard:
    """``name`` of the file in shards/, and its size."""

    name: str
    bytes: int


class Home:
    """Where a prepared set is: a folder, or a URL whose files are fetched into a store before they are used."""

    def __init__(self, name: str, *, store: Store | None = None) -> None:
        self.name, self.store = name.rstrip("/") if "://" in name else name, store or Store()
        self.remote = "://" in name

    @cached_property
    def _fs(self) -> tuple[Any, str]:
        import fsspec

        fs, root = fsspec.core.url_to_fs(self.name)
        return fs, root.rstrip("/")

    def text(self, name: str) -> bytes:
        """The content of a file of the set that is read as a whole. Raises DataError."""
        try:
            if not self.remote:
                return Path(self.name, name).read_bytes()
            fs, root = self._fs
            return fs.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            raise DataError(f"{self.name}: holds no {name}; is it a prepared set, and complete?") from None
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"{self.name}/{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def sizes(self, folder: str) -> dict[str, int]:
        """Names and bytes of the files in one of the set's folders; none where there is no such folder. Raises DataError."""
        try:
            if not self.remote:
                with os.scandir(Path(self.name, folder)) as entries:
                    return {e.name: e.stat().st_size for e in entries if e.is_file()}
            fs, root = self._fs
            fs.invalidate_cache(f"{root}/{folder}")  # what was listed before may have been written since
            found = fs.ls(f"{root}/{folder}", detail=True)
            return {f["name"].rstrip("/").rsplit("/", 1)[-1]: int(f["size"] or 0) for f in found if f["type"] == "file"}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"{self.name}/{folder}: cannot be listed: {getattr(error, 'strerror', None) or error}") from None

    def file(self, folder: str, name: str, size: int, head: bytes, timeout: float) -> int | str:
        """The local path of a file of the set, or a descriptor of the fetched copy. Raises DataError."""
        if not self.remote:
            return os.path.join(self.name, folder, name)
        path = self.store.place(self.name, head) / folder / name
        return self.store.open(f"{self.name}/{folder}/{name}", path, size, timeout)


class Prepared:
    """An opened set. The arrays are read-only and mapped, so processes that fork share them.

    ``origins``, ``pieces``, ``packets``, ``times``: see :mod:`tubelet.data.prepared.layout`. ``setups``: the decoder's set-up bytes.
    Raises DataError where the set is unfinished, of another version, or inconsistent.
    """

    def __init__(self, place: Home, head: bytes, timeout: float) -> None:
        self.place, self.name, self._head = place, place.name, head
        about = read_head(place, head)
        self.shards = shards_of(place, about)
        sizes = index_sizes(place)
        self.origins, self.pieces, self.packets, self.times = (self.array(file, kind, sizes, timeout) for file, kind in ARRAYS.items())
        self.setups = self._setups(sizes, timeout)
        self._check()

    def array(self, file: str, kind: np.dtype, sizes: Mapping[str, int], timeout: float) -> np.ndarray:
        """A file of the index, mapped. ``sizes``: of the index\'s files. Raises DataError."""
        where = f"{self.name}/{INDEX}/{file}"
        source = self.place.file(INDEX, file, sizes[file], self._head, timeout)
        try:
            if isinstance(source, int):
                with os.fdopen(source, "rb") as opened:
                    array = _mapped(opened)
            else:
                with open(source, "rb") as opened:
                    array = _mapped(opened)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{where}: cannot be read: {error}; {_remedy(self.name)}") from None
        if array.dtype != kind or array.ndim != 1:
            raise DataError(f"{where}: holds {array.dtype} {array.shape}, not what this version of Tubelet writes; {_remedy(self.name)}")
        return array

    def _setups(self, sizes: Mapping[str, int], timeout: float) -> list[bytes]:
        source = self.place.file(INDEX, SETUPS, sizes[SETUPS], self._head, timeout)
        try:
            with os.fdopen(source, "rb") if isinstance(source, int) else open(source, "rb") as opened:
                return [base64.b64decode(text, validate=True) for text in json.loads(opened.read())]
        except (OSError, ValueError, TypeError, binascii.Error) as error:
            raise DataError(f"{self.name}/{INDEX}/{SETUPS}: cannot be read: {error}; {_remedy(self.name)}") from None

    def _check(self) -> None:
        """Whether the parts speak of the same things."""
        p, o = self.pieces, self.origins
        ends = (
            (o["first"].astype(np.int64) + o["count"], len(p), "origins.npy points behind the end of pieces.npy"),
            (p["origin"].astype(np.int64) + 1, len(o), "pieces.npy names origins that are not there"),
            (p["frame"].astype(np.int64) + p["frames"], len(self.packets), "pieces.npy points behind the end of packets.npy"),
            (p["frame"].astype(np.int64) + p["frames"], len(self.times), "pieces.npy points behind the end of times.npy"),
            (p["shard"].astype(np.int64) + 1, len(self.shards), f"pieces.npy names shards that {HEAD} does not"),
            (p["setup"].astype(np.int64) + 1, len(self.setups), f"pieces.npy names set-ups that {SETUPS} does not hold"),
        )
        for values, most, what in ends:
            if len(values) and int(values.max()) > most:
                raise DataError(f"{self.name}/{INDEX}: {what}; {_remedy(self.name)}")

    def text(self, name: str) -> bytes:
        """A small file beside the head. Raises DataError."""
        return self.place.text(name)

    def first_shards(self, origins: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """(n,) int64: for items of these origins, which begin at these seconds (NaN = with the origin), the shards that they begin in."""
        rows = self.origins["first"][origins].astype(np.int64)
        for i in np.flatnonzero(starts > 0):
            pieces = self.pieces[rows[i] : rows[i] + int(self.origins["count"][origins[i]])]
            begins = self.times[pieces["frame"].astype(np.int64)]
            rows[i] += max(0, int(np.searchsorted(begins, starts[i] + 1e-6, side="right")) - 1)
        return self.pieces["shard"][rows].astype(np.int64)

    def shard(self, number: int, timeout: float) -> Handle:
        """An open shard. ``timeout``: seconds in which something must arrive while it is fetched. Raises DecodeError where it cannot be
        read."""
        shard = self.shards[number]
        source = f"{self.name}/{SHARDS}/{shard.name}"

        def make() -> Handle:
            try:
                if self.place.remote:
                    return Handle(self.fetched(number, timeout), kept=True)
                return Handle(os.open(os.path.join(self.name, SHARDS, shard.name), os.O_RDONLY), kept=False)
            except OSError as error:
                reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
                raise DecodeError(f"{source}: {reason}") from None

        return shards.get((self.name, self._head, number), make)

    def fetched(self, number: int, timeout: float) -> int:
        """A descriptor of a shard of a set behind a URL, fetched where it is not kept. Raises DataError."""
        shard = self.shards[number]
        found = self.place.file(SHARDS, shard.name, shard.bytes, self._head, timeout)
        assert isinstance(found, int), "the set is in a folder"
        return found


def _mapped(opened: Any) -> np.ndarray:
    """The array of a .npy file, as a plain view of the mapped bytes: they stay valid when the file is closed, or loses its name."""
    version = np.lib.format.read_magic(opened)
    if version != (1, 0):
        raise ValueError(f"unknown version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
    if dtype.hasobject or fortran:
        raise ValueError("not a plain array")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(opened, dtype, "r", opened.tell(), shape))


def read_head(place: Home, head: bytes) -> dict[str, Any]:
    """What prepared.json says. Raises DataError for one that this version cannot read."""
    try:
        about = json.loads(head)
        version = about["format"]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{place.name}/{HEAD}: not the head of a prepared set; write it again with: tubelet prepare {place.name} --merge"
        ) from None
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        what = "a newer version of Tubelet wrote it: update" if newer else "prepare the set again"
        raise DataError(f"{place.name}: format {version!r} of prepared sets, this version reads {FORMAT}; {what}")
    return about


def shards_of(place: Home, about: Mapping[str, Any]) -> list[Shard]:
    """The shards that a head lists. Raises DataError."""
    try:
        return [Shard(f"{s['name']}", int(s["bytes"])) for s in about["shards"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{place.name}/{HEAD}: its list of shards cannot be read; {_remedy(place.name)}") from None


def index_sizes(place: Home) -> dict[str, int]:
    """Names and bytes of the index's files. Raises DataError where some are missing."""
    sizes = place.sizes(INDEX)
    missing = [name for name in (*ARRAYS, SETUPS) if name not in sizes]
    if missing:
        raise DataError(f"{place.name}: its index lacks {', '.join(missing)}; {_remedy(place.name)}")
    return sizes


def check_shards(place: Home, about: Mapping[str, Any]) -> None:
    """Whether every shard is there with all its bytes. Raises DataError."""
    listed, there = shards_of(place, about), place.sizes(SHARDS)
    missing = [s.name for s in listed if s.name not in there]
    if missing:
        raise DataError(
            f"{place.name}: {len(missing)} of its {len(listed)} shards are missing, e.g. {SHARDS}/{missing[0]}; copy the whole set"
        )
    for shard in listed:
        have = there[shard.name]
        if have < shard.bytes:
            raise DataError(
                f"{place.name}/{SHARDS}/{shard.name}: has {have:,} of the {shard.bytes:,} bytes that {HEAD} says; it was cut off: "
                "copy it again"
            )
        if have > shard.bytes:
            raise DataError(
                f"{place.name}/{SHARDS}/{shard.name}: has {have:,} bytes, {HEAD} says {shard.bytes:,}: it was written to since; "
                f"{_remedy(place.name)}"
            )


def _remedy(name: str) -> str:
    return f"write the index with: tubelet prepare {name} --merge"


_open: OrderedDict[tuple[str, Store], tuple[Any, Prepared]] = OrderedDict()


def open_prepared(name: str, *, store: Store | None = None, timeout: float = 30.0) -> Prepared:
    """The set at a folder or URL, opened once in a process for as long as its head stays the same. Raises DataError."""
    place = Home(name, store=store)
    key, stamp = (place.name, place.store), None if place.remote else _stamp(place)
    found = _open.get(key)
    if found is not None and found[0] == stamp:
        return found[1]
    opened = Prepared(place, place.text(HEAD), timeout)
    _open[key] = (stamp, opened)
    while len(_open) > _KEEP:
        _open.popitem(last=False)
    return opened


def forget(name: str) -> None:
    """Open the set anew the next time: what is at its URL may have changed."""
    for key in [k for k in _open if k[0] == name.rstrip("/")]:
        del _open[key]


def _stamp(place: Home) -> tuple[int, int] | None:
    try:
        info = os.stat(os.path.join(place.name, HEAD))
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size
