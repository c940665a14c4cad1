"""Whether a file ends before its own structure does: the sign of a copy or a recording that was broken off."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

SLACK = 16  # bytes: writers disagree by as much on whether a size counts its own header
_BOXES = frozenset(b"ftyp styp moov moof mdat mfra free skip wide uuid udta meta sidx ssix pdin emsg prft pnot".split())
_HOLD_FRAMES = frozenset((b"moov", b"moof", b"mdat"))
_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_bytes(path: str) -> int:
    """Bytes that a local MP4/MOV, Matroska/WebM or AVI file lacks by its own account; 0 where none, or where nothing tells.

    The account is the size of the last top-level part: boxes (ISO/IEC 14496-12, 4.2), the Segment (RFC 9559, 4.5), RIFF chunks. Parts of
    unknown size, as live recordings have them, tell nothing. Raises OSError.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _BOXES:
            end = _last_box(file, size)
        elif head[:4] == _MATROSKA:
            end = _segment_end(file)
        elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
            end = _last_chunk(file, size)
        else:
            end = size
    return end - size if end > size + SLACK else 0


def _last_box(file: BinaryIO, size: int) -> int:
    """Where the box that reaches the end of the file says that it ends."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8 or name not in _BOXES:  # 0: to the end of the file; anything else is no box
            return size
        at += length
        if at > size and name not in _HOLD_FRAMES:
            return size
    return at


def _last_chunk(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or length < 4 or length >= 2**31 - 1:  # larger: a recorder that never came to write the size
            return size
        at += 8 + length + length % 2
    return at


def _segment_end(file: BinaryIO) -> int:
    at = 0
    for _ in range(8):  # the header, perhaps Void elements, then the Segment
        file.seek(at)
        head = file.read(12)
        start = 4 if head[:1] and head[0] < 0x20 else 1
        if len(head) < start + 1 or not head[start]:
            return 0
        width = 9 - head[start].bit_length()
        payload = head[start : start + width]
        length = int.from_bytes(payload, "big") & ((1 << 7 * width) - 1)
        if len(payload) < width or length == (1 << 7 * width) - 1:  # all ones: unknown
            return 0
        at += start + width + length
        if head[:4] == _SEGMENT:
            return at
    return 0
