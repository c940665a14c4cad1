"""What the loader hands over: named streams, labels, and which samples they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["pixels", "flow", "score", "label"]
"""How a stream or field is resized, pooled and flipped: flow has its x turned by a flip, labels are never mixed."""


@dataclass(frozen=True)
class Stream:
    """One modality, or one view of it.

    ``data``: (B, C, T, H, W) pixels, uint8 0..255 or float [0, 1], or flow; (B, C, time, freq); (B, L, D) features; (B, L) ids.
    ``valid`` (B, L) bool over its time axis, None = no padding. ``time`` (B, L) seconds in the source: aligns frames, sound,
    sensors and segments. ``crop`` (B, 2, 3): affine from source pixel to this pixel; maps and vectors follow it.
    ``kind`` "flow", "score", "label": data about the pixels of "video", (B, C, T', H', W') over the same crop, which is flipped with them.
    """

    data: Tensor
    valid: Tensor | None = None
    time: Tensor | None = None
    crop: Tensor | None = None
    kind: Kind = "pixels"

    def to(self, device: torch.device | str) -> Stream:
        """On ``device``, without waiting where the memory is pinned."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> Stream:
        """Every tensor changed alike."""

        def may(x: Tensor | None) -> Tensor | None:
            return None if x is None else change(x)

        return Stream(change(self.data), may(self.valid), may(self.time), may(self.crop), self.kind)


@dataclass(frozen=True)
class Batch:
    """``streams``: "video", "video:weak", "audio", "text", ... ``labels``: "class" (B,), ...; ragged ones as sequences.
    ``sample`` (B,) int64 global sample numbers: they seed per-sample draws and identify clips across ranks.
    ``key``: where each sample came from, for messages and tables. ``text``: what is said about each sample, drawn for it, "" = nothing;
    () = the batch brings no text. Words stay on the host: whoever reads them has a tokenizer of its own. Raises ValueError where batch
    sizes disagree.
    """

    streams: Mapping[str, Stream]
    labels: Mapping[str, Tensor | Sequence[Tensor]]
    sample: Tensor
    key: tuple[str, ...] = field(default=())
    text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sample.ndim != 1 or self.sample.dtype != torch.int64:
            raise ValueError(f"batch.sample must be (B,) int64, got {tuple(self.sample.shape)} {self.sample.dtype}")
        parts = {f"label {k!r}": v for k, v in self.labels.items()} | {k: v for k, v in (("key", self.key), ("text", self.text)) if v}
        for name, stream in self.streams.items():
            every = {"data": stream.data, "valid": stream.valid, "time": stream.time, "crop": stream.crop}
            parts |= {f"stream {name!r} {part}": value for part, value in every.items() if value is not None}
        for name, value in parts.items():
            if len(value) != len(self.sample):
                raise ValueError(f"{name} has {len(value)} samples, the batch {len(self.sample)}")

    def __len__(self) -> int:
        return len(self.sample)

    def stream(self, name: str) -> Stream:
        """A stream by name. Raises ValueError naming the streams there are."""
        if name not in self.streams:
            raise ValueError(f"this batch has no stream {name!r}, only {', '.join(sorted(self.streams)) or 'none'}")
        return self.streams[name]

    def rows(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop`` of the batch, in the same memory."""
        streams = {k: s.map(lambda x: x[start:stop]) for k, s in self.streams.items()}
        labels = {k: v[start:stop] for k, v in self.labels.items()}
        return Batch(streams, labels, self.sample[start:stop], self.key[start:stop], self.text[start:stop])

    def to(self, device: torch.device | str) -> Batch:
        """All tensors on ``device``."""
        labels = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else [x.to(device) for x in v] for k, v in self.labels.items()
        }
        streams = {k: s.to(device) for k, s in self.streams.items()}
        return replace(self, streams=streams, labels=labels, sample=self.sample.to(device, non_blocking=True))

    def with_stream(self, name: str, stream: Stream) -> Batch:
        """The same batch with one stream replaced or added."""
        return replace(self, streams={**self.streams, name: stream})
