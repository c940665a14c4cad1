"""Pictures of guides and of guided maskings, on real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tubelet
from tubelet.core import Field
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.viz.fields import heat, panels, wheel

CLIP = {"frames": 8, "size": 32}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few captioned clips, a dual encoder's run and a run with a masking that learned."""
    home = tmp_path_factory.mktemp("showing")
    manifest = tubelet.make_playground(home / "world", clips=8, scene="easy", size=32, frames=8)
    few = ["data.stride=1", "data.workers=0", "train.device=cpu", "steps=2", "batch=4", "data.size=32"]
    tubelet.pretrain(manifest, out=home / "words", recipe="dual", settings=[*few, "data.frames=2", "data.cache_size=32"], quiet=True)
    small = ["method.dim=32", "method.depth=1", "method.heads=2", "method.patch=[2,8,8]", "method.decoder={dim: 16, depth: 1, heads: 2}"]
    small += ["data.frames=8", "masking=adamae", "masking.heads=4", "masking.ratio=0.9", "data.labels=none"]
    tubelet.pretrain(manifest, out=home / "ada", recipe="tiny-cpu", settings=[*few, *small], quiet=True)
    return home


def clip(home: Path) -> Path:
    return home / "world" / "clips" / "000000.mp4"


@pytest.mark.parametrize(
    ("kind", "more", "shape"),
    [
        ("vectors", {}, (1, 2, 8, 8, 8)),
        ("flow", {}, (1, 4, 7, 32, 32)),
        ("flow", {"settings": ["preset=ultrafast"]}, (1, 4, 7, 32, 32)),
        ("blocks", {"settings": ["block=8"]}, (1, 2, 8, 4, 4)),
    ],
)
def test_what_guides_of_motion_say(home: Path, tmp_path: Path, kind: str, more: dict[str, object], shape: tuple[int, ...]) -> None:
    said = tubelet.guide(clip(home), kind=kind, out=tmp_path / "g.png", columns=4, **CLIP, **more)  # type: ignore[arg-type]
    assert said.ok
    assert said.shape == shape
    assert Image.open(tmp_path / "g.png").size == said.picture.size
    assert str(said).startswith(f"{kind}: {shape[2]} maps of {shape[3]} x {shape[4]}")
    if kind == "vectors":
        assert 0 < said.figures["frames_without_vectors"] < 1
        assert "frames without vectors: 12.5 %" in str(said)


def test_what_text_says(home: Path) -> None:
    model = f"model={home / 'words'}"
    said = tubelet.guide(clip(home), kind="similarity", caption="a red circle", settings=[model], **CLIP)  # type: ignore[arg-type]
    assert said.shape == (1, 1, 4, 4, 4)
    assert said.ok
    silent = tubelet.guide(clip(home), kind="similarity", caption=" ", settings=[model], **CLIP)  # type: ignore[arg-type]
    assert not silent.ok
    assert "nothing to say" in str(silent)
    with pytest.raises(DataError, match="needs captions"):
        tubelet.guide(clip(home), kind="similarity", settings=[model], **CLIP)  # type: ignore[arg-type]


