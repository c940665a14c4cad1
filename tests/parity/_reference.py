"""A second VideoMAE, written from the paper's page with plain functions on official keys, to make goldens with any options.

Nothing of the package is used: Conv3d over the whole clip, explicit softmax, boolean gathering.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """What a file's metadata says, and what shows in its weights only (``qv_bias``)."""

    size: tuple[int, int] = (16, 24)
    square: bool = False
    patch: int = 8
    tubelet: int = 2
    frames: int = 4
    batch: int = 2
    enc: tuple[int, int, int] = (24, 2, 3)
    dec: tuple[int, int, int] = (16, 1, 2)
    mlp_ratio: float = 4.0
    ratio: float = 0.5
    eps: float = 1e-6
    init_values: float = 0.0
    learnable: bool = False
    classes: int = 5
    qv_bias: bool = True
    normalise: bool = True
    decay: float = 0.65
    seed: int = 3

    @property
    def slots(self) -> tuple[int, int, int]:
        return self.frames // self.tubelet, self.size[0] // self.patch, self.size[1] // self.patch

    def config(self) -> dict[str, object]:
        image = self.size[0] if self.square else list(self.size)
        out = {"img_size": image, "patch_size": self.patch, "tubelet": self.tubelet, "frames": self.frames, "batch": self.batch}
        for part, (dim, depth, heads) in (("enc", self.enc), ("dec", self.dec)):
            out |= {f"{part}_dim": dim, f"{part}_depth": depth, f"{part}_heads": heads}
        out |= {"mlp_ratio": self.mlp_ratio, "mask_ratio": self.ratio, "ln_eps": self.eps, "init_values": self.init_values}
        out |= {"learnable_pos_ft": self.learnable, "num_classes": self.classes}
        return out if self.normalise else out | {"normlize_target": False}


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def block(x: Tensor, w: Weights, name: str, heads: int, eps: float) -> Tensor:
    b, n, d = x.shape
    y = norm(x, w, f"{name}.norm1", eps)
    parts = [y @ part.T for part in w[f"{name}.attn.qkv.weight"].split(d)]
    if f"{name}.attn.q_bias" in w:
        parts[0], parts[2] = parts[0] + w[f"{name}.attn.q_bias"], parts[2] + w[f"{name}.attn.v_bias"]
    q, k, v = (part.view(b, n, heads, d // heads).transpose(1, 2) for part in parts)
    y = (q * (d // heads) ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
    y = F.linear(y.transpose(1, 2).reshape(b, n, d), w[f"{name}.attn.proj.weight"], w[f"{name}.attn.proj.bias"])
    x = x + y * w.get(f"{name}.gamma_1", 1.0)
    y = F.linear(norm(x, w, f"{name}.norm2", eps), w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"])
    y = F.linear(0.5 * y * (1 + torch.erf(y / math.sqrt(2))), w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"])
    return x + y * w.get(f"{name}.gamma_2", 1.0)


def waves(n: int, d: int) -> Tensor:
    rows = [[place / 10000 ** (2 * (j // 2) / d) for j in range(d)] for place in range(n)]
    table = torch.tensor(rows, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = table[:, 0::2].sin(), table[:, 1::2].cos()
    return table.float()[None]


def block_weights(name: str, dim: int, o: Options, draw: torch.Generator) -> Weights:
    def rand(*shape: int, around: float = 0.0) -> Tensor:
        return around + 0.2 * torch.randn(*shape, generator=draw)

    hidden = int(dim * o.mlp_ratio)
    w = {f"{name}.{n}.{k}": rand(dim, around=float(k == "weight")) for n in ("norm1", "norm2") for k in ("weight", "bias")}
    w |= {f"{name}.attn.qkv.weight": rand(3 * dim, dim), f"{name}.attn.proj.weight": rand(dim, dim), f"{name}.attn.proj.bias": rand(dim)}
    w |= {f"{name}.mlp.fc1.weight": rand(hidden, dim), f"{name}.mlp.fc1.bias": rand(hidden)}
    w |= {f"{name}.mlp.fc2.weight": rand(dim, hidden), f"{name}.mlp.fc2.bias": rand(dim)}
    if o.qv_bias:
        w |= {f"{name}.attn.q_bias": rand(dim), f"{name}.attn.v_bias": rand(dim)}
    if o.init_values > 0:
        w |= {f"{name}.gamma_1": rand(dim, around=o.init_values), f"{name}.gamma_2": rand(dim, around=o.init_values)}
    return w


def all_weights(o: Options, draw: torch.Generator) -> tuple[Weights, Weights]:
    """Pre-training and classifier weights by official keys."""
    (dim, depth, _), (width, layers, _) = o.enc, o.dec
    cube = o.tubelet * o.patch**2 * 3
    rand = lambda *shape: 0.2 * torch.randn(*shape, generator=draw)  # noqa: E731 - a short name for one line's worth
    tokens = {"patch_embed.proj.weight": rand(dim, 3, o.tubelet, o.patch, o.patch), "patch_embed.proj.bias": rand(dim)}
    pre = {f"encoder.{k}": v for k, v in tokens.items()}
    for i in range(depth):
        pre |= block_weights(f"encoder.blocks.{i}", dim, o, draw)
    for i in range(layers):
        pre |= block_weights(f"decoder.blocks.{i}", width, o, draw)
    pre |= {"encoder.norm.weight": 1 + rand(dim), "encoder.norm.bias": rand(dim), "decoder.norm.weight": 1 + rand(width)}
    pre |= {"decoder.norm.bias": rand(width), "decoder.head.weight": rand(cube, width), "decoder.head.bias": rand(cube)}
    pre |= {"encoder_to_decoder.weight": rand(width, dim), "mask_token": rand(1, 1, width)}
    fine = {k: v + rand(*v.shape) for k, v in tokens.items()}
    for i in range(depth):
        fine |= block_weights(f"blocks.{i}", dim, o, draw)
    if o.learnable:
        fine["pos_embed"] = rand(1, math.prod(o.slots), dim)
    fine |= {"fc_norm.weight": 1 + rand(dim), "fc_norm.bias": rand(dim), "head.weight": rand(o.classes, dim), "head.bias": rand(o.classes)}
    return pre, fine


def target_of(video: Tensor, hidden: Tensor, o: Options, normalise: bool) -> Tensor:
    (t, h, w), u, p = o.slots, o.tubelet, o.patch
    x = (video * STD + MEAN).view(-1, 3, t, u, h, p, w, p)
    cubes = torch.einsum("bctuhpwq->bthwupqc", x).reshape(len(video), t * h * w, u * p * p, 3)
    if normalise:
        cubes = (cubes - cubes.mean(2, keepdim=True)) / (cubes.var(2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    return cubes.flatten(2)[hidden].view(len(video), -1, cubes.shape[2] * 3)


def tokens_of(video: Tensor, w: Weights, prefix: str, o: Options) -> Tensor:
    x = F.conv3d(video, w[f"{prefix}patch_embed.proj.weight"], w[f"{prefix}patch_embed.proj.bias"], stride=(o.tubelet, o.patch, o.patch))
    return x.flatten(2).transpose(1, 2) + w.get("pos_embed", waves(math.prod(o.slots), o.enc[0]))


def pretrain(video: Tensor, hidden: Tensor, w: Weights, o: Options, normalise: bool) -> dict[str, Tensor]:
    tokens = tokens_of(video, w, "encoder.", o)
    x = tokens[~hidden].view(len(video), -1, o.enc[0])
    for i in range(o.enc[1]):
        x = block(x, w, f"encoder.blocks.{i}", o.enc[2], o.eps)
    x = norm(x, w, "encoder.norm", o.eps)
    place = waves(tokens.shape[1], o.dec[0]).expand(len(video), -1, -1)
    asked = w["mask_token"] + place[hidden].view(len(video), -1, o.dec[0])
    y = sequence = torch.cat([x @ w["encoder_to_decoder.weight"].T + place[~hidden].view(*x.shape[:2], -1), asked], dim=1)
    for i in range(o.dec[1]):
        y = block(y, w, f"decoder.blocks.{i}", o.dec[2], o.eps)
    y = norm(y[:, -asked.shape[1] :], w, "decoder.norm", o.eps)
    pred = F.linear(y, w["decoder.head.weight"], w["decoder.head.bias"])
    target = target_of(video, hidden, o, normalise)
    steps = {"patch_tokens_with_pos": tokens[:1], "encoder_tokens": x, "decoder_input": sequence, "pred": pred, "target": target}
    return steps | {"loss": (pred - target).square().mean()}


def finetune(video: Tensor, label: Tensor, w: Weights, o: Options) -> dict[str, Tensor]:
    x = tokens_of(video, w, "", o)
    for i in range(o.enc[1]):
        x = block(x, w, f"blocks.{i}", o.enc[2], o.eps)
    feature = norm(x.mean(1), w, "fc_norm", o.eps)
    logits = F.linear(feature, w["head.weight"], w["head.bias"])
    hot = F.one_hot(label, o.classes) * 0.8 + 0.2 / o.classes
    soft = 0.4 * hot + 0.6 * hot.flip(0)
    return {
        "pooled_feature": feature,
        "logits": logits,
        "loss_ce": F.cross_entropy(logits, label),
        "loss_label_smoothing_0.3": F.cross_entropy(logits, label, label_smoothing=0.3),
        "mixup_target_lam0.4_smooth0.2": soft,
        "loss_soft_target": -(soft * logits.log_softmax(-1)).sum(-1).mean(),
    }


def decay_table(w: Weights, o: Options) -> dict[str, list[float]]:
    def layer(name: str) -> int:
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed", "pos_embed")) else o.enc[1] + 1

    bare = lambda name, value: value.ndim == 1 or name.endswith(".bias") or name == "pos_embed"  # noqa: E731 - used in one line
    return {n: [o.decay ** (o.enc[1] + 1 - layer(n)), 0.0 if bare(n, v) else 0.02] for n, v in w.items()}


def write(path: Path, o: Options) -> Path:
    """A golden file of this second implementation."""
    draw = torch.Generator().manual_seed(o.seed)
    pre, fine = all_weights(o, draw)
    video = torch.randn(o.batch, 3, o.frames, *o.size, generator=draw)
    t, h, w = o.slots
    order = torch.rand(o.batch, h * w, generator=draw).argsort(1)
    hidden = (order < int(o.ratio * h * w)).repeat(1, t)
    label = torch.randint(o.classes, (o.batch,), generator=draw)
    for value in [*pre.values(), *fine.values()]:
        value.requires_grad_()
    outputs = pretrain(video, hidden, pre, o, o.normalise)
    outputs["loss"].backward()
    tuned = finetune(video, label, fine, o)
    tuned["loss_soft_target"].backward()
    tensors = {f"output/{k}": v for k, v in outputs.items()} | {f"ft_output/{k}": v for k, v in tuned.items()}
    tensors |= {f"output/pos_embed_{k}": waves(t * h * w, d) for k, d in (("encoder", o.enc[0]), ("decoder", o.dec[0]))}
    tensors |= {"output/loss_pixel": pretrain(video, hidden, pre, o, False)["loss"]}
    tensors |= {"output/target_pixel_first2": target_of(video, hidden, o, False)[:, :2]}
    for prefix, weights in (("", pre), ("ft_", fine)):
        tensors |= {f"{prefix}weight/{k}": v for k, v in weights.items()}
        tensors |= {f"{prefix}grad/{k}": v.grad for k, v in weights.items()}
    tensors |= {"input/video": video, "input/mask": hidden.to(torch.uint8), "ft_input/label": label}
    rates = torch.cat([torch.linspace(0.0, 2e-3, 8), 1e-4 + 0.5 * 1.9e-3 * (1 + torch.cos(math.pi * torch.arange(12) / 12))])
    tensors |= {"recipe/cosine_lr": rates}
    metadata = {
        "config": json.dumps(o.config()),
        "recipe_cosine": "cosine_scheduler(base=2e-3, final=1e-4, epochs=5, iters_per_epoch=4, warmup_epochs=2, start_warmup_value=0)",
        f"layer_decay_{str(o.decay).replace('.', '_')}_lr_scale_and_wd": json.dumps(decay_table(fine, o)),
    }
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path, metadata)
    return path
