"""How a stage is trained: length, batch, optimiser, precision, what is saved when; and how the run is watched meanwhile."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tubelet.config import Settings


class TrainSettings(Settings):
    """Settings of the training loop. Exactly one of ``epochs`` and ``steps`` gives the length."""

    epochs: float | None = Field(None, gt=0, description="passes over the data; one pass = items x clips_per_video samples")
    steps: int | None = Field(None, gt=0, description="optimiser steps, instead of epochs")
    batch: int = Field(256, gt=0, description="samples per optimiser step over all processes and accumulation")
    batch_schedule: tuple[tuple[float, int], ...] = Field(
        (), description="[[from_progress, batch], ...]: another batch size from that share of the run on; before the first entry, `batch`"
    )
    token_budget: int | None = Field(None, gt=0, description="tokens per step: batch = budget // tokens of a sample")
    micro: int | None = Field(None, gt=0, description="samples per process and forward pass; fewer than batch / processes = accumulation")

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum (linear probes)")
    lr: float = Field(1.5e-4, ge=0, description="base learning rate, for lr_batch samples per step")
    lr_batch: int | None = Field(256, gt=0, description="rate = lr x batch / lr_batch; null = lr as it is")
    min_lr: float = Field(1e-5, ge=0, description="rate at the end, scaled like lr")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from zero, in passes over the data")
    warmup_steps: int | None = Field(None, ge=0, description="linear warm-up in steps, instead of warmup_epochs")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW betas; the first one is SGD's momentum")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.05, ge=0, description="decoupled with AdamW; 0 on 1-D parameters and where a method says so")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; null = no clipping")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a weight average that is saved as model_ema.safetensors")

    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 = autocast; norms, softmax and losses stay in fp32")
    compile: bool = Field(False, description="torch.compile the transformer blocks")
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory, a third more time")
    device: str = Field("auto", description="auto | cpu | cuda | cuda:0 ...")
    seed: int = Field(0, ge=0, description="every random number of the run is a function of it")

    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints")
    checkpoint_minutes: float | None = Field(10.0, gt=0, description="minutes between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    log_every: int = Field(10, gt=0, description="steps between lines in metrics.jsonl; figures are means over them")

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps (set the other to null)")
        if any(not 0 <= p <= 1 or b < 1 for p, b in self.batch_schedule):
            raise ValueError("batch_schedule is a list of [progress between 0 and 1, batch size >= 1]")
        if [p for p, _ in self.batch_schedule] != sorted({p for p, _ in self.batch_schedule}):
            raise ValueError("batch_schedule must rise in progress, each value once")
        if self.batch_schedule and self.token_budget:
            raise ValueError("give batch_schedule or token_budget, not both")
        return self


class WatchSettings(Settings):
    """What a run shows of itself while it trains. Nothing here changes what is learned, so all of it may change on resume.

    Pictures and figures come before the first step, after the last, and whenever ``every_samples`` or ``every_minutes`` says.
    """

    pictures: int = Field(default=4, ge=0, le=64, description="clips drawn with their mask and reconstruction; 0 = no pictures")
    probe: int = Field(
        default=400, ge=0, description="training items that the online probe, kNN and the embedding's rank use; 0 = none of them"
    )
    every_samples: int | None = Field(default=None, gt=0, description="samples between looks")
    every_minutes: float | None = Field(default=10.0, gt=0, description="minutes between looks, longer where that would cost more than 5 %")
    tensorboard: bool = Field(default=True, description="write event files into tensorboard/ of the run folder")
    wandb: bool | str = Field(
        default=False, description="true or a project's name: send the figures to Weights & Biases (pip install wandb)"
    )


# Fields that may differ when a run is resumed: they change where and how fast it runs, not which numbers it computes from what.
FREE_ON_RESUME = (
    "train.micro",
    "train.device",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep",
    "train.log_every",
    "watch",
)
