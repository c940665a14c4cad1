"""How fast the windows of long videos become vectors, against the obvious loop with transformers: paired, interleaved, medians.

    python benchmarks/embed.py VIDEOS [--quick] [--json embed.json] [--seconds 4] [--hop 2] [--every 12] [--rounds 3] [--device cpu]

Both sides have the same VideoMAE encoder with the same random weights, 16 frames of 224 pixels at stride 4 from the middle of every window.
On the CPU, one thread on one core and the processor's time; the encoder is a very small one (2 blocks of width 96) so that what is compared
is not the same matrix products on both sides; it still is most of the time, so the ratio without it is told, too. On a GPU (``--device
cuda``) it is ViT-B, and the time is that of the wall.

- ``transformers``: for each window PyAV decodes the frames as transformers' documentation of VideoMAE shows it (``read_video_pyav``: from
  the start of the file), then VideoMAEImageProcessor, VideoMAEModel, one window at a time;
- ``transformers, seeking``: the same, but the file is opened at the key frame before the window: what someone writes who knows long videos;
- ``tubelet``: ``tubelet.embed(run, videos, seconds=4, hop=2)``: each file is decoded once, batches of 8 windows are filled across files.
  On the CPU it decodes in the same process, on a GPU in two others.

The loops get every ``--every``-th window, because the first one takes minutes otherwise; Tubelet gets all of them. Windows a second, ratios
round by round, and where the time goes (``decode``, ``process``, ``model``; for Tubelet ``list``: finding the windows). The vectors are
compared: they differ by how frames are resized alone. Whoever runs this installs transformers; Tubelet does not need it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import save_file

import tubelet
from tubelet.api.features import evaluation_data
from tubelet.api.loading import Loaded
from tubelet.data import sampling
from tubelet.data.evaluation import EvalFeed, windows
from tubelet.data.source import open_table
from tubelet.data.table import Table
from tubelet.tasks.embed import embed

FRAMES, STRIDE, SIZE = 16, 4, 224
SMALL = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the official checkpoints; transformers' own default is another
NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.attention.query.weight": "attn.qkv.weight",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
LOOPS = ("transformers", "transformers, seeking")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--hop", type=float, default=2.0)
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="windows of 20 s, one round: to see that it works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.hop, args.rounds = 20.0, 1
    torch.set_num_threads(1)
    try:
        import transformers
    except ImportError:
        raise SystemExit("this benchmark needs transformers, which Tubelet does not: pip install transformers torchvision") from None
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        found = run(args, Path(folder))
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel
    from transformers import __version__ as theirs

    shape = BASE if args.device.startswith("cuda") else SMALL
    torch.manual_seed(0)
    model = VideoMAEModel(VideoMAEConfig(**shape, image_size=SIZE, num_frames=FRAMES)).eval().to(args.device)
    save_file(official(model.state_dict()), folder / "model.safetensors")
    square = {"height": SIZE, "width": SIZE}
    processor = VideoMAEImageProcessor(size={"shortest_edge": SIZE}, crop_size=square, image_mean=MEAN, image_std=STD)
    loop, now = Loop(model, processor, args.device), watch(args.device)
    given = [f"method.heads={shape['num_attention_heads']}", f"workers={0 if args.device == 'cpu' else 2}"]
    loaded = tubelet.load(folder / "model.safetensors", settings=given, device=args.device)
    data, _ = evaluation_data(loaded, [], None)
    table = windows(open_table(args.videos, labels="none"), seconds=args.seconds, hop=args.hop, settings=data)
    some = range(0, len(table), args.every)
    names = (*LOOPS, "tubelet")
    rates: dict[str, list[float]] = {name: [] for name in names}
    data_rates: dict[str, list[float]] = {name: [] for name in names}
    parts: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
    vectors: dict[str, np.ndarray] = {}
    for _ in range(args.rounds):
        for name in names:
            mine: dict[str, float] = defaultdict(float)
            began, clock = now(), Clock(mine, now)
            if name == "tubelet":
                vectors[name], done = ours(loaded, args, clock)[list(some)], len(table)
            else:
                vectors[name], done = np.stack([loop(table, row, clock, seek=name != LOOPS[0]) for row in some]), len(some)
            took = now() - began
            rates[name].append(done / took)
            data_rates[name].append(done / (took - mine["model"]))
            for part, seconds in mine.items():
                parts[name][part] += seconds
    count = {name: (len(some) if name in LOOPS else len(table)) * args.rounds for name in names}
    return {
        "machine": torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{platform.machine()} CPU, one core",
        "model": f"{shape['num_hidden_layers']} blocks of width {shape['hidden_size']}",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": theirs,
        "videos": len(args.videos),
        "windows": len(table),
        "timed": {name: n // args.rounds for name, n in count.items()},
        "rounds": args.rounds,
        "rates": {name: _spread(values) for name, values in rates.items()},
        "ratios": {name: _spread([a / b for a, b in zip(rates["tubelet"], rates[name], strict=True)]) for name in LOOPS},
        "data_rates": {name: _spread(values) for name, values in data_rates.items()},
        "data_ratios": {name: _spread([a / b for a, b in zip(data_rates["tubelet"], data_rates[name], strict=True)]) for name in LOOPS},
        "ms": {name: {part: 1e3 * s / count[name] for part, s in found.items()} for name, found in parts.items()},
        "cosine": {name: float(_cosine(vectors[name], vectors["tubelet"]).min()) for name in LOOPS},
    }


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of transformers' VideoMAEModel under the names of the official fine-tuned files, whose encoder has no last norm either."""
    found = {}
    for theirs, value in state.items():
        name = theirs
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if "attention.key" in theirs or "attention.value.weight" in theirs:
            continue  # they are part of qkv
        parts = [state[theirs.replace("query", part)] for part in ("query", "key", "value")] if name.endswith("qkv.weight") else [value]
        found[name] = torch.cat(parts).contiguous()
    return found


