"""What is counted is what is computed: closed forms, real passes, measured memory; and counting leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tubelet.core import Batch, CounterDraw, Frozen, Group, Losses, Mask, Masker, Step, Stream, Trainable
from tubelet.masking.tube import Tube
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.nn.attention import make_attention
from tubelet.nn.cost import Tower, VideoMAECost
from tubelet.recipe import load
from tubelet.train.cost import measure, rehearse
from tubelet.train.peaks import GPUS, known_gpu, peak_flops, peak_of
from tubelet.train.step import Stepper

FRAMES, SIDE, PATCH = 8, 48, (2, 8, 8)
TOKENS, VISIBLE = 4 * 36, 4 * 9


def clips(n: int = 2, device: str = "cpu") -> Batch:
    data = torch.zeros(n, 3, FRAMES, SIDE, SIDE, dtype=torch.uint8, device=device)
    return Batch({"video": Stream(data)}, {}, torch.arange(n, device=device))


def clock(n: int = 2) -> Step:
    return Step(0, 0, 0.0, 0.0, CounterDraw(0, torch.arange(n)))


def videomae(*, device: str = "cpu", masking: Masker | None = None, recompute: bool = False, drop_path: float = 0.0) -> VideoMAE:
    config = Config.model_validate(
        {"dim": 96, "depth": 3, "heads": 3, "patch": PATCH, "drop_path": drop_path, "decoder": {"dim": 48, "depth": 2, "heads": 3}}
    )
    with torch.device(device):
        model = config.build(masking=masking or Tube(ratio=0.75), frames=FRAMES, size=(SIDE, SIDE)).train()
    model.encoder.trunk.recompute = model.decoder.recompute = recompute
    return model


def form() -> VideoMAECost:
    cube = 3 * 2 * 8 * 8
    return VideoMAECost(Tower(96, 3, 384), Tower(48, 2, 192), cube, cube)


# Closed forms


def test_the_formula_is_what_a_masked_autoencoder_computes():
    cost = measure(videomae(device="meta"), clips(), clock())
    assert cost.forward_flops == pytest.approx(form().flops(VISIBLE, TOKENS - VISIBLE), rel=0.01)
    encoder = videomae(device="meta").encoder
    assert sum(p.numel() for p in encoder.parameters()) == form().encoder_parameters()


@pytest.mark.parametrize("size", ["small", "giant"])
def test_the_formula_holds_for_named_sizes(size: str):
    stage = load("videomae", size=size).stages[0]
    with torch.device("meta"):
        masking = Tube(ratio=0.9)
        model = cast(Config, stage.method).build(masking=masking, frames=16, size=(224, 224))
    data = torch.zeros(1, 3, 16, 224, 224, dtype=torch.uint8, device="meta")
    batch = Batch({"video": Stream(data)}, {}, torch.arange(1))
    cost = measure(model, batch, clock(1), precision="bf16")
    assert cost.forward_flops == pytest.approx(VideoMAECost.of_size(size).flops(160, 1408), rel=0.01)
    assert cost.parameters == cost.trained == sum(p.numel() for p in model.parameters())


class Attends(Trainable):
    """One layer of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = make_attention("bias", dim=32, heads=2)

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        x = batch.stream("features").data
        return Losses({"mean": (self.attention(x).mean(), 1.0)})


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_attention_is_counted_everywhere(device: str, precision: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    n, d = 20, 32
    batch = Batch({"features": Stream(torch.zeros(3, n, d))}, {}, torch.arange(3))
    cost = measure(Attends().to(device), batch, clock(3), precision=precision)
    assert cost.forward_flops == 2 * (n * 4 * d**2 + 2 * n**2 * d)


# Real passes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_without_numbers_costs_what_a_real_one_does(precision: str):
    meta = measure(videomae(device="meta", drop_path=0.1), clips(), clock(), precision=precision)
    real = measure(videomae(drop_path=0.1), clips(), clock(), precision=precision)
    assert (meta.parameters, meta.trained, meta.forward_flops, meta.cast_bytes) == (
        real.parameters,
        real.trained,
        real.forward_flops,
        real.cast_bytes,
    )
    assert meta.activation_bytes == pytest.approx(real.activation_bytes, rel=0.001)
    assert (meta.cast_bytes > 0) == (precision == "bf16")


def test_what_counts_per_clip_does_not_depend_on_the_batch():
    one, three = (measure(videomae(device="meta"), clips(n), clock(n), precision="bf16") for n in (1, 3))
    assert one.forward_flops == three.forward_flops
    assert one.activation_bytes == pytest.approx(three.activation_bytes, rel=0.001)
    assert one.cast_bytes == three.cast_bytes


def test_a_batch_may_lie_on_the_meta_device():
    assert measure(videomae(device="meta"), clips(device="meta"), clock()) == measure(videomae(device="meta"), clips(), clock())


def measured_peak(work: Callable[[], object]) -> int:
    """The most bytes that were allocated at once, as torch's profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events: list[Any] = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(("precision", "recompute"), [("fp32", False), ("fp32", True), ("bf16", False)])
def test_a_rehearsed_step_takes_the_memory_of_a_real_one(precision: str, recompute: bool):
    """The second micro-batch of a step, with the gradients of the first in place, against the profiler's record of it."""
    micro = 8
    one, two = (rehearse(videomae(device="meta", recompute=recompute), clips(n), clock(n), precision=precision) for n in (1, 2))
    said = one.peak_bytes + (micro - 1) * (two.peak_bytes - one.peak_bytes)
    model = videomae(recompute=recompute)
    settings = load("tiny-cpu", [f"precision={precision}", "device=cpu"]).stages[0].train
    stepper = Stepper(model, settings, lambda at, schedule: 0.0)
    stepper.step([clips(micro)], clock(micro))
    for optimizer in stepper.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    parts = [clips(micro), clips(micro)]
    gradients = sum(p.numel() * 4 for p in model.parameters())
    found = measured_peak(lambda: stepper.step(parts, clock(micro))) - gradients
    assert said == pytest.approx(found, rel=0.01)


def test_the_backward_pass_is_twice_the_forward_pass_and_checkpointing_goes_through_the_blocks_again():
    forward = measure(videomae(device="meta"), clips(), clock()).forward_flops
    plain = rehearse(videomae(device="meta"), clips(), clock())
    lean = rehearse(videomae(device="meta", recompute=True), clips(), clock())
    assert plain.flops == pytest.approx(3 * forward, rel=0.03)  # the pixels need no gradient
    again = 0.0
    for tower, tokens in ((form().encoder, VISIBLE), (form().decoder, TOKENS)):
        last = 2 * tower.depth * tokens * tower.dim * tower.hidden  # of every block; no gradient needs its result
        again += tower.flops(tokens) - last
    assert lean.flops - plain.flops == pytest.approx(again, rel=0.01)
    assert lean.peak_bytes < 0.7 * plain.peak_bytes


# Any trainable


class TwoPlayers(Trainable):
    """A generator and a critic that goes twice; the critic has a running mean, one of its layers is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(4, 8)
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.critic[0].requires_grad_(False)
        self.outside = Frozen(nn.Linear(8, 8))

    def phases(self):
        return {"generator": self.generator, "critic": self.critic}

    def phase_order(self, at: Step):
        return ("critic", "critic", "generator")

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        at.draw.uniform("noise", 3)
        made = self.generator(batch.stream("features").data)
        return Losses({phase: (self.critic(self.outside(made) if phase == "critic" else made).mean(), 1.0)})


def features(n: int = 4) -> Batch:
    return Batch({"features": Stream(torch.ones(n, 4))}, {}, torch.arange(n))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_phases_count_as_often_as_they_come(device: str):
    with torch.device(device):
        model = TwoPlayers()
    cost = measure(model, features(), clock(4))
    made, judged = 2 * 4 * 8, 2 * 8 * 16 + 2 * 16
    assert cost.forward_flops == 3 * (made + judged) + 2 * (2 * 8 * 8)
    frozen = 8 * 16 + 16
    assert cost.parameters - cost.trained == frozen


def test_counting_leaves_no_trace():
    model, masker = TwoPlayers(), videomae()
    generator = torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    measure(model, features(), clock(4))
    measure(masker, clips(), clock())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "a running mean has moved"
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in [*model.parameters(), *masker.parameters()])
    assert masker.masking is not None
    assert masker.masking._checked is False


def test_counting_leaves_a_model_without_numbers_as_it_was():
    model = videomae(device="meta")
    places = [(n, id(t)) for n, t in [*model.named_parameters(), *model.named_buffers()]]
    measure(model, clips(), clock())
    rehearse(model, clips(), clock())
    assert places == [(n, id(t)) for n, t in [*model.named_parameters(), *model.named_buffers()]]
    assert all(p.is_meta and p.grad is None and p.requires_grad for p in model.parameters())


def test_nothing_of_a_large_model_is_allocated():
    with torch.device("meta"):
        masking = Tube(ratio=0.9)
        model = Config.model_validate({"size": "huge"}).build(masking=masking, frames=16, size=(224, 224))
    data = torch.zeros(1, 3, 16, 224, 224, dtype=torch.uint8)
    batch = Batch({"video": Stream(data)}, {}, torch.arange(1))
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert weights > 2**31
    assert measured_peak(lambda: measure(model, batch, clock(1))) < 2**26


class Looks(Trainable):
    """Losses that look at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        x = self.linear(batch.stream("features").data)
        return Losses({"x": (x[x > x.mean()].sum() if x.mean().item() > -9 else x.sum(), 1.0)})


def test_losses_that_look_at_values_need_a_real_device():
    with torch.device("meta"):
        model = Looks()
    with pytest.raises(ValueError, match=r"'main' depend on values.*count this model on a real device"):
        measure(model, features(), clock(4))
    assert all(p.is_meta for p in model.parameters())
    assert measure(Looks(), features(), clock(4)).forward_flops == 2 * 4 * 4


class Learned(Masker):
    """Hides the tokens that it scores lowest: a mask that depends on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(TOKENS))

    def forward(self, grid, batch, stream, at, tokens=None) -> Mask:
        order = (self.score + at.draw.uniform("mask", grid.n)).argsort(1)
        return Mask(grid, order[:, :VISIBLE], order[:, VISIBLE:])

    def loss(self, mask, error_BM):
        return self.score.square().sum()


class Counted(Masker):
    """A user's strategy that lets ``of_hidden`` check its counts."""

    def forward(self, grid, batch, stream, at, tokens=None) -> Mask:
        order = at.draw.permutation("mask", grid.n)
        return Mask.of_hidden(grid, order >= VISIBLE)


@pytest.mark.parametrize("masker", [Learned, Counted])
def test_masks_need_no_values_or_have_them(masker: type[Masker]):
    with torch.device("meta"):
        masking = masker()
    cost = measure(videomae(device="meta", masking=masking), clips(), clock())
    assert cost.forward_flops == pytest.approx(form().flops(VISIBLE, TOKENS - VISIBLE), rel=0.01)
    assert masking._checked is False


class Grouped(Attends):
    """Trains its projection alone."""

    def groups(self, phase: str):
        return [Group(list(self.attention.proj.parameters()))]


def test_only_what_learns_is_trained():
    model = Grouped()
    model.attention.qkv.requires_grad_(False)
    batch = Batch({"features": Stream(torch.zeros(1, 5, 32))}, {}, torch.arange(1))
    assert measure(model, batch, clock(1)).trained == 32 * 32 + 32


# Peaks


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10", "a10"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
    ],
)
def test_gpus_are_known_by_their_drivers_names(said: str, name: str):
    assert known_gpu(said) is GPUS[name]


@pytest.mark.parametrize(
    "said", ["NVIDIA A10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GH200 480GB", "NVIDIA L40", "NVIDIA H100 NVL"]
)
def test_other_gpus_are_not_taken_for_known_ones(said: str):
    assert known_gpu(said) is None


def test_a_peak_says_what_it_is_of():
    assert peak_of(GPUS["a100-80"], "bf16") == ("A100 80 GB bf16", 312e12)
    assert peak_of(GPUS["a100-80"], "fp32") == ("A100 80 GB fp32", 19.5e12)
    assert peak_of(GPUS["t4"], "bf16") is None
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak_of(GPUS["a100-80"], "fp32") == ("A100 80 GB TF32", 156e12)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_processor_is_measured():
    found = peak_flops(torch.device("cpu"), "fp32")
    assert found is not None
    assert "measured" in found[0]
    assert 1e8 < found[1] < 1e15
    assert peak_flops(torch.device("meta"), "fp32") is None
