"""Settings of the data road. The descriptions are the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from tubelet.config import Settings

if TYPE_CHECKING:
    from tubelet.data.prepared.store import Store


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"must be (low, high) with 0 < low <= high, got {value}")
    return value


def _sides(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or any(not 0 < v <= 1 for v in value) or list(value) != sorted(value, reverse=True):
        raise ValueError(f"must be fractions in (0, 1], largest first, got {value}")
    return value


class RandPolicy(NamedTuple):
    """RandAugment: ``ops`` operations one after the other, each done with ``chance`` at a magnitude of N(``magnitude``, ``std``), kept in
    0..10. ``increasing``: every operation is stronger at a larger magnitude (else posterising, solarising and enhancing are not)."""

    magnitude: float = 10.0
    ops: int = 2
    std: float = 0.0
    increasing: bool = False
    chance: float = 0.5


_RAND_PARTS = {"m": "magnitude", "n": "ops", "mstd": "std", "inc": "increasing", "p": "chance"}
_RAND_HELP = "write it as timm does, such as rand-m7-n4-mstd0.5-inc1 (m: magnitude 0..10, n: operations, mstd: deviation, inc: 0 or 1)"


def rand_policy(text: str) -> RandPolicy:
    """The policy of a name such as ``rand-m7-n4-mstd0.5-inc1``, in any order of its parts. Raises ValueError."""
    head, *parts = text.split("-")
    found: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in _RAND_PARTS or _RAND_PARTS[match[1]] in found:
            raise ValueError(f"{part!r} of {text!r} is not understood; {_RAND_HELP}")
        found[_RAND_PARTS[match[1]]] = float(match[2])
    if head != "rand":
        raise ValueError(f"{text!r} is not understood; {_RAND_HELP}")
    policy = RandPolicy()._replace(**found)
    sound = policy.magnitude <= 10 and policy.std <= 10 and policy.chance <= 1 and policy.increasing in (0, 1)
    if not sound or policy.ops != int(policy.ops) or not 1 <= policy.ops <= 16:
        raise ValueError(f"{text!r} is out of range; {_RAND_HELP}")
    return policy._replace(ops=int(policy.ops), increasing=bool(policy.increasing))


def _rand(value: str | None) -> str | None:
    if value is not None:
        rand_policy(value)
    return value


AHEAD = 2  # batches that a process prepares ahead, unless something else was chosen
Range = Annotated[tuple[float, float], AfterValidator(_range)]
Chance = Annotated[float, Field(ge=0, le=1)]


class AugmentSettings(Settings):
    """What is done to a batch on the device; every default is off."""

    flip: Chance = Field(
        default=0.0, description="Chance that a clip is mirrored left to right (not for data whose classes know left from right)."
    )
    brightness: Chance = Field(default=0.0, description="Largest relative change of brightness, the same for all frames of a clip.")
    contrast: Chance = Field(default=0.0, description="Largest relative change of contrast.")
    saturation: Chance = Field(default=0.0, description="Largest relative change of saturation.")
    rand: Annotated[str | None, AfterValidator(_rand)] = Field(
        default=None,
        description="RandAugment by timm's name for it (rand-m7-n4-mstd0.5-inc1), the same operations for all frames of a clip.",
    )
    erase: Chance = Field(default=0.0, description="Chance that a box is replaced by noise, the same box in all frames.")
    mixup: float = Field(default=0.0, ge=0, le=2, description="Alpha of mixup's Beta(alpha, alpha); 0 = off. Needs class labels.")
    cutmix: float = Field(default=0.0, ge=0, le=2, description="Alpha of cutmix's Beta(alpha, alpha); 0 = off. Needs class labels.")
    switch: Chance = Field(default=0.5, description="Chance of cutmix where both mixup and cutmix are on.")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing of the soft targets. Needs class labels.")

    @property
    def mixes(self) -> bool:
        """Whether the batch gets soft targets."""
        return self.mixup > 0 or self.cutmix > 0 or self.smoothing > 0


class Views(Settings):
    """How an item is looked at in evaluation: ``clips`` windows in time, ``crops`` squares in space."""

    sampling: Literal["window", "dense", "tsn", "whole"] = Field(
        default="window",
        description="window: starts spread evenly, one clip = the centre; dense: VideoMAE's K400 rule; tsn: its SSv2 rule; "
        "whole: frames over the whole video.",
    )
    clips: int = Field(default=1, ge=1, le=1000, description="Windows in time.")
    crops: Literal[1, 3] = Field(default=1, description="1: the centre; 3: both ends of the longer side and the centre.")


class DataSettings(Settings):
    """How items become clips, and how they are fetched."""

    frames: int = Field(default=16, ge=1, le=4096, description="Frames of a clip.")
    stride: int = Field(
        default=4, ge=1, le=10000, description="Source frames from one frame of the clip to the next; ignored where fps is given."
    )
    fps: float | None = Field(
        default=None, gt=0, le=1000, description="Frames a second of the clip at any source rate; replaces stride for sampling = window."
    )
    size: int | tuple[int, int] = Field(default=224, description="Height and width in pixels, one number for a square.")
    sampling: Literal["window", "dense", "tsn", "whole"] = Field(
        default="window",
        description="window: a random window of frames x stride; dense: VideoMAE's 16x4 fine-tuning rule; "
        "tsn: one frame of each of `frames` equal segments; whole: frames spread over the whole video.",
    )
    crop: Literal["multiscale", "random_resized", "centre"] = Field(
        default="multiscale",
        description="multiscale: sides from `multiscale` at 13 fixed places; random_resized: area and ratio drawn; "
        "centre: largest central box.",
    )
    multiscale: Annotated[tuple[float, ...], AfterValidator(_sides)] = Field(
        default=(1.0, 0.875, 0.75, 0.66), description="Crop sides as fractions of the short side, largest first."
    )
    area: Range = Field(default=(0.08, 1.0), description="Range of a random_resized crop's share of the frame.")
    ratio: Range = Field(default=(3 / 4, 4 / 3), description="Range of a random_resized crop's width / height.")
    clips_per_video: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Clips cut from a video each time it is opened; they follow each other in the order and share one decode.",
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Copies of each clip: the same frames, cropped and augmented independently; they follow each other in the order.",
    )
    split: str | None = Field(
        default=None, description="Keep only this split: the value of a manifest's split column, or a first-level folder such as train."
    )
    labels: str = Field(
        default="auto",
        description="auto: a manifest's label column, or class folders; none; folder: the sub-folder's name; else a manifest column.",
    )
    images: Literal["ignore", "items", "frames"] = Field(
        default="ignore", description="Picture files in a folder source: leave out, each one an item, or each folder of them one clip."
    )
    folder_fps: float = Field(default=25.0, gt=0, le=1000, description="Frames a second of a folder of frames.")
    maps: str | None = Field(
        default=None, description="Manifest column with the path of each item's score map (.npy), for maskings that follow one."
    )
    cache: Literal["none", "memory", "device"] = Field(
        default="none",
        description="Keep all videos decoded: in main memory (shared by the workers) or on the training device. For small sets.",
    )
    cache_size: int | None = Field(
        default=None, ge=1, le=8192, description="Short side of cached frames in pixels; none = 1.15 times the shorter of `size`."
    )
    shuffle: Literal["auto", "items", "shards"] = Field(
        default="auto",
        description="items: any item may follow any other; shards: some shards of a prepared set at a time, their items mixed; "
        "auto: shards where all items are of prepared sets behind URLs, else items.",
    )
    shuffle_shards: int = Field(default=8, ge=1, le=100000, description="Shards whose items are mixed at a time with shuffle = shards.")
    cache_dir: str | None = Field(
        default=None,
        description="Folder for fetched shards of prepared sets behind URLs; none = tubelet/shards in the user's cache folder.",
    )
    cache_limit: float = Field(
        default=32.0, gt=0, le=1e6, description="GiB of fetched shards that are kept there; the least recently used are dropped."
    )
    workers: int | Literal["auto"] = Field(
        default="auto",
        description="Decoding processes; 0 = decode in the training process; auto = measured before training: enough that decoding is "
        "faster than a step, at most one less than the cores (elsewhere: from the cores).",
    )
    prefetch: int | Literal["auto"] = Field(
        default="auto",
        description="Batches each worker prepares ahead; auto = from how much decoding times vary, within a quarter of the free memory; "
        "2 where that is not measured.",
    )
    decoder: Literal["auto", "pyav", "torchcodec"] = Field(
        default="auto", description="auto: torchcodec where it is installed and passes a self-test, else PyAV."
    )
    decode_timeout: float = Field(
        default=30.0, gt=0, le=3600, description="Seconds after which a file that is still being read counts as broken."
    )
    max_bad_rate: float = Field(
        default=0.1, ge=0, le=1, description="Stop when more than this share of the samples came from videos that cannot be read."
    )
    augment: AugmentSettings = Field(default=AugmentSettings(), description="Flip, colour, erasing, mixing on the device.")

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        problems = []
        if any(not 1 <= side <= 8192 for side in self.hw):
            problems.append(f"size must be 1..8192 pixels, got {self.size}")
        if isinstance(self.workers, int) and not 0 <= self.workers <= 512:
            problems.append(f"workers must be 0..512 or auto, got {self.workers}")
        if isinstance(self.prefetch, int) and not 1 <= self.prefetch <= 64:
            problems.append(f"prefetch must be 1..64 or auto, got {self.prefetch}")
        if self.cache == "device" and isinstance(self.workers, int) and self.workers > 0:
            problems.append("workers must be 0 or auto with cache = device: the clips are cut on the device")
        if self.area[1] > 1:
            problems.append(f"area is a share of the frame, not above 1, got {self.area}")
        if self.fps is not None and self.sampling != "window":
            problems.append(f"fps works with sampling = window only, not {self.sampling}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def store(self) -> Store:
        """Where fetched shards are kept."""
        from tubelet.data.prepared.store import Store, default_folder

        folder = Path(self.cache_dir).expanduser().absolute() if self.cache_dir else default_folder()
        return Store(folder, int(self.cache_limit * 2**30))

    @property
    def ahead(self) -> int:
        """Batches each worker prepares ahead, where nothing was measured."""
        return AHEAD if self.prefetch == "auto" else self.prefetch

    @property
    def short_side(self) -> int:
        """Short side of cached frames."""
        return self.cache_size or -(-min(self.hw) * 115 // 100)
