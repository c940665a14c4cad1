"""What lies in a prepared folder. The writer and the reader of prepared sets share this page and nothing else.

::

    OUT/
      prepared.json          format, settings, sources, fingerprint of the table, counts, shards (name, bytes)
      manifest.jsonl         one line a piece: key, shard, origin, start, end, seconds, frames, fps, rotation, sha256, captions, label ...
      bad.txt                sources that could not be prepared, with reasons, as ``--exclude @FILE`` takes them
      shards/NAME.tar        WebDataset layout: KEY.mp4, KEY.json, and side data KEY.motion.npz ...; KEY holds no dot and no slash
      shards/NAME.jsonl      the shard's journal, one line a piece, written as the shard grows: what the index is made from
      index/items.jsonl      the table: one line an item, in key order: key, start, end, label, origin, other columns
      index/origins.npy      (origins,) ORIGIN
      index/pieces.npy       (pieces,) PIECE, the pieces of an origin one after the other in time
      index/packets.npy      (frames,) PACKET, the frames of a piece one after the other
      index/times.npy        (frames,) float64: seconds on the *source's* clock, the very numbers that a reader of the source gives
      index/side-NAME.npy    (pieces,) SIDE, where there is side data of that name
      index/extradata.json   list of base64 texts: the decoder's set-up bytes, shared by pieces

An *origin* is a source file; items (rows of the user's table) are whole origins or segments of one. A *piece* is 10-15 s of an origin,
encoded on its own with a key frame every ``gop`` frames, no B-frames, one reference: packet i of a piece is frame i, and frame i can be
decoded from the packets of the last key frame on. All frames of an origin (or of the union of its items' segments) are there, so a window
across a cut resolves, and sampling draws the same frames from a prepared set as from its source.
"""

from __future__ import annotations

import numpy as np

FORMAT = 1
HEAD, MANIFEST, BAD, SHARDS, INDEX = "prepared.json", "manifest.jsonl", "bad.txt", "shards", "index"
BEGUN = "work/set.json"  # what a set that is being written was begun with; until it is finished there is no prepared.json

# first: the first of its ``count`` rows of pieces.npy; height, width: pixels of the source as displayed (rotation applied).
ORIGIN = np.dtype([("first", "<u4"), ("count", "<u4"), ("height", "<u2"), ("width", "<u2")])
# origin: row of origins.npy. shard: number in prepared.json's list. offset, bytes: of the mp4 inside the tar. frame: row of packets.npy
# and times.npy of its first frame. number: that frame's number in the source. setup: number in extradata.json. height, width: encoded.
PIECE = np.dtype(
    [
        ("origin", "<u4"), ("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("frame", "<u8"), ("frames", "<u4"), ("number", "<u4"),
        ("setup", "<u2"), ("height", "<u2"), ("width", "<u2"),
    ]
)  # fmt: skip
# side-NAME.npy, a row a piece: where its side data lies in its shard; 0 bytes = it has none.
SIDE = np.dtype([("offset", "<u8"), ("bytes", "<u4")])
# at: offset in the mp4. size: bytes, with KEY_BIT set for key frames.
PACKET = np.dtype([("at", "<u4"), ("size", "<u4")])
KEY_BIT = 0x8000_0000
