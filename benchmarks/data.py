"""How fast video files become clips, against what one would use otherwise: paired, interleaved, medians of the processor's time.

    python benchmarks/data.py [--quick] [--json data.json] [--work FOLDER] [--shared ../shared]
        [--sets gop250 jhmdb long playground] [--sizes 112 224] [--clips 1 4] [--rounds 5]

The unit is a clip ready for a batch: 16 frames at stride 4 as a uint8 tensor of 112 or 224 pixels a side; the same random windows for all.
Each visit opens a file anew and makes k clips of it, one thread on one core; every contender visits a file before the next file's turn.

- ``PyAV loop``, ``torchcodec``, ``decord``: see contenders.py; those that are not installed are left out, with the reason.
- ``Tubelet, raw``: the same files. ``Tubelet, shards``: the files after ``tubelet prepare`` at 1.15 times the size of the clip.
- ``limit, raw`` and ``limit, shards``: what ``ffmpeg -f null`` with one thread would take for the same frames. FFmpeg decodes each whole
  file, with and without scaling to the clip's size as RGB; that gives the seconds for decoding a frame and for scaling one. A clip costs as
  many decoded frames as lie from the key frame before it to its end (each once for k clips), and 16 scaled ones. Reading the container and
  looking for key frames costs nothing there. It is FFmpeg's limit, not everybody's: frames that nothing refers to are decoded, which a
  reader may leave out, and its filters scale frame by frame.

Sets: ``gop250``: clips of JHMDB one after the other, 340x256, x264's defaults; ``jhmdb``: 15-40 frames each; ``long``: 2-6 minutes;
``playground``: generated. A round is a visit of each file by each contender; a ratio is that of one round, and medians and ranges are over
rounds. ``scaling``: clips a second of wall time of VideoFeed with two decoding processes over one, at k = 1, pair by pair: it needs two
idle cores. ``bytes``: what a process asked files for, a clip. Whoever runs this installs torchcodec and decord; Tubelet needs neither.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import FRAMES, STRIDE, Contender, File, contenders, ffmpeg, ffmpeg_seconds, frames_to_decode, keys_of, windows
from footage import SETS, footage

from tubelet.data.loader import VideoFeed
from tubelet.data.pace import bytes_read
from tubelet.data.prepared.reader import PreparedReader
from tubelet.data.settings import DataSettings
from tubelet.data.table import Row, Table

SCALED = "crop='min(iw,ih)':'min(iw,ih)',scale={0}:{0}:flags=bilinear,format=rgb24"
LIMITS = ("limit, raw", "limit, shards")
FILES = {"gop250": 8, "jhmdb": 12, "long": 3, "playground": 6}
QUICK = {"sets": ["gop250", "playground"], "sizes": [112], "rounds": 3, "files": 2, "seconds": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, help="of each set, at most")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement of scaling; 0 = none")
    parser.add_argument("--quick", action="store_true", help="two sets of two files: to see that it works")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="keeps what is made; default: a temporary folder")
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found = run(args, args.work or Path(temporary))
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All sets."""
    work.mkdir(parents=True, exist_ok=True)
    everyone = contenders()
    runners = [c for c in everyone if c.missing is None]
    skipped = {c.name: c.missing for c in everyone if c.missing is not None}
    if ffmpeg() is None:
        skipped["limit"] = "no ffmpeg program; install it with: apt install ffmpeg, or pip install imageio-ffmpeg"
    sets: dict[str, Any] = {}
    scaled: dict[str, Any] = {}
    for name in args.sets:
        files = footage(name, work, args.shared, most=args.files or FILES[name], sizes=args.sizes)
        if not files:
            skipped[name] = f"{args.shared} lacks its videos"
            continue
        sets[name] = {str(size): {str(k): measured(files, runners, size, k, args.rounds) for k in args.clips} for size in args.sizes}
        if name == "gop250" and args.seconds:
            scaled[name] = scaling(files, args.sizes[0], args.seconds, args.rounds)
    return {
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "skipped": skipped,
        "sets": sets,
        "scaling": scaled,
    }


def measured(files: Sequence[File], runners: Sequence[Contender], size: int, k: int, rounds: int) -> dict[str, Any]:
    """Every contender and the limits, at one size and number of clips from each opened file."""
    draw = np.random.default_rng(k)
    names = [c.name for c in runners]
    cpu = {name: [0.0] * rounds for name in names}
    wall, read = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    limit = {name: [0.0] * rounds for name in LIMITS} if ffmpeg() else {}
    costs = {name: [_frame_costs(file, size, prepared=name == LIMITS[1]) for file in files] for name in limit}
    for turn in range(-1, rounds):  # the first one warms up
        for at, file in enumerate(files):
            chosen = windows(len(file.times), k, draw)
            for name in limit if turn >= 0 else ():
                keys, decoding, scaling_ = costs[name][at]
                limit[name][turn] += frames_to_decode(keys, chosen) * decoding + k * FRAMES * scaling_
            for c in (*runners[at % len(runners) :], *runners[: at % len(runners)]):
                began, clock, asked = time.process_time(), time.perf_counter(), bytes_read() or 0
                made = c.clips(file, chosen, size)
                took, clock, asked = time.process_time() - began, time.perf_counter() - clock, (bytes_read() or 0) - asked
                assert made.shape == (k, FRAMES, size, size, 3) and made.is_contiguous(), c.name  # noqa: PT018
                if turn >= 0:
                    cpu[c.name][turn] += took
                    wall[c.name] += clock
                    read[c.name] += asked
    clips = k * len(files)
    rates = {name: [clips / s for s in seconds] for name, seconds in (cpu | limit).items()}
    result: dict[str, Any] = {"files": len(files), "rates": {name: _spread(values) for name, values in rates.items()}}
    result["wall"] = {name: rounds * clips / s for name, s in wall.items()}
    result["bytes"] = {name: n / (rounds * clips) for name, n in read.items()}
    result["ratios"] = {f"{a} / {b}": _spread([x / y for x, y in zip(rates[a], rates[b], strict=True)]) for a, b in _pairs(rates)}
    return result


