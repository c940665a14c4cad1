"""Cutting straight from the decoder's planes: the right place, the right colours, nothing kept."""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.core import CounterDraw
from tubelet.data import picture, reader
from tubelet.data.clip import Plan, TrainDraws, make_clips
from tubelet.data.decode import PyavReader
from tubelet.data.picture import Converter, PixelPicture, PlanePicture
from tubelet.data.settings import DataSettings
from tubelet.data.table import Item
from tubelet.data.transform import Box
from tubelet.errors import DecodeError

H, W = 95, 127
PLANES = ["yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuvj420p"]
DEEP_OR_RARE = ["yuv420p10le", "yuv422p10le", "yuv444p12le", "yuv411p", "nv12"]
RAMPS = [(name, H, W) for name in PLANES] + [(name, H + 1, W + 1) for name in PLANES + DEEP_OR_RARE]  # FFmpeg itself stretches odd chroma
BOXES = [Box(0, 0, 94, 126), Box(1, 3, 75, 93), Box(10, 21, 72, 101), Box(15, 26, 71, 98), Box(3, 2, 48, 48)]


def as_picture(frame: av.VideoFrame) -> PlanePicture:
    def explain(error: Exception) -> DecodeError:
        return DecodeError(f"v.mp4: {error}")

    return PlanePicture(frame, Converter(frame, explain))


