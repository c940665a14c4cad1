"""tubelet.reconstruct and tubelet.masks on rendered clips and a small run: what is shown, what is scored, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tubelet
from tubelet import recipe
from tubelet.api import _footage
from tubelet.api._common import build
from tubelet.api._footage import Footage, track
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.errors import CheckpointError, ConfigError, DataError, DecodeError
from tubelet.train.checkpoint import read_meta, read_tensors, write_tensors
from tubelet.viz.trivial import NAMES

RECIPE = """
about: a very small model
method: {kind: videomae, dim: 24, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 24, depth: 1, heads: 2}}
masking: {kind: tube, ratio: 0.75}
data: {frames: 4, stride: 2, size: 16, workers: 0}
train: {steps: 1, batch: 2, device: cpu}
"""
N, FPS = 21, 10  # frames of every film: 21 at stride 2 are 11 steps


def film(path: Path, n: int = N, *, codec: str = "libx264", size: int = 16, base: int = 0) -> Path:
    """Frame i is one grey, 10 i + ``base``."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(FPS))
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(n):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((size, size, 3), 10 * i + base, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/{a,b}.mp4, and run/ with untrained weights."""
    home = tmp_path_factory.mktemp("pictures")
    (home / "recipe.yaml").write_text(RECIPE)
    (home / "videos").mkdir()
    film(home / "videos/a.mp4")
    film(home / "videos/b.mp4", base=20)
    stage = recipe.load(home / "recipe.yaml").stages[0]
    write_tensors(home / "run/model.safetensors", build(stage).state_dict(), {"config": stage.model_dump(mode="json")})
    return home


@pytest.fixture
def loaded(place: Path):
    return tubelet.load(place / "run", device="cpu")


@pytest.fixture
def oracle(loaded, monkeypatch: pytest.MonkeyPatch):
    """The run's model with right answers. ``masks``: those that it was given."""
    masks = []

    def right(video, mask, at):
        masks.append(mask)
        pixels = loaded.model.encoder.pixels
        return loaded.model.target.rows(video, mask.grid, mask.target, pixels.mean, pixels.std)

    monkeypatch.setattr(loaded.model, "predict", right)
    return SimpleNamespace(loaded=loaded, masks=masks)


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as file:
        return [(float(f.time), f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]


def grey(frame: np.ndarray, x: int = 100) -> float:
    """Around a place of the first row of panels; gifs are dithered."""
    return float(frame[140:160, x - 10 : x + 10].mean())


def test_one_video_without_a_file(oracle, place: Path):
    result = tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4")
    assert isinstance(result.picture, Image.Image)
    assert (result.clips, result.n_total, result.failures, result.out) == (1, 1, (), None)
    assert list(result.errors) == ["a.mp4"]
    assert set(result.error.pixels) == set(result.error.target) == set(NAMES)
    assert result.error.target["model"] == 0
    assert result.error.cubes == 2 * 3
    assert str(result).startswith("1 / 1 videos, 6 hidden tubelets\nmasked error")


def test_the_untrained_model_is_no_better_than_trivial(place: Path):
    result = tubelet.reconstruct(place / "run", place / "videos", device="cpu")
    assert "no better than trivial" in str(result)
    assert result.error.pixels["copy in space"] < 1e-5  # every frame is one grey
    assert list(result.errors) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("ending", [".png", ".gif", ".mp4"])
def test_every_ending(oracle, place: Path, tmp_path: Path, ending: str):
    out = tmp_path / f"x{ending}"
    assert tubelet.reconstruct(oracle.loaded, place / "videos", out=out).out == out
    if ending == ".png":
        assert Image.open(out).size == tubelet.reconstruct(oracle.loaded, place / "videos").picture.size
        return
    shown = frames_of(out)
    step = 0.2
    assert len(shown) == (4 if ending == ".gif" else 4 * 4)  # an mp4 plays for three seconds at least
    assert [t for t, _ in shown[:4]] == pytest.approx([0, step, 2 * step, 3 * step], abs=0.011)
    height = shown[0][1].shape[0]
    assert height > 2 * 192  # two videos, one below the other, enlarged from 16 pixels
    greys = [grey(frame) for _, frame in shown[:4]]
    assert np.diff(greys) == pytest.approx([20, 20, 20], abs=4)  # every second frame


def test_nothing_is_replaced_unless_asked(oracle, place: Path, tmp_path: Path):
    out = tmp_path / "x.png"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", out=out)
    with pytest.raises(ConfigError, match="--overwrite"):
        tubelet.masks(place / "videos/a.mp4", out=out)
    assert oracle.masks == []  # refused before anything was computed
    assert out.read_text() == "mine"
    tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", out=out, overwrite=True)
    assert Image.open(out).format == "PNG"


@pytest.mark.parametrize(
    ("settings", "visible"),
    [
        ([], 2),
        (["masking.ratio=0.5"], 4),
        (["masking=frame", "masking.ratio=0.5"], 4),
        (["masking.kind=random", "masking.ratio=0.5"], 4),
        (["masking={kind: random, ratio: 0.25}"], 6),
        (["size=24", "data.frames=6"], 3 * 3),
    ],
)
def test_any_masking(oracle, place: Path, settings: list[str], visible: int):
    before = oracle.loaded.model.masking
    tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", settings=settings)
    assert oracle.masks[0].visible.shape[1] == visible
    assert oracle.loaded.model.masking is before
    if "masking=frame" in settings:
        assert oracle.masks[0].hidden().flatten(2).all(2).sum() == 1


def test_the_seed_is_of_the_mask(oracle, place: Path):
    for seed in (0, 0, *range(1, 9)):
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", seed=seed, settings=["masking=random", "masking.ratio=0.5"])
    masks = [m.visible.tolist() for m in oracle.masks]
    assert masks[0] == masks[1]
    assert len({str(m) for m in masks}) > 3


def test_the_start_chooses_the_window(oracle, place: Path, tmp_path: Path):
    videos = {"default": None, "0": 0.0, "0.4": 0.4, "0.55": 0.55, "1.4": 1.4}
    first = {}
    for name, start in videos.items():
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", out=tmp_path / f"{name}.gif", start=start)
        first[name] = round(grey(frames_of(tmp_path / f"{name}.gif")[0][1]) / 10)
    assert first == {"default": 6, "0": 0, "0.4": 4, "0.55": 5, "1.4": 14}
    with pytest.raises(DataError, match=r"a\.mp4: no clip of 4 frames at stride 2 starts at 1\.5 s; the last that fits starts at 1\.40 s"):
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", start=1.5)
    with pytest.raises(DataError, match="no clip of 4 frames"):
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", start=99, settings=["fps=5"])
    with pytest.raises(ConfigError, match="0 or more"):
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", start=-1)


def test_own_statistics_only_where_asked(place: Path, tmp_path: Path):
    """The hidden part of a clip decides the picture only with statistics=own."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, level in ((one, 60), (other, 180)):
        folder.mkdir()
        for i in range(8):
            image = np.full((16, 16, 3), 120, np.uint8)
            image[:, 8:] = level
            image[::2, ::2] += 20
            Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "right_half.py").write_text(
        "import torch\nfrom tubelet.config import Settings\nfrom tubelet.core import Mask, Masker\n\n\n"
        "class Config(Settings):\n    def build(self):\n        return Right()\n\n\n"
        "class Right(Masker):\n    def forward(self, grid, batch, stream, at, tokens=None):\n"
        "        index = torch.arange(grid.n)\n"
        "        return Mask.of_hidden(grid, (grid.where('w', index) > 0).expand(len(batch), -1))\n"
    )
    pictures = {}
    for statistics in ("visible", "own"):
        for folder in (one, other):
            result = tubelet.reconstruct(
                place / "run", folder, statistics=statistics, device="cpu", imports=[tmp_path / "right_half.py"],
                settings=["masking=right_half", "images=frames"],
            )  # fmt: skip
            assert result.statistics == statistics
            array = np.asarray(result.picture)
            pictures[statistics, folder.name] = array[array.shape[0] * 55 // 100 : array.shape[0] * 75 // 100]  # what it imagines
    assert np.array_equal(pictures["visible", "one"], pictures["visible", "other"])
    assert not np.array_equal(pictures["own", "one"], pictures["own", "other"])
    with pytest.raises(ConfigError, match="visible and own"):
        tubelet.reconstruct(place / "run", one, statistics="true")  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_the_whole_video_once_and_in_order(oracle, place: Path, tmp_path: Path, ending: str):
    out = tmp_path / f"whole{ending}"
    result = tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", out=out, whole=True, statistics="own")
    assert (result.clips, result.picture) == (3, None)
    assert "1 / 1 videos, 3 clips, 18 hidden tubelets" in str(result)
    shown = frames_of(out)
    assert [t for t, _ in shown] == pytest.approx(0.2 * np.arange(11), abs=0.011)
    for t, frame in enumerate(f for _, f in shown):
        assert grey(frame) == pytest.approx(20 * t, abs=6)
        assert grey(frame, 500) == pytest.approx(20 * t, abs=6)  # imagined, by one who knows
    assert len({str(m.visible.tolist()) for m in oracle.masks}) > 1  # a mask of its own for every clip


def test_whole_videos_one_after_the_other(oracle, place: Path, tmp_path: Path):
    result = tubelet.reconstruct(oracle.loaded, place / "videos", out=tmp_path / "w.mp4", whole=True)
    assert len(frames_of(tmp_path / "w.mp4")) == 22
    assert result.clips == 6
    assert tubelet.reconstruct(oracle.loaded, place / "videos", whole=True).clips == 6  # figures without a file


@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_long_videos_are_read_a_few_clips_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    table = open_table(film(tmp_path / name, codec="libx264" if name.endswith("mp4") else "mpeg4"))
    settings = DataSettings(frames=4, stride=2, size=16)

    def shots() -> list[tuple[int, int, int, list[float], list[int]]]:
        return [
            (s.number, s.total, s.fresh, s.clip.time[0].tolist(), s.clip.data[0, :, 8, 8, 0].tolist())
            for s in Footage(table, settings, whole=True)
        ]

    at_once = shots()
    held = []
    make = _footage.make_clips

    def watch(*args, **more):
        clips = make(*args, **more)
        held.append(len(clips.data))
        return clips

    monkeypatch.setattr(_footage, "make_clips", watch)
    monkeypatch.setattr(_footage, "CHUNK", 2 * 4 * 16 * 16 * 3)
    assert shots() == at_once
    assert held == [2, 1]
    assert [shot[:3] for shot in at_once] == [(0, 3, 0), (1, 3, 0), (2, 3, 1)]
    times = [t for shot in at_once for t in shot[3][shot[2] :]]
    assert times == pytest.approx(0.2 * np.arange(11), abs=1e-3)


def test_tracks():
    times = np.arange(20) / 10 + 0.05
    assert track(times, DataSettings(stride=3), 0.0).tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert track(times, DataSettings(stride=3), 1.0).tolist() == [9, 12, 15, 18]
    assert track(times, DataSettings(fps=5), 1.05).tolist() == [10, 12, 14, 16, 18]
    assert track(times, DataSettings(fps=20), 1.85).tolist() == [18, 18, 19, 19]


def test_some_videos_cannot_be_used(oracle, place: Path, tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.mp4").symlink_to(place / f"videos/{name}.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    film(tmp_path / "short.mp4", 3)
    result = tubelet.reconstruct(oracle.loaded, tmp_path, out=tmp_path / "out" / "x.png")
    assert list(result.errors) == ["a.mp4", "b.mp4"]
    assert [key for key, _ in result.failures] == ["short.mp4", "text.mp4"]
    assert str(result).startswith("2 / 4 videos,")
    only = tubelet.reconstruct(oracle.loaded, tmp_path, limit=1)
    assert str(only).startswith("1 / 1 videos (the first of 4)")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bad")
    (home / "text.mp4").write_text("this is no video")
    (home / "file.xyz").write_text("?")
    film(home / "one.mp4", 1)
    film(home / "short.mp4", 6)
    sound(home / "sound.mp4")
    return home


BAD = [
    ("text.mp4", DecodeError, "holds text, not a video"),
    ("one.mp4", DataError, r"has 1 frame, too few for a clip of 4 frames at stride 2$"),
    ("short.mp4", DataError, "has 6 frames, too few for a clip of 4 frames at stride 2; stride = 1 would fit"),
    ("sound.mp4", DataError, "has no video stream, only audio"),
    ("file.xyz", DataError, "unknown kind of file .xyz"),
    ("nowhere.mp4", DataError, "no such file"),
]


@pytest.mark.parametrize(("name", "kind", "said"), BAD)
@pytest.mark.parametrize("whole", [False, True])
def test_bad_videos(oracle, bad: Path, tmp_path: Path, name: str, kind: type[Exception], said: str, whole: bool):
    kind = DataError if kind is DecodeError else kind
    with pytest.raises(kind, match=f"{name}: .*{said}" if name != "file.xyz" else said):
        tubelet.reconstruct(oracle.loaded, bad / name, out=tmp_path / "x.mp4", whole=whole)
    with pytest.raises(DataError, match=said):
        tubelet.masks(bad / name, out=tmp_path / "x.mp4", frames=4, size=16, patch=(2, 8, 8), stride=2)
    assert not list(tmp_path.iterdir())


def test_none_of_several(oracle, bad: Path):
    with pytest.raises(DataError, match=r"none of 2 videos could be used:\n  .*one\.mp4.*\n  .*text\.mp4"):
        tubelet.reconstruct(oracle.loaded, [bad / "one.mp4", bad / "text.mp4"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"settings": ["masking.ratio=0.1"]}, "hides none of the 4 places per slot"),
        ({"settings": ["masking.ratio=1.5", "fsp=3"]}, "(?s)2 problems.*masking.ratio.*data.fsp: unknown setting .did you mean 'fps'"),
        ({"settings": ["masking=tubes"]}, "did you mean 'tube'"),
        ({"settings": ["masking=null"]}, "choose one, e.g. --set masking=tube"),
        ({"settings": ["size=20"]}, "h: 20 is not a multiple of 8"),
        ({"settings": ["sampling=whole"], "start": 0.0}, "spread over the whole video; add --set data.sampling=window"),
        ({"settings": ["sampling=tsn"], "whole": True}, "spread over the whole video"),
        ({"settings": ["stride=10"]}, "stride = 6 would fit"),
        ({"settings": ["fps=1"]}, "lasts 2.10 s .21 frames., a clip of 4 frames at 1 a second 4.00 s"),
        ({"settings": ["sampling=whole", "frames=32"]}, "has 21 frames, too few for a clip of 32 frames$"),
        ({"out": "x.jpg"}, "unknown ending '.jpg'"),
        ({"out": "x.png", "whole": True}, "a .png holds one clip"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_what_cannot_be_asked(oracle, place: Path, tmp_path: Path, more: dict[str, Any], said: str):
    if "out" in more:
        more = more | {"out": tmp_path / more["out"]}
    with pytest.raises((ConfigError, DataError), match=said):
        tubelet.reconstruct(oracle.loaded, place / "videos/a.mp4", **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("config", "said"), [({"classifier": {}}, "holds a classifier that"), ({}, r"holds a model \(Deaf\) that")])
def test_a_model_that_predicts_no_pixels(loaded, place: Path, config: dict[str, Any], said: str):
    class Deaf(torch.nn.Module):
        def encode(self, batch, stream="video", *, layers=()): ...

    other = tubelet.Loaded(model=Deaf(), data=loaded.data, config=config, path=place / "run")  # type: ignore[arg-type]  # encodes, no more
    with pytest.raises(ConfigError, match=f"{said} predicts no hidden pixels"):
        tubelet.reconstruct(other, place / "videos/a.mp4")


def with_masking(place: Path, to: Path, masking: Any, drop: Callable[[str], bool] = lambda name: False, **more: torch.Tensor) -> Path:
    """The run with another masking in its settings, and more weights."""
    to.mkdir()
    file = place / "run/model.safetensors"
    meta, tensors = read_meta(file), read_tensors(file)
    meta["config"]["masking"] = masking
    write_tensors(to / "model.safetensors", {k: v for k, v in tensors.items() if not drop(k)} | more, meta)
    return to


MINE = """
import torch

from tubelet.config import Settings
from tubelet.core import Mask, Masker


class Config(Settings):
    keep: int = 2

    def build(self):
        return Mine(self.keep)


class Mine(Masker):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        EXTRA

    def forward(self, grid, batch, stream, at, tokens=None):
        order = at.draw.permutation("mine", grid.n)
        return Mask(grid, order[:, : self.keep], order[:, self.keep :])
"""


def own_file(folder: Path, name: str, extra: str = "pass") -> Path:
    path = folder / f"{name}.py"
    path.write_text(MINE.replace("EXTRA", extra))
    return path


def test_a_masking_of_ones_own(place: Path, tmp_path: Path):
    mine = own_file(tmp_path, "mine")
    run = with_masking(place, tmp_path / "run", {"kind": "mine", "keep": 3})
    video = place / "videos/a.mp4"
    with pytest.raises(ConfigError, match=r"trained with the masking 'mine' of a file of your own: give it with --import mine\.py"):
        tubelet.reconstruct(run, video, device="cpu")
    assert tubelet.reconstruct(run, video, device="cpu", settings=["masking=tube"]).error.cubes == 6
    assert tubelet.reconstruct(run, video, device="cpu", imports=[mine]).error.cubes == 5
    assert tubelet.reconstruct(run, video, device="cpu", settings=["masking.keep=1"]).error.cubes == 7


def test_a_run_without_masking(place: Path, tmp_path: Path):
    run = with_masking(place, tmp_path / "run", None)
    with pytest.raises(ConfigError, match=r"trained without masking; choose one, e\.g\. --set masking=tube"):
        tubelet.reconstruct(run, place / "videos/a.mp4", device="cpu")
    assert tubelet.reconstruct(run, place / "videos/a.mp4", device="cpu", settings=["masking=tube", "masking.ratio=0.5"]).error.cubes == 4


def test_a_learned_masking_comes_from_the_run_or_not_at_all(place: Path, tmp_path: Path):
    learned = own_file(tmp_path, "learned", "self.score = torch.nn.Parameter(torch.zeros(1))")
    video = place / "videos/a.mp4"
    with pytest.raises(ConfigError, match="learned has weights that a training run learns, and this run has not"):
        tubelet.reconstruct(place / "run", video, device="cpu", imports=[learned], settings=["masking=learned"])
    run = with_masking(place, tmp_path / "run", {"kind": "learned", "keep": 2}, **{"masking.score": torch.ones(1)})
    seen: list[float] = []
    loaded = tubelet.load(run, device="cpu", imports=[learned])
    forward = type(loaded.model.masking).forward

    def watch(self, *args, **more):
        seen.append(float(self.score))
        return forward(self, *args, **more)

    type(loaded.model.masking).forward = watch
    assert tubelet.reconstruct(loaded, video).error.cubes == 6
    assert tubelet.reconstruct(loaded, video, settings=["masking.keep=4"]).error.cubes == 4
    assert seen == [1.0, 1.0]


def test_a_masking_that_needs_more_than_video(place: Path, tmp_path: Path):
    needy = own_file(tmp_path, "needy", 'self.needs = frozenset({"video", "text", "flow"})')
    with pytest.raises(ConfigError, match="the masking needy needs flow; choose another"):
        tubelet.reconstruct(place / "run", place / "videos/a.mp4", device="cpu", imports=[needy], settings=["masking=needy"])


def test_a_run_that_is_none(place: Path, tmp_path: Path):
    with pytest.raises(CheckpointError):
        tubelet.reconstruct(tmp_path, place / "videos/a.mp4")


def test_the_demo_draws_with_it(place: Path):
    from tubelet.first_run import pictures

    made = pictures(place / "run", place / "videos", clips=1, split=None)
    alone = tubelet.reconstruct(place / "run", place / "videos/a.mp4").picture
    assert alone is not None
    assert np.array_equal(np.asarray(made), np.asarray(alone))


SMALL = {"frames": 4, "size": 16, "patch": (2, 8, 8), "stride": 2}


def test_every_masking_there_is(place: Path):
    from tubelet.config import kinds

    result = tubelet.masks(place / "videos/a.mp4", **SMALL, ratio=0.5)
    assert sorted([*(s.kind for s in result.shown), *(k for k, _ in result.skipped)]) == kinds("tubelet.masking")
    counts = {s.kind: s.visible for s in result.shown}
    assert {counts[k] for k in ("frame", "random", "tube")} == {4}
    assert all(s.visible == s.n - int(s.mask.hidden().sum()) for s in result.shown)
    assert "tube: ratio 0.5, 4 of 8 visible (50.0 %)" in str(result)


def test_settings_of_one_kind(place: Path):
    result = tubelet.masks(place / "videos/a.mp4", **SMALL, ratio=0.5, settings=["tube.ratio=0.25", "tube.rounding=visible"])
    counts = {s.kind: s.visible for s in result.shown}
    assert (counts["tube"], counts["random"]) == (6, 4)


@pytest.mark.parametrize("ending", [".png", ".gif", ".mp4"])
def test_masks_in_every_ending(place: Path, tmp_path: Path, ending: str):
    out = tmp_path / f"m{ending}"
    result = tubelet.masks(place / "videos/a.mp4", out=out, **SMALL, ratio=0.5)
    if ending == ".png":
        assert Image.open(out).size == result.picture.size
    else:
        shown = frames_of(out)
        assert len(shown) == (4 if ending == ".gif" else 16)
        assert len({frame.tobytes() for _, frame in shown[:4]}) == 4


def test_ones_own_files_are_shown_or_told(place: Path, tmp_path: Path):
    files = [
        own_file(tmp_path, "mine"),
        own_file(tmp_path, "needy", 'self.needs = frozenset({"video", "text"})'),
        own_file(tmp_path, "learned", "self.score = torch.nn.Parameter(torch.zeros(1))"),
        own_file(tmp_path, "broken", "self.keep = keep[0]"),
        own_file(tmp_path, "greedy", "self.keep = 0"),
    ]
    method = tmp_path / "my_method.py"
    method.write_text("from tubelet.methods import videomae\n\n\nclass Config(videomae.Config):\n    kind: str = 'my_method'\n")
    result = tubelet.masks(place / "videos/a.mp4", **SMALL, ratio=0.5, imports=[*files, method])
    assert {"mine", "frame", "random", "tube"} <= {s.kind for s in result.shown}
    skipped = dict(result.skipped)
    assert skipped["needy"] == "needs a caption: give --caption"
    assert skipped["learned"] == "has weights that a training run learns"
    assert skipped["my_method"] == "is no masking: its build() wants more than settings"
    assert "TypeError" in skipped["broken"]
    assert f"{tmp_path / 'broken.py'}, line 19" in skipped["broken"]
    assert "at least one token visible" in skipped["greedy"]
    assert all(f"  {kind}: {reason}" in str(result) for kind, reason in skipped.items())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ratio": 1.5}, "ratio must be between 0 and 1"),
        (
            {"settings": ["tube.rato=1", "tubes.ratio=0.5"]},
            "(?s)2 problems.*tube.rato: unknown setting.*'ratio'.*tubes: no such masking.*'tube'",
        ),
        ({"settings": ["tube=0.9"]}, "write it as tube.ratio=0.9"),
        ({"settings": ["frame.ratio=0.1"]}, "frame: masking.ratio 0.1 hides none of the 2 time slots"),
        ({"patch": (3, 8, 8)}, "t: 4 is not a multiple of 3"),
        ({"size": 20}, "20 is not a multiple of 8"),
        ({"columns": 0}, "columns must be at least 1"),
        ({"start": 50.0}, "no clip of 4 frames at stride 2 starts at 50 s"),
        ({"out": "m.jpeg"}, "unknown ending"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_masks_that_cannot_be_asked(place: Path, tmp_path: Path, more: dict[str, Any], said: str):
    if "out" in more:
        more = more | {"out": tmp_path / more["out"]}
    with pytest.raises((ConfigError, DataError), match=said):
        tubelet.masks(place / "videos/a.mp4", **SMALL | more)


def test_a_ratio_that_suits_some_kinds_skips_the_others(place: Path):
    result = tubelet.masks(place / "videos/a.mp4", **SMALL, ratio=0.25)
    assert {s.kind for s in result.shown} >= {"random", "tube"}
    assert dict(result.skipped)["frame"].startswith("masking.ratio 0.25 hides none of the 2 time slots")


def test_where_no_kind_fits(place: Path):
    with pytest.raises(ConfigError, match="no masking can mask this clip"):
        tubelet.masks(place / "videos/a.mp4", frames=2, size=8, patch=(2, 8, 8), stride=1)


def test_masks_of_one_video_only(place: Path):
    with pytest.raises(DataError, match="holds 2 videos; give one"):
        tubelet.masks(place / "videos")


def test_a_real_video_of_every_kind_of_file(loaded, shared: Callable[[str], Path]):
    """Odd sizes, no seeking, lost frames: whatever can be decoded can be reconstructed from its start to its end."""
    folder = shared("data/clips")
    names = ["bear_vp9_odd_161x121.webm", "bunny_mpegts.ts", "calibration_wmv3.wmv", "newtons_cradle.gif"]
    result = tubelet.reconstruct(loaded, [folder / n for n in names], whole=True)
    assert sorted(result.errors) == sorted(names), result.failures
    assert result.clips > 40
