"""Figures by which a run watches itself learn: a probe, neighbours and the rank, on a few of its own training items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from tubelet.core.draw import hash_uniform, name_key
from tubelet.tasks.embed import Embeddings
from tubelet.tasks.knn import score_knn
from tubelet.tasks.probe import held_out, score_probe

SCORED = 0.5  # of the items: few enough that the interval, not the fit, is what limits the figure
PER_CLASS = 8


def rank_me(vectors_ND: np.ndarray, eps: float = 1e-7) -> float:
    """Effective rank of embeddings, 1 .. min(N, D): exp of the entropy of the normalised singular values (RankMe, Garrido et al. 2023,
    arXiv 2210.02885; not centred, as there). Falls where a model collapses. Comparable at equal N and D only."""
    values = np.linalg.svd(vectors_ND.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), np.finfo(float).tiny) + eps
    return float(np.exp(-(share * np.log(share)).sum()))


def choose(labels_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of at most ``count`` items, seeded, ascending. Labelled ones evenly over the classes; where there are more than ``count`` / 8
    classes, of so many of them, so that each has items to learn from and to be asked about. ``labels_N``: -1 = none."""
    order = np.argsort(hash_uniform(name_key(seed, "watch/items"), torch.arange(len(labels_N)), 1)[:, 0].numpy(), kind="stable")
    classes = list(dict.fromkeys(labels_N[order].tolist()))[: max(2, count // PER_CLASS)]
    queues = [order[labels_N[order] == c][:count] for c in classes]
    turns = sorted((turn, rank, int(row)) for rank, queue in enumerate(queues) for turn, row in enumerate(queue))
    return np.sort([row for _, _, row in turns[:count]]).astype(np.int64)


def online_scores(pooled: Mapping[str, Embeddings], *, seed: int) -> dict[str, float]:
    """``probe/POOL`` and ``knn/POOL``: top-1 as a share on a seeded, stratified half of the items, learned from the other half;
    ``probe/n``: items scored, ``probe/fit``: items learned from, ``probe/chance``: 1 / classes; ``rank/mean``, and ``rank/n``: its items.

    ``pooled``: the same items under each pooling, "mean" among them. Without labels, or where no class has two items, there is the rank
    alone.
    """
    first = pooled["mean"]
    rank = {"rank/mean": rank_me(first.vectors), "rank/n": float(len(first))}
    if not first.classes or (first.labels < 0).any():
        return rank
    scored = held_out(first.labels, seed, SCORED)
    classes = len(np.unique(first.labels[~scored]))
    if not scored.any() or classes < 2:
        return rank
    halves = {pool: (_part(items, ~scored), _part(items, scored)) for pool, items in pooled.items()}
    found = {f"probe/{pool}": score_probe(*pair, seed=seed).value for pool, pair in halves.items()}
    found |= {"probe/n": float(scored.sum()), "probe/fit": float((~scored).sum()), "probe/chance": 1 / classes}
    return found | {f"knn/{pool}": score_knn(*pair).value for pool, pair in halves.items()} | rank


def _part(e: Embeddings, which_N: np.ndarray) -> Embeddings:
    keys = tuple(key for key, wanted in zip(e.keys, which_N, strict=True) if wanted)
    return replace(
        e, keys=keys, start=e.start[which_N], end=e.end[which_N], vectors=e.vectors[which_N], labels=e.labels[which_N], n_total=len(keys)
    )
