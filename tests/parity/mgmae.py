"""MGMAE against the official code, with given flow in place of RAFT."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _golden import Comparison, Golden, GoldenError
from _guided import Said, batch_of, model_of, shape, unit
from torch import Tensor
from videomae import gradients

from tubelet.core import Field, TokenGrid
from tubelet.masking import mgmae
from tubelet.methods.videomae import Config

CONVENTIONS = {"base_frame": "middle", "hole_filling": "consist", "topk_on_all": False, "decoder_mask_type": "none"}


def compare(golden: Golden) -> Iterator[Comparison]:
    """Start map, one warp, both variants of the maps and masks, then the model under the released code's mask."""
    for name, known in CONVENTIONS.items():
        if golden.option(name) != known:
            raise GoldenError(f"this comparison knows {name} = {known}, the file has {golden.option(name)}")
    patch, tubelet, side = golden.option("patch"), golden.option("tubelet"), golden.option("img")
    grid = TokenGrid.of((golden.option("frames"), side, side), (tubelet, patch, patch))
    ratio, columns = golden.option("mask_ratio"), grid.shape[2]
    place = golden.need("input/visible_patch_positions")
    order = torch.ones(golden.option("batch"), grid.shape[1] * columns)
    order.scatter_(1, place[..., 0] * columns + place[..., 1], 0.0)  # the drawn places come first in the permutation
    video = golden.need("input/video")
    batch, at = batch_of(video, mask=order)
    first = mgmae.start_map(grid, "gauss", ratio, at.draw)
    if not torch.allclose(first, golden.need("input/init_mask_map"), atol=1e-6):
        raise GoldenError("our start map of these places is not the file's")
    ahead, back = (golden.need(f"input/flow_{name}").transpose(0, 1) for name in ("prev_to_next", "next_to_prev"))
    yield "output/backwarp_single", mgmae.backward(first, back[:, 0]), golden.need("output/backwarp_single"), "output"
    field = Field(torch.cat([ahead, back], 2).transpose(1, 2), "flow")
    middle = grid.size[0] // 2
    for variant, name, before in (("consistent", "consistent", back), ("released", "released_code", None)):
        maps = mgmae.warped(first, ahead, before, back, middle, "backward", True)
        yield f"output/mask_maps_{name}", maps, golden.need(f"output/mask_maps_{name}"), "output"
        masker = mgmae.Config.model_validate({"ratio": ratio, "variant": variant, "guide": "flow"})
        built = mgmae.FlowGuided(guide=Said(field), settings=masker)
        mask = built(grid, batch, "video", at).hidden().flatten(1)
        yield f"output/mask_volume_{name}", mask.int(), golden.need(f"output/mask_volume_{name}").int(), "output"
        if variant == "released":
            scores = built.scores(grid, batch, "video", at)[0]
            yield "output/token_scores_released_code", scores, golden.need("output/token_scores_released_code"), "output"
            yield from _model(golden, built, order)


def _model(golden: Golden, masker: mgmae.FlowGuided, order: Tensor) -> Iterator[Comparison]:
    patch, tubelet = golden.option("patch"), golden.option("tubelet")
    options = shape(golden, dim="enc_dim", depth="enc_depth", heads="enc_heads") | {"patch": (tubelet, patch, patch)}
    options["decoder"] = shape(golden, dim="dec_dim", depth="dec_depth", heads="dec_heads")
    config = Config.model_validate(options)
    video = golden.need("input/video")
    batch, at = batch_of(unit(video, config), mask=order)
    model = model_of(config, masker, golden.group("weight"), video)
    mask = model.mask(batch, at)
    yield "output/encoder_tokens", model.see(batch.stream("video").data, mask, at).x, golden.need("output/encoder_tokens"), "output"
    yield "output/pred_first8", model.reconstruct(batch, at).rows[:, :8], golden.need("output/pred_first8"), "output"
    loss = model.losses("main", batch, at).total
    yield "output/loss", loss, golden.need("output/loss"), "output"
    loss.backward()
    yield from gradients(golden, "grad", model, "pretrain")
    golden.option("seed")
