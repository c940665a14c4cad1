"""TGM: no official code exists; the file holds transformers' CLIP (tiny, random) and the rules of the page, worked out apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import torch
from _golden import Comparison, Golden
from _guided import Said, batch_of
from torch.nn import functional as F

from tubelet.core import Field, TokenGrid
from tubelet.guides import _dual
from tubelet.masking._fields import interest
from tubelet.masking.tgm import TextGuided
from tubelet.objectives.contrast import info_nce
from tubelet.objectives.losses import reduce


def compare(golden: Golden) -> Iterator[Comparison]:
    """Text and image vectors through a model folder, InfoNCE, the dense map, its resize to the token grid, and the mask."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config=golden.option("text"), vision_config=golden.option("vision"), projection_dim=golden.option("projection_dim")
    )
    if golden.option("hidden_act") != config.text_config.hidden_act:
        raise ValueError("the towers' activations differ from the file's")
    reference = CLIPModel(config)
    reference.load_state_dict(golden.group("weight"), strict=False)
    missing = set(reference.state_dict()) - set(golden.group("weight"))
    assert all("position_ids" in name for name in missing), f"the file lacks {missing}"
    with tempfile.TemporaryDirectory() as folder:  # by the road of a user's folder
        reference.save_pretrained(folder)
        model = CLIPModel.from_pretrained(folder).eval()
    frames, side = golden.need("input/frames"), golden.option("token_grid")
    b, t = frames.shape[:2]
    with torch.no_grad():
        text = _dual.embed_text(model, golden.need("input/input_ids"), golden.need("input/attention_mask"))
        image = _dual.embed_image(model, frames.flatten(0, 1))
        patches = _dual.embed_patches(model, frames.flatten(0, 1)).unflatten(0, (b, t))
    words, pictures = F.normalize(text, dim=-1), F.normalize(image, dim=-1)
    ours = {
        "output/text_embeds": text,
        "output/image_embeds": image,
        "output/clip_text_embeds_normalised": words,
        "output/clip_image_embeds_normalised": pictures,
        "output/clip_symmetric_infonce_frame0": reduce(info_nce(pictures.view(b, t, -1)[:, 0], words, model.logit_scale.exp())),
        "derived/patch_embeds": patches.flatten(2, 3),
    }
    cosine = torch.einsum("bthwd,bd->bthw", F.normalize(patches, dim=-1), words)
    ours["derived/patch_text_cosine"] = cosine.flatten(2)
    grid = TokenGrid.of((t, side, side), (1, 1, 1))
    field = Field(cosine[:, None], "score")
    ours["derived/patch_text_cosine_on_token_grid"] = interest(field, grid).flatten(2)
    batch, at = batch_of(torch.zeros(b, 3, t, side, side))
    mask = TextGuided(guide=Said(field), ratio=golden.option("gamma"))(grid, batch, "video", at)
    ours["derived/tgm_mask"] = mask.hidden().flatten(2).float()
    for name, value in ours.items():
        yield name, value, golden.need(name), "output"
