"""VideoMAE as a trainable: it learns, follows its draws, reads other clips, and explains bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tubelet.config import parse
from tubelet.core import Batch, CounterDraw, Mask, Masker, Step, Stream, unpatchify
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.videomae import from_official, official_name, our_name, to_official
from tubelet.masking import random, tube
from tubelet.methods.videomae import Config, VideoMAE

SMALL: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 3, "patch": (2, 8, 8), "decoder": {"dim": 16, "depth": 1, "heads": 2}}
FRAMES, SIZE = 4, (16, 24)
VIDEO = torch.rand(3, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(0))


def config(**changes: Any) -> Config:
    return parse(Config, SMALL | changes)


def model(masking: Masker | None = None, **changes: Any) -> VideoMAE:
    torch.manual_seed(0)
    return config(**changes).build(masking=masking or tube.Config(ratio=0.5).build(), frames=FRAMES, size=SIZE)


def batch(video: torch.Tensor = VIDEO, first: int = 0) -> Batch:
    return Batch({"video": Stream(video)}, {}, torch.arange(first, first + len(video)))


def at(b: Batch, index: int = 0) -> Step:
    return Step(index, 0, 0.0, 0.0, CounterDraw(0, b.sample, index))


def test_a_few_steps_beat_answering_zero() -> None:
    net, b = model(), batch()
    optimiser = torch.optim.AdamW([{"params": list(g.params), "weight_decay": g.decay or 0.0} for g in net.groups("main")], lr=3e-3)
    values = []
    for _ in range(60):
        losses = net.losses("main", b, at(b))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        values.append(float(losses.total.detach()))
    zero = float(losses.log["zero_answer"])
    assert zero == pytest.approx(127 / 128, abs=1e-4)
    assert values[0] > zero
    assert values[-1] < 0.8 * zero


def test_losses_follow_sample_and_draw_alone() -> None:
    net, b = model(drop_path=0.3, dropout=0.1), batch()
    whole = net.losses("main", b, at(b)).total
    assert torch.equal(whole, net.losses("main", b, at(b, index=5)).total)
    parts = [net.losses("main", one, at(one)).total for one in (batch(VIDEO[:1]), batch(VIDEO[1:], first=1))]
    assert torch.allclose(whole, (parts[0] + 2 * parts[1]) / 3, atol=1e-5)
    assert not torch.allclose(whole, net.losses("main", batch(first=9), at(batch(first=9))).total)


def test_every_parameter_learns_and_has_one_rule() -> None:
    net, b = model(position="learned", init_values=0.1, attention="cosine"), batch()
    net.losses("main", b, at(b)).total.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    groups = net.groups("main")
    assert sorted(id(p) for g in groups for p in g.params) == sorted(id(p) for p in net.parameters())
    bare = {id(p) for g in groups if g.decay == 0.0 for p in g.params}
    for name, p in net.named_parameters():
        assert (id(p) in bare) == (p.ndim == 1 or name.endswith(".bias") or name == "mask_token.token"), name


class Dual(Masker):
    """Some targets are visible; those have weight 0 or are padding."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, grid, batch, stream, at, tokens=None) -> Mask:
        visible = torch.arange(4).expand(len(batch), -1)
        target = torch.arange(2, 10).expand(len(batch), -1)
        scored = target >= 4
        if self.mode == "plain":
            return Mask(grid, visible, target[:, 2:])
        if self.mode == "weight":
            return Mask(grid, visible, target, weight=scored.float() * 3)
        return Mask(grid, visible, target, target_valid=scored)


def test_weights_and_padding_of_targets_are_obeyed() -> None:
    b = batch()
    plain, weight, padded = (model(Dual(mode)) for mode in ("plain", "weight", "padded"))
    assert torch.allclose(plain.losses("main", b, at(b)).total, padded.losses("main", b, at(b)).total, atol=1e-5)
    rows, losses = weight.reconstruct(b, at(b)).rows, weight.losses("main", b, at(b))
    target = weight.target.rows(VIDEO, weight.encoder.grid(VIDEO), torch.arange(4, 10).expand(3, -1))
    assert torch.allclose(losses.total, (rows[:, 2:] - target).square().mean(), atol=1e-5)


