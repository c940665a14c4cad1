"""VideoMAE against its reference: every size and option comes from the file."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from _golden import Comparison, Golden, GoldenError, first, named, numbers
from torch import Tensor, nn

from tubelet.core import Batch, CounterDraw, Mask, Masker, Step, Stream, TokenGrid, Tokens
from tubelet.errors import CheckpointError
from tubelet.interop.transformers_videomae import like_transformers
from tubelet.interop.videomae import from_official, official_name, our_name
from tubelet.masking import tube
from tubelet.methods.classifier import Classifier
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config, VideoMAE
from tubelet.objectives.classify import mix_targets, smooth_one_hot
from tubelet.objectives.pixels import PixelTarget
from tubelet.train.optim import cosine_lr


class Given(Masker):
    """The reference's mask, by the road of any strategy."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        return Mask.of_hidden(grid, self.hidden)


def settings(golden: Golden, weights: dict[str, Tensor], *, decoder: bool, **changes: Any) -> Config:
    """Our settings for a file's options. Presence of biases, LayerScale and position tables is read off the weights."""
    patch, tubelet = golden.option("patch_size"), golden.option("tubelet")
    scale = float(golden.option("init_values", 0.0))
    if any(".gamma_1" in name for name in weights) != (scale > 0):
        raise GoldenError(f"init_values is {scale}, but its weights do not fit that")
    options: dict[str, Any] = {
        "dim": golden.option("enc_dim"),
        "depth": golden.option("enc_depth"),
        "heads": golden.option("enc_heads"),
        "mlp_ratio": golden.option("mlp_ratio"),
        "patch": (tubelet, patch, patch),
        "position": "learned" if any(name.endswith("pos_embed") for name in weights) else "sinusoid",
        "attention": "qv_bias" if any(name.endswith("q_bias") for name in weights) else "no_bias",
        "eps": golden.option("ln_eps", 1e-6),
        "init_values": scale,
    }
    if decoder:
        options["decoder"] = {"dim": golden.option("dec_dim"), "depth": golden.option("dec_depth"), "heads": golden.option("dec_heads")}
    return Config.model_validate(options | changes)


def image_size(golden: Golden) -> tuple[int, int]:
    """(H, W); a single number is a square."""
    size = golden.option("img_size")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def unnormalised(golden: Golden, config: Config) -> Tensor:
    """The reference's input with its mean and standard deviation undone: our methods own that layer."""
    video = golden.need("input/video")
    mean, std = (video.new_tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.std))
    return video * std + mean


def batch_of(video: Tensor, **labels: Tensor) -> tuple[Batch, Step]:
    """A batch and a step whose draws nothing here depends on."""
    sample = torch.arange(len(video))
    return Batch({"video": Stream(video)}, labels, sample), Step(0, 0, 0.0, 0.0, CounterDraw(0, sample))


def normalised(golden: Golden) -> bool:
    """Whether ``output/target`` and ``output/loss`` are of normalised pixels; the official option is spelt in two ways."""
    names = ("normlize_target", "normalize_target", "normalise_target", "normalize", "normalise", "norm_pix_loss")
    return all(bool(golden.option(name, True)) for name in names)


def compare(golden: Golden) -> Iterator[Comparison]:
    """All that a VideoMAE file can hold."""
    if weights := golden.group("weight"):
        yield from pretraining(golden, weights)
        yield from transformers_pretraining(golden, weights)
    if weights := golden.group("ft_weight"):
        yield from finetuning(golden, weights)
        yield from layer_decay(golden, weights)
    yield from schedule(golden)


def build(golden: Golden, weights: dict[str, Tensor], **changes: Any) -> VideoMAE:
    """Our model with a file's weights and mask."""
    config = settings(golden, weights, decoder=True, **changes)
    mask = Given(golden.need("input/mask").bool())
    frames, size = golden.option("frames"), image_size(golden)
    model = config.build(masking=mask, frames=frames, size=size, channels=golden.need("input/video").shape[1])
    model.load_state_dict(from_official(weights, "pretrain"))
    return model.eval()


