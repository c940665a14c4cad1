"""What tests of several folders use."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from tubelet.api import finetuning


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """Every parameter far from its start, biases too; in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for value in model.parameters():
        value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return model.eval()


class StopAfter:
    """A hook that sends SIGTERM once a run has done a step."""

    name = "stop"

    def __init__(self, step: int) -> None:
        self.step = step

    def look(self, trainable, at, ranks):
        if at.index == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}


def stop_tuning_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM once a fine-tuning run has done a step."""
    fit = finetuning.fit

    def stopping(model, feed, train, folder, **more):
        watch = more.pop("watch").model_copy(update={"every_samples": train.batch})
        return fit(model, feed, train, folder, **(more | {"hooks": [*more["hooks"], StopAfter(step)], "watch": watch}))

    monkeypatch.setattr(finetuning, "fit", stopping)
