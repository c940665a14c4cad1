"""A classifier over a video encoder: fine-tuned whole (VideoMAE section 4), or as a probe of a frozen one.

all cubes -> encoder -> pool -> [norm] -> dropout -> linear
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from tubelet.config import Settings
from tubelet.core import Batch, Draw, Frozen, Group, Losses, Step, Tokens, Trainable
from tubelet.errors import ConfigError
from tubelet.methods._groups import layer_groups
from tubelet.nn.heads import ClassHead
from tubelet.nn.init import truncated
from tubelet.nn.pool import Pool, PoolKind, make_pool
from tubelet.nn.video import VideoEncoder
from tubelet.objectives.classify import smooth_one_hot, soft_cross_entropy
from tubelet.objectives.losses import reduce


class Config(Settings):
    """``pool``: how tokens become one vector. ``norm``: "pooled" = the encoder's final norm is left out and a new one follows the pooling
    (VideoMAE's ``fc_norm``); "tokens" = the
    encoder's own norm, before pooling. ``layer_decay``: the rate falls by this factor from block to block towards the input, None = one
    rate. ``drop_path`` is the encoder's while it is fine-tuned. ``frozen``: only what follows the encoder learns; the
    encoder is then not part of the saved weights.
    ``smoothing`` acts on class numbers, not on soft targets that a batch brings. ``dropout``: before the last layer. ``init_scale``
    multiplies the last layer's first weights. ``eps``: of the new norm.
    """

    kind: Literal["classifier"] = "classifier"
    pool: PoolKind = "mean"
    norm: Literal["pooled", "tokens"] = "pooled"
    frozen: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    smoothing: float = Field(0.0, ge=0, lt=1)
    layer_decay: float | None = Field(None, gt=0, le=1)
    init_scale: float = Field(0.001, gt=0)
    eps: float = Field(1e-6, gt=0)

    def build(self, *, encoder: VideoEncoder, classes: int) -> Classifier:
        """``encoder`` shares its weights with the classifier; it is itself left as it is, but frozen where asked. Raises ConfigError."""
        return Classifier(encoder=encoder, classes=classes, config=self)


class Readout(nn.Module):
    """Tokens of an encoder -> logits."""

    def __init__(self, *, pool: Pool, head: ClassHead) -> None:
        super().__init__()
        self.pool, self.head = pool, head

    def forward(self, tokens: Tokens, draw: Draw | None = None) -> Tensor:
        return self.head(self.pool(tokens), draw)


class Classifier(Trainable):
    """``batch.labels["target"]``: (B, classes) soft targets, where mixing or smoothing made some; else ``batch.labels["class"]``: (B,)
    int64 class numbers, or soft targets. Built by :class:`Config`."""

    def __init__(self, *, encoder: VideoEncoder, classes: int, config: Config) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"a classifier needs at least 2 classes, got {classes}")
        if config.pool == "class" and encoder.class_token is None:
            raise ConfigError("pool 'class' needs an encoder with a class token, and this one has none; use mean, slots or attentive")
        encoder = encoder.variant(norm=config.norm == "tokens", drop_path=0.0 if config.frozen else config.drop_path)
        pool = make_pool(config.pool, dim=encoder.dim, heads=encoder.heads, t=encoder.position.shape[0])
        truncated(pool)
        head = ClassHead(
            dim=pool.width,
            classes=classes,
            norm_eps=config.eps if config.norm == "pooled" else None,
            dropout=config.dropout,
            init_scale=config.init_scale,
        )
        self.depth = len(encoder.trunk.blocks)
        self.encoder = Frozen(encoder) if config.frozen else encoder
        self.readout = Readout(pool=pool, head=head)
        self.classes, self.config = classes, config

    def forward(self, video: Tensor, draw: Draw | None = None) -> Tensor:
        """(B, C, T, H, W) uint8 0..255 or float 0..1 -> logits (B, classes). ``draw``: noise while training."""
        return self.readout(self.encoder(video, draw=draw), draw)

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        """Cross entropy with hard (smoothed) or soft targets. The log holds the accuracy where classes are numbers."""
        labels = batch.labels.get("target", batch.labels.get("class"))
        if not isinstance(labels, Tensor):
            raise ValueError(f"a classifier needs batch.labels['class'] as a tensor; this batch has labels {sorted(batch.labels)}")
        soft = labels.is_floating_point()
        if soft and labels.shape[1:] != (self.classes,):
            raise ValueError(f"soft targets must be (B, {self.classes}), got {tuple(labels.shape)}")
        logits = self(batch.stream("video").data, at.draw.child("classifier"))
        target = labels if soft else smooth_one_hot(labels, self.classes, self.config.smoothing)
        log = {} if soft else {"accuracy": reduce((logits.detach().argmax(1) == labels).float())}
        return Losses({"class": (reduce(soft_cross_entropy(logits, target)), 1.0)}, log)

    def groups(self, phase: str) -> list[Group]:
        """No weight decay on 1-D parameters, biases, position tables and the class token; rates by :meth:`layer_rate`."""
        exempt = {"rows", "space", "time", "class_row", "class_token", "query"}
        return layer_groups(self.named_parameters(), self.layer_rate, exempt)

    def layer_rate(self, name: str) -> float:
        """Rate multiplier of a parameter: decay^(L + 1 - id); embedding, position and class token have id 0, block i has i + 1, all else
        L + 1 (page section 4)."""
        if self.config.layer_decay is None:
            return 1.0
        if name.startswith("encoder.trunk.blocks."):
            layer = int(name.split(".")[3]) + 1
        else:
            layer = self.depth + 1 if name.startswith(("readout.", "encoder.trunk.")) else 0
        return self.config.layer_decay ** (self.depth + 1 - layer)
