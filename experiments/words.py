"""A small dual encoder trained on a world's captions, for experiments on text-guided masking, and the guide that it makes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from worlds import Feed, World, train, world

from tubelet.core import Batch, Frozen, Stream
from tubelet.guides._dual import Dual
from tubelet.guides.similarity import Config, Similarity
from tubelet.methods import dual
from tubelet.nn.dual import DualEncoder

SIZE, FRAMES, CLIPS = 48, 8, 3000


def clips(seed: int) -> World:
    """What is trained on."""
    return world("full", seed, 0, CLIPS, size=SIZE, frames=FRAMES)


def others(seed: int, n: int = 400) -> World:
    """Clips of another seed of the scene, for measuring."""
    return world("full", 1000 + seed, 0, n, size=SIZE, frames=FRAMES)


class OneFrame(Feed):
    """One frame of each clip, another one each time."""

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Batch]:
        for batch in super().batches(schedule):
            video = batch.stream("video").data
            chosen = (batch.sample * 5 + batch.sample // len(self)) % video.shape[2]
            one = video[torch.arange(len(video)), :, chosen][:, :, None]
            yield replace(batch, streams={"video": Stream(one)})


def trained(seed: int, steps: int = 800, mixing: str = "none") -> DualEncoder:
    """By the recipe's method; ``mixing`` as in its network. Kept in the temporary folder for the experiments that follow with the same
    seed: remove tubelet-words-*.pt there after a change of the code."""
    torch.manual_seed(seed)
    config = dual.Config.model_validate({"network": {"mixing": mixing}})
    model = config.build(masking=None, frames=1, size=(SIZE, SIZE))
    kept = Path(tempfile.gettempdir(), f"tubelet-words-{seed}-{steps}-{mixing}.pt")
    if kept.exists():
        model.load_state_dict(torch.load(kept))
    else:
        train(model, OneFrame(clips(seed), seed), steps=steps, lr=1e-3, weight_decay=0.05, seed=seed)
        torch.save(model.state_dict(), kept)
    return model.dual.eval()


def guide(net: DualEncoder) -> Similarity:
    """The guide ``similarity`` by this encoder."""
    outside = Dual(net, net.text, lambda frames, mode: net.patches(frames))
    return Similarity(dual=Frozen(outside, path="trained here"), settings=Config(model="trained here"))


@torch.no_grad()
def score(net: DualEncoder, frames: Tensor, texts: Sequence[str]) -> Tensor:
    """(n, rows, columns) cosines of patches and texts."""
    return torch.einsum("nhwd,nd->nhw", net.patches(frames), net.text(texts))