def pretraining(golden: Golden, weights: dict[str, Tensor]) -> Iterator[Comparison]:
    """Every intermediate step, the losses, and gradients of ``loss``."""
    references = golden.group("output")
    raw = PixelTarget(normalise="none")
    target = PixelTarget() if normalised(golden) else raw
    model = build(golden, weights, target=target)
    video = unnormalised(golden, settings(golden, weights, decoder=True))
    batch, at = batch_of(video)
    mask = model.mask(batch, at)
    tube_count(golden, mask)
    visible = model.encoder(video, mask.visible)
    query = Tokens(model.mask_token(mask.target), mask.target, mask.grid)
    ours = {
        "patch_tokens_with_pos": model.encoder.tokenise(video).x,
        "pos_embed_encoder": model.encoder.position.table(mask.grid)[None],
        "pos_embed_decoder": model.decoder.position.table(mask.grid)[None],
        "encoder_tokens": visible.x,
        "decoder_input": model.decoder.arrange(visible, query).x,
        "pred": model.reconstruct(batch, at).rows,
        "target": target.rows(video, mask.grid, mask.target),
        "target_pixel": raw.rows(video, mask.grid, mask.target),
    }
    for name, value in ours.items():
        for full, reference, count in named(references, rf"{name}(?:_first(\d+))?"):
            rows = value if count[0] is None else value[:, : int(count[0])]
            yield f"output/{full}", first(rows, reference), reference, "output"
    for full, reference, (pixel, error) in named(references, r"loss(_pixel)?(?:_(l1|smooth_l1|mse))?"):
        other = build(golden, weights, target=raw if pixel else target, loss=error or "mse")
        yield f"output/{full}", other.losses("main", batch, at).total, reference, "output"
    model.losses("main", batch, at).total.backward()
    yield from gradients(golden, "grad", model, "pretrain")


def tube_count(golden: Golden, mask: Mask) -> None:
    """Where the reference's mask is a tube, our strategy hides as many tokens at the file's ratio. Raises GoldenError otherwise."""
    hidden, ratio = mask.hidden(), golden.option("mask_ratio")
    if bool((hidden == hidden[:, :1]).all()):
        batch, at = batch_of(torch.zeros(len(hidden), 1))
        count = tube.Config(ratio=ratio).build()(mask.grid, batch, "video", at).target.shape[1]
        if count != mask.target.shape[1]:
            raise GoldenError(f"at ratio {ratio} our tube mask hides {count} tokens, the reference {mask.target.shape[1]}")


def gradients(golden: Golden, prefix: str, model: nn.Module, layout: Any) -> Iterator[Comparison]:
    """Gradients by official names; parameters that a file names but we lack stay uncompared, which fails."""
    ours = dict(model.named_parameters())
    for name, reference in golden.group(prefix).items():
        with contextlib.suppress(CheckpointError, KeyError):
            grad = ours[our_name(name, layout)].grad
            assert grad is not None, f"{name} got no gradient"
            yield f"{prefix}/{name}", grad.reshape(reference.shape), reference, "grad"


def transformers_pretraining(golden: Golden, weights: dict[str, Tensor]) -> Iterator[Comparison]:
    """The same model as transformers runs it, with its eps quirk (page section 7)."""
    references = golden.group("hf_output")
    model = build(golden, weights, target=PixelTarget(normalise="channel" if normalised(golden) else "none"))
    like_transformers(model)
    batch, at = batch_of(unnormalised(golden, settings(golden, weights, decoder=True)))
    if "pred" in references:
        rows = model.reconstruct(batch, at).rows
        yield "hf_output/pred", rows[:, : references["pred"].shape[1]], references["pred"], "output"
    if "loss" in references:
        yield "hf_output/loss", model.losses("main", batch, at).total, references["loss"], "output"


def classifier(golden: Golden, weights: dict[str, Tensor], **changes: Any) -> tuple[Classifier, Config]:
    """Our classifier with a file's weights."""
    config = settings(golden, weights, decoder=False)
    if bool(golden.option("learnable_pos_ft", False)) != (config.position == "learned"):
        raise GoldenError("learnable_pos_ft does not fit its ft_weight/pos_embed")
    channels = golden.need("input/video").shape[1]
    encoder = config.build_encoder(frames=golden.option("frames"), size=image_size(golden), channels=channels)
    options = ClassifierConfig.model_validate({"eps": config.eps} | changes)
    model = options.build(encoder=encoder, classes=golden.option("num_classes"))
    model.load_state_dict(from_official(weights, "classifier"))
    return model.eval(), config


