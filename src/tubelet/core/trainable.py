"""What the loop knows of a model, and what a method knows of the loop."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tubelet.core.batch import Batch
from tubelet.core.draw import Draw
from tubelet.core.grid import TokenGrid
from tubelet.core.mask import Mask
from tubelet.core.tokens import Tokens


@dataclass(frozen=True)
class Step:
    """The only clock a method may read.

    ``index``: optimiser steps done before this one. ``samples``: samples seen before it. ``epoch``: passes over the data as a
    fraction. ``progress``: 0..1 of the run, by samples, or by steps where their number is set. ``draw``: this micro-batch's randomness.
    """

    index: int
    samples: int
    epoch: float
    progress: float
    draw: Draw


@dataclass
class Losses:
    """``terms``: name -> (scalar, weight). ``log``: detached scalars that stay on the device until the loop copies them."""

    terms: dict[str, tuple[Tensor, float]]
    log: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The weighted sum: what is differentiated."""
        if not self.terms:
            raise ValueError("a method returned no loss terms")
        return torch.stack([value * weight for value, weight in self.terms.values()]).sum()


@dataclass(frozen=True)
class Group:
    """Parameters with one rule: layer decay, head x100, backbone x0.1, own schedule.

    ``lr`` multiplies the rate. ``decay``: weight decay, None = the recipe's. ``schedule``: None = the recipe's, else the name of a
    function of progress.
    """

    params: Sequence[nn.Parameter]
    lr: float = 1.0
    decay: float | None = None
    schedule: str | None = None


class Encoder(Protocol):
    """May return fewer tokens than it got (pruning), or read a full grid with ``valid``."""

    def __call__(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Tokens: ...


class Decoder(Protocol):
    """``query.x``: mask tokens, noised patches, shuffled tokens. ``context``: other view, text, codebook, per-block memories.
    Returns (B, M, D_dec), one row for each query."""

    def __call__(self, visible: Tokens | None, query: Tokens, context: Sequence[Tokens] = ()) -> Tensor: ...


@dataclass(frozen=True)
class Field:
    """What a guide says, aligned with the pixels the model sees.

    ``data`` (B, C, T', H', W') over the clip's whole area. T' frames: all T of the clip, its slots, one for all, or, for flow, T - 1 pairs.
    ``kind``: how to resize and pool it. Flow is (dx, dy) in pixels of the clip, to the right and down: with T' = T from the frame before to
    this one, with T' = T - 1 from frame k to k + 1; four channels hold the way back, from k + 1 to k, too. ``ok`` (B,) bool, False = the
    guide had nothing to say: the masker falls back and the run counts it. ``log``: detached scalars, shown with the losses.
    """

    data: Tensor
    kind: Literal["score", "flow", "label"]
    ok: Tensor | None = None
    log: Mapping[str, Tensor] = field(default_factory=dict)


class Guide(nn.Module, ABC):
    """What says where the interesting regions are. ``needs``: streams the loader must bring."""

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, batch: Batch, stream: str) -> Field:
        """What there is to say about one stream of a batch."""


