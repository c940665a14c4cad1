"""A renderer of small worlds: clips whose class only time tells, with masks, flow, events, sound and captions that are true."""

from collections.abc import Sequence
from typing import Any

from tubelet.playground._motions import MOTIONS
from tubelet.playground._scene import Clip, Event, Scene, SceneSettings
from tubelet.playground._sheet import contact_sheet
from tubelet.playground._sound import RATE as AUDIO_RATE
from tubelet.playground._write import scene_kinds, scene_settings, write
from tubelet.playground.verify import Report, verify_clip


def build(scene: str | SceneSettings = "full", **settings: Any) -> Scene:
    """A scene, which renders single clips and batches. Raises ConfigError for wrong settings."""
    return scene_settings(scene, **settings).build()


def render(scene: str | SceneSettings, seed: int, index: int, **settings: Any) -> Clip:
    """One clip in memory, with its truth. Raises ConfigError for wrong settings."""
    return build(scene, **settings).render(seed, index)


def render_batch(scene: str | SceneSettings, seed: int, indices: Sequence[int], **settings: Any):
    """Frames (B, T, H, W, 3) uint8 and labels (B,) int64 as numpy arrays. Raises ConfigError for wrong settings."""
    return build(scene, **settings).render_batch(seed, indices)


__all__ = [
    "AUDIO_RATE",
    "MOTIONS",
    "Clip",
    "Event",
    "Report",
    "Scene",
    "SceneSettings",
    "build",
    "contact_sheet",
    "render",
    "render_batch",
    "scene_kinds",
    "scene_settings",
    "verify_clip",
    "write",
]
