"""A tiny random CLIP of transformers in a folder, with a tokenizer that knows a few words."""

from __future__ import annotations

import json
from pathlib import Path


def write_clip(folder: Path, *, tokenizer: bool = True) -> Path:
    """transformers' CLIP, 32 pixels in patches of 8, random weights of seed 0."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"max_position_embeddings": 12, "bos_token_id": 298, "eos_token_id": 299, "pad_token_id": 299}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    if tokenizer:
        letters = [chr(97 + i) for i in range(26)]
        tokens = letters + [f"{c}</w>" for c in letters]
        tokens += [f"<extra{i}>" for i in range(298 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "bos_token": tokens[-2], "eos_token": tokens[-1], "pad_token": tokens[-1]})
        )
    return folder
