"""Guides of motion: filled vectors, flow by DIS and RAFT, block matching, maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tubelet.core import Batch, Stream
from tubelet.errors import CheckpointError, ConfigError
from tubelet.guides import blocks, flow, maps, vectors


def sliding(step: int = 2, frames: int = 5, size: int = 64) -> Tensor:
    """Texture that moves to the right by ``step`` pixels a frame: (1, 3, T, H, W) in [0, 1]."""
    noise = torch.rand(1, 3, size // 4 + 12, size // 4 + 12, generator=torch.Generator().manual_seed(0))
    big = torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic").clamp(0, 1)[0]
    return torch.stack([big[:, 8 : 8 + size, 24 - step * t : 24 - step * t + size] for t in range(frames)], 1)[None]


def batch_of(video: Tensor, **streams: Stream) -> Batch:
    return Batch({"video": Stream(video), **streams}, {}, torch.arange(len(video)))


def test_frames_without_vectors_take_the_next_else_the_last() -> None:
    data = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(2, 2, -1, 1, 1).contiguous()
    valid = torch.tensor([[False, True, False, False, True, False], [False] * 6])
    out = vectors.filled(data, valid)
    assert out[0, 0, :, 0, 0].tolist() == [1, 1, 4, 4, 4, 4]
    assert torch.equal(out[1], data[1])


def test_vectors_count_what_is_missing_and_cut_what_is_too_long() -> None:
    data = torch.ones(2, 2, 4, 10, 10)
    data[0, :, 2, 0, 0] = 50.0
    valid = torch.tensor([[False, True, True, True], [False] * 4])
    batch = batch_of(torch.zeros(2, 3, 4, 40, 40), motion=Stream(data, valid=valid, kind="flow"))
    field = vectors.Config().build()(batch, "video")
    assert {k: round(float(v), 3) for k, v in field.log.items()} == {"frames_without_vectors": 0.625, "clips_without_vectors": 0.5}
    assert float(field.data.max()) == pytest.approx(1.0)
    assert field.data[0, 0, 2, 0, 0] == field.data[0, 1, 2, 0, 0]
    assert float(vectors.Config(limit=1.0).build()(batch, "video").data.max()) == 50
    still = vectors.Config(camera="median").build()(batch, "video").data
    assert float(still[1].abs().max()) == 0


@pytest.mark.parametrize("step", [2, -4])
def test_block_matching_finds_even_motion(step: int) -> None:
    video = sliding(step)
    for pixels in (video, (video * 255).to(torch.uint8)):
        field = blocks.Config().build()(batch_of(pixels), "video")
        assert field.data.shape == (1, 2, 5, 4, 4)
        assert float(field.data[0, 0].median()) == step
        assert float(field.data[0, 1].median()) == 0


@pytest.mark.parametrize("size", [64, 160])
def test_flow_without_weights_goes_both_ways_at_any_size(size: int) -> None:
    field = flow.Config().build()(batch_of(sliding(2, size=size)), "video")
    assert field.data.shape == (1, 4, 4, size, size)
    assert field.ok is not None
    assert bool(field.ok.all())
    inner = field.data[..., 16:-16, 16:-16]
    medians = [float(inner[0, c].median()) for c in range(4)]
    assert medians == pytest.approx([2, 0, -2, 0], abs=0.5)


def test_small_clips_are_enlarged_and_their_flow_scaled_back() -> None:
    seen: list[tuple[int, ...]] = []

    def estimator(one: Tensor, two: Tensor) -> Tensor:
        seen.append(tuple(one.shape[-2:]))
        return torch.ones(len(one), 2, *one.shape[-2:])

    out = flow.estimate(estimator, torch.zeros(3, 3, 32, 60), torch.zeros(3, 3, 32, 60))
    assert seen == [(128, 240)]
    assert torch.allclose(out, torch.tensor([60 / 240, 32 / 128]).view(1, 2, 1, 1).expand(3, -1, 32, 60))


def test_flow_that_is_no_number_is_not_ok() -> None:
    from tubelet.core import Frozen

    guide = flow.Flow(estimator=Frozen(lambda one, two: torch.full((len(one), 2, *one.shape[-2:]), torch.nan)))
    field = guide(batch_of(sliding(size=128)), "video")
    assert field.ok is not None
    assert field.ok.tolist() == [False]
    assert bool(field.data.isfinite().all())


def test_raft_reads_its_weights_from_a_file(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.optical_flow.raft_small(weights=None).eval()
    path = tmp_path / "raft.pth"
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, path)
    guide = flow.Config(estimator="raft", weights=str(path), updates=2).build()
    video = sliding(2, frames=2, size=128)
    field = guide(batch_of(video), "video")
    with torch.no_grad():
        wanted = net(video[:, :, 0] * 2 - 1, video[:, :, 1] * 2 - 1, num_flow_updates=2)[-1]
    assert torch.allclose(field.data[:, :2, 0], wanted, atol=1e-4)
    assert guide.estimator.sha256 is not None
    assert list(guide.state_dict()) == []
    torch.save({"other.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="does not hold torchvision's raft_small"):
        flow.Config(estimator="raft", weights=str(path)).build()(batch_of(video), "video")
    with pytest.raises(CheckpointError, match="no such file"):
        flow.Config(estimator="raft", weights=str(tmp_path / "gone.pth")).build()(batch_of(video), "video")
    with pytest.raises(ConfigError, match="RAFT needs the file of its weights"):
        flow.Config(estimator="raft").build()


def test_flow_says_what_it_cannot_do() -> None:
    guide = flow.Config().build()
    with pytest.raises(ConfigError, match="no flow in a single frame"):
        guide(batch_of(torch.zeros(1, 3, 1, 32, 32)), "video")
    with pytest.raises(ConfigError, match="reads colour videos"):
        guide(batch_of(torch.zeros(1, 1, 2, 32, 32)), "video")


def test_maps_pass_through_and_nan_is_not_ok() -> None:
    data = torch.rand(2, 1, 3, 4, 4)
    data[1, 0, 0, 0, 0] = torch.nan
    field = maps.Config().build()(batch_of(torch.zeros(2, 3, 4, 16, 16), map=Stream(data, kind="score")), "video")
    assert field.ok is not None
    assert field.ok.tolist() == [True, False]
    assert field.kind == "score"
