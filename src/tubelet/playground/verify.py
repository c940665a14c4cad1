"""Does the truth agree with the pixels? Flow must carry each frame onto the one before it, masks must be where the ground is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import DataError
from tubelet.playground._scene import Clip

# Bounds that a right truth keeps down to objects three pixels wide, where shading changes faster than bilinear reading follows. At the
# default sizes it stays below a mean of 0.4 and a tail of 7, and above an IoU of 0.94 (32 pixels) or 0.99 (128 pixels).
FLOW_MEAN, FLOW_TAIL, OBJECT_MEAN = 2.5, 25.0, 20.0  # levels of 255
OBJECT_PIXELS = 50  # fewer are not judged
MASK_IOU = 0.9
VALID_SHARE = 0.5


@dataclass(frozen=True)
class Report:
    """Figures of one clip."""

    flow_mean: float  # mean absolute error of the warped next frame over valid pixels, levels of 255
    flow_tail: float  # its 99th percentile
    object_mean: float  # the same mean over valid pixels of objects only; 0 where there are too few
    mask_iou: float  # masks against the pixels that differ from the bare ground
    valid: float  # share of valid pixels

    def problems(self) -> list[str]:
        """What is out of bounds, in words."""
        checks = (
            (self.flow_mean <= FLOW_MEAN, f"flow misses the next frame by {self.flow_mean:.2f} levels on average, at most {FLOW_MEAN}"),
            (self.flow_tail <= FLOW_TAIL, f"flow misses 1 % of the pixels by {self.flow_tail:.1f} levels, at most {FLOW_TAIL}"),
            (self.object_mean <= OBJECT_MEAN, f"flow misses objects by {self.object_mean:.2f} levels on average, at most {OBJECT_MEAN}"),
            (self.mask_iou >= MASK_IOU, f"masks agree with the pixels to {self.mask_iou:.3f} only, at least {MASK_IOU}"),
            (self.valid >= VALID_SHARE, f"only {self.valid:.2f} of the pixels can be checked, at least {VALID_SHARE}"),
        )
        return [text for good, text in checks if not good]

    def require(self, where: str) -> None:
        """Raise DataError if anything is out of bounds."""
        if problems := self.problems():
            raise DataError(f"{where}: the truth does not agree with the pixels: {'; '.join(problems)}")


def verify_clip(clip: Clip) -> Report:
    """Check masks and flow of a rendered clip against its frames."""
    error = np.abs(warp_back(clip.frames[1:], clip.flow) - clip.frames[:-1]).max(-1)
    checked, on_objects = error[clip.valid], error[clip.valid & (clip.masks[:-1] > 0)]
    return Report(
        flow_mean=float(checked.mean()) if checked.size else 0.0,
        flow_tail=float(np.percentile(checked, 99)) if checked.size else 0.0,
        object_mean=float(on_objects.mean()) if on_objects.size >= OBJECT_PIXELS else 0.0,
        mask_iou=mask_iou(clip),
        valid=float(clip.valid.mean()),
    )


def warp_back(frames: NDArray[np.uint8], flow: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """``frames`` (T, H, W, 3) read, bilinearly, where ``flow`` (T, H, W, 2) leads: frame t + 1 brought back to frame t, float32 levels."""
    count, height, width = frames.shape[:3]
    x = np.clip(flow[..., 0] + np.arange(width, dtype=np.float32), 0, width - 1)
    y = np.clip(flow[..., 1] + np.arange(height, dtype=np.float32)[:, None], 0, height - 1)
    left, top = np.minimum(x.astype(np.int64), width - 2), np.minimum(y.astype(np.int64), height - 2)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    corner = (np.arange(count)[:, None, None] * height + top) * width + left
    pixels = frames.reshape(-1, 3).astype(np.float32)
    upper = pixels[corner] * (1 - fx) + pixels[corner + 1] * fx
    lower = pixels[corner + width] * (1 - fx) + pixels[corner + width + 1] * fx
    return upper * (1 - fy) + lower * fy


def mask_iou(clip: Clip) -> float:
    """Intersection over union of masks > 0 and the pixels that differ from the bare ground, over the clip.

    How much a full change is differs from place to place; the largest in the 3 x 3 pixels around is taken for it. Pixels changed by
    about half of it (0.3 to 0.7) lie on an outline and cannot tell: they count for neither side.
    """
    change = np.abs(clip.frames.astype(np.int16) - clip.ground).max(-1)
    height, width = change.shape[1:]
    padded = np.pad(change, ((0, 0), (1, 1), (1, 1)), mode="edge")
    full = np.max([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
    drawn = (change > 0.5 * full) & (full > 24)
    tells = (full <= 24) | (np.abs(change - 0.5 * full) > 0.2 * full)
    masked = clip.masks > 0
    union = int(((drawn | masked) & tells).sum())
    return float((drawn & masked & tells).sum() / union) if union else 1.0
