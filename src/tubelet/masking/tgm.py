"""Text-guided masking: hide what the caption speaks of (Fan et al., ECCV 2024, arXiv 2408.00759, section 3).

    caption -> text vector; frames -> patch vectors; cosine of each patch with the text -> the best matching places of every slot are hidden

The paper's side of it that is not known, and what is done here: captions and frames go through the guide; the same caption serves the
mask and the alignment loss; the count is int(ratio * places) in every slot.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, SerializeAsAny
from torch import Tensor

from tubelet.config import Family, Settings
from tubelet.core import Batch, Guide, Mask, Masker, Step, TokenGrid
from tubelet.guides.similarity import Config as Similarity
from tubelet.masking._fields import interest, said
from tubelet.masking._select import Select, hidden_count, places, slots, split


class Config(Settings):
    """``ratio`` of the places of a slot. ``select``: "top" hides the best matching places, "bottom" the worst, "random" any (the ablations
    of the paper). ``guide``: where the scores come from, by default a dual encoder's; any guide with a score map will do."""

    kind: Literal["tgm"] = "tgm"
    ratio: float = Field(default=0.6, gt=0, lt=1)
    select: Select = "top"
    guide: Annotated[SerializeAsAny[Settings], Family("tubelet.guides", default="similarity")] = Similarity()

    def build(self) -> TextGuided:
        return TextGuided(guide=cast(Any, self.guide).build(), ratio=self.ratio, select=self.select)


class TextGuided(Masker):
    """The same number of places in every slot, by a score map. A clip without a caption, or with scores that are no numbers, gets places at
    random; ``guided`` in the log is the share of the others."""

    def __init__(self, *, guide: Guide, ratio: float, select: Select = "top") -> None:
        super().__init__()
        self.guide, self.ratio = guide, ratio
        self.select: Select = select
        self.needs = guide.needs

    def forward(self, grid: TokenGrid, batch: Batch, stream: str, at: Step, tokens: Tensor | None = None) -> Mask:
        t, h, w = places(grid)
        count = hidden_count(self.ratio, h * w, "hidden", "places per slot")
        field = self.guide(batch, stream)
        scores = interest(field, grid).flatten(2)
        hidden = slots(scores, field.ok, at.draw, count, self.select)
        return split(grid, hidden.flatten(1), t * count, said(field))