def _frame_costs(file: File, size: int, *, prepared: bool) -> tuple[np.ndarray, float, float]:
    """(numbers of key frames, seconds of FFmpeg for decoding a frame, for scaling one). Of a prepared video, up to three pieces count."""
    if not prepared:
        return file.keys, *_ffmpeg_costs(file.path, len(file.times), size)
    with PreparedReader(file.prepared[size]) as reader, tempfile.TemporaryDirectory() as folder:
        pieces = reader.pieces
        found = []
        for piece in pieces[:: -(-len(pieces) // 3)]:
            path = Path(folder, f"{piece.number}.mp4")
            path.write_bytes(reader.read(piece))
            found.append(_ffmpeg_costs(str(path), piece.frames, size))
        decoding, scaled = zip(*found, strict=True)
        return keys_of(reader), statistics.mean(decoding), statistics.mean(scaled)


def _ffmpeg_costs(path: str, frames: int, size: int) -> tuple[float, float]:
    plain, both = (ffmpeg_seconds(path, frames, filters) for filters in (None, SCALED.format(size)))
    return plain, max(0.0, both - plain)


def _pairs(rates: dict[str, list[float]]) -> list[tuple[str, str]]:
    pairs = [(ours, other) for ours in ("Tubelet, raw", "Tubelet, shards") for other in ("decord", "torchcodec", "PyAV loop")]
    pairs += [("Tubelet, raw", LIMITS[0]), ("Tubelet, shards", LIMITS[1])]
    return [(a, b) for a, b in pairs if a in rates and b in rates]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def scaling(files: Sequence[File], size: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Clips a second of wall time with one and with two decoding processes, in turn."""
    table = Table([Row(file.path, file.path) for file in files])
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, rates in found.items():
            settings = DataSettings(frames=FRAMES, stride=STRIDE, size=size, crop="centre", workers=workers, prefetch=2, decoder="pyav")
            with VideoFeed(table, settings, seed=0) as feed:
                batches = feed.batches(range(i, i + 8) for i in range(0, 10**9, 8))
                for _ in range(2 * workers):
                    next(batches)
                began, clips = time.perf_counter(), 0
                while time.perf_counter() - began < seconds:
                    clips += len(next(batches))
                rates.append(clips / (time.perf_counter() - began))
    return {
        "rates": {str(n): _spread(rates) for n, rates in found.items()},
        "ratio": _spread([b / a for a, b in zip(found[1], found[2], strict=True)]),
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables, as docs/performance.md shows them."""
    lines = []
    for name, sizes in found["sets"].items():
        first = next(iter(next(iter(sizes.values())).values()))
        lines += [f"**{name}**, {first['files']} files, clips a second of one core (range over {found['rounds']} rounds):", ""]
        columns = [(size, k) for size, by_k in sizes.items() for k in by_k]
        lines.append(
            "| | "
            + " | ".join(f"{size} px, k = {k}" for size, k in columns)
            + " | bytes a clip ("
            + ", ".join(f"k = {k}" for k in next(iter(sizes.values())))
            + ") |"
        )
        lines.append("|---" * (len(columns) + 2) + "|")
        for contender in first["rates"]:
            cells = [_cell(sizes[size][k]["rates"][contender]) for size, k in columns]
            sizes_read = [sizes[columns[0][0]][k]["bytes"].get(contender) for k in next(iter(sizes.values()))]
            cells.append(", ".join(f"{n / 1000:,.0f} kB" for n in sizes_read if n is not None))
            lines.append(f"| {contender} | " + " | ".join(cells) + " |")
        lines.append("")
    for name, s in found["scaling"].items():
        rates = " and ".join(f"{_cell(rate)} with {n}" for n, rate in s["rates"].items())
        lines += [f"Decoding processes ({name}), clips a second of wall time: {rates}; pair by pair {_cell(s['ratio'], 2)} times.", ""]
    lines += [f"Left out: {name} ({reason})." for name, reason in found["skipped"].items()]
    return "\n".join(lines).rstrip()


def _cell(value: dict[str, float], digits: int = 1) -> str:
    return f"{value['median']:,.{digits}f} ({value['low']:,.{digits}f}-{value['high']:,.{digits}f})"


if __name__ == "__main__":
    main()
