"""How videos are prepared. The descriptions are the documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tubelet.config import Settings

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"]


class PrepareSettings(Settings):
    """What the pieces of a prepared set are like. A set is continued with the settings it was begun with."""

    size: int = Field(
        default=256, ge=16, le=2048, description="Short side in pixels, about 1.15 times the training crop: 256 for 224, 128 for 112."
    )
    gop: int = Field(
        default=16, ge=1, le=250, description="Frames from one key frame to the next: what a random clip decodes in vain is half of it."
    )
    crf: float = Field(
        default=22, ge=1, le=40, description="x264's quality: lower is better and larger; 18 is hard to tell from the source."
    )
    preset: Preset = Field(default="fast", description="x264's speed: slower ones make smaller files, decoding takes the same.")
    piece_seconds: float = Field(default=15.0, ge=1, le=600, description="Longest piece; longer videos are cut into equal pieces.")
    shard_mib: int = Field(default=256, ge=1, le=65536, description="MiB after which a shard is closed and the next one begun.")
    audio: bool = Field(default=True, description="Keep the sound (AAC, at most stereo and 48 kHz).")
    motion: bool = Field(default=False, description="Also store the source's codec motion vectors (KEY.motion.npz).")
    maps: tuple[str, ...] = Field(
        default=(),
        description="Manifest columns that name a .npy or .npz file for each video, stored with its first piece (KEY.COLUMN.npy).",
    )

    @field_validator("maps")
    @classmethod
    def _names(cls, maps: tuple[str, ...]) -> tuple[str, ...]:
        for name in maps:
            if not name.replace("_", "").isalnum() or name == "motion":
                raise ValueError(f"{name!r} cannot be part of a file name in a shard: use letters, digits and _ (and not 'motion')")
        return maps