def exact(rgb: np.ndarray, box: Box, out: tuple[int, int]) -> np.ndarray:
    """The antialiased bilinear resize of a box in float64."""
    part = torch.from_numpy(rgb[box.y : box.y + box.h, box.x : box.x + box.w].copy()).permute(2, 0, 1)[None].double()
    return F.interpolate(part, out, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def ramps(name: str, slopes: tuple[float, float, float], h: int = H, w: int = W) -> av.VideoFrame:
    """Planes that rise from the middle of the frame with ``slopes`` levels a pixel: Y across, U down, V across. A chroma sample has the
    value in the middle of the pixels that share it."""
    frame = av.VideoFrame(w, h, name)
    deep = {"10le": 4, "12le": 16}.get(name[-4:], 1)
    kind, step = (np.uint16, 2) if deep > 1 else (np.uint8, 1)
    form, noise = frame.format, np.random.default_rng(0)  # noise spreads what rounding would shift

    def samples(slope: float, cols: int, rows: int, *, down: bool) -> np.ndarray:
        fx, fy = 2 ** round(np.log2(w / cols)), 2 ** round(np.log2(h / rows))
        x, y = (np.arange(cols) + 0.5) * fx - w / 2, (np.arange(rows) + 0.5) * fy - h / 2
        values = 128 + slope * (y[:, None] + 0 * x if down else x[None, :] + 0 * y[:, None])
        return np.round(values * deep + noise.uniform(-0.5, 0.5, values.shape)).astype(kind)

    cw, ch = form.chroma_width(w), form.chroma_height(h)
    planes = [samples(slopes[0], w, h, down=False), samples(slopes[1], cw, ch, down=True), samples(slopes[2], cw, ch, down=False)]
    if name == "nv12":
        planes = [planes[0], np.stack(planes[1:], -1).reshape(ch, 2 * cw)]
    for plane, values in zip(frame.planes, planes, strict=True):
        room = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // step), kind)
        room[: values.shape[0], : values.shape[1]] = values
        plane.update(room.tobytes())
    return frame


@pytest.mark.parametrize(("name", "h", "w"), RAMPS)
def test_boxes_are_cut_where_they_are(name: str, h: int, w: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ramps that rise and ramps that fall differ by how far a box is off, in every plane; rounding and bias cancel."""
    monkeypatch.setattr(picture, "SHRUNK", 0.0)
    for box, out in itertools.product(BOXES, [(31, 37), (64, 64)]):
        y = box.y + (np.arange(out[0]) + 0.5) * box.h / out[0] - h / 2
        x = box.x + (np.arange(out[1]) + 0.5) * box.w / out[1] - w / 2
        full = name.startswith("yuvj")
        red, blue = (2 * (1 - k) * (1.0 if full else 255 / 224) for k in (0.299, 0.114))

        def half(*slopes: float, box: Box = box, out: tuple[int, int] = out) -> np.ndarray:
            rise, fall = (as_picture(ramps(name, (s * slopes[0], s * slopes[1], s * slopes[2]), h, w)).cut(box, out) for s in (1, -1))
            return (rise.double() - fall.double()).numpy()[4:-4, 4:-4] / 2

        off = {
            "Y across": half(0.61, 0, 0)[..., 1] / 0.61 / (1.0 if full else 255 / 219) - x[None, 4:-4],
            "U down": half(0, 0.43, 0)[..., 2] / 0.43 / blue - y[4:-4, None],
            "V across": half(0, 0, 0.43)[..., 0] / 0.43 / red - x[None, 4:-4],
        }
        assert {what: round(error.mean(), 2) for what, error in off.items() if abs(error.mean()) > 0.3} == {}, (box, out)


@pytest.mark.parametrize("name", ["gray", "rgb24", "pal8", "bgra", "rgba", "gbrp", "yuva420p", "yuyv422", "gray10le"])
def test_other_formats_are_cut_from_their_rgb(name: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (H, W - 1, 3), np.uint8)
    source = av.VideoFrame.from_ndarray(noise, format="rgb24")
    if name == "pal8":
        palette = rng.integers(0, 256, (256, 4), np.uint8)
        frame = av.VideoFrame.from_ndarray((noise[..., 0].copy(), palette), format="pal8")
    else:
        frame = source.reformat(format=name)
    shown = as_picture(frame)
    for box, out in itertools.product(BOXES[1:], [(20, 24), (96, 80)]):
        assert np.abs(shown.cut(box, out).numpy() - exact(shown.rgb(), box, out)).max() <= 1.01, (box, out)


@pytest.mark.parametrize(
    "clip", ["carphone_qcif.mp4", "bunny_mpegts.ts", "nasa_hevc_10bit_hdr.mp4", "pattern_odd_321x241_yuv444.mp4", "aerial_60fps.mp4"]
)
def test_real_frames_stay_within_two_levels_of_exact_arithmetic(shared, clip: str) -> None:
    with PyavReader(str(shared("data") / "clips" / clip)) as video:
        for _, shown in video.frames(next(video.timelines()), [0, 9]):
            rgb, (h, w) = shown.rgb(), shown.shape
            for box in (Box(0, 0, h, w), Box(1, 3, h - 2, h - 1), Box(h // 4 | 1, w // 4 | 1, h // 2, w // 2)):
                for out in ((48, 48), (112, 112), (h // 2, h // 3)):
                    error = np.abs(shown.cut(box, out).numpy() - exact(rgb, box, out))
                    assert error.mean() <= 2, (box, out, error.mean())


@pytest.mark.parametrize("way", ["planes", "whole"])
@pytest.mark.parametrize("space", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("span", [0, 1, 2])
def test_colours_are_those_of_the_whole_frame(way: str, space: int, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``space``: BT.709, unspecified, BT.470, SMPTE 170M, BT.2020; ``span``: unspecified, limited, full range."""
    monkeypatch.setattr(picture, "SHRUNK", 0.0 if way == "planes" else 1e9)
    for y, u, v in ((100, 128, 128), (60, 100, 180), (200, 140, 90), (235, 128, 128), (16, 128, 128), (128, 90, 200)):
        planes = np.zeros((96, 64), np.uint8)
        planes[:64], planes[64:80], planes[80:] = y, u, v
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.colorspace, frame.color_range = space, span
        shown = as_picture(frame)
        assert np.abs(shown.cut(Box(1, 1, 40, 50), (20, 20)).numpy().astype(int) - shown.rgb()[30, 30]).max() <= 2


@pytest.mark.parametrize("way", ["planes", "whole"])
@pytest.mark.parametrize("degrees", [0, 90, -90, 180])
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_videos_are_cut_as_they_are_displayed(way: str, degrees: int, mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "SHRUNK", 0.0 if way == "planes" else 1e9)
    y, x = np.mgrid[0:H, 0:W]
    rgb = np.stack([y * 2, x * 2, 128 + 60 * np.sin(y / 9) * np.cos(x / 7)], -1).astype(np.uint8)
    shown = as_picture(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv444p"))
    turns = {0: (False, False, False), 90: (True, True, False), -90: (True, False, True), 180: (False, True, True)}
    swap, up, left = turns[degrees]
    shown._converter.turn = (swap, up, left != mirror)
    want = shown.rgb()
    upright = np.rot90(shown._converter.rgb(shown._frame), degrees // 90)
    assert np.array_equal(want, upright[:, ::-1] if mirror else upright)
    assert shown.shape == want.shape[:2]
    for box, out in itertools.product([Box(1, 3, 75, 61), Box(20, 5, 55, 78)], [(20, 24), (90, 70)]):
        assert np.abs(shown.cut(box, out).numpy() - exact(want, box, out)).mean() <= 1.5


def test_frames_of_another_size_are_taken_for_the_first() -> None:
    y, x = np.mgrid[0:120, 0:160]
    large = av.VideoFrame.from_ndarray(np.stack([y, x, y], -1).astype(np.uint8), format="rgb24").reformat(format="yuv420p")
    first = as_picture(large)
    second = PlanePicture(large.reformat(80, 60), first._converter)
    assert second.shape == (120, 160)
    box = Box(11, 21, 90, 101)
    assert np.abs(first.cut(box, (40, 40)).numpy().astype(int) - second.cut(box, (40, 40)).numpy()).mean() < 3


def test_a_frame_that_cannot_be_converted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = as_picture(ramps("yuv420p", (0.0, 0.0, 0.0)))
    with pytest.raises(DecodeError, match=r"^v\.mp4: "):
        shown.cut(Box(0, 0, H + 40, W), (20, 20))
    monkeypatch.setattr(Converter, "shrinks", lambda *_: False)
    shown._converter.shape = (0, 0)
    with pytest.raises(DecodeError, match=r"^v\.mp4: "):
        shown.rgb()


def clips_of(path: Path, samples: list[int]) -> Tensor:
    settings = DataSettings(frames=4, stride=4, size=32, crop="multiscale")
    plan = TrainDraws(settings, CounterDraw(0, torch.tensor(samples))).plan(range(len(samples)))
    item = Item(str(path), "video", None, None, path.name, -1)
    with reader.open_item(item) as video:
        return make_clips(video, item, plan, settings.hw).data


def test_a_clip_is_the_same_whatever_else_is_cut(make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", 40, h=72, w=96, gop=40, options={"bf": "3", "crf": "12"})
    together = clips_of(path, [0, 1, 2, 3, 4, 5])
    for sample in range(6):
        assert torch.equal(clips_of(path, [sample])[0], together[sample]), sample


def test_no_more_than_a_frame_is_held(make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[PlanePicture] = weakref.WeakSet()
    most = 0
    make = PyavReader._picture

    def counted(self: PyavReader, frame: av.VideoFrame) -> PlanePicture:
        nonlocal most
        shown = make(self, frame)
        alive.add(shown)
        most = max(most, len(alive))
        return shown

    monkeypatch.setattr(PyavReader, "_picture", counted)
    path = make_video(tmp_path / "v.mp4", 40, h=72, w=96)
    item = Item(str(path), "video", None, None, "v", -1)
    with reader.open_item(item) as video:
        plan = Plan(lambda times: [np.arange(0, 40)], lambda h, w: [[Box(0, 0, 72, 96)]])
        assert make_clips(video, item, plan, (16, 16)).data.shape == (1, 40, 16, 16, 3)
    assert most <= 2


def test_pixels_are_cut_as_tensors_are() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert PixelPicture(rgb).shape == (40, 50)
    for pixels in (rgb, rgb[::-1], rgb[:, ::-1]):
        got = PixelPicture(pixels).cut(Box(3, 5, 30, 31), (16, 12)).numpy()
        assert np.abs(got - exact(np.ascontiguousarray(pixels), Box(3, 5, 30, 31), (16, 12))).max() <= 1
