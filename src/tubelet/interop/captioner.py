"""Image captioners of transformers (BLIP, BLIP-2, GIT ...) from a local folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tubelet.core import Frozen
from tubelet.errors import CheckpointError, ConfigError
from tubelet.weights import sha256_of

Describe = Callable[[Sequence[np.ndarray]], list[str]]  # pictures (h, w, 3) uint8 RGB -> a sentence each


def open_captioner(folder: str | Path, *, device: torch.device, prompt: str | None = None, max_tokens: int = 30) -> Frozen:
    """A frozen model that is called with pictures (h, w, 3) uint8 and gives a sentence for each, the same at every call (greedy).

    ``prompt``: words that the model continues. Raises ConfigError without the package, CheckpointError for a folder that holds no
    captioner.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder of a captioner; nothing is downloaded: give the folder of a model that you fetched"
        )
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds no config.json: it is no folder of a transformers model")
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging
    except ImportError:
        raise ConfigError('captions need the transformers package: pip install "tubelet[text]"') from None

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, output_loading_info=True, dtype=dtype)
        model, info = loaded
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds
        raise CheckpointError(f"{folder}: no captioner that transformers can load: {_line(error)}") from None
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder}: its weights lack {len(missing)} tensors of the model, first {missing[0]}")
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - as above
        raise CheckpointError(f"{folder}: its processor cannot be loaded (preprocessor_config.json, tokenizer): {_line(error)}") from None
    model = model.to(device)
    return Frozen(_Captioner(model, processor, prompt, max_tokens), path=str(folder), sha256=sha256_of(folder))


class _Captioner(nn.Module):
    def __init__(self, model: Any, processor: Any, prompt: str | None, max_tokens: int) -> None:
        super().__init__()
        self.model, self.processor, self.prompt, self.max_tokens = model, processor, prompt, max_tokens

    @torch.no_grad()
    def forward(self, pictures: Sequence[np.ndarray]) -> list[str]:
        texts = {} if self.prompt is None else {"text": [self.prompt] * len(pictures)}
        given = self.processor(images=list(pictures), return_tensors="pt", padding=True, **texts).to(self.model.device)
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        ids = self.model.generate(**given, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1)
        said = [" ".join(text.split()) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        head = (self.prompt or "").strip().lower()
        return [text[len(head) :].strip() if head and text.lower().startswith(head) else text for text in said]


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
