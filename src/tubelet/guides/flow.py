"""Optical flow between neighbouring frames, both ways: DIS of OpenCV (no weights, on the CPU) or RAFT-small (on the device, MGMAE section
4).

Small clips are enlarged to a short side of 128 pixels for the estimate and the flow is scaled back. Nothing is downloaded: RAFT's weights
come from a local file, torchvision's ``raft_small`` or the cleaned checkpoint of MGMAE's authors.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.config import Settings
from tubelet.core import Batch, Field, Frozen, Guide, to_unit
from tubelet.errors import CheckpointError, ConfigError
from tubelet.weights import read_weights, sha256_of

LEAST, MULTIPLE = 128, 8  # pixels: RAFT correlates four levels of eighths and wants whole ones
RAFT_ROWS = 32  # pairs at once


class Config(Settings):
    """``estimator``: dis or raft. ``weights``: RAFT-small's file. ``updates`` of RAFT's recurrent unit. ``preset`` of DIS: its error and
    its time are in docs/experiments.md (flow_quality)."""

    kind: Literal["flow"] = "flow"
    estimator: Literal["dis", "raft"] = "dis"
    weights: str = ""
    updates: int = Setting(default=6, ge=1, le=64)
    preset: Literal["ultrafast", "fast", "medium"] = "medium"

    def build(self) -> Flow:
        if self.estimator == "dis":
            return Flow(estimator=Frozen(Dis(preset=self.preset)))
        if not self.weights:
            raise ConfigError(
                "masking.guide.weights: RAFT needs the file of its weights (raft_small, .pth or .safetensors); dis needs none"
            )
        raft = Frozen(path=self.weights, opens=lambda: (Raft(self.weights, updates=self.updates), sha256_of(self.weights)))
        return Flow(estimator=raft)


class Flow(Guide):
    """Field: flow (B, 4, T - 1, H, W): frame k to k + 1, then k + 1 to k. ``estimator``: (n, 3, H, W) x 2 in [0, 1] -> (n, 2, H, W)
    pixels."""

    def __init__(self, *, estimator: Frozen) -> None:
        super().__init__()
        self.estimator = estimator

    @torch.no_grad()
    def forward(self, batch: Batch, stream: str) -> Field:
        video = to_unit(batch.stream(stream).data)
        if video.shape[1] != 3:
            raise ConfigError(f"the guide flow reads colour videos, this one has {video.shape[1]} channels")
        if video.shape[2] < 2:
            raise ConfigError("there is no flow in a single frame; use clips of two frames or more")
        b, frames = len(video), video.transpose(1, 2)
        one, two = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        both = estimate(self.estimator, torch.cat([one, two]), torch.cat([two, one]))
        ahead, back = (x.unflatten(0, (b, -1)).transpose(1, 2) for x in both.chunk(2))
        data = torch.cat([ahead, back], 1)
        ok = data.isfinite().flatten(1).all(1)
        return Field(torch.nan_to_num(data), "flow", ok)


def estimate(estimator: Any, one: Tensor, two: Tensor) -> Tensor:
    """(n, 2, H, W) pixels of pairs (n, 3, H, W) of any size."""
    h, w = one.shape[-2:]
    scale = max(1.0, LEAST / min(h, w))
    size = tuple(max(LEAST, math.ceil(n * scale / MULTIPLE) * MULTIPLE) for n in (h, w))
    if size != (h, w):
        one, two = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (one, two))
    flow = estimator(one, two)
    if size != (h, w):
        flow = F.interpolate(flow, (h, w), mode="bilinear", align_corners=False)
        flow = flow * flow.new_tensor([w / size[1], h / size[0]]).view(1, 2, 1, 1)
    return flow


class Dis(nn.Module):
    """Dense inverse search (Kroeger et al. 2016) on grey pictures."""

    def __init__(self, *, preset: str) -> None:
        super().__init__()
        self.preset = preset

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        import cv2

        search: Any = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{self.preset.upper()}"))
        weights = one.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        grey = [((x * weights).sum(1) * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy() for x in (one, two)]
        flows = [search.calc(a, b, np.zeros((*a.shape, 2), np.float32)) for a, b in zip(*grey, strict=True)]
        return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(one.device)


class Raft(nn.Module):
    """torchvision's RAFT-small. Raises CheckpointError for a file that holds something else."""

    def __init__(self, weights: str, *, updates: int) -> None:
        super().__init__()
        try:
            from torchvision.models.optical_flow import raft_small
        except ImportError:
            raise ConfigError('masking.guide.estimator = raft needs torchvision: pip install "tubelet[raft]"') from None
        self.net = raft_small(weights=None)
        self.updates = updates
        state = read_weights(weights)
        state = {name.removeprefix("module."): value for name, value in state.items()}
        try:
            self.net.load_state_dict(state)
        except RuntimeError:
            own = self.net.state_dict()
            wrong = [k for k in own if k not in state or state[k].shape != own[k].shape] or sorted(state.keys() - own.keys())
            raise CheckpointError(
                f"{weights} does not hold torchvision's raft_small: {len(wrong)} of {len(own)} tensors differ, first {wrong[0]}"
            ) from None

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        pairs = zip(one.split(RAFT_ROWS), two.split(RAFT_ROWS), strict=True)
        return torch.cat([self.net(a * 2 - 1, b * 2 - 1, num_flow_updates=self.updates)[-1] for a, b in pairs])
