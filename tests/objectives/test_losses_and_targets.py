"""Errors, the one reduction (alone and over two processes), and classification targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from tubelet.objectives.classify import mix_targets, smooth_one_hot, soft_cross_entropy
from tubelet.objectives.losses import answer_error, reduce

ERROR = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
WEIGHT = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])


def test_errors_are_means_over_a_row() -> None:
    pred, target = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[0.5, 0.0]]])
    assert answer_error(pred, target).tolist() == [[(0.25 + 4) / 2]]
    assert answer_error(pred, target, "l1").tolist() == [[1.25]]
    assert answer_error(pred, target, "smooth_l1").tolist() == [[(0.125 + 1.5) / 2]]
    assert answer_error(pred.bfloat16(), target.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="differ in shape"):
        answer_error(pred, target[..., :1])


def test_the_weighted_mean_and_its_edges() -> None:
    assert float(reduce(ERROR)) == 5.0
    assert float(reduce(ERROR, WEIGHT)) == pytest.approx((1 + 1.5 + 12) / 3.5)
    assert float(reduce(ERROR, WEIGHT.bool())) == pytest.approx((1 + 3 + 6) / 3)
    assert float(reduce(ERROR, torch.zeros_like(ERROR))) == 0.0
    assert float(reduce(torch.zeros(2, 0))) == 0.0
    unscored = torch.where(WEIGHT > 0, ERROR, torch.inf)
    assert float(reduce(unscored, WEIGHT)) == pytest.approx(14.5 / 3.5)
    with pytest.raises(ValueError, match="differ in shape"):
        reduce(ERROR, WEIGHT[:2])


def _rank(rank: int, world: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    rows = slice(0, 1) if rank == 0 else slice(1, 3)  # unequal shares; the last row of weights is empty
    scale = torch.ones((), requires_grad=True)
    weighted, plain = reduce(ERROR[rows] * scale, WEIGHT[rows]), reduce(ERROR[rows] * scale)
    (weighted + plain).backward()
    torch.save([weighted.detach(), plain.detach(), scale.grad], f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_unequal_ranks_average_to_the_one_big_batch(tmp_path: Path) -> None:
    mp.spawn(_rank, (2, str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    weighted, plain, grad = (torch.stack([r[i] for r in ranks]).mean() for i in range(3))
    assert torch.allclose(weighted, reduce(ERROR, WEIGHT))
    assert torch.allclose(plain, reduce(ERROR))
    assert torch.allclose(grad, reduce(ERROR, WEIGHT) + reduce(ERROR))


def test_soft_targets_agree_with_torch() -> None:
    logits, labels = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    assert torch.allclose(soft_cross_entropy(logits, smooth_one_hot(labels, 6)).mean(), F.cross_entropy(logits, labels))
    smooth = smooth_one_hot(labels, 6, 0.2)
    assert torch.allclose(smooth.sum(1), torch.ones(4))
    assert torch.allclose(soft_cross_entropy(logits, smooth).mean(), F.cross_entropy(logits, labels, label_smoothing=0.2))
    mixed = mix_targets(smooth, smooth.flip(0), torch.tensor([[1.0], [0.5], [0.25], [0.0]]))
    assert torch.equal(mixed[0], smooth[0])
    assert torch.equal(mixed[3], smooth[0])
    assert torch.allclose(mixed.sum(1), torch.ones(4))
