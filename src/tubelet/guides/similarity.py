"""How well each place of a frame matches the caption, by a dual encoder of pictures and text (TGM section 3b).

The paper takes CLIP ViT-B/32; how its 7 x 7 patches become a 14 x 14 grid is not published. ``dense`` offers three readings: "resize_map"
(the default: the model's own patches, the map is interpolated), "resize_input" (a larger picture with interpolated positions),
"per_patch" (every window of the picture as a picture of its own; slow, for comparison).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from tubelet.config import Settings
from tubelet.core import Batch, Field, Frozen, Guide, to_unit
from tubelet.errors import ConfigError
from tubelet.guides._dual import frozen_dual

Dense = Literal["resize_map", "resize_input", "per_patch"]
ROWS = 256  # frames at once


class Config(Settings):
    """``model``: folder of a transformers CLIP-like model, or of a Tubelet run of ``method: dual``. ``every``: frames of a slot; ``slot``:
    which of them count: the "first" alone, or the "mean" or "max" of all their maps. ``dense``: see the module. ``window``: side in pixels
    of per_patch's windows."""

    kind: Literal["similarity"] = "similarity"
    model: str = ""
    dense: Dense = "resize_map"
    every: int = Setting(default=2, ge=1)
    slot: Literal["first", "mean", "max"] = "first"
    window: int = Setting(default=16, ge=1)

    def build(self) -> Similarity:
        if not self.model:
            raise ConfigError(
                "masking.guide.model: give the folder of a CLIP-like model of transformers or of a run with method: dual "
                "(tubelet pretrain ... --recipe dual); nothing is downloaded"
            )
        return Similarity(dual=frozen_dual(self.model), settings=self)


class Similarity(Guide):
    """Field: score (B, 1, T', rows, columns), cosines. ``ok``: the sample has a caption, and all its scores are numbers.

    ``dual``: anything with ``patches(frames, dense, window)`` -> (n, rows, columns, D) and ``text(texts)`` -> (n, D), of length 1.
    """

    needs = frozenset({"text"})

    def __init__(self, *, dual: Frozen, settings: Config) -> None:
        super().__init__()
        self.dual, self.settings = dual, settings

    @torch.no_grad()
    def forward(self, batch: Batch, stream: str) -> Field:
        if not batch.text:
            raise ConfigError("text-guided masking needs captions, and this batch has none")
        video, s = to_unit(batch.stream(stream).data), self.settings
        frames_BTCHW = video.transpose(1, 2)[:, :: s.every if s.slot == "first" else 1]
        b, t = frames_BTCHW.shape[:2]
        text_BD = self.dual.inner.text(batch.text)
        scores = []
        for part, words in zip(frames_BTCHW.flatten(0, 1).split(ROWS), text_BD.repeat_interleave(t, 0).split(ROWS), strict=True):
            patches = self.dual.inner.patches(part, s.dense, s.window)
            with torch.autocast(video.device.type, enabled=False):  # in half precision many places tie
                scores.append(torch.einsum("nhwd,nd->nhw", patches.float(), words.float()))
        scores_BTHW = torch.cat(scores).unflatten(0, (b, t))
        if s.slot != "first" and s.every > 1:
            if t % s.every:
                raise ConfigError(f"masking.guide.every = {s.every} does not divide the clip's {t} frames")
            groups = scores_BTHW.unflatten(1, (-1, s.every))
            scores_BTHW = groups.mean(2) if s.slot == "mean" else groups.amax(2)
        return Field(scores_BTHW[:, None], "score", self._ok(batch.text, scores_BTHW))

    @staticmethod
    def _ok(texts: tuple[str, ...], scores_BTHW: Tensor) -> Tensor:
        said = torch.tensor([bool(text.strip()) for text in texts]).to(scores_BTHW.device, non_blocking=True)
        return said & scores_BTHW.isfinite().flatten(1).all(1)
