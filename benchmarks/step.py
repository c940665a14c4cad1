"""How long a training step takes, and what masking saves: paired, interleaved, medians.

    python benchmarks/step.py [--size tiny] [--batch 4] [--repeats 9] [--device cpu] [--precision fp32] [--compile]

Three things are timed in turn, ``--repeats`` times: the encoder on all tokens, the encoder on the visible tenth (both forward and
backward), and a whole training step (mask, encoder, decoder, targets, AdamW). 16 x 224 x 224 clips, tube mask of 90 %.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from tubelet.core import Batch, CounterDraw, Step, Stream
from tubelet.masking.tube import Tube
from tubelet.methods.videomae import Config
from tubelet.train.loop import apply_switches
from tubelet.train.settings import TrainSettings
from tubelet.train.step import Stepper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(0)
    model = Config(size=args.size).build(masking=Tube(ratio=0.9), frames=16, size=(224, 224)).to(device)
    settings = TrainSettings(steps=1, batch=args.batch, precision=args.precision, compile=args.compile)
    apply_switches(model, settings)
    stepper = Stepper(model, settings, lambda at, schedule: 1e-4, device=device)
    sample = torch.arange(args.batch, device=device)
    video = torch.randint(0, 256, (args.batch, 3, 16, 224, 224), dtype=torch.uint8, device=device)
    batch = Batch({"video": Stream(video)}, {}, sample)
    at = Step(0, 0, 0.0, 0.0, CounterDraw(0, sample))
    visible = model.mask(batch, at).visible

    def encode(index: torch.Tensor | None) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = model.encoder(video, index).x.float().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    jobs: dict[str, Callable[[], object]] = {
        "encoder, all tokens": lambda: encode(None),
        "encoder, visible tokens": lambda: encode(visible),
        "training step": lambda: stepper.step([batch], at),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(args.repeats + 2):
        for name, job in jobs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - began)

    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    ratio = statistics.median(a / b for a, b in zip(seconds["encoder, all tokens"], seconds["encoder, visible tokens"], strict=True))
    rows = {
        name: {
            "median_ms": 1e3 * statistics.median(s),
            "spread_ms": 1e3 * (max(s) - min(s)),
            "clips_per_s": args.batch / statistics.median(s),
        }
        for name, s in seconds.items()
    }
    print(json.dumps({"machine": machine, "torch": torch.__version__, **vars(args), "dense_over_masked": ratio, "jobs": rows}, indent=1))


if __name__ == "__main__":
    main()
