"""Dual encoders of pictures and text: transformers' CLIP-like models, and our own, from local folders."""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.core import Frozen
from tubelet.errors import CheckpointError, ConfigError
from tubelet.nn.dual import DualEncoder, DualShape
from tubelet.train.checkpoint import read_meta, read_tensors
from tubelet.weights import sha256_of

REMEMBERED = 20_000  # texts whose vectors are kept
LIKE_CLIP = ("clip", "metaclip_2")  # models with vision_model, visual_projection and text_projection


_open: weakref.WeakValueDictionary[tuple[str, str], Dual] = weakref.WeakValueDictionary()  # a mask and a loss may read one model


def width_of(path: str | Path) -> int:
    """Width of the vectors that a folder's model gives, from its settings alone. Raises as :func:`open_dual`."""
    path = _existing(Path(path))
    if path.is_dir() and (path / "config.json").exists():
        try:
            return int(json.loads((path / "config.json").read_text(encoding="utf-8")).get("projection_dim", 512))
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: its config.json is not understood: {_line(error)}") from None
    return DualShape.model_validate(_method_of(_ours(path))["network"]).out


def frozen_dual(path: str | Path) -> Frozen:
    """The dual encoder of a folder, opened when it is used. It has ``text`` and ``patches`` (see :class:`Dual`)."""
    return Frozen(path=str(path), opens=lambda: open_dual(path))


def open_dual(path: str | Path) -> tuple[Dual, str]:
    """The model and the sha256 of its files; the same one while somebody holds it. Raises CheckpointError or ConfigError that says what the
    folder lacks."""
    path = _existing(Path(path))
    outside = path.is_dir() and (path / "config.json").exists()
    sha256 = sha256_of(path if outside else _ours(path))
    known = _open.get((str(path.resolve()), sha256))
    if known is None:
        known = Dual(*(_transformers(path) if outside else _own(_ours(path))))
        _open[str(path.resolve()), sha256] = known
    return known, sha256


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such folder of a dual encoder. Nothing is downloaded: give the folder of a CLIP that you fetched, or train a "
            "small one on your captions (tubelet pretrain ... --recipe dual) and give its run folder"
        )
    return path


def _ours(path: Path) -> Path:
    """The file of a run."""
    ours = path / "model.safetensors" if path.is_dir() else path
    if not ours.is_file():
        raise CheckpointError(
            f"{path} holds neither a transformers model (config.json) nor a complete Tubelet run of method dual (model.safetensors)"
        )
    return ours


