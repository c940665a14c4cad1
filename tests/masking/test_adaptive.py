"""AdaMAE's sampler: uniform at first, exact counts, learns from errors, and its gradient goes nowhere else."""

from __future__ import annotations

import pytest
import torch

from tubelet.core import Batch, CounterDraw, Step, Stream, TokenGrid
from tubelet.errors import ConfigError
from tubelet.masking.adamae import Adaptive, Config
from tubelet.methods.videomae import Config as VideoMAE
from tubelet.playground import render_batch

GRID = TokenGrid(("t", "h", "w"), (4, 4, 4), (2, 8, 8))


def at(sample: torch.Tensor) -> Step:
    return Step(0, 0, 0.0, 0.0, CounterDraw(0, sample))


def masker(ratio: float = 0.75, dim: int = 16, **settings: float) -> Adaptive:
    torch.manual_seed(0)
    return Config.model_validate({"ratio": ratio, "heads": 4, **settings}).build(grid=GRID, dim=dim)


def batch_of(n: int, first: int = 0) -> Batch:
    sample = torch.arange(first, first + n)
    return Batch({"video": Stream(torch.zeros(n, 3, *GRID.size))}, {}, sample)


def test_a_sampler_that_knows_nothing_is_uniform() -> None:
    made = masker()
    torch.nn.init.zeros_(made.sampler.score.weight)
    batch = batch_of(4000)
    tokens = torch.randn(1, GRID.n, 16).expand(4000, -1, -1)
    made.eval()
    mask = made(GRID, batch, "video", at(batch.sample), tokens).validate()
    assert mask.logp is not None
    assert torch.allclose(mask.logp.exp(), torch.full_like(mask.logp, 1 / GRID.n))
    hidden = mask.hidden().flatten(1).double()
    expected = 4000 * 0.75
    chi = ((hidden.sum(0) - expected).square() / (expected * 0.25)).sum()
    assert 63 - 5 * (2 * 63) ** 0.5 < chi < 63 + 5 * (2 * 63) ** 0.5


def test_draws_follow_the_distribution_and_the_sample_alone() -> None:
    made = masker(0.98).eval()  # one visible token: shown as often as its probability says
    tokens = 3 * torch.randn(1, GRID.n, 16, generator=torch.Generator().manual_seed(1)).expand(3000, -1, -1)
    torch.nn.init.normal_(made.sampler.score.weight, std=1.0)
    batch = batch_of(3000)
    mask = made(GRID, batch, "video", at(batch.sample), tokens)
    assert mask.visible.shape[1] == 1
    shown = (~mask.hidden().flatten(1)).float().mean(0)
    assert mask.logp is not None
    p = mask.logp[0].exp().detach()
    assert (shown - p).abs().max() < 0.05
    alone = batch_of(1, 1234)
    assert torch.equal(made(GRID, alone, "video", at(alone.sample), tokens[:1]).visible[0], mask.visible[1234])


def test_the_loss_raises_what_is_hard_and_reaches_the_sampler_and_the_embedding_only() -> None:
    torch.manual_seed(0)
    config = VideoMAE.model_validate(
        {"dim": 32, "depth": 1, "heads": 4, "patch": (2, 8, 8), "decoder": {"dim": 16, "depth": 1, "heads": 2}}
    )
    made = Config(heads=4, weight=1.0).build(grid=config.grid(8, (32, 32)), dim=32)
    model = config.build(masking=made, frames=8, size=(32, 32))
    video = torch.rand(3, 3, 8, 32, 32)
    batch = Batch({"video": Stream(video)}, {}, torch.arange(3))
    losses = model.losses("main", batch, at(batch.sample))
    learned, weight = losses.terms["masker"]
    assert weight == 1.0
    assert set(losses.log) >= {"sampler_entropy", "sampler_peak"}
    learned.backward()
    touched = {name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"encoder.embed", "masking.sampler"}
    assert model.masking is made
    for name, p in made.named_parameters():
        assert p.grad is not None
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("numbers", [torch.nan, torch.inf])
def test_tokens_that_are_no_numbers_still_give_a_mask(numbers: float) -> None:
    made, batch = masker().eval(), batch_of(2)
    tokens = torch.randn(2, GRID.n, 16)
    tokens[0] = numbers
    mask = made(GRID, batch, "video", at(batch.sample), tokens).validate()
    assert mask.logp is not None
    assert bool(mask.logp.isfinite().all())


def test_certainty_beyond_precision_still_draws_as_many_as_asked() -> None:
    made, batch = masker(0.5).eval(), batch_of(5)
    torch.nn.init.constant_(made.sampler.score.weight, 1e4)
    mask = made(GRID, batch, "video", at(batch.sample), torch.randn(5, GRID.n, 16)).validate()
    assert mask.visible.shape == (5, GRID.n // 2)


def test_mistakes_are_said() -> None:
    with pytest.raises(ConfigError, match="heads 8 must divide the width of the tokens, 36"):
        Config().build(grid=GRID, dim=36)
    made, batch = masker(), batch_of(1)
    with pytest.raises(ConfigError, match="does not hand to its masking"):
        made(GRID, batch, "video", at(batch.sample))
    with pytest.raises(ConfigError, match="length and size that it was trained with"):
        made(GRID, batch, "video", at(batch.sample), torch.zeros(1, 7, 16))
    with pytest.raises(ConfigError, match="hides all"):
        masker(0.999)(GRID, batch, "video", at(batch.sample), torch.zeros(1, GRID.n, 16))


def test_a_hundred_steps_show_the_object_more_often() -> None:
    """The page's first experiment in short: with the sampler's loss the object's tokens become more likely, without it they do not."""

    def share(weight: float) -> tuple[float, float]:
        torch.manual_seed(0)
        config = VideoMAE.model_validate(
            {"dim": 32, "depth": 1, "heads": 4, "patch": (2, 8, 8), "decoder": {"dim": 16, "depth": 1, "heads": 2}}
            | {"target": {"normalise": "none"}}
        )
        made = Config(ratio=0.85, heads=4, weight=weight, dropout=0.0).build(grid=config.grid(8, (32, 32)), dim=32)
        model = config.build(masking=made, frames=8, size=(32, 32))
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        found = []
        for i in range(101):
            frames = torch.from_numpy(render_batch("easy", 0, range(32 * i, 32 * i + 32))[0]).permute(0, 4, 1, 2, 3).float() / 255
            ground = frames.median(2, keepdim=True).values
            moving = (frames - ground).abs().amax(1) > 0.1
            touched = moving.unflatten(1, (4, 2)).unflatten(3, (4, 8)).unflatten(5, (4, 8)).any(6).any(4).any(2).flatten(1).float()
            batch = Batch({"video": Stream(frames)}, {}, torch.arange(32 * i, 32 * i + 32))
            if i in (0, 100):
                logp = model.mask(batch, at(batch.sample)).logp
                assert logp is not None
                found.append(float((logp.exp() * touched).sum(1).mean() / touched.mean()))
            optimiser.zero_grad()
            model.losses("main", batch, at(batch.sample)).total.backward()
            optimiser.step()
        return found[0], found[1]

    before, after = share(1e-3)
    assert 0.8 < before < 1.3
    assert after > 1.25 * before
    assert share(0.0)[1] < 1.1 * before
