"""The same study at the size that a GPU does in minutes: clips decoded once, in its memory; thousands of epochs."""

from __future__ import annotations

from real_video import Scale, study

GPU = Scale(
    device="cuda",
    recipe="tiny-cpu",
    frames=16,
    size=112,
    settings=(
        "method.dim=384", "method.depth=12", "method.heads=6", "method.decoder={dim: 192, depth: 4, heads: 3}",
        "data.cache=device", "data.workers=0", "train.precision=bf16",
    ),
    steps=20_000, short=5_000, batch=128, epochs=50, long=1_520,
    seeds=(0, 1, 2), short_seeds=(0, 1, 2), tune_seeds=(),
    minutes={"pretrain": 20, "short": 5, "frozen": 1, "choose": 2, "finetune": 1, "long": 10, "curve": 2, "small": 0.5},
)  # fmt: skip
STUDY = study("real_video_gpu", "On one GPU: a ViT-S, clips of 16x112x112", GPU)
