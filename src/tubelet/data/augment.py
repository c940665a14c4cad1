"""Augmentation of a whole batch on its device: nothing here waits for the device or leaves the counters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from tubelet.core import Batch, Draw, Stream
from tubelet.data.randaugment import choose, rand_augment
from tubelet.data.settings import AugmentSettings, rand_policy
from tubelet.errors import ConfigError

_GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R BT.601


class Augment:
    """Flip, RandAugment, colour, erasing per sample, then mixup or cutmix and soft targets, all drawn by name (``augment/...``).

    Streams about the pixels of "video" (flow, scores, labels of regions) are flipped with them.

    ``classes``: number of classes for soft targets. ``copies``: neighbouring samples that show one video, which are not mixed with each
    other. ``needs``: what else batches will bring. Pixels stay uint8 where only flip is on, else they become float in [0, 1]. With mixup,
    cutmix or smoothing ``labels["target"]`` is (B, classes) float32; ``labels["class"]`` stays as it was.
    Raises ConfigError where soft targets are asked for without classes, and for RandAugment, mixup or cutmix where such a stream is there.
    """

    def __init__(self, settings: AugmentSettings, *, classes: int = 0, copies: int = 1, needs: Collection[str] = ()) -> None:
        if settings.mixes and classes < 2:
            raise ConfigError("augment: mixup, cutmix and smoothing need class labels, and this data has none; set them to 0")
        _check_whole(settings, sorted({"motion", "map"} & set(needs)))
        self.settings, self.classes = settings, classes
        self.group = 2 * copies
        self.policy = rand_policy(settings.rand) if settings.rand is not None else None

    def __call__(self, batch: Batch, draw: Draw, stream: str = "video", *, host: Draw | None = None) -> Batch:
        """``draw`` must be bound to the batch's samples. ``host``: the same bound to them on the CPU; without it RandAugment's choices are
        read back from the device, which waits for it. What a sample becomes depends on its ``group`` neighbours alone: batches that are cut
        between groups hold the same clips as one large batch."""
        s, video, draw = self.settings, batch.stream(stream), draw.child("augment")
        beside = {name: other for name, other in batch.streams.items() if other.kind != "pixels"} if stream == "video" else {}
        _check_whole(s, beside)
        if s.flip:
            which, width = draw.uniform("flip") < s.flip, video.data.shape[-1]
            video = flip(video, which)
            for name, other in beside.items():
                batch = batch.with_stream(name, flip(other, which, width))
        colour = s.brightness or s.contrast or s.saturation
        if self.policy or colour or s.erase or s.mixup or s.cutmix:
            video = replace(video, data=as_float(video.data))
        if self.policy:
            turns = choose(self.policy, (host.child("augment") if host is not None else draw).child("rand"))
            video = replace(video, data=rand_augment(video.data, turns))
        if colour:
            video = replace(video, data=jitter(video.data, s, draw))
        if s.erase:
            video = replace(video, data=erase(video.data, s.erase, draw))
        if not s.mixes:
            return batch.with_stream(stream, video)
        label = batch.labels.get("class")
        if not isinstance(label, Tensor):
            raise ConfigError("augment: mixup, cutmix and smoothing need class labels, and this batch has none; set them to 0")
        target = soft_targets(label, self.classes, s.smoothing)
        if s.mixup or s.cutmix:
            partner = partners(len(batch), self.group, video.data.device)
            data, share = mix(video.data, video.data[partner], s, draw)
            video = replace(video, data=data)
            target = share * target + (1 - share) * target[partner]
        return replace(batch.with_stream(stream, video), labels={**batch.labels, "target": target})


def as_float(x: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0, 1]; floats stay."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _check_whole(s: AugmentSettings, beside: Collection[str]) -> None:
    """Raises ConfigError where pixels would be torn from the streams about them."""
    on = [f"augment.{name}" for name in ("rand", "mixup", "cutmix") if getattr(s, name)]
    if on and beside:
        streams = " and ".join(sorted(beside))
        raise ConfigError(f"{' and '.join(on)} would tear the pixels from {streams}, which the masking needs; switch it off")


def flip(stream: Stream, which: Tensor, width: int | None = None) -> Stream:
    """Mirror the samples of ``which`` (B,) bool left to right, and their crop affine: x -> width - x. Of a flow, what went to the right
    goes to the left. ``width``: of the clip in pixels, None = that of the data."""
    mirror = stream.data.flip(-1)
    if stream.kind == "flow":
        mirror[:, ::2].neg_()  # dx: of four channels the third is that of the way back
    data = torch.where(which.view(-1, 1, 1, 1, 1), mirror, stream.data)
    if stream.crop is None:
        return replace(stream, data=data)
    mirrored = stream.crop.clone()
    mirrored[:, 0] = -mirrored[:, 0]
    mirrored[:, 0, 2] += stream.data.shape[-1] if width is None else width
    return replace(stream, data=data, crop=torch.where(which.to(stream.crop.device).view(-1, 1, 1), mirrored, stream.crop))


def jitter(x: Tensor, s: AugmentSettings, draw: Draw) -> Tensor:
    """Brightness, contrast (about the clip's mean grey) and saturation by factors in 1 +- amount, one for all frames of a clip.
    x (B, 3, T, H, W) in [0, 1]."""
    u = (draw.uniform("colour", 3) * 2 - 1).view(-1, 3, 1, 1, 1, 1)
    weights = torch.tensor(_GREY, device=x.device, dtype=x.dtype).view(1, 3, 1, 1, 1)
    x = (x * (1 + s.brightness * u[:, 0])).clamp(0, 1)
    grey = (x * weights).sum(1, keepdim=True)
    mean = grey.mean(dim=(2, 3, 4), keepdim=True)
    x = (mean + (x - mean) * (1 + s.contrast * u[:, 1])).clamp(0, 1)
    grey = (x * weights).sum(1, keepdim=True)
    return (grey + (x - grey) * (1 + s.saturation * u[:, 2])).clamp(0, 1)


def erase(x: Tensor, chance: float, draw: Draw) -> Tensor:
    """Random erasing in pixel mode (Zhong et al. 2020): a box of 2 % to a third of the area, ratio 0.3 to 3.3, the same in all frames,
    becomes normal noise (mean .5, deviation .25, clamped). x (B, 3, T, H, W) in [0, 1]."""
    height, width = x.shape[-2:]
    u = draw.uniform("erase", 5)
    area = (0.02 + u[:, 1] * (1 / 3 - 0.02)) * height * width
    ratio = torch.exp((u[:, 2] * 2 - 1) * torch.log(torch.tensor(10 / 3, device=x.device)))
    h, w = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    top, left = u[:, 3] * (height - h), u[:, 4] * (width - w)
    inside = _box(top, left, h, w, height, width) & (u[:, 0] < chance).view(-1, 1, 1)
    noise = (0.5 + 0.25 * draw.normal("noise", 3, *x.shape[2:]).to(x.dtype)).clamp(0, 1)
    return torch.where(inside[:, None, None], noise, x)


def _box(top: Tensor, left: Tensor, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool: pixels whose corner lies in the boxes."""
    y, x = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    rows = (y >= top[:, None]) & (y < (top + h)[:, None])
    columns = (x >= left[:, None]) & (x < (left + w)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def soft_targets(label: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B,) int64 -> (B, classes) float32: 1 - smoothing + smoothing / classes at the label, smoothing / classes elsewhere."""
    return torch.nn.functional.one_hot(label, classes).float() * (1 - smoothing) + smoothing / classes


@lru_cache(maxsize=64)
def partners(n: int, group: int, device: torch.device) -> Tensor:
    """(n,) int64: with whom each sample is mixed, the one at the mirrored place of its ``group``. A rest is a group of its own."""
    mirrored = [min(start + group, n) - 1 - i for start in range(0, n, group) for i in range(min(group, n - start))]
    return torch.tensor(mirrored).to(device)


def mix(x: Tensor, other: Tensor, s: AugmentSettings, draw: Draw) -> tuple[Tensor, Tensor]:
    """The batch mixed with its partners by one draw for all (mixup: Zhang et al. 2018; cutmix: Yun et al. 2019).

    Returns the pixels and the share (scalar) that each sample keeps of itself; cutmix's is counted from the box.
    """
    use_cut = draw.uniform("switch", per="batch") < (s.switch if s.mixup and s.cutmix else float(s.cutmix > 0))
    alpha_share = [beta(a, draw.child(name)) if a else x.new_ones(()) for name, a in (("mixup", s.mixup), ("cutmix", s.cutmix))]
    height, width = x.shape[-2:]
    side = (1 - alpha_share[1]).sqrt()
    place = draw.uniform("box", 2, per="batch")
    h, w = side * height, side * width
    top, left = place[0] * height - h / 2, place[1] * width - w / 2
    box = _box(top[None], left[None], h[None], w[None], height, width)[0]
    cut_share = 1 - box.float().mean()
    if not s.mixup or not s.cutmix:  # one of them is off: spare its work
        return (torch.where(box, other, x), cut_share) if s.cutmix else (alpha_share[0] * x + (1 - alpha_share[0]) * other, alpha_share[0])
    mixed = torch.where(use_cut, torch.where(box, other, x), alpha_share[0] * x + (1 - alpha_share[0]) * other)
    return mixed, torch.where(use_cut, cut_share, alpha_share[0])


def beta(alpha: float, draw: Draw, tries: int = 64) -> Tensor:
    """One number of Beta(alpha, alpha) per batch, 0 < alpha <= 2, by Joehnk's method: of pairs u^(1/a), v^(1/a) the first whose sum is
    at most 1, as u' / (u' + v'). All tries fail with a chance below 1e-5; then it is 1/2."""
    u = draw.uniform("beta", 2, tries, per="batch").double().clamp(min=1e-12).pow(1 / alpha)
    total = u.sum(0)
    good = (total <= 1) & (total > 0)
    first = torch.argmax(good.int())
    return torch.where(good.any(), u[0, first] / total[first].clamp(min=1e-300), torch.full_like(total[0], 0.5)).float()