class Learner(Masker):
    """A masker that learns from the errors of what it hid."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.inner = random.Config(ratio=0.5).build()

    def forward(self, grid, batch, stream, at, tokens=None) -> Mask:
        return self.inner(grid, batch, stream, at)

    def loss(self, mask: Mask, error_BM: torch.Tensor) -> torch.Tensor:
        assert not error_BM.requires_grad
        assert error_BM.shape == mask.target.shape
        return self.weight * error_BM.mean()


def test_a_learned_masker_adds_its_term() -> None:
    net, b = model(Learner()), batch()
    losses = net.losses("main", b, at(b))
    assert set(losses.terms) == {"pixels", "masker"}
    losses.total.backward()
    assert net.get_parameter("masking.weight").grad is not None


def test_a_class_token_is_read_without_a_place_and_learns() -> None:
    net, b = model(position="learned", class_token=True), batch()
    tokens = net.encode(b)
    assert tokens.x.shape == (3, 1 + 12, 24)
    assert tokens.index[0].tolist() == [-1, *range(12)]
    net.losses("main", b, at(b)).total.backward()
    assert net.encoder.class_token is not None
    assert net.encoder.position.class_row is not None
    bare = {id(p) for g in net.groups("main") if g.decay == 0.0 for p in g.params}
    for p in (net.encoder.class_token, net.encoder.position.class_row):
        assert p.grad is not None
        assert p.grad.abs().min() > 0
        assert id(p) in bare
    assert model().encoder.class_token is None


@pytest.mark.parametrize("position", ["sinusoid", "learned", "separable", "sincos2d"])
def test_encode_reads_clips_of_other_lengths_and_sizes(position: str) -> None:
    net = model(position=position).eval()
    tokens = net.encode(batch(), layers=(0, -1))
    assert tokens.x.shape == (3, 12, 24)
    assert torch.allclose(net.encoder.trunk.norm(tokens.layers[1]), tokens.x)
    other = net.encode(batch(torch.rand(2, 3, 6, 32, 16)))
    assert other.grid is not None
    assert other.grid.shape == (3, 4, 2)
    assert torch.isfinite(other.x).all()


def test_bytes_and_unit_floats_give_the_same_tokens() -> None:
    net, raw = model().eval(), (VIDEO * 255).byte()
    assert torch.allclose(net.encode(batch(raw)).x, net.encode(batch(raw.float() / 255)).x, atol=1e-5)
    mean = torch.tensor(config().mean).view(1, 3, 1, 1, 1).expand_as(VIDEO)
    assert torch.allclose(
        net.encoder.tokenise(mean).x[0, 0], net.encoder.embed.bias + net.encoder.position.table(net.encoder.grid(VIDEO))[0]
    )


def test_a_reconstruction_fills_the_hidden_places() -> None:
    net, b = model(target={"normalise": "none"}).eval(), batch()
    made = net.reconstruct(b, at(b))
    cubes = made.target.cubes(VIDEO, made.mask.grid, None)
    cubes = cubes.scatter(1, made.mask.target[..., None, None, None, None].expand(-1, -1, *cubes.shape[2:]), 0.0)
    answers = made.target.pixels(made.rows, made.mask.grid, VIDEO)
    full = cubes.scatter(1, made.mask.target[..., None, None, None, None].expand(-1, -1, *cubes.shape[2:]), answers)
    picture = unpatchify(full, made.mask.grid)
    hidden = made.mask.hidden().repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)[:, None].expand_as(picture)
    assert torch.equal(picture[~hidden], VIDEO[~hidden])
    assert not torch.allclose(picture[hidden], VIDEO[hidden], atol=1e-2)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (VIDEO.transpose(1, 2), r"looks like \(B, T, C, H, W\), swap with video.transpose\(1, 2\)"),
        (VIDEO[:, :, :3], "t: 3 is not a multiple of 2"),
        (VIDEO[..., :20], "w: 20 is not a multiple of 8"),
        (VIDEO[:, :, 0], "got 4 dimensions"),
        (VIDEO[:, :1], r"reads \(B, 3, T, H, W\), got \(3, 1, 4, 16, 24\)"),
        (VIDEO.long(), "uint8 in 0..255 or floating point"),
    ],
)
def test_bad_clips_are_explained(video: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().encode(batch(video))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 25}, "dim 25 cannot be split into heads 3"),
        ({"decoder": {"dim": 16, "heads": 3}}, r"decoder.dim 16 cannot be split into decoder.heads 3"),
        ({"size": "bsae"}, "size"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"ratio": 0.5}, "unknown setting"),
        ({"patch": (2, 7, 8)}, r"h: 16 is not a multiple of 7; change the clip's frames or size"),
        ({"mean": (0.5, 0.5)}, "mean has 2 numbers, the video has 3 channels"),
        ({"target": {"frames": 3}}, "multiple of the 2 slots"),
    ],
)
def test_bad_settings_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**changes)


def test_a_model_without_masking_encodes_but_does_not_train() -> None:
    net, b = config().build(masking=None, frames=FRAMES, size=SIZE), batch()
    assert net.encode(b).x.shape == (3, 12, 24)
    with pytest.raises(ConfigError, match="built without masking"):
        net.losses("main", b, at(b))


def test_named_sizes_are_overridden_one_by_one() -> None:
    with torch.device("meta"):
        net = parse(Config, {"size": "small", "depth": 1, "decoder": {"depth": 1}}).build(masking=None, frames=16, size=(224, 224))
    assert net.encoder.dim == 384
    assert net.decoder.position.dim == 192
    assert net.head.out_features == 1536
    assert len(net.encoder.trunk.blocks) == 1


def test_official_names_go_there_and_back() -> None:
    for position in ("sinusoid", "learned"):
        state = model(position=position, init_values=0.1).state_dict()
        official = to_official(state, "pretrain")
        assert {"encoder.patch_embed.proj.weight", "encoder_to_decoder.weight", "decoder.head.bias", "mask_token"} <= set(official)
        back = from_official(official, "pretrain")
        assert list(back) == list(state)
        assert all(torch.equal(back[k], state[k]) for k in state)
    with pytest.raises(CheckpointError, match="not one of an official"):
        our_name("encoder.cls_token", "pretrain")
    with pytest.raises(CheckpointError, match="no counterpart"):
        official_name("readout.pool.query", "classifier")