class Dual(nn.Module):
    """``net``: the module whose weights these are. ``encode_text``: texts -> (n, D); ``dense``: (frames, mode, window) -> (n, rows,
    columns, D); neither of length 1 yet. Vectors of texts are remembered."""

    def __init__(self, net: nn.Module, encode_text: Callable[[Sequence[str]], Tensor], dense: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self._text, self._dense = net, encode_text, dense
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """(n, D) float32 of length 1; an empty text has a vector, too."""
        texts = [text.strip() for text in texts]
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            device = next(self.net.parameters(), torch.empty(0)).device
            with torch.autocast(device.type, enabled=False):  # what is remembered is the same wherever it was asked first
                # On the CPU one by one: a text's bits must not depend on which others came with it, or a resumed run would differ.
                made = torch.cat([self._text([text]) for text in new]) if device.type == "cpu" else self._text(new)
                self._known.update(zip(new, F.normalize(made.float(), dim=-1), strict=True))
        out = torch.stack([self._known[text] for text in texts])
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return out

    @torch.no_grad()
    def patches(self, frames: Tensor, dense: str = "resize_map", window: int = 16) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, rows, columns, D) float32 of length 1, over the whole frame."""
        if dense == "per_patch":
            h, w = frames.shape[-2:]
            if h % window or w % window:
                raise ConfigError(f"masking.guide.window = {window} does not divide frames of {h} x {w}")
            rows, columns = h // window, w // window
            cut = frames.unflatten(3, (columns, window)).unflatten(2, (rows, window)).permute(0, 2, 4, 1, 3, 5)
            vectors = torch.cat([self._dense(part, "whole") for part in cut.flatten(0, 2).split(256)])
            return F.normalize(vectors.float(), dim=-1).view(len(frames), rows, columns, -1)
        return F.normalize(self._dense(frames, dense).float(), dim=-1)

    def _apply(self, fn: Any, recurse: bool = True) -> Dual:
        self._known.clear()  # they lie on the old device
        return super()._apply(fn, recurse)


def _own(path: Path) -> tuple[DualEncoder, Callable[..., Tensor], Callable[..., Tensor]]:
    method, size = _method_of(path), read_meta(path)["config"]["data"]["size"]
    net = DualShape.model_validate(method["network"]).build(size=(size, size) if isinstance(size, int) else tuple(size))
    net.load_state_dict({k.removeprefix("dual."): v for k, v in read_tensors(path).items() if k.startswith("dual.")})

    def dense(frames: Tensor, mode: str) -> Tensor:
        if mode == "whole":
            return net.image(F.interpolate(frames, net.image_tower.size, mode="bilinear", antialias=True))[:, None, None]
        larger = mode == "resize_input"
        size = tuple(n * (2 if larger else 1) for n in net.image_tower.size)
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
        return net.patches(frames)

    return net, net.text, dense


def _method_of(path: Path) -> dict[str, Any]:
    method = read_meta(path).get("config", {}).get("method") or {}
    if method.get("kind") != "dual":
        raise CheckpointError(f"{path} is a run of method {method.get('kind', 'unknown')}, not of a dual encoder (method: dual)")
    return method


def _transformers(path: Path) -> tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor]]:
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise ConfigError(f'{path}: models of transformers need its package: pip install "tubelet[text]"') from None

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: its config.json is not understood by transformers: {_line(error)}") from None
    if config.model_type not in LIKE_CLIP:
        raise CheckpointError(
            f"{path} holds a {config.model_type} model, whose patches have no place beside texts; there are {', '.join(LIKE_CLIP)}"
        )
    try:
        model, info = AutoModel.from_pretrained(
            path, local_files_only=True, output_loading_info=True, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: its weights cannot be loaded: {_line(error)}") from None
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    if missing:
        raise CheckpointError(f"{path}: its weights lack {len(missing)} tensors of the model, first {missing[0]}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its tokenizer cannot be loaded (tokenizer.json, or vocab.json and merges.txt): {_line(error)}"
        ) from None
    longest = config.text_config.max_position_embeddings

    def text(texts: Sequence[str]) -> Tensor:
        given = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt").to(model.device)
        return embed_text(model, given["input_ids"], given["attention_mask"])

    mean, std = _pixels(path)

    def dense(frames: Tensor, mode: str) -> Tensor:
        side = config.vision_config.image_size
        size = 2 * side if mode == "resize_input" else side
        if frames.shape[-2:] != (size, size):
            frames = F.interpolate(frames, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        pixels = (frames - mean.to(frames)) / std.to(frames)
        return embed_image(model, pixels)[:, None, None] if mode == "whole" else embed_patches(model, pixels)

    return model, text, dense


def embed_text(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """(n, L) ids -> (n, D): the output at the first end-of-text token, projected."""
    return model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)


def embed_image(model: Any, pixels: Tensor) -> Tensor:
    """(n, 3, S, S) normalised -> (n, D): the class token's, projected."""
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def embed_patches(model: Any, pixels: Tensor) -> Tensor:
    """(n, 3, S, S) normalised -> (n, rows, columns, D): the patch tokens through the same norm and projection as the class token; positions
    are interpolated where the picture is larger than the model's."""
    patch = model.config.vision_config.patch_size
    native = pixels.shape[-1] == model.config.vision_config.image_size
    hidden = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=not native).last_hidden_state[:, 1:]
    tokens = model.visual_projection(model.vision_model.post_layernorm(hidden))
    return tokens.unflatten(1, (pixels.shape[-2] // patch, pixels.shape[-1] // patch))


def _pixels(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1): of preprocessor_config.json, else CLIP's own."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path / name).exists():
            read = json.loads((path / name).read_text(encoding="utf-8"))
            found = read.get("image_processor", read)
            break
    mean = found.get("image_mean") or (0.48145466, 0.4578275, 0.40821073)
    std = found.get("image_std") or (0.26862954, 0.26130258, 0.27577711)
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
