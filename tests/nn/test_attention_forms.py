"""Attention, blocks and noise against naive mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tubelet.core import CounterDraw
from tubelet.errors import ConfigError
from tubelet.nn.attention import AttentionKind, CosineAttention, CrossAttention, make_attention
from tubelet.nn.block import Block, CrossBlock, drop, path_scale

B, N, D, HEADS = 2, 7, 12, 3


def naive(
    x: Tensor, q_bias: Tensor | None, k_bias: Tensor | None, v_bias: Tensor | None, weight: Tensor, valid: Tensor, cosine=None
) -> Tensor:
    q, k, v = (x @ w.T for w in weight.split(D))
    q, k, v = (part if bias is None else part + bias for part, bias in ((q, q_bias), (k, k_bias), (v, v_bias)))
    out = torch.zeros_like(x)
    for b in range(B):
        for h in range(HEADS):
            cut = slice(h * D // HEADS, (h + 1) * D // HEADS)
            qh, kh, vh = q[b, :, cut], k[b, :, cut], v[b, :, cut]
            if cosine is None:
                logits = qh @ kh.T / math.sqrt(D / HEADS)
            else:
                logits = (qh / qh.norm(dim=-1, keepdim=True)) @ (kh / kh.norm(dim=-1, keepdim=True)).T * min(100.0, math.exp(cosine[h]))
            logits[:, ~valid[b]] = -math.inf
            out[b, :, cut] = logits.softmax(-1) @ vh
    return out


@pytest.mark.parametrize("kind", ["qv_bias", "bias", "no_bias", "cosine"])
def test_forms_equal_naive_attention(kind: AttentionKind) -> None:
    torch.manual_seed(0)
    attention = make_attention(kind, dim=D, heads=HEADS)
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=0.5)
    bias: list[Tensor | None] = [None, None, None]
    if kind == "bias":
        bias = list(attention.qkv.bias.split(D))
    elif kind != "no_bias":
        bias = [attention.get_parameter("q_bias"), None, attention.get_parameter("v_bias")]
    cosine = None
    if isinstance(attention, CosineAttention):
        cosine = [1.0, math.log(10), 9.0]  # the last is beyond the largest temperature
        attention.scale.data.copy_(torch.tensor(cosine).view(HEADS, 1, 1))
    x, valid = torch.randn(B, N, D), torch.rand(B, N) > 0.3
    valid[:, 0] = True
    expected = attention.proj(naive(x, *bias, attention.qkv.weight, valid, cosine))
    assert torch.allclose(attention(x, valid), expected, atol=1e-4 if cosine else 1e-5)
    assert torch.allclose(attention(x), attention(x, torch.ones(B, N, dtype=torch.bool)), atol=1e-6)


def test_cosine_starts_at_ten() -> None:
    attention = CosineAttention(dim=D, heads=HEADS)
    assert attention.scale.shape == (HEADS, 1, 1)
    assert torch.allclose(attention.scale.exp(), torch.tensor(10.0))


def test_padding_keys_have_no_influence_and_cross_attention_reads_the_context() -> None:
    cross = CrossAttention(dim=D, context=5, heads=HEADS)
    x, context, valid = torch.randn(B, 3, D), torch.randn(B, 4, 5), torch.tensor([[True, True, True, False]] * B)
    out = cross(x, context, valid)
    assert torch.allclose(out, cross(x, context[:, :3]), atol=1e-6)
    changed = context.clone()
    changed[:, 3] += 9
    assert torch.allclose(out, cross(x, changed, valid), atol=1e-6)
    assert not torch.allclose(out, cross(x, context), atol=1e-4)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="a width of 12 cannot be split into 5 heads"):
        make_attention("bias", dim=12, heads=5)


def test_layer_scale_zero_path_and_full_dropout_close_a_branch() -> None:
    def block(init_values: float = 0.0) -> Block:
        return Block(dim=D, attention=make_attention("bias", dim=D, heads=HEADS), init_values=init_values)

    x = torch.randn(B, N, D)
    assert block().gamma_1 is None
    scaled = block(0.5)
    assert scaled.gamma_1 is not None
    scaled.gamma_1.data.zero_()
    assert scaled.gamma_2 is not None
    scaled.gamma_2.data.zero_()
    assert torch.equal(scaled(x), x)
    plain = block()
    closed = plain(x, None, torch.zeros(B, 2))
    assert torch.equal(closed, x)
    one = plain(x, None, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert torch.allclose(one[0], plain(x)[0])
    assert torch.equal(one[1], x[1])
    without_mlp = plain(x, None, torch.tensor([[1.0, 0.0]] * B))
    assert torch.allclose(plain(x, None, None, (0.5, torch.zeros(B, N, D))), without_mlp, atol=1e-6)


def test_noise_keeps_the_mean_and_is_a_function_of_the_sample() -> None:
    u = CounterDraw(1, torch.arange(4000)).uniform("u", 3)
    dropped = drop(torch.ones(4000, 3), 0.3, u)
    assert torch.allclose(dropped.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert abs(float(dropped.mean()) - 1) < 0.02
    paths = path_scale(CounterDraw(1, torch.arange(4000)), 0.4, depth=3)
    assert paths.shape == (4000, 3, 2)
    assert torch.equal(paths[:, 0], torch.ones(4000, 2))  # the first block never drops
    assert abs(float((paths[:, 2] == 0).float().mean()) - 0.4) < 0.03
    assert torch.equal(path_scale(CounterDraw(1, torch.tensor([17])), 0.4, depth=3)[0], paths[17])


def test_cross_block_reads_self_then_context() -> None:
    block = CrossBlock(dim=D, context=5, heads=HEADS, attention=make_attention("bias", dim=D, heads=HEADS))
    x, context = torch.randn(B, N, D), torch.randn(B, 4, 5)
    y = x + block.attn(block.norm1(x))
    y = y + block.cross(block.norm_cross(y), context)
    assert torch.allclose(block(x, None, context), y + block.mlp(block.norm2(y)), atol=1e-6)