def finetuning(golden: Golden, weights: dict[str, Tensor]) -> Iterator[Comparison]:
    """Features, logits, all losses, and gradients of the soft-target loss (of the plain one in files without)."""
    references, labels = golden.group("ft_output"), golden.need("ft_input/label")
    model, config = classifier(golden, weights)
    video = unnormalised(golden, config)
    ours = {"pooled_feature": model.readout.head.norm(model.readout.pool(model.encoder(video))), "logits": model(video)}
    for name, value in ours.items():
        if name in references:
            yield f"ft_output/{name}", value, references[name], "output"
    for full, reference, (smoothing,) in named(references, r"loss_ce|loss_label_smoothing_([\d.]+)"):
        plain, _ = classifier(golden, weights, smoothing=float(smoothing or 0))
        yield f"ft_output/{full}", plain.losses("main", *batch_of(video, **{"class": labels})).total, reference, "output"
    soft = None
    for full, reference, (share, smoothing) in named(references, r"mixup_target_lam([\d.]+)_smooth([\d.]+)"):
        target = smooth_one_hot(labels, golden.option("num_classes"), float(smoothing))
        soft = mix_targets(target, target.flip(0), float(share))
        yield f"ft_output/{full}", soft, reference, "output"
    loss = model.losses("main", *batch_of(video, **{"class": labels if soft is None else soft})).total
    if "loss_soft_target" in references and soft is not None:
        yield "ft_output/loss_soft_target", loss, references["loss_soft_target"], "output"
    loss.backward()
    yield from gradients(golden, "ft_grad", model, "classifier")
    if (reference := golden.group("hf_output").get("ft_logits")) is not None:
        like_transformers(model)
        yield "hf_output/ft_logits", model(video), reference, "output"


def layer_decay(golden: Golden, weights: dict[str, Tensor]) -> Iterator[Comparison]:
    """Rate multiplier and weight decay of every classifier parameter."""
    for key, text in golden.metadata.items():
        if match := re.fullmatch(r"layer_decay_(\d+)_(\d+)_lr_scale_and_wd", key):
            table: dict[str, list[float]] = json.loads(text)
            recipe = max(decay for _, decay in table.values())
            model, _ = classifier(golden, weights, layer_decay=float(f"{match[1]}.{match[2]}"))
            groups = {id(p): g for g in model.groups("main") for p in g.params}
            ours = {official_name(n, "classifier"): groups[id(p)] for n, p in model.named_parameters()}
            if set(ours) != set(table):
                raise GoldenError(f"{key} and our classifier differ in parameters {sorted(set(ours) ^ set(table))}")
            rows = [[ours[n].lr, recipe if ours[n].decay is None else ours[n].decay] for n in table]
            yield f"metadata/{key}", torch.tensor(rows), torch.tensor(list(table.values())), "table"


def schedule(golden: Golden) -> Iterator[Comparison]:
    """The per-step learning rate, with the numbers of the metadata's ``recipe_cosine``."""
    reference = golden.tensors.get("recipe/cosine_lr")
    if reference is not None:
        said = numbers(golden.metadata.get("recipe_cosine", ""))
        missing = {"base", "final", "epochs", "iters_per_epoch", "warmup_epochs"} - set(said)
        if missing:
            raise GoldenError(f"its recipe_cosine does not say {', '.join(sorted(missing))}")
        rates = [
            cosine_lr(
                step,
                base=said["base"],
                final=said["final"],
                warmup_steps=int(said["warmup_epochs"] * said["iters_per_epoch"]),
                total_steps=int(said["epochs"] * said["iters_per_epoch"]),
                start=said.get("start_warmup_value", 0.0),
            )
            for step in range(len(reference))
        ]
        yield "recipe/cosine_lr", torch.tensor(rates), reference, "table"
