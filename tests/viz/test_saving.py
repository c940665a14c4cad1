"""Files of pictures that move: sizes, times, colours, and what happens when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.viz import saving
from tubelet.viz.saving import save_animation, save_picture, writable

COLOURS = [(220, 40, 40), (40, 200, 60), (50, 60, 230), (240, 220, 40)]


def frames(seconds: float = 0.5, size: tuple[int, int] = (33, 21)) -> Iterator[tuple[Image.Image, float]]:
    return ((Image.new("RGB", size, colour), seconds) for colour in COLOURS)


def test_an_mp4_plays_anywhere(tmp_path: Path):
    path = save_animation(tmp_path / "a.mp4", frames(0.25))
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        shown = list(file.decode(stream))
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (34, 22)  # even
        assert float(stream.duration * stream.time_base) == pytest.approx(1.0, abs=1e-3)  # the last frame stays as long as the others
    assert [float(f.time) for f in shown] == pytest.approx([0, 0.25, 0.5, 0.75], abs=1e-4)
    for frame, colour in zip(shown, COLOURS, strict=True):
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - colour).max() < 12


def test_frames_may_stay_for_different_times(tmp_path: Path):
    timed = [(Image.new("RGB", (16, 16), c), s) for c, s in zip(COLOURS, (0.1, 0.4, 0.2, 0.3), strict=True)]
    with av.open(str(save_animation(tmp_path / "a.mp4", timed))) as file:
        assert [float(f.time) for f in file.decode(video=0)] == pytest.approx([0, 0.1, 0.5, 0.7], abs=1e-4)
    with Image.open(save_animation(tmp_path / "a.gif", timed)) as gif:
        assert [f.info["duration"] for f in ImageSequence.Iterator(gif)] == [100, 400, 200, 300]


def test_a_gif_goes_on_for_ever_in_the_right_colours_and_time(tmp_path: Path):
    with Image.open(save_animation(tmp_path / "a.gif", frames(1 / 30))) as gif:
        assert gif.info["loop"] == 0
        shown = [(f.convert("RGB"), f.info["duration"]) for f in ImageSequence.Iterator(gif)]
    assert sum(d for _, d in shown) in (130, 140)  # 133 ms in hundredths of a second, not 4 x 30
    for (image, _), colour in zip(shown, COLOURS, strict=True):
        assert np.abs(np.asarray(image).astype(int) - colour).max() < 12


def test_white_stays_white_in_a_gif(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise[:, 32:] = 255
    noise[:8] = 252  # nearly white must not take its place
    with Image.open(save_animation(tmp_path / "a.gif", [(Image.fromarray(noise), 0.1)])) as gif:
        assert (np.asarray(gif.convert("RGB"))[10:, 34:] == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.mp4"])
def test_nothing_is_replaced_unless_asked(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("mine")

    def save(overwrite: bool) -> Path:
        if path.suffix == ".png":
            return save_picture(path, next(frames())[0], overwrite=overwrite)
        return save_animation(path, frames(), overwrite=overwrite)

    with pytest.raises(ConfigError, match="exists already; add --overwrite"):
        save(False)
    assert path.read_text() == "mine"
    assert save(True).stat().st_size > 60


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_a_failure_half_way_leaves_what_was_there_and_nothing_else(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")

    def broken() -> Iterator[tuple[Image.Image, float]]:
        yield from list(frames())[:2]
        raise DataError("the video ends here")

    with pytest.raises(DataError, match="ends here"):
        save_animation(tmp_path / name, broken(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises((CheckpointError, OSError)):
        save_picture(tmp_path / "file" / "a.png", next(frames())[0])


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.mp5", "did you mean '.mp4'"), ("a", "no ending; there are .png, .gif, .mp4"), ("", "is a folder; give a file such as")],
)
def test_paths_that_cannot_be_written(tmp_path: Path, name: str, said: str):
    with pytest.raises(ConfigError, match=said):
        writable(tmp_path / name)


def test_animations_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="does not move"):
        save_animation(tmp_path / "a.png", frames())
    with pytest.raises(ConfigError, match="at least one frame"):
        save_animation(tmp_path / "a.mp4", [])
    monkeypatch.setattr(saving, "GIF_PIXELS", 3 * 33 * 21)
    with pytest.raises(ConfigError, match=r"more than 3 frames of 33 x 21 pixels are too many for a \.gif; write \.mp4"):
        save_animation(tmp_path / "a.gif", frames())
    assert not list(tmp_path.iterdir())
