"""The device cache: cutting a whole batch by matrix products agrees with the CPU's integer kernel, however its frames are stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tubelet.data import kept_on_device
from tubelet.data.clip import Look
from tubelet.data.kept import Kept, MemoryCache
from tubelet.data.kept_on_device import DeviceCache, resize_matrices
from tubelet.data.transform import Box, cut

SIZES = [(37, 49), (37, 53), (61, 40), (37, 49), (90, 37), (38, 50)]
CPU = torch.device("cpu")


def videos(seed: int = 0) -> list[Tensor]:
    """Frames (n, h, w, 3) of several sizes: noise, which shows every fault of a filter, and flat black and white."""
    make = torch.Generator().manual_seed(seed)
    found = [torch.randint(0, 256, (5 + 3 * i, h, w, 3), dtype=torch.uint8, generator=make) for i, (h, w) in enumerate(SIZES)]
    found[1][3:] = 255
    return found


def filled(frames: list[Tensor], *, block: int = 2**20, free: int = 2**40) -> DeviceCache:
    cache = DeviceCache(CPU, block=block)
    for row, of_item in enumerate(frames):
        cache.add(row, Kept(of_item, np.arange(len(of_item)) / 10, (int(of_item.shape[1]), int(of_item.shape[2]))))
    cache.seal(free)
    return cache


def random_looks(frames: list[Tensor], n: int, length: int, seed: int) -> list[Look]:
    draw = np.random.default_rng(seed)
    looks = []
    for _ in range(n):
        row = int(draw.integers(len(frames)))
        count, height, width = frames[row].shape[:3]
        h, w = int(draw.integers(1, height + 1)), int(draw.integers(1, width + 1))
        box = Box(int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1)), h, w)
        nothing = np.zeros(0, np.float32)
        looks.append(Look(row, draw.integers(0, count, length), box, nothing, nothing))
    return looks


@pytest.mark.parametrize("out", [(16, 16), (32, 21), (97, 64), (1, 1), (37, 49)])
def test_cutting_a_batch_agrees_with_the_integer_kernel(out: tuple[int, int]) -> None:
    frames = videos()
    looks = random_looks(frames, 40, 3, seed=out[0])
    looks += [Look(r, np.arange(3), Box(0, 0, *f.shape[1:3]), looks[0].time, looks[0].crop) for r, f in enumerate(frames)]
    made = filled(frames).cut(looks, out)
    assert (tuple(made.shape), made.dtype) == ((len(looks), 3, *out, 3), torch.uint8)
    off = torch.cat([c.int() - cut(frames[k.row][k.window], k.box, out).int() for c, k in zip(made, looks, strict=True)]).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.25


def test_a_box_of_the_clips_own_size_is_copied_exactly() -> None:
    frames = videos()
    looks = [Look(r, np.array([2, 0, 4]), Box(*at, 24, 32), np.zeros(0), np.zeros(0)) for r in (0, 1, 2, 5) for at in ((0, 0), (13, 7))]
    for clip, look in zip(filled(frames).cut(looks, (24, 32)), looks, strict=True):
        y, x = look.box.y, look.box.x
        assert torch.equal(clip, frames[look.row][[2, 0, 4], y : y + 24, x : x + 32])


def test_storage_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = videos()
    looks = random_looks(frames, 30, 4, seed=3)
    whole = filled(frames)
    expected = whole.cut(looks, (20, 20))
    apart = filled(frames, block=3 * 40 * 56 * 8, free=0)
    assert len(apart._stores) > len(whole._stores) > 1, "sizes differ, and little memory keeps blocks apart"
    assert torch.equal(apart.cut(looks, (20, 20)), expected)
    assert torch.equal(filled(frames[::-1]).cut([look_of(x, len(frames) - 1 - x.row) for x in looks], (20, 20)), expected)
    used = sum(f.numel() for f in frames)
    assert used <= whole.bytes <= 1.3 * used, "padding stays small"
    for scratch in (1, 3 * 10**5):
        monkeypatch.setattr(kept_on_device, "_SCRATCH", scratch)
        assert torch.equal(whole.cut(looks, (20, 20)), expected)


def look_of(look: Look, row: int) -> Look:
    return Look(row, look.window, look.box, look.time, look.crop)


def test_parts_bound_the_memory_for_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled([torch.zeros(400, 64, 64, 3, dtype=torch.uint8)])
    looks = [Look(0, np.arange(n, n + 300), Box(0, 0, 64, 64), np.zeros(0), np.zeros(0)) for n in range(4)]
    largest: list[int] = []
    product = torch.bmm

    def watched(a: Tensor, b: Tensor) -> Tensor:
        largest.append(max(a.nbytes, b.nbytes))
        return product(a, b)

    monkeypatch.setattr(torch, "bmm", watched)
    monkeypatch.setattr(kept_on_device, "_SCRATCH", 2**22)
    cache.cut(looks, (32, 32))
    assert max(largest) < 2**22


def test_a_clip_does_not_depend_on_what_is_cut_beside_it() -> None:
    frames = videos()
    looks = random_looks(frames, 30, 4, seed=4)
    together = filled(frames).cut(looks, (20, 20))
    alone = torch.cat([filled(frames).cut([look], (20, 20)) for look in looks])
    assert torch.equal(together, alone), "else a run would depend on how its steps are split over processes"


def test_tensor_cores_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 keeps ten bits behind the first: what a GPU's products see, simulated."""
    product = torch.bmm

    def short(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    frames = videos(1)
    looks = random_looks(frames, 60, 2, seed=9)
    exact = filled(frames).cut(looks, (24, 24))
    monkeypatch.setattr(torch, "bmm", lambda a, b: product(short(a), short(b)))
    assert torch.equal(filled(frames).cut(looks, (24, 24)), exact)


def test_matrices_are_the_filter_of_interpolate() -> None:
    start, size, out = np.array([0, 3, 7, 23]), np.array([10, 17, 2, 1]), 6
    found = resize_matrices(start, size, out, 24, CPU)
    assert torch.equal(found.sum(2), torch.full((4, out), 2048.0)), "sums are exact: a flat picture stays flat"
    assert found.min() == 0
    for matrix, s, n in zip(found, start, size, strict=True):
        pixels = torch.eye(n, dtype=torch.float64)[:, None, None, :]  # each input pixel alone
        expected = torch.nn.functional.interpolate(pixels, (1, out), mode="bilinear", antialias=True)[:, 0, 0].T
        assert (matrix[:, s : s + n] / 2048 - expected).abs().max() <= 1 / 2048
        assert matrix.sum() == matrix[:, s : s + n].sum()


@pytest.mark.parametrize("make", [MemoryCache, lambda: DeviceCache(CPU, block=1)])
def test_what_could_not_be_decoded_says_so(make: Callable[[], MemoryCache | DeviceCache]) -> None:
    cache = make()
    cache.add(0, "x.mp4: broken")
    assert len(cache) == 0
    with pytest.raises(Exception, match=r"x\.mp4: broken"):
        cache.looks(0, None, (4, 4))  # type: ignore[arg-type]  # never looked at
