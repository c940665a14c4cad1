"""The videos that benchmarks/data.py reads: real ones, a GOP-250 concatenation of real ones, generated ones; raw and prepared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame
from contenders import File, look

import tubelet
from tubelet.data.source import open_table

SETS = ("gop250", "jhmdb", "long", "playground")
GOP_FRAMES = 300  # of one file of gop250: ten to twelve seconds, as in Kinetics


def footage(name: str, work: Path, shared: Path, *, most: int, sizes: Sequence[int]) -> list[File]:
    """Up to ``most`` files of a set, each also prepared for all sizes of clips; made in ``work`` where they are not there yet. No files
    where ``shared`` lacks those that the set is made of."""
    paths = _paths(name, work, shared, most)
    if not paths:
        return []
    listed = work / f"{name}-{len(paths)}.txt"
    listed.write_text("".join(f"{path.resolve()}\n" for path in paths), encoding="utf-8")
    prepared: dict[str, dict[int, str]] = {}
    for size in sizes:
        out = work / f"{name}-{len(paths)}-{size}"
        tubelet.prepare(listed, out, size=round(1.15 * size), settings=["audio=false"])
        table = open_table(out, labels="none")
        for row in range(len(table)):
            prepared.setdefault(table.keys[row].rsplit("/", 1)[-1], {})[size] = table.paths[row]
    return [look(str(path), prepared[path.name]) for path in paths]


def _paths(name: str, work: Path, shared: Path, most: int) -> list[Path]:
    clips = _spread(sorted((shared / "data/actions/jhmdb").rglob("*.mp4")), 10_000)
    if name == "jhmdb":
        return _spread(clips, most)
    if name == "long":
        return _spread(sorted((shared / "data/long").glob("*.mp4")), most)
    if name == "playground":
        folder = work / f"playground-{most}"
        if not (folder / "manifest.csv").exists():
            tubelet.make_playground(folder, clips=most, frames=96, size=(240, 320), seed=0)
        return sorted(folder.rglob("*.mp4"))[:most]
    return [joined(clips, i, work / "gop250" / f"{i:02d}.mp4") for i in range(most)] if clips else []


def _spread(paths: list[Path], most: int) -> list[Path]:
    n = min(most, len(paths))
    return [paths[i * len(paths) // n] for i in range(n)]


def joined(clips: Sequence[Path], number: int, out: Path, *, frames: int = GOP_FRAMES, size: tuple[int, int] = (340, 256)) -> Path:
    """Some clips one after the other in one file of 340x256 pixels and 25 frames a second: x264's defaults (GOP 250, 3 B-frames, crf 23),
    without key frames at the cuts, for ordinary footage of this length has no cuts."""
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".part")
    with av.open(str(temporary), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=25, options={"x264-params": "scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.thread_count = 1
        for i, frame in zip(range(frames), _frames(clips, number * 12), strict=False):
            small = frame.reformat(*size, format="yuv420p")
            small.pts, small.time_base = i, Fraction(1, 25)
            file.mux(stream.encode(small))
        file.mux(stream.encode(None))
    temporary.rename(out)
    return out


def _frames(clips: Sequence[Path], first: int) -> Iterator[VideoFrame]:
    while True:
        for i in range(len(clips)):
            with av.open(str(clips[(first + i) % len(clips)])) as video:
                yield from video.decode(video=0)