def test_score_maps_of_a_manifest(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.eye(16, dtype=np.float32))
    (tmp_path / "one.csv").write_text(f"path,where\n{clip(home)},map.npy\n")
    said = tubelet.guide(tmp_path / "one.csv", kind="maps", maps="where", **CLIP)  # type: ignore[arg-type]
    assert said.shape == (1, 1, 8, 8, 8)
    with pytest.raises(ConfigError, match=r"set data\.maps"):
        tubelet.guide(tmp_path / "one.csv", kind="maps", **CLIP)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "vector"}, r"--kind vector: no such guide \(did you mean 'vectors'\?\)"),
        ({"kind": "flow", "settings": ["prest=fast"]}, r"prest: unknown setting \(did you mean 'preset'\?\)"),
        ({"kind": "flow", "caption": "a dog"}, "kind flow reads no caption"),
        ({"kind": "similarity", "caption": "a dog"}, r"masking\.guide\.model: give the folder"),
        ({"out": "x.mp4"}, "is drawn as a .png"),
        ({"columns": 0}, "columns must be at least 1"),
        ({"kind": "flow", "settings": ["estimator=raft"]}, "RAFT needs the file of its weights"),
    ],
)
def test_mistakes_about_guides(home: Path, tmp_path: Path, monkeypatch, given: dict[str, object], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        tubelet.guide(clip(home), **(CLIP | given))  # type: ignore[arg-type]


def test_every_masking_with_a_caption_a_model_and_a_run(home: Path, tmp_path: Path) -> None:
    shown = tubelet.masks(clip(home), caption="a red circle", model=home / "words", run=home / "ada", out=tmp_path / "m.png")
    assert {s.kind for s in shown.shown} >= {"adamae", "frame", "mgm", "mgmae", "random", "tgm", "tube"}
    assert not {kind for kind, _ in shown.skipped} & {"adamae", "tgm"}
    counts = {s.kind: s.visible for s in shown.shown}
    assert counts["adamae"] == 6  # int(64 * 0.1) of the run's own clip of 8 x 32 x 32
    assert counts["tgm"] == 4 * (16 - int(0.6 * 16))


def test_maskings_say_what_they_lack(home: Path) -> None:
    reasons = dict(tubelet.masks(clip(home), patch=(2, 8, 8), **CLIP).skipped)  # type: ignore[arg-type]
    assert reasons["adamae"].endswith("give the run, --run RUN")
    assert "give the folder of a CLIP-like model" in reasons["tgm"]
    with pytest.raises(ConfigError, match="tgm: needs a caption: give --caption"):
        tubelet.masks(clip(home), patch=(2, 8, 8), model=home / "words", **CLIP)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such folder of a dual encoder"):
        tubelet.masks(clip(home), patch=(2, 8, 8), model=home / "gone", caption="x", **CLIP)  # type: ignore[arg-type]


def test_only_some_kinds_and_wrong_ones(home: Path) -> None:
    shown = tubelet.masks(clip(home), only=["tube", "mgm"], patch=(2, 8, 8), **CLIP)  # type: ignore[arg-type]
    assert [s.kind for s in shown.shown] == ["tube", "mgm"]
    with pytest.raises(ConfigError, match=r"no such masking: tub \(did you mean 'tube'\?\)"):
        tubelet.masks(clip(home), only=["tub"], **CLIP)  # type: ignore[arg-type]
    with pytest.raises((ConfigError, CheckpointError), match="masking"):
        tubelet.masks(clip(home), run=home / "words")


def test_a_run_with_a_learned_masking_can_be_reconstructed_at_another_ratio(home: Path) -> None:
    result = tubelet.reconstruct(home / "ada", clip(home), settings=["masking.ratio=0.5"], device="cpu")
    assert result.error.cubes == 32


def test_colours_mean_what_the_legend_says() -> None:
    flow = torch.zeros(2, 1, 1, 5)
    flow[0, 0, 0, 0], flow[1, 0, 0, 1], flow[0, 0, 0, 2], flow[1, 0, 0, 3] = 1.0, 1.0, -1.0, -1.0
    right, down, left, up, still = wheel(flow, 1.0)[:, 0, 0].T
    assert right[0] > 0.9 > 0.1 > right[1]
    assert down[1] > 0.9 > 0.6 > down[2]
    assert left[2] > 0.9 > 0.1 > left[0]
    assert up[2] > 0.9 > 0.6 > up[1]
    assert still.tolist() == [1, 1, 1]
    warm = heat(torch.tensor([[[0.0, 1.0]]]), torch.full((3, 1, 1, 2), 0.5))
    assert warm[0, 0, 0, 1] > warm[0, 0, 0, 0]
    with_nan = panels(Field(torch.full((1, 1, 2, 3, 3), torch.nan), "score"), torch.zeros(1, 3, 4, 8, 8))
    assert bool(with_nan[0][1].isfinite().all())
