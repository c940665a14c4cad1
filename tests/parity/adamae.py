"""AdaMAE against the official model and training step, with its drawn tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _golden import Comparison, Golden, GoldenError
from _guided import batch_of, model_of, shape, unit
from videomae import gradients

from tubelet.core import CounterDraw, Tokens
from tubelet.masking.adamae import Config as Masking
from tubelet.methods.videomae import Config
from tubelet.objectives.losses import answer_error


def compare(golden: Golden) -> Iterator[Comparison]:
    """Embedding, probabilities, the mask of the drawn tokens, every step of the model, the three losses and their gradients."""
    video, drawn = golden.need("input/video"), golden.need("input/vis_idx")
    patch, tubelet = golden.option("patch_size"), golden.option("tubelet_size")
    options = shape(golden, dim="encoder_embed_dim", depth="encoder_depth", heads="encoder_num_heads", mlp_ratio="mlp_ratio")
    options |= {"patch": (tubelet, patch, patch), "attention": "qv_bias" if golden.option("qkv_bias") else "no_bias"}
    options["decoder"] = shape(golden, dim="decoder_embed_dim", depth="decoder_depth", heads="decoder_num_heads")
    config = Config.model_validate(options)
    grid = config.grid(video.shape[2], (golden.option("img_size"),) * 2)
    if config.target.width(grid, 3) != golden.option("decoder_num_classes"):
        raise GoldenError(f"a row of our target has {config.target.width(grid, 3)} numbers")
    masking = Masking(ratio=golden.option("mask_ratio")).build(grid=grid, dim=config.width)
    model = model_of(config, masking, golden.group("weight"), video)
    # Noise that puts the drawn tokens first whatever their probability: log p + Gumbel is largest where the noise is near 1.
    batch, at = batch_of(unit(video, config), mask=torch.full((len(video), grid.n), 1e-7).scatter_(1, drawn, 1 - 1e-7))
    pixels = batch.stream("video").data
    mask = model.mask(batch, at)
    tokens = model.encoder.cubes(pixels)
    visible = model.see(pixels, mask, at)
    query = Tokens(model.mask_token(mask.target), mask.target, mask.grid)
    pred = model.answer(visible, mask)
    target = model.target.rows(pixels, mask.grid, mask.target)
    error = answer_error(pred, target)
    losses = model.losses("main", batch, at)
    (recon, _), (learned, weight) = losses.terms["pixels"], losses.terms["masker"]
    ours = {
        "tokens_patch_embed": tokens,
        "p_x": masking.sampler(tokens, CounterDraw(0, batch.sample)),
        "mask": mask.hidden().flatten(1).int(),
        "encoder_tokens_visible": visible.x,
        "decoder_input": model.decoder.arrange(visible, query).x,
        "pred_masked": pred,
        "target_masked": target,
        "recon_error_per_token": error,
        "loss_recon": recon,
        "loss_sampling_weighted": learned * weight,
        "loss_total": losses.total,
    }
    for name, value in ours.items():
        reference = golden.need(f"output/{name}")
        yield f"output/{name}", value, reference.int() if name == "mask" else reference, "output"
    losses.total.backward()
    yield from gradients(golden, "grad", model, "pretrain")
