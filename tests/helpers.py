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


def stop_tuning_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM once a fine-tuning run has done a step."""
    fit = finetuning.fit

    class Stop:
        name = "stop"

        def look(self, trainable, at, ranks):
            if at.index == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

    def stopping(model, feed, train, folder, **more):
        watch = more.pop("watch").model_copy(update={"every_samples": train.batch})
        return fit(model, feed, train, folder, **(more | {"hooks": [*more["hooks"], Stop()], "watch": watch}))

    monkeypatch.setattr(finetuning, "fit", stopping)
