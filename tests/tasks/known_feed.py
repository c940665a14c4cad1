"""A model whose tokens are the pixels, and a feed whose pixels say which item and view they are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tubelet.core import Batch, Losses, Method, Step, Stream, TokenGrid, Tokens
from tubelet.data.table import Row, Table

GRID = TokenGrid(("t", "h", "w"), (2, 1, 2), (1, 1, 1))


class Reader(Method):
    """Tokens whose vectors are the pixels of their places, (B, 4, 3); a class token of -7 first if asked."""

    def __init__(self, *, class_token: bool = False, spoil: float | None = None) -> None:
        super().__init__()
        self.class_token, self.spoil = class_token, spoil
        self.modes: list[bool] = []

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        raise AssertionError("embedding computes no loss")

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        self.modes.append(self.training)
        x = batch.stream(stream).data.float().flatten(2).transpose(1, 2)
        if self.spoil is not None:
            x = torch.where(x == self.spoil, torch.nan, x)
        index = torch.arange(GRID.n).expand(len(batch), -1)
        if self.class_token:
            x = torch.cat([torch.full_like(x[:, :1], -7.0), x], 1)
            index = torch.cat([index.new_full((len(batch), 1), -1), index], 1)
        return Tokens(x, index, GRID)


class Feed:
    """Items with two views each, a batch at a time; pixel value = 10 x item + view + place. Unreadable ones become failures."""

    def __init__(self, items: int, *, bad: Sequence[int] = (), per: int = 2) -> None:
        self.n_total, self.bad, self.per = items, bad, per
        self.failures: list[tuple[str, str]] = []
        self.seen: dict[int, tuple[float, float]] = {}

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.n_total, self.per):
            chunk = list(range(start, min(start + self.per, self.n_total)))
            self.failures += [(f"clip{i}.mp4", "no video stream") for i in chunk if i in self.bad]
            good = [i for i in chunk if i not in self.bad]
            if not good:
                continue
            item = torch.tensor([i for i in good for _ in range(2)])
            view = torch.tensor([0, 1] * len(good))
            place = torch.arange(4.0).view(1, 1, 2, 1, 2)
            data = (10.0 * item + view).view(-1, 1, 1, 1, 1) + place.expand(-1, 3, -1, -1, -1)
            yield Batch({"video": Stream(data)}, {"item": item, "view": view}, item.clone())


def table(n: int) -> Table:
    rows = [
        Row(f"/x/clip{i}.mp4", f"clip{i}.mp4", start=float(i) if i % 2 else None, end=i + 4.0 if i % 2 else None, label="ab"[i % 2])
        for i in range(n)
    ]
    return Table(rows, ("a", "b"))
