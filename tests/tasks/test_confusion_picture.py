"""The picture of a confusion matrix: shades that say what was counted, for any number of classes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tubelet.errors import ConfigError
from tubelet.viz import confusion as drawing
from tubelet.viz.confusion import EMPTY, RIGHT, WRONG, confusion


def centre(image: Image.Image, counts: np.ndarray, row: int, column: int) -> tuple[int, ...]:
    """The colour of a cell near its corner, where no number stands."""
    at = layout(image, counts)
    pixel = image.getpixel((at[0] + column * at[2] + 1 + (at[2] > 8), at[1] + row * at[2] + 1 + (at[2] > 8)))
    assert isinstance(pixel, tuple)
    return pixel


def layout(image: Image.Image, counts: np.ndarray) -> tuple[int, int, int]:
    """Left, top and cell of the drawn matrix, found by its frame."""
    pixels = np.asarray(image)
    frame = (pixels == np.array(drawing.LINE)).all(-1)
    columns = np.flatnonzero(frame.sum(0) > 0.5 * frame.sum(0).max())
    rows = np.flatnonzero(frame.sum(1) > 0.5 * frame.sum(1).max())
    side = columns[-1] - columns[0] - 1
    assert side % len(counts) == 0
    return int(columns[0]) + 1, int(rows[0]) + 1, int(side) // len(counts)


def names(n: int) -> list[str]:
    return [f"class number {i}" for i in range(n)]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the legend, whose boxes have frames, too."""
    monkeypatch.setattr(drawing, "_legend", lambda *_: None)


def test_shades_are_shares_of_the_row(bare: None):
    counts = np.array([[4, 0, 0], [30, 10, 0], [0, 0, 0]])
    image = confusion(counts, names(3), title="probe: 31.8 % top-1 [20.0, 46.6]")
    assert centre(image, counts, 0, 0) == RIGHT
    assert centre(image, counts, 0, 1) == (255, 255, 255)
    assert centre(image, counts, 2, 1) == EMPTY
    half_right, mostly_wrong = np.array(centre(image, counts, 1, 1)), np.array(centre(image, counts, 1, 0))
    assert np.allclose(half_right, 255 + 0.25**0.5 * (np.array(RIGHT) - 255), atol=1)
    assert np.allclose(mostly_wrong, 255 + 0.75**0.5 * (np.array(WRONG) - 255), atol=1)


@pytest.mark.parametrize("n", [2, 8, 60, 121, 300, 400])
def test_any_number_of_classes_stays_readable_and_of_a_size(n: int, bare: None):
    rng = np.random.default_rng(n)
    counts = np.diag(rng.integers(5, 40, n))
    counts[np.arange(n), rng.integers(0, n, n)] += 1
    image = confusion(counts, names(n), title="linear probe (mean): 87.5 % top-1 [80.0, 92.4], 240 / 240 scored")
    assert max(image.size) < 1600
    assert min(image.size) > 300
    *_, cell = layout(image, counts)
    assert cell >= 3
    for i in (0, n // 2, n - 1):
        r, _, b = centre(image, counts, i, i)[:3]
        assert b > r + 60, "right is blue"


def test_counts_and_names_are_written_where_they_fit(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    class Watched(drawing.ImageDraw.ImageDraw):
        def text(self, xy, text, *args, **more):  # pyright: ignore[reportIncompatibleMethodOverride]
            written.append(str(text))
            super().text(xy, text, *args, **more)

    monkeypatch.setattr(drawing.ImageDraw, "Draw", Watched)

    def words(counts: np.ndarray, classes: list[str]) -> list[str]:
        written.clear()
        confusion(counts, classes, title="a title")
        return written

    few = words(np.array([[77, 3], [0, 91]]), ["push", "pull"])
    assert {"77", "3", "91", "push", "pull", "96 % of 80", "100 % of 91", "a title"} <= set(few)
    assert "0" not in few
    assert "12345" not in words(np.diag([12345] * 60), names(60))
    many = words(np.diag([77] * 300), names(300))
    assert "77" not in many
    assert {"class number 0", "class number 5", "class number 295"} <= set(many)
    assert "class number 1" not in many
    long = words(np.eye(2, dtype=int), ["x" * 400, "y"])
    assert any(w.startswith("xxx") and w.endswith("...") for w in long)


def test_shapes_that_disagree():
    for counts, classes in ((np.zeros((2, 3)), ["a", "b"]), (np.zeros((2, 2)), ["a"]), (np.zeros((0, 0)), [])):
        with pytest.raises(ConfigError, match="cannot be drawn"):
            confusion(counts, classes)
