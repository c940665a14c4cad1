"""InfoNCE: as written, over all processes as in one, and with twins left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.errors import ConfigError
from tubelet.objectives.contrast import info_nce
from tubelet.objectives.losses import reduce

TOTAL = 7  # does not divide by the processes


def unit(n: int, seed: int, d: int = 5) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_it_is_the_equation() -> None:
    one, two, scale = unit(6, 0), unit(6, 1), 4.0
    sims = (one @ two.T * scale).exp()
    wanted = [-(torch.log(sims[i, i] / sims[i].sum()) + torch.log(sims[i, i] / sims[:, i].sum())) / 2 for i in range(6)]
    assert torch.allclose(info_nce(one, two, scale), torch.stack(wanted), atol=1e-6)


def test_chance_is_the_logarithm_of_the_batch_and_shuffled_partners_stay_there() -> None:
    one = unit(512, 0, 64)
    assert info_nce(one, one, 100.0).mean() < 1e-3
    shuffled = info_nce(one, one[torch.randperm(512, generator=torch.Generator().manual_seed(0))], 1.0).mean()
    assert abs(float(shuffled) - float(torch.tensor(512.0).log())) < 0.1


def test_twins_are_no_negatives() -> None:
    one, two = unit(4, 0), unit(4, 1)
    two[1] = two[0]
    same = torch.tensor([5, 5, 1, 2])
    plain, skipped = info_nce(one, two, 3.0), info_nce(one, two, 3.0, same=same)
    sims = (one @ two.T * 3.0).exp()
    rows = -torch.log(sims[0, 0] / (sims[0, 0] + sims[0, 2] + sims[0, 3]))
    columns = -torch.log(sims[0, 0] / (sims[0, 0] + sims[2, 0] + sims[3, 0]))
    assert torch.allclose(skipped[0], (rows + columns) / 2)
    assert (skipped[:2] < plain[:2]).all()


def test_half_precision_around_it_changes_nothing() -> None:
    one, two = unit(8, 0), unit(8, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = info_nce(one, two, 50.0)
    assert torch.equal(within, info_nce(one, two, 50.0))


@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_without_negatives_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match="needs other samples as negatives"):
        info_nce(unit(n, 0), unit(n, 1), 1.0)


def test_views_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="two views of the same samples"):
        info_nce(unit(3, 0), unit(4, 1), 1.0)


class Towers(nn.Module):
    """Two linear maps and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 5), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, y: Tensor, same: Tensor) -> Tensor:
        error = info_nce(F.normalize(self.one(x), dim=-1), F.normalize(self.two(y), dim=-1), self.scale.exp(), same=same)
        return reduce(error, 1 + torch.arange(len(error)).float())


def data() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(TOTAL, 6, generator=draw), torch.randn(TOTAL, 4, generator=draw), torch.tensor([0, 1, 2, 3, 2, 5, 6])


def _rank(rank: int, world: int, meet: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    towers = nn.parallel.DistributedDataParallel(Towers())
    mine = slice(TOTAL * rank // world, TOTAL * (rank + 1) // world)
    weights = 1 + torch.arange(TOTAL).float()[mine]
    x, y, same = (part[mine] for part in data())
    net = towers.module
    net.forward = lambda a, b, c: reduce(  # the weights of the whole batch, not those of this part
        info_nce(F.normalize(net.one(a), dim=-1), F.normalize(net.two(b), dim=-1), net.scale.exp(), same=c), weights
    )
    loss = towers(x, y, same)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    if rank == 0:
        torch.save([mean / world, *[p.grad for p in net.parameters()]], out)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one_large_batch(tmp_path: Path) -> None:
    """Loss and gradients to 1e-6, with unequal shares, weights and twins."""
    mp.spawn(_rank, (2, str(tmp_path / "meet"), str(tmp_path / "out.pt")), nprocs=2)
    towers = Towers()
    loss = towers(*data())
    loss.backward()
    loss_of_two, *grads = torch.load(tmp_path / "out.pt")
    assert abs(float(loss_of_two) - float(loss)) < 1e-6
    for (name, p), grad in zip(towers.named_parameters(), grads, strict=True):
        assert p.grad is not None
        assert (p.grad - grad).abs().max() < 1e-6, name
