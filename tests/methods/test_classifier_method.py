"""The classifier: fine-tuning, probing, layer-wise rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tubelet.config import parse
from tubelet.core import Batch, CounterDraw, Step, Stream
from tubelet.errors import ConfigError
from tubelet.methods.classifier import Classifier, Config
from tubelet.methods.videomae import Config as VideoMAEConfig
from tubelet.nn.video import VideoEncoder
from tubelet.objectives.classify import smooth_one_hot

VIDEO = torch.rand(4, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 1])


def encoder(**changes: Any) -> VideoEncoder:
    torch.manual_seed(0)
    settings = {"dim": 24, "depth": 2, "heads": 3, "patch": (2, 8, 8)} | changes
    return parse(VideoMAEConfig, settings).build_encoder(frames=4, size=(16, 16))


def classifier(tower: VideoEncoder | None = None, **changes: Any) -> Classifier:
    return parse(Config, changes).build(encoder=tower or encoder(), classes=3)


def step(net: Classifier, labels: torch.Tensor = LABELS):
    batch = Batch({"video": Stream(VIDEO)}, {"class": labels}, torch.arange(4))
    return net.losses("main", batch, Step(0, 0, 0.0, 0.0, CounterDraw(0, batch.sample)))


@pytest.mark.parametrize("changes", [{}, {"pool": "slots"}, {"pool": "attentive", "norm": "tokens"}, {"frozen": True, "init_scale": 1.0}])
def test_it_learns_a_few_clips(changes: dict[str, Any]) -> None:
    net = classifier(drop_path=0.0, **changes)
    params = [p for g in net.groups("main") for p in g.params]
    assert sorted(map(id, params)) == sorted(map(id, net.parameters()))
    optimiser = torch.optim.AdamW(params, lr=5e-3)
    start = float(step(net).total.detach())
    for _ in range(80):
        losses = step(net)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert start > 0.9
    assert float(losses.total.detach()) < 0.5 * start
    assert float(losses.log["accuracy"]) == 1.0


def test_a_frozen_encoder_is_untouched_and_not_part_of_the_weights() -> None:
    tower = encoder(drop_path=0.5)
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    net = classifier(tower, frozen=True).train()
    step(net).total.backward()
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())
    assert all(p.grad is None for p in tower.parameters())
    assert all(name.startswith("readout.") for name in net.state_dict())
    assert torch.equal(net(VIDEO), net(VIDEO))  # no drop path without a draw: the encoder stays in eval mode


def test_the_encoder_given_keeps_its_norm_and_noise() -> None:
    tower = encoder(drop_path=0.1)
    net = classifier(tower, drop_path=0.4)
    assert isinstance(tower.trunk.norm, torch.nn.LayerNorm)
    assert tower.trunk.drop_path == 0.1
    assert not any("trunk.norm" in name for name, _ in net.named_parameters())
    assert net.get_parameter("encoder.embed.weight") is tower.embed.weight
    assert any("trunk.norm" in name for name, _ in classifier(norm="tokens").named_parameters())


def test_soft_targets_equal_smoothed_numbers_and_noise_follows_the_draw() -> None:
    net = classifier(smoothing=0.2, dropout=0.5, drop_path=0.5)
    assert torch.equal(step(net).total, step(net).total)
    soft = step(net, smooth_one_hot(LABELS, 3, 0.2))
    assert torch.allclose(soft.total, step(net).total)
    assert soft.log == {}


def test_layer_rates_fall_towards_the_input() -> None:
    net = classifier(encoder(position="learned"), layer_decay=0.5)
    rate = {name: g.lr for g in net.groups("main") for p in g.params for name, q in net.named_parameters() if p is q}
    assert rate["encoder.embed.weight"] == rate["encoder.position.rows"] == 0.5**3
    assert rate["encoder.trunk.blocks.0.norm1.weight"] == 0.5**2
    assert rate["encoder.trunk.blocks.1.mlp.fc2.weight"] == 0.5
    assert rate["readout.head.linear.weight"] == rate["readout.head.norm.bias"] == 1.0
    bare = {name for g in net.groups("main") if g.decay == 0.0 for p in g.params for name, q in net.named_parameters() if p is q}
    assert "encoder.position.rows" in bare
    assert "encoder.trunk.blocks.0.attn.q_bias" in bare
    assert "readout.head.linear.weight" not in bare


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="needs an encoder with a class token"):
        classifier(pool="class")
    with pytest.raises(ConfigError, match="at least 2 classes, got 1"):
        parse(Config, {}).build(encoder=encoder(), classes=1)
    with pytest.raises(ValueError, match=r"soft targets must be \(B, 3\), got \(4, 5\)"):
        step(classifier(), torch.rand(4, 5))
    net = classifier()
    with pytest.raises(ValueError, match="this batch has labels"):
        net.losses("main", Batch({"video": Stream(VIDEO)}, {}, torch.arange(4)), Step(0, 0, 0.0, 0.0, CounterDraw(0, torch.arange(4))))
