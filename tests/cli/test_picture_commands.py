"""tubelet reconstruct and tubelet masks: what reaches the public functions, what is printed, how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tubelet
from tubelet import recipe
from tubelet.api._common import build
from tubelet.api.picturing import Reconstructed
from tubelet.api.showing import Guided, Masks
from tubelet.train.checkpoint import write_tensors
from tubelet.viz.trivial import NAMES, MaskedError

ERROR = MaskedError(6, dict(zip(NAMES, (0.5, 1.0, 2.0, 4.0), strict=True)), {})


def result(failures: tuple[tuple[str, str], ...] = ()) -> Reconstructed:
    return Reconstructed({"a.mp4": ERROR}, 1, failures, 1 + len(failures), 9, "visible", None, None)


def test_reconstruct_hands_everything_over(cli, public):
    asked = public("reconstruct", gives=result())
    words = (
        "reconstruct runs/a a.mp4 b.mp4 --out x.mp4 --set masking=frame --set masking.ratio=0.5 --import m.py --statistics own --start 1.5 "
        "--whole --frames 4 --seed 3 --limit 2 --split test --device cpu --overwrite"
    )
    got = cli(*words.split())
    assert got.code == 0
    (args, more) = asked.calls[0]
    assert args == ("runs/a", ["a.mp4", "b.mp4"])
    assert more.pop("progress") is None
    assert more == {
        "out": "x.mp4", "settings": ["masking=frame", "masking.ratio=0.5"], "imports": ["m.py"], "statistics": "own", "start": 1.5,
        "whole": True, "frames": 4, "seed": 3, "limit": 2, "split": "test", "device": "cpu", "overwrite": True,
    }  # fmt: skip


def test_reconstruct_prints_the_error_and_what_failed(cli, public):
    public("reconstruct", gives=result((("b.mp4", "holds text"),)))
    got = cli("reconstruct", "runs/a", "videos", "--out", "x.png")
    assert got.out == (
        "1 / 2 videos (the first of 9), 6 hidden tubelets\n"
        "masked error      pixels\nmodel            0.50000\nvisible mean     1.00000\ncopy in time     2.00000\ncopy in space    4.00000\n"
        "better than trivial: 0.50 times the error of the visible mean\n-> x.png\n"
    )
    assert got.err == "1 of 2 videos could not be read:\n  b.mp4: holds text\n"
    quiet = cli("reconstruct", "runs/a", "videos", "--out", "x.png", "--quiet")
    assert (quiet.code, quiet.out) == (0, "")


def test_masks_hands_everything_over(cli, public):
    given = Masks((), (("text", "needs text besides the video"),), Image.new("RGB", (1, 1)), None)
    asked = public("masks", gives=given)
    words = (
        "masks a.mp4 --out x.gif --ratio 0.5 --set tube.ratio=0.9 --import m.py --frames 8 --size 32x48 --patch 2x8x8 --stride 3 "
        "--start 2 --columns 4 --seed 5 --overwrite --caption dog --model clip/ --run runs/a"
    )
    got = cli(*words.split())
    assert got.out == "1 skipped:\n  text: needs text besides the video\n-> x.gif\n"
    assert asked.calls == [
        (
            ("a.mp4",),
            {"out": "x.gif", "ratio": 0.5, "settings": ["tube.ratio=0.9"], "imports": ["m.py"], "frames": 8, "size": (32, 48),
             "patch": (2, 8, 8), "stride": 3, "start": 2.0, "columns": 4, "seed": 5, "overwrite": True,
             "caption": "dog", "model": "clip/", "run": "runs/a"},
        )
    ]  # fmt: skip
    cli("masks", "a.mp4", "--out", "x.png")
    plain = asked.calls[1][1]
    assert [plain[name] for name in ("size", "patch", "frames", "stride", "ratio", "caption", "model", "run")] == [None] * 8


def test_guide_hands_everything_over(cli, public):
    given = Guided("flow", False, {"clips_without_vectors": 0.5}, (1, 4, 7, 8, 9), Image.new("RGB", (1, 1)), None)
    asked = public("guide", gives=given)
    words = (
        "guide a.mp4 --kind flow --out x.png --caption dog --set preset=fast --import m.py --maps where --frames 8 --size 32x48 --stride 3 "
        "--start 2 --columns 4 --overwrite"
    )
    got = cli(*words.split())
    assert got.out == "flow: 7 maps of 8 x 9; it had nothing to say, a masking would fall back\n  clips without vectors: 50.0 %\n-> x.png\n"
    assert asked.calls == [
        (
            ("a.mp4",),
            {"kind": "flow", "out": "x.png", "caption": "dog", "settings": ["preset=fast"], "imports": ["m.py"], "maps": "where",
             "frames": 8, "size": (32, 48), "stride": 3, "start": 2.0, "columns": 4, "overwrite": True},
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("masks a.mp4 --out x.png --size big", "--size: 'big' is not written as a number of pixels such as 64, or HEIGHTxWIDTH"),
        ("masks a.mp4 --out x.png --size 1x2x3", "--size: '1x2x3' is not written"),
        ("masks a.mp4 --out x.png --size 0", "--size: '0' is not written"),
        ("masks a.mp4 --out x.png --patch 16", "--patch: '16' is not written as FRAMESxROWSxCOLUMNS such as 2x16x16"),
        ("masks a.mp4", "--out: must be given"),
        ("masks a.mp4 b.mp4 --out x.png", "b.mp4: more arguments"),
        ("reconstruct runs/a a.mp4 --out x.png --statistics owm", "'owm' is not one of visible, own (did you mean 'own'?)"),
        ("reconstruct runs/a a.mp4 --out x.png --masking frame", "--masking: unknown option; it is a setting: --set masking=frame"),
        ("reconstruct runs/a a.mp4 --out x.png --fps 8", "it is a setting: --set fps=8"),
        ("reconstruct runs/a a.mp4 --out x.png --start -1", "--start"),
        ("reconstruct runs/a a.mp4 --out x.png --frames 0", "--frames"),
        ("reconstruct runs/a --out x.png", "SOURCES: must be given"),
    ],
)
def test_mistakes(cli, public, words: str, said: str):
    asked = [public("masks"), public("reconstruct")]
    got = cli(*words.split())
    assert (got.code, got.out) == (2, "")
    assert said in got.err
    assert not asked[0].calls + asked[1].calls


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/ and run/."""
    home = tmp_path_factory.mktemp("pictures")
    tubelet.make_playground(home, clips=2, scene="easy", size=16, frames=4)
    (home / "recipe.yaml").write_text(
        "{about: small, masking: {kind: tube, ratio: 0.5}, data: {frames: 4, stride: 1, size: 16}, train: {steps: 1}, "
        "method: {kind: videomae, dim: 24, depth: 1, heads: 2, patch: [2, 8, 8], decoder: {dim: 24, depth: 1, heads: 2}}}"
    )
    stage = recipe.load(home / "recipe.yaml").stages[0]
    write_tensors(home / "run/model.safetensors", build(stage).state_dict(), {"config": stage.model_dump(mode="json")})
    return home


