"""Which family a state dict is of, and what one of no family that is read looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.interop import image, transformers_videomae, videomae
from tubelet.interop.report import some
from tubelet.weights import prefix_of

Family = Literal["transformers", "image", "official"]
READ = (
    "official files of VideoMAE, VideoMAE V2 and AdaMAE, pre-trained or fine-tuned; VideoMAE of transformers; image ViTs of timm and image "
    "MAE; files and folders of Tubelet's runs"
)
# The first that fits is said: parts of names, and what has them.
_LOOKS = {
    r"(^|\.)text_projection|(^|\.)visual\.|text_model\.|logit_scale$": "a model of pictures and text (CLIP)",
    r"(^|\.)layer[1-4]\.\d+\.(conv|downsample)": "a convolutional network (ResNet)",
    r"word_embeddings|(^|\.)wte\.|embed_tokens|token_embedding|lm_head": "a model of text",
    r"relative_position|(^|\.)layers\.\d+\.blocks\.": "a transformer with relative positions (Swin, BEiT)",
    r"(^|\.)cls_token$|(^|\.)pos_embed|patch_embed": "a vision transformer with names of its own",
}


def family_of(state: Mapping[str, Tensor], where: str | Path) -> Family:
    """Raises CheckpointError that says what is read, and what the file looks like, where it is of none of the families."""
    if transformers_videomae.is_named(state):
        return "transformers"
    plain = videomae.plain_names(state, where)
    if image.is_image(plain):
        return "image"
    if prefix_of(plain, videomae.MARKER) is not None:
        return "official"
    looks = next((what for pattern, what in _LOOKS.items() if any(re.search(pattern, name) for name in state)), None)
    more = f"; it looks like {looks}" if looks else ""
    twice = sum(name.endswith(videomae.MARKER) for name in state) > 1
    more = f"; {videomae.MARKER} is there more than once: save the wanted model alone" if twice else more
    raise CheckpointError(f"{where} holds no encoder in a layout that is read ({READ}): it has {some(sorted(state))}{more}")
