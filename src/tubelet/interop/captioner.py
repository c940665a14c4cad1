"""Image captioners of transformers (BLIP, BLIP-2, GIT ...) from a local folder."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.core import Frozen
from tubelet.errors import CheckpointError, ConfigError
from tubelet.weights import sha256_of

Describe = Callable[[Sequence[np.ndarray]], list[str]]  # pictures (h, w, 3) uint8 RGB -> a sentence each


def open_captioner(folder: str | Path, *, device: torch.device, prompt: str | None = None, max_tokens: int = 30) -> Frozen:
    """A frozen model that is called with pictures (h, w, 3) uint8 and gives a sentence for each, the same at every call (greedy).

    float32 on the CPU, bfloat16 on CUDA. ``prompt``: words that the model continues; they are not part of its answer. ``max_tokens``: of
    an answer. Nothing is fetched and no code of the folder is run. Raises ConfigError without the package, CheckpointError for a folder
    that holds no captioner.
    """
    folder = Path(folder)
    kind = _kind(folder)
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN
    except ImportError:
        raise ConfigError('captions need the package transformers: pip install "tubelet[text]"') from None
    if kind not in KNOWN:
        raise CheckpointError(f"{folder} holds a {kind} model, which makes no text of pictures; captioners are blip, blip-2, git ...")
    sha256 = sha256_of(folder)
    # Processes that decode are forked beside it; the threads of its tokenizers would warn in each of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _silent():
        captioner = _Captioner(_model(folder, device), *_processors(folder), prompt=prompt, max_tokens=max_tokens)
    frozen = Frozen(captioner, path=str(folder), sha256=sha256)
    try:
        frozen([np.full((64, 64, 3), 128, np.uint8)])
    except (torch.OutOfMemoryError, MemoryError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001 - what a model of another task raises when it sees a picture alone
        asked = "a picture" if prompt is None else f"a picture with the prompt {prompt!r}"
        raise CheckpointError(f"{folder}: this {kind} model cannot caption {asked}: {_line(error)}") from None
    return frozen


def _kind(folder: Path) -> str:
    """The model type that a folder's config.json names. Raises CheckpointError where it is no folder of a model."""
    if not folder.is_dir():
        name = str(folder)
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not folder.parent.is_dir()
        hint = (
            f"if it is a model's name on a hub: fetch it first (hf download {name} --local-dir FOLDER)" if hub else "fetch the model first"
        )
        raise CheckpointError(f"{name}: no such folder of a captioner; nothing is downloaded; {hint} and give its folder")
    config = folder / "config.json"
    if not config.exists():
        deeper = sorted(folder.glob("snapshots/*/config.json"))
        hint = f"; give {deeper[-1].parent}" if deeper else ""
        raise CheckpointError(f"{folder} holds no config.json: it is no folder of a transformers model{hint}")
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        raise CheckpointError(f"{config} does not name a model_type: it is no configuration of a transformers model") from None


def _model(folder: Path, device: torch.device) -> Any:
    from transformers import AutoModelForImageTextToText

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True, dtype=dtype
        )
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds
        raise CheckpointError(f"{folder}: no captioner that transformers can load: {_line(error)}") from None
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder}: its weights lack {len(missing)} tensors of the model, first {missing[0]}")
    return model.to(device)


def _processors(folder: Path) -> tuple[Any, Any, Any]:
    """(of pictures and text together or None, of pictures, tokenizer)."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    try:
        both = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        pictures, tokenizer = (getattr(both, name, None) for name in ("image_processor", "tokenizer"))
        if pictures is not None and tokenizer is not None:
            return both, pictures, tokenizer
        # Encoders and decoders put together (ViT with GPT-2) have two processors and none for both.
        pictures = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return None, pictures, AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - as above
        raise CheckpointError(f"{folder}: its processor cannot be loaded (preprocessor_config.json, tokenizer): {_line(error)}") from None


class _Captioner(nn.Module):
    """``both``: what prepares pictures and text together, None = the model takes no text."""

    def __init__(self, model: Any, both: Any, pictures: Any, tokenizer: Any, *, prompt: str | None, max_tokens: int) -> None:
        super().__init__()
        if prompt is not None and both is None:
            raise ConfigError(f"prompt {prompt!r}: a {model.config.model_type} model takes none; leave it out")
        self.model, self.both, self.pictures, self.tokenizer = model, both, pictures, tokenizer
        self.prompt, self.max_tokens = prompt, max_tokens

    @torch.no_grad()
    def forward(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """A sentence for each of the pictures (h, w, 3) uint8, in which every white space is one blank."""
        given = {name: value.to(self.model.device) for name, value in self._inputs(list(pictures)).items()}
        given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        with _silent():
            ids = self.model.generate(**given, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1)
        if bool((ids[:, 0] == getattr(self.model.config.get_text_config(decoder=True), "bos_token_id", None)).all()):
            ids = ids[:, 1:]  # some tokenizers do not know that it is no word
        head = "" if self.prompt is None else self._plain([self.tokenizer(self.prompt)["input_ids"]])[0]
        return [text.removeprefix(head).strip() for text in self._plain(ids)]

    def _plain(self, ids: Any) -> list[str]:
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _inputs(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        if self.prompt is None:
            return dict(self.pictures(images=pictures, return_tensors="pt"))
        given = dict(self.both(images=pictures, text=[self.prompt] * len(pictures), return_tensors="pt"))
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            given.pop("token_type_ids", None)
        end = self.tokenizer.sep_token_id
        if self.model.config.model_type == "git" and end is not None and bool((given["input_ids"][:, -1] == end).all()):
            for name in ("input_ids", "attention_mask"):  # what ends a sentence would end the answer
                given[name] = given[name][:, :-1]
        return given


@contextmanager
def _silent() -> Iterator[None]:
    """No bars, no advice of transformers meanwhile: what is wrong is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