def test_the_real_functions(cli, place: Path, tmp_path: Path):
    run, clips = str(place / "run"), str(place / "clips")
    got = cli("reconstruct", run, clips, "--out", str(tmp_path / "r.png"), "--device", "cpu")
    assert got.code == 0, got.err
    assert got.out.startswith("2 / 2 videos, 8 hidden tubelets\nmasked error      pixels    target\n")
    assert np.asarray(Image.open(tmp_path / "r.png")).std() > 10
    again = cli("reconstruct", run, clips, "--out", str(tmp_path / "r.png"), "--device", "cpu")
    assert (again.code, again.out) == (2, "")
    assert "add --overwrite" in again.err
    words = f"masks {place / 'clips/000000.mp4'} --frames 4 --size 16 --patch 2x8x8 --ratio 0.5 --out {tmp_path / 'm.gif'}"
    masks = cli(*words.split())
    assert masks.code == 0, masks.err
    assert "tube: ratio 0.5, 4 of 8 visible (50.0 %)" in masks.out
    assert Image.open(tmp_path / "m.gif").n_frames == 4  # type: ignore[attr-defined]  # of gifs


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("reconstruct RUN NOTHING.mp4 --out OUT.png", 1, "no such file"),
        ("reconstruct RUN CLIPS --out OUT.bmp", 2, "unknown ending '.bmp'"),
        ("reconstruct RUN CLIPS --out OUT.png --set masking.ratio=0.01", 2, "hides none of the 4 places"),
        ("reconstruct RUN CLIPS --out OUT.png --set frames=16", 1, "too few for a clip of 16 frames"),
        ("reconstruct CLIPS CLIPS --out OUT.png", 1, "holds neither model.safetensors nor a checkpoint"),
        ("masks CLIPS --out OUT.png", 1, "holds 2 videos; give one"),
        ("masks CLIPS/000000.mp4 --out OUT.png", 1, "has 4 frames, too few for a clip of 16 frames"),
        ("masks CLIPS/000000.mp4 --frames 4 --size 20 --out OUT.png", 2, "20 is not a multiple of 16"),
    ],
)
def test_mistakes_that_only_the_real_functions_know(cli, place: Path, tmp_path: Path, words: str, code: int, said: str):
    names = {"RUN": place / "run", "CLIPS": place / "clips", "OUT": tmp_path / "x"}
    for name, path in names.items():
        words = words.replace(name, str(path))
    got = cli(*words.split())
    assert (got.code, got.out) == (code, ""), got.err
    assert said in got.err
    assert "Traceback" not in got.err
    assert not list(tmp_path.iterdir())
