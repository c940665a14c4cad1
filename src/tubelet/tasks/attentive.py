"""The attentive probe: one learned query reads all frozen tokens of a clip, a linear layer reads what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.core.draw import permutation
from tubelet.errors import DataError
from tubelet.methods.classifier import Readout
from tubelet.nn.heads import ClassHead
from tubelet.nn.init import xavier
from tubelet.nn.pool import Attentive
from tubelet.objectives.classify import smooth_one_hot, soft_cross_entropy
from tubelet.objectives.losses import reduce
from tubelet.tasks._pair import about_training, check_pair
from tubelet.tasks.metrics import Score, classification
from tubelet.tasks.probe import grouped, held_out, judge
from tubelet.tasks.tokens import KeptTokens, Reader
from tubelet.train.optim import cosine_lr

RATES, DECAYS = (3e-4, 1e-3, 3e-3, 1e-2), (0.01, 3.0)
BATCH, EPOCHS, STEPS = 64, 30, 300  # at least so many steps


@dataclass(frozen=True)
class Setting:
    """Peak learning rate and weight decay of AdamW."""

    lr: float = 3e-3
    decay: float = 3.0

    def __str__(self) -> str:
        return f"lr {self.lr:g}, decay {self.decay:g}"


SETTINGS = tuple(Setting(lr, decay) for lr in RATES for decay in DECAYS)


def head_count(dim: int) -> int:
    """Heads of 64 channels where that divides the width, else of 32, 16, 8; one head where none does."""
    return next((dim // width for width in (64, 32, 16, 8) if dim % width == 0), 1)


def make_readout(dim: int, classes: int, seed: int) -> Readout:
    """Query, cross-attention, LayerNorm, linear layer; their start is a function of ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pool = Attentive(dim=dim, heads=head_count(dim))
        xavier(pool)
        return Readout(pool=pool, head=ClassHead(dim=dim, classes=classes))


def logits(readout: Readout, z: Tensor, valid: Tensor | None = None) -> Tensor:
    """Standardised tokens (B, K, D), ``valid`` (B, K) -> (B, classes): what ``readout`` answers to the tokens themselves.

    One query is the same for all clips, so keys and values need not be computed for every token: the key map is applied to the query,
    the value map to the weighted mean of the tokens. K x D x heads multiplications a clip instead of K x D x D.
    """
    pool = readout.pool
    assert isinstance(pool, Attentive)
    cross, norm = pool.cross, pool.norm
    q = cross.q(pool.query)[0, 0].view(cross.heads, cross.width)
    to_key, to_value = cross.kv.weight.view(2, cross.heads, cross.width, -1)
    key = torch.einsum("hw,hwd->hd", q, to_key) * norm.weight * cross.width**-0.5  # the biases shift all tokens alike: no effect
    similar = z @ key.T
    if valid is not None:
        similar = similar.masked_fill(~valid[..., None], -math.inf)
    found = similar.softmax(1).transpose(1, 2) @ z * norm.weight + norm.bias
    value = torch.einsum("bhd,hwd->bhw", found, to_value).flatten(1)
    if cross.kv.bias is not None:
        value = value + cross.kv.bias[len(value[0]) :]
    return readout.head(cross.proj(value))


