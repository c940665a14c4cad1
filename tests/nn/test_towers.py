"""Embedding, encoder, decoder, pooling and heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tubelet.core import CounterDraw, TokenGrid, Tokens
from tubelet.errors import ConfigError
from tubelet.nn.block import cross_stack, stack
from tubelet.nn.decoder import Decoder, MaskToken
from tubelet.nn.embed import Pixels, TubeletEmbed
from tubelet.nn.encoder import SIZES, Encoder
from tubelet.nn.heads import ClassHead
from tubelet.nn.init import truncated, xavier
from tubelet.nn.pool import class_token, make_pool, mean, slots
from tubelet.nn.position import make_position
from tubelet.nn.video import VideoEncoder

D = 16
GRID = TokenGrid(("t", "h", "w"), (2, 2, 3), (2, 4, 4))
VIDEO = torch.rand(2, 3, *GRID.size, generator=torch.Generator().manual_seed(0))


def encoder(depth: int = 3, *, norm: bool = True, drop_path: float = 0.0, dropout: float = 0.0) -> Encoder:
    blocks = stack(dim=D, depth=depth, heads=2)
    return Encoder(blocks=blocks, norm=nn.LayerNorm(D) if norm else None, drop_path=drop_path, dropout=dropout)


def video_encoder(*, class_token: bool = False, drop_path: float = 0.0) -> VideoEncoder:
    return VideoEncoder(
        pixels=Pixels(mean=(0.5,), std=(0.25,), channels=3),
        embed=TubeletEmbed(dim=D, patch=(2, 4, 4)),
        position=make_position("sinusoid", dim=D, grid=GRID, class_row=class_token),
        trunk=encoder(drop_path=drop_path),
        class_token=class_token,
    )


def some_tokens(k: int = 6) -> Tokens:
    index = torch.stack([torch.randperm(GRID.n)[:k] for _ in range(2)])
    return Tokens(torch.randn(2, k, D), index, GRID)


@pytest.mark.parametrize(("patch", "shape"), [((2, 4, 4), (4, 8, 12)), ((4, 4), (8, 12))])
def test_embedding_equals_a_strided_convolution(patch: tuple[int, ...], shape: tuple[int, ...]) -> None:
    axes = ("t", "h", "w")[-len(patch) :]
    embed = TubeletEmbed(dim=D, patch=patch)
    data = torch.randn(2, 3, *shape)
    conv = F.conv3d if len(patch) == 3 else F.conv2d
    expected = conv(data, embed.weight, embed.bias, stride=patch).flatten(2).transpose(1, 2)
    grid = TokenGrid.of(shape, patch, axes)
    assert torch.allclose(embed(data, grid), expected, atol=1e-5)
    index = torch.tensor([[3, 0], [1, 5]])
    assert torch.allclose(embed(data, grid, index), torch.stack([expected[b, index[b]] for b in range(2)]), atol=1e-5)


def test_embedding_starts_as_a_convolution_does() -> None:
    torch.manual_seed(3)
    conv = nn.Conv3d(3, D, (2, 4, 4), stride=(2, 4, 4))
    torch.manual_seed(3)
    embed = TubeletEmbed(dim=D, patch=(2, 4, 4))
    assert torch.equal(embed.weight, conv.weight)
    assert conv.bias is not None
    assert torch.equal(embed.bias, conv.bias)


def test_pixels_of_both_kinds_meet_in_network_space() -> None:
    pixels = Pixels(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), channels=3)
    raw = torch.randint(0, 256, (2, 3, 4), dtype=torch.uint8)
    assert torch.allclose(pixels(raw, 1), pixels(raw.float() / 255, 1))
    assert torch.allclose(pixels(torch.ones(1, 3), 1), torch.tensor([[1.8, 0.8, 0.35]]))
    with pytest.raises(ValueError, match="mean has 3 numbers, the video has 1 channels"):
        Pixels(mean=(0.1, 0.2, 0.3), std=(1.0,), channels=1)
    for wrong in ({"std": (0.0,)}, {"std": (0.2, -0.2, 0.2)}, {"std": (float("nan"),)}, {"mean": (float("inf"),)}):
        with pytest.raises(ValueError, match="the numbers must be finite"):
            Pixels(**{"mean": (0.5,), "std": (0.25,), **wrong}, channels=3)


def test_only_visible_cubes_are_read() -> None:
    model = video_encoder().eval()
    index = torch.tensor([[0, 3, 11], [2, 4, 5]])
    hidden = VIDEO.clone()
    hidden[0, :, :, :4, 4:8] = 9.0  # cubes 1 and 7 of the first sample
    assert torch.equal(model(VIDEO, index).x, model(hidden, index).x)
    whole = model.tokenise(VIDEO)
    assert torch.allclose(model.tokenise(VIDEO, index).x, whole.take(index).x, atol=1e-6)


def test_the_class_token_comes_first_and_has_no_place() -> None:
    model = video_encoder(class_token=True).eval()
    tokens = model(VIDEO)
    assert tokens.index[:, 0].tolist() == [-1, -1]
    assert tokens.x.shape == (2, GRID.n + 1, D)
    assert torch.equal(class_token(tokens), tokens.x[:, 0])
    assert torch.allclose(mean(tokens), tokens.x[:, 1:].mean(1), atol=1e-6)


def test_layers_are_block_outputs_in_the_order_asked() -> None:
    model = encoder().eval()
    tokens = some_tokens()
    out = model(tokens, layers=(-1, 0))
    first = model.blocks[0](tokens.x)
    assert torch.equal(out.layers[1], first)
    assert torch.allclose(model.norm(out.layers[0]), out.x)
    assert torch.equal(out.index, tokens.index)
    with pytest.raises(ValueError, match=r"blocks 0\.\.2"):
        model(tokens, layers=(3,))


def test_padding_tokens_change_nothing() -> None:
    model, tokens = encoder().eval(), some_tokens(5)
    valid = torch.tensor([[True] * 3 + [False] * 2] * 2)
    padded = model(Tokens(tokens.x, tokens.index, GRID, valid))
    assert torch.allclose(padded.x[:, :3], model(tokens.take(torch.arange(3).expand(2, -1))).x, atol=1e-5)


@pytest.mark.parametrize("rates", [{"drop_path": 0.5}, {"dropout": 0.3}])
def test_noise_follows_the_draw_and_only_in_training(rates: dict[str, float]) -> None:
    model, tokens = encoder(**rates), some_tokens()
    draw = CounterDraw(0, torch.arange(2) + 40)
    noisy = model(tokens, draw=draw).x
    assert torch.equal(noisy, model(tokens, draw=draw).x)
    assert not torch.allclose(noisy, model(tokens, draw=CounterDraw(1, draw.sample)).x)
    alone = model(tokens.take(torch.arange(6).expand(2, -1)), draw=draw)
    second = Tokens(tokens.x[1:], tokens.index[1:], GRID)
    assert torch.allclose(alone.x[1:], model(second, draw=CounterDraw(0, draw.sample[1:])).x, atol=1e-6)
    with pytest.raises(ValueError, match="needs draw="):
        model(tokens)
    clean = encoder().eval()
    clean.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(tokens).x, clean(tokens).x)


def test_recomputation_changes_memory_not_numbers() -> None:
    grads = []
    model, tokens, draw = encoder(drop_path=0.4, dropout=0.2), some_tokens(), CounterDraw(0, torch.arange(2))
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model(tokens, draw=draw).x.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_variant_shares_weights_and_leaves_the_original_alone() -> None:
    model = video_encoder(class_token=True, drop_path=0.2)
    twin = model.variant(norm=False, drop_path=0.0)
    assert twin.embed is model.embed
    assert twin.class_token is model.class_token
    assert isinstance(twin.trunk.norm, nn.Identity)
    assert isinstance(model.trunk.norm, nn.LayerNorm)
    assert model.trunk.drop_path == 0.2
    assert torch.allclose(model.trunk.norm(twin.eval()(VIDEO).x), model.eval()(VIDEO).x, atol=1e-6)


def decoder(context: int | None = None, depth: int = 2) -> Decoder:
    width = 8
    blocks = stack(dim=width, depth=depth, heads=2) if context is None else cross_stack(dim=width, depth=depth, heads=2, context=context)
    return Decoder(
        bridge=nn.Linear(D, width, bias=False),
        position=make_position("sinusoid", dim=width, grid=GRID),
        blocks=blocks,
        norm=nn.LayerNorm(width),
    ).eval()


def query(index: torch.Tensor) -> Tokens:
    return Tokens(MaskToken(dim=8)(index), index, GRID)


def test_answers_follow_their_queries_whatever_the_order() -> None:
    model, visible = decoder(), some_tokens(4)
    asked = query(torch.tensor([[0, 5, 7], [9, 2, 11]]))
    answers = model(visible, asked)
    assert answers.shape == (2, 3, 8)
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    shuffled = visible.take(torch.tensor([[3, 1, 0, 2], [0, 2, 1, 3]]))
    again = model(shuffled, asked.take(order))
    assert torch.allclose(again, answers.gather(1, order[..., None].expand(-1, -1, 8)), atol=1e-5)


def test_decoder_padding_and_missing_visible_tokens() -> None:
    model, visible = decoder(), some_tokens(4)
    asked = query(torch.tensor([[0, 5], [9, 2]]))
    padded = Tokens(visible.x, visible.index, GRID, torch.tensor([[True, True, False, False]] * 2))
    short = visible.take(torch.tensor([[0, 1]] * 2))
    assert torch.allclose(model(padded, asked), model(short, asked), atol=1e-5)
    assert model(None, asked).shape == (2, 2, 8)
    with pytest.raises(ValueError, match="needs tokens with a grid"):
        model(None, Tokens(asked.x, asked.index))


def test_contexts_reach_every_block_or_their_own() -> None:
    model = decoder(context=D)
    asked, memory, other = query(torch.tensor([[0, 5], [9, 2]])), some_tokens(3), some_tokens(3)
    assert torch.equal(model(None, asked, [memory]), model(None, asked, [memory, memory]))
    assert not torch.allclose(model(None, asked, [memory]), model(None, asked, [memory, other]))
    with pytest.raises(ConfigError, match="one context or 2, got 3"):
        model(None, asked, [memory] * 3)


def test_the_mask_token_starts_cut() -> None:
    token = MaskToken(dim=4096).token.detach()
    assert float(token.abs().max()) <= 0.02
    assert 0.005 < float(token.std()) < 0.02


def test_pools_mean_slots_and_attention() -> None:
    tokens = some_tokens(8)
    tokens = Tokens(tokens.x, tokens.index.sort(1).values, GRID, torch.tensor([[True] * 8, [True] * 7 + [False]]))
    by_hand = torch.zeros(2, 2, D)
    for b in range(2):
        for slot in range(2):
            here = [tokens.x[b, i] for i in range(8) if tokens.index[b, i] // 6 == slot and tokens.valid is not None and tokens.valid[b, i]]
            by_hand[b, slot] = torch.stack(here).mean(0)
    assert torch.allclose(slots(tokens), by_hand, atol=1e-6)
    assert torch.allclose(mean(tokens)[1], tokens.x[1, :7].mean(0), atol=1e-6)
    only_first = Tokens(tokens.x[:, :1], torch.zeros(2, 1, dtype=torch.int64), GRID)
    assert torch.equal(slots(only_first)[:, 1], torch.zeros(2, D))
    pool = make_pool("attentive", dim=D, heads=2)
    assert pool(tokens).shape == (2, pool.width)
    assert torch.allclose(pool(tokens)[1], pool(Tokens(tokens.x[1:, :7], tokens.index[1:, :7], GRID))[0], atol=1e-5)
    assert make_pool("slots", dim=D, t=2).width == 2 * D
    with pytest.raises(ConfigError, match="number of time slots"):
        make_pool("slots", dim=D)
    with pytest.raises(ValueError, match="made for 4 time slots, the clip has 2"):
        make_pool("slots", dim=D, t=4)(tokens)
    with pytest.raises(ValueError, match="time axis"):
        slots(Tokens(tokens.x, tokens.index))


def test_heads_start_flat_and_drop_by_the_draw() -> None:
    head = ClassHead(dim=D, classes=5, dropout=0.5, init_scale=0.001)
    assert float(head.linear.weight.detach().abs().max()) < 1e-3
    x, draw = torch.randn(4, D), CounterDraw(0, torch.arange(4))
    assert torch.equal(head(x, draw), head(x, draw))
    assert not torch.equal(head(x, draw), head.eval()(x))
    with pytest.raises(ValueError, match="needs draw="):
        head.train()(x)


def test_start_schemes_touch_linears_only() -> None:
    model = video_encoder()
    before = model.embed.weight.clone()
    xavier(model)
    fc1 = model.trunk.blocks[0].get_parameter("mlp.fc1.weight").detach()
    assert torch.equal(model.embed.weight, before)
    assert float(fc1.abs().max()) <= (6 / (D + 4 * D)) ** 0.5
    truncated(model)
    assert abs(float(fc1.std()) - 0.02) < 0.003
    assert float(model.trunk.blocks[0].get_parameter("mlp.fc1.bias").detach().abs().max()) == 0


def test_sizes_are_the_papers() -> None:
    millions = {}
    for name in ("tiny", "small", "base"):
        size = SIZES[name]
        with torch.device("meta"):
            blocks = stack(dim=size.dim, depth=size.depth, heads=size.heads, mlp_ratio=size.mlp_ratio)
            embed = TubeletEmbed(dim=size.dim, patch=(2, 16, 16))
        millions[name] = sum(p.numel() for part in (blocks, embed) for p in part.parameters()) / 1e6
    assert round(millions["small"]) == 22
    assert round(millions["base"]) in (86, 87)
    assert int(SIZES["giant"].dim * SIZES["giant"].mlp_ratio) == 6144
