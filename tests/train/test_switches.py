"""Precision, activation checkpointing and compilation, through the loop: the same training, and exact resume."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fit"))
from harness import ToyFeed, check_resumes, losses, train

from tubelet.core import Stream
from tubelet.masking.tube import Config as Tube
from tubelet.methods.videomae import Config as VideoMAE
from tubelet.methods.videomae import DecoderConfig
from tubelet.nn.block import Block


def clips(draw, n):
    """Clips of a smooth random ground, 3x4x16x16."""
    ground = draw.uniform("ground", 3, 1, 4, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    return {"video": Stream(ground.expand(-1, -1, 4, -1, -1).contiguous())}, {}


def tiny():
    """A VideoMAE of two blocks with drop path and dropout, so that recomputation has noise to get wrong."""
    decoder = DecoderConfig(dim=16, depth=1, heads=2)
    config = VideoMAE(dim=32, depth=2, heads=2, patch=(2, 8, 8), drop_path=0.2, dropout=0.1, decoder=decoder)
    return config.build(masking=Tube(ratio=0.5).build(), frames=4, size=(16, 16))


def run(folder, **switches):
    """Losses of six steps, and the model after them."""
    built = []
    train(lambda: built.append(tiny()) or built[0], ToyFeed(clips), folder, steps=6, **switches)
    return losses(folder), built[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"))[0]


def test_bf16_follows_fp32(plain, tmp_path):
    got, model = run(tmp_path, precision="bf16")
    assert got != plain
    assert got == pytest.approx(plain, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "the weights themselves stay in fp32"
    check_resumes(tiny, clips, precision="bf16")


def test_recomputed_activations_change_nothing(plain, tmp_path, monkeypatch):
    passes = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *args: passes.append(self) or forward(self, *args))
    got, model = run(tmp_path, activation_checkpointing=True)
    assert passes.count(model.encoder.trunk.blocks[0]) == 2 * 6, "each block runs again in the backward pass"
    assert got == pytest.approx(plain, rel=1e-6)
    check_resumes(tiny, clips, activation_checkpointing=True)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(plain, tmp_path):
    """Needs a C++ compiler, as torch.compile does."""
    got, model = run(tmp_path, compile=True)
    assert all(block._compiled_call_impl is not None for block in model.encoder.trunk.blocks)
    assert got == pytest.approx(plain, rel=1e-4)
    check_resumes(tiny, clips, compile=True)