class _Fit:
    """One readout on its way, with its optimiser."""

    def __init__(self, readout: Readout, setting: Setting, steps: int) -> None:
        matrices = [p for n, p in readout.named_parameters() if p.ndim > 1 and not n.endswith("query")]
        chosen = {id(p) for p in matrices}
        rest = [p for p in readout.parameters() if id(p) not in chosen]
        groups = [{"params": matrices, "weight_decay": setting.decay}, {"params": rest, "weight_decay": 0.0}]
        self.readout, self.setting, self.steps = readout, setting, steps
        self.optimiser = torch.optim.AdamW(groups, lr=setting.lr)

    def step(self, at: int, z: Tensor, valid: Tensor | None, target: Tensor) -> None:
        rate = cosine_lr(at, base=self.setting.lr, final=0.0, warmup_steps=self.steps // 10, total_steps=self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        reduce(soft_cross_entropy(logits(self.readout, z, valid), target)).backward()
        self.optimiser.step()


def fit(
    kept: KeptTokens,
    labels_N: np.ndarray,
    use_N: np.ndarray,
    classes: int,
    settings: Sequence[Setting],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Readout]:
    """One readout for each setting, trained side by side on the items ``use_N`` (bool), so that the tokens are read once for all.

    All views of an item are samples. The same seed gives the same start, order and, on one machine, the same numbers.
    """
    views = kept.x.shape[1]
    samples = torch.from_numpy((np.flatnonzero(use_N)[:, None] * views + np.arange(views)).ravel())
    batch = min(BATCH, len(samples))
    steps = max(STEPS, EPOCHS * len(samples) // batch)
    fits = [_Fit(make_readout(kept.x.shape[3], classes, seed).to(device), s, steps) for s in settings]
    read = Reader(kept, most=batch, device=device)
    targets = smooth_one_hot(torch.from_numpy(labels_N), classes, 0.0).to(device)
    at = 0
    epoch = 0
    while at < steps:
        order = samples[permutation(seed, epoch, len(samples))]
        for which in order[: len(order) - len(order) % batch].split(batch)[: steps - at]:
            z, valid = read(which)
            target = targets[which.to(device) // views]
            for one in fits:
                one.step(at, z, valid, target)
            at += 1
            if progress is not None:
                progress(at, steps)
        epoch += 1
    return [one.readout.eval() for one in fits]


@torch.no_grad()
def probabilities(readout: nn.Module, kept: KeptTokens, use_N: np.ndarray, *, device: torch.device | str = "cpu") -> np.ndarray:
    """(n, classes) float64 for the items ``use_N`` (bool): class probabilities, averaged over the views."""
    assert isinstance(readout, Readout)
    views = kept.x.shape[1]
    items = torch.from_numpy(np.flatnonzero(use_N))
    samples = (items[:, None] * views + torch.arange(views)).flatten()
    read = Reader(kept, most=min(BATCH, len(samples)), device=device)
    answers = [logits(readout, *read(which)).double().cpu() for which in samples.split(BATCH)]
    return torch.cat(answers).softmax(1).unflatten(0, (-1, views)).mean(1).numpy()


def choose(
    kept: KeptTokens,
    labels_N: np.ndarray,
    classes: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    groups: Mapping[str, str] | None = None,
) -> tuple[Setting, dict[str, float]]:
    """The setting with the best accuracy on a seeded held-out part of the training set, and what each reached.

    Equal accuracies are told apart by the probability given to the true class. Where no class has two items, or the rest is of one class,
    there is nothing to choose by: the default.
    """
    out = held_out(labels_N, seed, groups_N=grouped(groups, kept.items.keys))
    if not out.any() or len(np.unique(labels_N[~out])) < 2:
        return Setting(), {}
    readouts = fit(kept, labels_N, ~out, classes, SETTINGS, seed=seed, device=device, progress=progress)
    judged = [judge(probabilities(readout, kept, out, device=device), labels_N[out]) for readout in readouts]
    best = max(range(len(SETTINGS)), key=lambda i: judged[i])
    return SETTINGS[best], {str(setting): accuracy for setting, (accuracy, _) in zip(SETTINGS, judged, strict=True)}


def score_attentive(
    train: KeptTokens,
    test: KeptTokens,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Score:
    """Choose learning rate and weight decay inside the training set, fit on all of it, read the test set once.

    ``progress(done, total)`` counts steps of the two fits. ``groups``: as for the linear probe. Raises DataError for sets that do not fit
    together.
    """
    pair = check_pair(train.items, test.items)
    if train.x.shape[2:] != test.x.shape[2:]:
        sizes = [" x ".join(map(str, kept.x.shape[2:])) for kept in (train, test)]
        raise DataError(f"training clips have {sizes[0]} tokens and channels, test clips {sizes[1]}: use the same settings")
    classes, everything = len(pair.classes), np.ones(len(train), bool)
    setting, tried = choose(train, pair.train_labels, classes, seed=seed, device=device, progress=progress, groups=groups)
    (readout,) = fit(train, pair.train_labels, everything, classes, [setting], seed=seed, device=device, progress=progress)
    kept_in = "file" if train.spilled or test.spilled else "memory"
    details = {"pool": "all tokens", "lr": setting.lr, "weight_decay": setting.decay, "tried": tried, "seed": seed, "kept_in": kept_in}
    views, tokens, dim = train.x.shape[1:]
    return classification(
        "attentive probe",
        probabilities(readout, test, np.ones(len(test), bool), device=device),
        pair.test_labels,
        test.items.keys,
        pair.classes,
        n_total=test.items.n_total,
        failures=test.items.failures,
        details={**details, "heads": head_count(dim), "tokens": tokens, "views": views, **about_training(train.items)},
    )