def watch(device: str) -> Callable[[], float]:
    """Seconds: of the processor, or with a GPU of the wall, once its work is done."""
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


class Clock:
    """Seconds by part."""

    def __init__(self, parts: dict[str, float], now: Callable[[], float]) -> None:
        self.parts, self.now = parts, now

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = self.now()
        yield
        self.parts[part] += self.now() - began


class Loop:
    """The obvious loop."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self.model, self.processor, self.device = model, processor, device

    @torch.no_grad()
    def __call__(self, table: Table, row: int, clock: Clock, *, seek: bool) -> np.ndarray:
        with clock("decode"):
            frames = read_window(table, row, seek=seek)
        with clock("process"):
            inputs = self.processor(list(frames), return_tensors="pt").to(self.device)
        with clock("model"):
            return self.model(**inputs).last_hidden_state.mean(1)[0].cpu().numpy()


def read_window(table: Table, row: int, *, seek: bool) -> np.ndarray:
    """(16, h, w, 3) uint8: the frames of a window that Tubelet takes, too."""
    item = table.item(row)
    with av.open(item.path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        assert stream.average_rate is not None and stream.time_base is not None  # noqa: PT018
        rate = float(stream.average_rate)
        begin = round((item.start or 0.0) * rate)
        length = round(((item.end or stream.frames / rate) - (item.start or 0.0)) * rate)
        wanted = (begin + sampling.views_window(length, FRAMES, STRIDE, 1)[0]).tolist()
        if seek:
            container.seek(round(wanted[0] / rate / stream.time_base), stream=stream)
        else:
            container.seek(0)
        kept = {}
        for i, frame in enumerate(container.decode(stream)):
            number = i if frame.time is None else round(frame.time * rate)
            if number > wanted[-1]:
                break
            if number in wanted:
                kept[number] = frame.to_ndarray(format="rgb24")
        last = kept[max(kept)]
        return np.stack([kept.get(number, last) for number in wanted])


def ours(loaded: Loaded, args: argparse.Namespace, clock: Clock) -> np.ndarray:
    """What :func:`tubelet.embed` does, with its parts timed."""
    data, views = evaluation_data(loaded, [], None)
    with clock("list"):
        table = windows(open_table(args.videos, labels="none"), seconds=args.seconds, hop=args.hop, settings=data)
    feed = EvalFeed(table, data, views=views, batch=8, device=str(loaded.device))
    encode = loaded.model.encode

    def timed(*given: Any, **more: Any) -> Any:
        with clock("model"):
            return encode(*given, **more)

    loaded.model.encode = timed  # type: ignore[method-assign]  # put back below
    began, spent = clock.now(), clock.parts["model"]
    try:
        result = embed(loaded.model, feed, table, device=loaded.device)
    finally:
        del loaded.model.encode
    clock.parts["decode"] += clock.now() - began - (clock.parts["model"] - spent)
    assert not result.failures, result.failures
    return result.vectors


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def markdown(found: dict[str, Any]) -> str:
    """The table, as docs/performance.md shows it."""
    lines = ["| | windows a second | Tubelet is faster by | without the model, by | ms a window |", "|---|---|---|---|---|"]
    for name, rate in found["rates"].items():
        times = [_cell(found[key][name], 1) if name in found[key] else "" for key in ("ratios", "data_ratios")]
        parts = ", ".join(f"{part} {ms:,.1f}" for part, ms in found["ms"][name].items())
        lines.append(f"| {name} | {_cell(rate, 2)} | {times[0]} | {times[1]} | {parts} |")
    timed, cosine = found["timed"][LOOPS[0]], min(found["cosine"].values())
    lines += ["", f"{found['windows']} windows of {found['videos']} videos, {found['model']}, {found['machine']}; {timed} of the windows"]
    lines[-1] += f" timed for transformers {found['transformers']}; cosine of the vectors at least {cosine:.4f}."
    return "\n".join(lines)


def _cell(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:,.{digits}f} ({value['low']:,.{digits}f}-{value['high']:,.{digits}f})"


if __name__ == "__main__":
    main()
