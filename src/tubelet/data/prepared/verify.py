"""Whether the pieces of a prepared item hold what was written into them."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import av
import av.error

from tubelet.data.prepared.index import Prepared
from tubelet.data.prepared.layout import MANIFEST
from tubelet.data.prepared.reader import Piece, PreparedReader
from tubelet.errors import DataError

BLOCK = 512  # bytes of a tar header, which lies before the file that it names


@dataclass(frozen=True)
class Found:
    """``problem``: of the first piece that has one. ``bytes``: of all pieces of the item."""

    problem: str | None
    codec: str | None
    has_audio: bool
    bytes: int


def examine(reader: PreparedReader, start: float | None, end: float | None) -> Found:
    """Read the pieces that hold a frame between ``start`` and ``end`` seconds (None = open) and compare them with the manifest's hashes.
    Raises DecodeError where one cannot be read."""
    begins = [reader.begins_at(p) for p in reader.pieces]
    follows = [*begins[1:], float("inf")]
    pieces = [
        p for p, a, b in zip(reader.pieces, begins, follows, strict=True) if (start is None or b > start) and (end is None or a < end)
    ]
    problem, codec, audio = None, None, False
    for piece in pieces:
        data = reader.read(piece)
        wrong = _wrong(reader, piece, data)
        if wrong is not None:
            problem = problem or f"{reader.where(piece).removeprefix(reader.path + ': ')}: {wrong}; copy the shard again"
            continue
        if codec is None:
            with av.open(io.BytesIO(data)) as container:
                codec, audio = container.streams.video[0].codec_context.name, bool(container.streams.audio)
    return Found(problem, codec, audio, sum(p.bytes for p in pieces))


def _wrong(reader: PreparedReader, piece: Piece, data: bytes) -> str | None:
    """What is wrong with a piece's bytes, None = nothing."""
    head = reader.set.shard(piece.shard, reader.deadline.seconds).read(piece.offset - BLOCK, BLOCK)
    key = head[:100].rstrip(b"\0").decode("utf-8", "replace").removesuffix(".mp4")
    known = _hashes(reader.set).get(key)
    if known is None:
        return f"at its place lies {key!r}, which the manifest does not name"
    return None if hashlib.sha256(data).hexdigest() == known else "its bytes are not those that were written"


def _hashes(opened: Prepared) -> dict[str, str]:
    """sha256 of every piece, by key. Raises DataError."""
    if opened not in _known:
        _known.clear()
        try:
            lines = [json.loads(line) for line in opened.text(MANIFEST).splitlines()]
            _known[opened] = {str(line["key"]): str(line["sha256"]) for line in lines}
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{opened.name}/{MANIFEST}: cannot be read; write it again with: tubelet prepare {opened.name} --merge"
            ) from None
    return _known[opened]


_known: dict[Prepared, dict[str, str]] = {}
