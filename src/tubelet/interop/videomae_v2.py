"""VideoMAE V2 folders of a hub (page section 7): config.json with ``model_config``, and a classifier's backbone under ``model.`` (?).

The folder brings code of its own, which is not run. Its weights have the official names (:mod:`~tubelet.interop.videomae` reads them);
``fc_norm`` is there, a decoder is not. Marked (?): names that were not seen in a file here. Both spellings are read, with ``model.`` and
without, and a learned table is taken where there should be none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tubelet.errors import CheckpointError
from tubelet.interop import videomae
from tubelet.interop.transformers_settings import pixels_beside, read_json

COUNTS = {"embed_dim": None, "depth": None, "num_heads": None, "img_size": 224, "patch_size": 16, "tubelet_size": 2, "num_frames": 16}


@dataclass(frozen=True)
class Hub:
    """``said``: settings that weights do not tell. ``shape``: settings that they tell, too. ``frames``, ``size`` (H, W): of its clips."""

    said: Mapping[str, Any]
    shape: Mapping[str, Any]
    frames: int
    size: tuple[int, int]
    preprocessed: bool

    def check(self, state: Mapping[str, Tensor], where: str | Path) -> None:
        """Raises CheckpointError where the weights are of another model than the folder says."""
        found = videomae.infer(*videomae.layout_of(state, where), where)
        wrong = [f"{name} {self.shape[name]}, its weights {found[name]}" for name in self.shape if self.shape[name] != found[name]]
        if wrong:
            raise CheckpointError(f"{where} and the config.json beside it are of two models: it says {'; '.join(wrong)}")


def hub_beside(path: Path) -> Hub | None:
    """What the config.json beside a file of weights says; None where it is none of VideoMAE V2. Raises CheckpointError for nonsense."""
    beside = path.parent / "config.json"
    found = read_json(beside)
    config = found.get("model_config") if isinstance(found, Mapping) else None
    if not isinstance(config, Mapping):
        return None
    c = {name: config.get(name, usual) for name, usual in COUNTS.items()}
    wrong = [f"{name} {value!r}" for name, value in c.items() if not isinstance(value, int) or isinstance(value, bool) or value < 1]
    eps = config.get("layer_norm_eps", 1e-6)
    wrong += [] if isinstance(eps, int | float) and eps > 0 else [f"layer_norm_eps {eps!r}"]
    if wrong:
        raise CheckpointError(f"{beside}, model_config: {', '.join(wrong)}; whole numbers above 0 are read, and an eps above 0")
    biased = "cosine" if config.get("cos_attn", False) else "qv_bias"
    pixels = pixels_beside(path.parent)
    return Hub(
        said={"heads": c["num_heads"], "eps": eps, **pixels},
        shape={
            "dim": c["embed_dim"],
            "depth": c["depth"],
            "patch": [c["tubelet_size"], c["patch_size"], c["patch_size"]],
            "attention": biased if config.get("qkv_bias", True) else "no_bias",
        },
        frames=c["num_frames"],
        size=(c["img_size"], c["img_size"]),
        preprocessed=bool(pixels),
    )
