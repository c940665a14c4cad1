"""A dual encoder of clips and captions, trained by InfoNCE alone (CLIP, Radford et al. 2021, at a size for small worlds).

    frames -> patches -> mean over patches and frames; caption -> words -> mean; each clip must find its caption among the batch's

Patches are pooled by their mean and read few blocks, so each patch's own vector can be compared with a text: the guide ``similarity``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.config import Settings
from tubelet.core import Batch, Group, Losses, Masker, Method, Step, TokenGrid, Tokens, to_unit
from tubelet.errors import ConfigError
from tubelet.methods._align import agreement, captioned, same_text
from tubelet.methods._groups import decay_groups
from tubelet.nn.dual import DualEncoder, DualShape
from tubelet.objectives.contrast import info_nce
from tubelet.objectives.losses import reduce


class Config(Settings):
    """``network``: sizes. ``twins``: whether clips with the very same caption count as wrong answers to each other, as in the papers
    ("wrong") or are left out ("skip")."""

    kind: Literal["dual"] = "dual"
    network: DualShape = DualShape()
    twins: Literal["wrong", "skip"] = "skip"

    def build(self, *, masking: Masker | None, frames: int, size: tuple[int, int], channels: int = 3) -> Dual:
        """A freshly started model for clips of ``size`` (H, W). Raises ConfigError, also for a masking, which it has no use for."""
        if masking is not None:
            raise ConfigError("method dual hides nothing: leave masking out (masking: null)")
        if channels != 3:
            raise ConfigError(f"method dual reads colour videos, these have {channels} channels")
        return Dual(dual=self.network.build(size=size), skip_twins=self.twins == "skip")


class Dual(Method):
    """``needs`` a caption for every clip: samples without one do not count. Built by :class:`Config`."""

    needs = frozenset({"video", "text"})
    aligned = True

    def __init__(self, *, dual: DualEncoder, skip_twins: bool = True) -> None:
        super().__init__()
        self.dual, self.skip_twins = dual, skip_twins

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        """Mean InfoNCE over the samples with a caption. The log holds how many clips and captions find each other in the batch."""
        video, text = self.embed_video(batch), self.embed_text(batch.text)
        same = same_text(batch.text, video.device, skip_twins=self.skip_twins)
        weight = captioned(batch.text).to(video.device, non_blocking=True)
        error = info_nce(video, text, self.dual.scale, same=same)
        return Losses({"contrast": (reduce(error, weight), 1.0)}, agreement(video, text, self.dual.scale))

    def embed_video(self, batch: Batch, stream: str = "video") -> Tensor:
        """(B, out): the mean over frames and patches, of length 1."""
        return F.normalize(self._patches(batch, stream).mean((1, 2, 3)), dim=-1)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(n, out) of length 1."""
        return self.dual.text(texts)

    def _patches(self, batch: Batch, stream: str) -> Tensor:
        """(B, T, rows, columns, out), not normalised."""
        frames = to_unit(batch.stream(stream).data).transpose(1, 2)
        return self.dual.image_tower(frames.flatten(0, 1)).float().unflatten(0, frames.shape[:2])

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        """Patches of all frames in the shared space, a slot for each frame. Raises ConfigError where block outputs are asked for."""
        if layers:
            raise ConfigError("method dual gives the vectors of its patches, no outputs of single blocks")
        x = self._patches(batch, stream)
        patch = self.dual.image_tower.grid.patch
        grid = TokenGrid(("t", "h", "w"), tuple(x.shape[1:4]), patch)
        return Tokens(x.flatten(1, 3), torch.arange(grid.n, device=x.device).expand(len(x), -1), grid)

    def after_step(self, at: Step) -> None:
        """The temperature stays in its range."""
        self.dual.hold_scale()

    def groups(self, phase: str) -> list[Group]:
        """No weight decay on 1-D parameters, biases and positions."""
        return decay_groups(self.named_parameters(), exempt={"position"})
