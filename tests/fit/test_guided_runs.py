"""Runs with guided and learned maskings and with alignment go on bit for bit, like all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tubelet
from tubelet.train.checkpoint import read_tensors

SMALL = ["method.dim=16", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 1}"]
SMALL += ["data.size=16", "data.frames=4", "data.stride=1", "data.cache=none", "data.workers=0", "data.labels=none", "batch=4"]
SMALL += ["train.device=cpu", "watch.pictures=0", "watch.probe=0", "train.warmup_steps=1", "train.checkpoint_minutes=null", "log_every=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("guided")
    manifest = tubelet.make_playground(home / "world", clips=8, scene="easy", size=32, frames=6)
    words = ["data.size=16", "data.frames=1", "data.stride=1", "data.cache_size=16", "train.device=cpu", "steps=1", "batch=4"]
    tubelet.pretrain(manifest, out=home / "words", recipe="dual", settings=[*words, "data.workers=0"], quiet=True)
    return home


@pytest.mark.parametrize(
    "masking",
    [
        ["masking=mgm", "masking.ratio=0.5"],
        ["masking=mgmae", "masking.ratio=0.5"],
        ["masking=adamae", "masking.ratio=0.75", "masking.heads=2", "masking.weight=0.1"],
        ["masking=tgm", "masking.guide.model={words}", "method.align.model={words}"],
    ],
    ids=lambda words: words[0].removeprefix("masking="),
)
def test_a_run_that_was_stopped_ends_in_the_same_bits(world: Path, tmp_path: Path, masking: list[str]) -> None:
    settings = [*SMALL, *(text.format(words=world / "words") for text in masking)]

    def train(name: str, steps: int, **more: Any) -> dict[str, torch.Tensor]:
        tubelet.pretrain(
            world / "world" / "manifest.csv",
            out=tmp_path / name,
            recipe="tiny-cpu",
            settings=[*settings, "steps=6", f"train.checkpoint_every={steps}"],
            quiet=True,
            **more,
        )
        return read_tensors(max((tmp_path / name / "checkpoints").glob("step-*.safetensors")))

    whole = train("whole", 3)
    halved = tmp_path / "halved"
    train("halved", 3)
    for path in [halved / "model.safetensors", max((halved / "checkpoints").glob("step-*.safetensors"))]:
        path.unlink()  # as if it had been killed after its checkpoint at step 3
    again = train("halved", 3, resume=True)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
