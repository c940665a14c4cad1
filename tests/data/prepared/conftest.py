"""A small writer of prepared sets, from their description alone, to test the reader against."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tubelet.data.audio import read_audio
from tubelet.data.decode import read_frames
from tubelet.data.prepared.layout import FORMAT, KEY_BIT, ORIGIN, PACKET, PIECE
from tubelet.data.table import Table
from tubelet.errors import DecodeError


def encode(frames: np.ndarray, times: np.ndarray, gop: int, sound: np.ndarray | None) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        x264 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:ref=1:threads=1"
        stream = file.add_stream("libx264", rate=25, options={"crf": "6", "tune": "fastdecode", "x264-params": x264})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        voice = file.add_stream("aac", rate=16000, layout="mono") if sound is not None else None
        for pixels, second in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round((second - times[0]) * 90000), Fraction(1, 90000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if voice is not None:
            assert sound is not None
            wave = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            wave.sample_rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
            file.mux(voice.encode(wave))
            file.mux(voice.encode(None))
    return out.getvalue()


def packets(data: bytes) -> tuple[list[tuple[int, int]], bytes]:
    with av.open(io.BytesIO(data), "r") as file:
        stream = file.streams.video[0]
        found = [(p.pos or 0, p.size | (KEY_BIT if p.is_keyframe else 0)) for p in file.demux(stream) if p.size]
        return found, bytes(stream.codec_context.extradata or b"")


def write(table: Table, out: Path, *, size: tuple[int, int] | None = None, frames: int = 12, gop: int = 4, shards: int = 2) -> Path:
    """Prepare a table: pieces of ``frames`` frames, dealt to ``shards`` shards origin by origin."""
    for name in ("shards", "index"):
        (out / name).mkdir(parents=True)
    origins, pieces, found, times, setups, manifest, bad = [], [], [], [], [], [], []
    number: dict[str, int] = {}
    tars = [tarfile.open(out / "shards" / f"s{i:03d}.tar", "w") for i in range(shards)]  # noqa: SIM115 - closed below
    for path in dict.fromkeys(table.paths):
        try:
            pixels, seconds = read_frames(path)
        except DecodeError as error:
            bad.append(f"# {' '.join(str(error).split())}\n{path}\n")
            continue
        h, w = size or (pixels.shape[1] // 2 * 2, pixels.shape[2] // 2 * 2)
        small = np.stack(
            [av.VideoFrame.from_ndarray(p, format="rgb24").reformat(w, h, interpolation="AREA").to_ndarray(format="rgb24") for p in pixels]
        )
        number[path] = len(origins)
        shard = len(origins) % shards
        first = len(pieces)
        for a in range(0, len(seconds), frames):
            b = min(a + frames, len(seconds))
            try:
                sound = read_audio(path, max(0.0, seconds[a]), seconds[b] if b < len(seconds) else seconds[-1] + 0.1)
            except DecodeError:
                sound = None
            data = encode(small[a:b], seconds[a:b], gop, sound)
            key = f"o{len(origins):05d}p{len(pieces) - first:03d}"
            info = tarfile.TarInfo(f"{key}.mp4")
            info.size = len(data)
            offset = tars[shard].offset + 512
            tars[shard].addfile(info, io.BytesIO(data))
            text = json.dumps({"key": key}).encode()
            info = tarfile.TarInfo(f"{key}.json")
            info.size = len(text)
            tars[shard].addfile(info, io.BytesIO(text))
            rows, setup = packets(data)
            if setup not in setups:
                setups.append(setup)
            pieces.append((len(origins), shard, offset, len(data), len(found), b - a, a, setups.index(setup), h, w))
            found += rows
            times += seconds[a:b].tolist()
            manifest.append({"key": key, "shard": f"s{shard:03d}.tar", "sha256": hashlib.sha256(data).hexdigest()})
        origins.append((first, len(pieces) - first, pixels.shape[1], pixels.shape[2]))
    for tar in tars:
        tar.close()
    np.save(out / "index/origins.npy", np.array(origins, ORIGIN))
    np.save(out / "index/pieces.npy", np.array(pieces, PIECE))
    np.save(out / "index/packets.npy", np.array(found, PACKET))
    np.save(out / "index/times.npy", np.array(times, np.float64))
    (out / "index/extradata.json").write_text(json.dumps([base64.b64encode(s).decode() for s in setups]))
    items = [
        {"key": r.key, "start": r.start, "end": r.end, "label": r.label, "origin": number[r.path], "columns": dict(r.extra or {})}
        for r in table.rows()
        if r.path in number
    ]
    (out / "index/items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    (out / "manifest.jsonl").write_text("".join(json.dumps(m) + "\n" for m in manifest))
    (out / "bad.txt").write_text("# bad\n" + "".join(bad))
    listed = [{"name": p.name, "bytes": p.stat().st_size} for p in sorted((out / "shards").glob("*.tar"))]
    head = {"format": FORMAT, "classes": list(table.classes), "shards": listed}
    (out / "prepared.json").write_text(json.dumps(head))
    return out


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Path]:
    return write
