"""Official AdaMAE checkpoints (page section 7): VideoMAE's pre-training layout, and the sampling network beside the encoder.

:mod:`~tubelet.interop.videomae` reads the rest; an encoder loaded from such a file leaves the sampler out, as the official fine-tuning
does.
"""

from __future__ import annotations

# Ours -> official, after the encoder's prefix.
SAMPLER = {
    "masking.sampler.position": "pos_embed_probs",
    "masking.sampler.block.": "get_token_probs.0.",
    "masking.sampler.score.": "get_token_probs.1.",
}