class Masker(nn.Module, ABC):
    """A masking strategy; may own a guide or parameters. The first mask it makes is checked value by value.

    ``needs``: streams (and "text") that the loader must bring. ``reads_tokens``: it wants the embedded tokens of the whole clip.
    ``loss_weight``: of what it learns beside the method's losses.
    """

    needs: frozenset[str] = frozenset()
    reads_tokens: bool = False
    loss_weight: float = 1.0
    _checked = False

    @abstractmethod
    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        """The mask of one stream. ``tokens`` (B, N, D): the embedded tokens without positions, for learned maskers."""

    def __call__(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        mask = super().__call__(grid, batch, stream, at, tokens)
        if not self._checked:
            mask.validate()
            self._checked = True
        return mask

    def loss(self, mask: Mask, error_BM: Tensor) -> Tensor | None:
        """Learned maskers learn from the (detached) error of what they hid; None where there is nothing to learn."""
        return None


class Trainable(nn.Module, ABC):
    """All the loop knows: pre-training, classifier, localiser, VAE, radiance field. Every state is a buffer or a module."""

    needs: frozenset[str] = frozenset({"video"})

    def phases(self) -> Mapping[str, nn.Module]:
        """One optimiser each, with disjoint parameters (a GAN: "generator", "critic")."""
        return {"main": self}

    def phase_order(self, at: Step) -> Sequence[str]:
        """The order of phases inside a step; repeats are allowed."""
        return tuple(self.phases())

    def groups(self, phase: str) -> Sequence[Group] | None:
        """Parameter groups of a phase. None = one rate, no weight decay on 1-D parameters."""
        return None

    @abstractmethod
    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        """The losses of a phase on one micro-batch. Only this phase's parameters require grad while it runs."""

    def after_step(self, at: Step) -> None:
        """After every step: EMA teacher, codebook, running figures. (A step whose gradient is not finite ends the run, unsaved.)"""

    def tokens(self, progress: float) -> int | None:
        """Tokens per sample at this progress, for a token-budget batch schedule; None = not used."""
        return None


class Method(Trainable):
    """One stage of one paper."""

    @abstractmethod
    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        """Unmasked features: for embedding, probing, export."""


@runtime_checkable
class Aligned(Protocol):
    """A method whose videos and texts share one space of vectors: what retrieval and classification by prompts ask for.

    Both kinds of vectors are float32 of length 1, so that their product is a cosine. Neither method moves the model to another mode or
    keeps its gradients off: whoever calls does.
    """

    @property
    def aligned(self) -> bool:
        """Whether this model has the parts, and not only the methods: a VideoMAE trained without text has none."""
        ...

    def embed_video(self, batch: Batch, stream: str = "video") -> Tensor:
        """(B, D) float32, L2-normalised: one vector for each sample of a batch, on the batch's device."""
        ...

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(n, D) float32, L2-normalised: one vector for each text, on the model's device."""
        ...


class Frozen(nn.Module):
    """An outside or earlier model: in eval mode, without gradient, not saved, not wrapped, not averaged.

    ``path`` and ``sha256`` of its weights are what a run records of it. ``opens``: instead of a module, how to get one and its sha256, when
    it is used for the first time or :meth:`open` is called: a run can then be loaded where the outside model is absent and not needed.
    """

    def __init__(
        self,
        module: nn.Module | Callable[..., Any] | None = None,
        *,
        path: str | None = None,
        sha256: str | None = None,
        opens: Callable[[], tuple[nn.Module, str | None]] | None = None,
    ) -> None:
        super().__init__()
        if (module is None) == (opens is None):
            raise ValueError("a frozen model is given as a module or as a way to open one")
        self.path, self.sha256, self._opens = path, sha256, opens
        self._check: Callable[[str | None], None] | None = None
        self._device = torch.device("cpu")
        self._inner: tuple[Any, ...] = ()  # in a tuple: invisible to state_dict(), parameters(), DDP
        if module is not None:
            self._take(module)

    def _take(self, module: nn.Module | Callable[..., Any]) -> None:
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
        self._inner = (module,)

    def open(self) -> Frozen:
        """Get the model now, so that what is wrong with it is said before hours of work. Raises what opening it raises."""
        if not self._inner:
            assert self._opens is not None
            module, self.sha256 = self._opens()
            if self._check is not None:
                self._check(self.sha256)
            self._take(module.to(self._device))
        return self

    def when_opened(self, check: Callable[[str | None], None]) -> None:
        """Call ``check`` with the sha256 once the model is opened, now where it is: it raises for another model than the one expected."""
        self._check = check
        if self._inner:
            check(self.sha256)

    @property
    def inner(self) -> Any:
        """The wrapped model or callable."""
        return self.open()._inner[0]

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self._device = fn(torch.empty(0, device=self._device)).device
        if self._inner and isinstance(self.inner, nn.Module):
            self.inner._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        twin = Frozen(copy.copy, path=self.path, sha256=self.sha256)
        twin._inner, twin._opens, twin._device = self._inner, self._opens, self._device
        return twin

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)
