"""Motion beside the pixels: the codec's vectors follow crop, size, flip, turn and sampling as the pixels do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tubelet.core import Batch, CounterDraw, Stream
from tubelet.data import reader
from tubelet.data.augment import Augment
from tubelet.data.beside import Beside
from tubelet.data.evaluation import ViewMaker
from tubelet.data.loader import ItemReader, VideoFeed
from tubelet.data.settings import AugmentSettings, DataSettings, Views
from tubelet.data.source import open_table
from tubelet.data.transform import Box
from tubelet.data.vectors import averages, cut_field, painted
from tubelet.errors import ConfigError

DX, DY, SIDE, T = 4, 2, 32, 12
X264 = {"x264-params": "keyint=100:scenecut=0:bframes=0:ref=1:subme=7:me=esa:merange=24:threads=1", "crf": "8"}


def settings(**changes: object) -> DataSettings:
    base = {"frames": T, "stride": 1, "size": (96, 128), "crop": "centre", "workers": 0}
    return DataSettings.model_validate({**base, **changes})


def square_at(t: int) -> tuple[int, int]:
    """(y, x) of the square's corner in frame ``t``."""
    return 16 + DY * t, 20 + DX * t


def moving(path: Path, *, n: int = T, h: int = 96, w: int = 128, codec: str = "libx264", options: dict[str, str] | None = None) -> Path:
    """A textured square that moves (DX, DY) a frame on smooth, still ground."""
    noise = np.random.default_rng(3)
    ground = np.kron(noise.integers(60, 120, (-(-h // 16), -(-w // 16))), np.ones((16, 16)))[:h, :w]
    texture = np.kron(noise.integers(0, 255, (SIDE // 4, SIDE // 4)), np.ones((4, 4)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options=X264 if options is None else options)
        stream.width, stream.height = w, h
        stream.pix_fmt = "yuv444p" if h % 2 or w % 2 else "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for t in range(n):
            grey = ground.copy()
            y, x = square_at(t)
            grey[y : y + SIDE, x : x + SIDE] = texture[: max(0, h - y), : max(0, w - x)]
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2).astype(np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def batch_of(source: Path, samples: Sequence[int] = (0,), seed: int = 0, **changes: object) -> Batch:
    with VideoFeed(open_table(source), settings(**changes), seed=seed, needs={"video", "motion"}) as feed:
        (batch,) = feed.batches([samples])
    return batch


def parts(batch: Batch) -> tuple[Stream, torch.Tensor, torch.Tensor]:
    motion = batch.stream("motion")
    assert motion.valid is not None
    assert motion.kind == "flow"
    assert motion.crop is not None
    assert torch.equal(motion.crop, batch.stream("video").crop)  # type: ignore[arg-type]
    return motion, motion.data, motion.valid


def inside(field: torch.Tensor, t: int, scale: tuple[float, float] = (1, 1), shift: tuple[float, float] = (0, 0)) -> torch.Tensor:
    """(2, n): vectors of the cells that lie in the square at frame ``t``, one from its edge; ``scale``, ``shift`` (y, x): of a crop."""
    (y, x), (sy, sx) = square_at(t), scale
    top, left = (y - shift[0]) * sy, (x - shift[1]) * sx
    rows = slice(int(top / 4) + 2, int((top + SIDE * sy) / 4) - 1)
    columns = slice(int(left / 4) + 2, int((left + SIDE * sx) / 4) - 1)
    return field[:, t, rows, columns].flatten(1)


def test_the_golden_field(shared: Callable[[str], Path], tmp_path: Path) -> None:
    golden = load_file(shared("goldens/mgm_a.safetensors"))
    (tmp_path / "v.mp4").write_bytes(golden["input/mp4_bytes"].numpy().tobytes())
    _, data, valid = parts(batch_of(tmp_path / "v.mp4"))
    assert data.shape == (1, 2, 12, 24, 32)
    assert data.dtype == torch.float32
    assert torch.allclose(data[0].permute(1, 2, 3, 0), golden["derived/motion_field_4px"].float(), atol=1e-5)
    assert valid.tolist() == [[False] + [True] * 11]


@pytest.mark.parametrize(("codec", "options"), [("libx264", X264), ("mpeg4", {"q:v": "2", "g": "100", "mbd": "rd"})])
def test_an_object_has_its_displacement_and_the_ground_none(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    _, data, valid = parts(batch_of(moving(tmp_path / "v.mp4", codec=codec, options=options)))
    assert valid[0, 1:].all()
    for t in range(2, T):
        median = inside(data[0], t).median(1).values
        assert (median - torch.tensor([DX, DY])).abs().max() <= 0.5
    assert data[0, :, 1:, -3:, :4].abs().max() <= 0.25


def test_a_crop_moves_the_field_with_the_pixels(tmp_path: Path) -> None:
    source = moving(tmp_path / "v.mp4")
    whole = parts(batch_of(source))[1][0]
    batch = batch_of(source, size=48)  # 96 x 96 from the middle, halved: 8 source pixels are a cell
    _, data, _ = parts(batch)
    assert batch.stream("video").crop.tolist() == [[[0.5, 0, -8], [0, 0.5, 0]]]  # type: ignore[union-attr]
    expected = torch.nn.functional.avg_pool2d(whole[..., 4:28], 2) / 2
    assert torch.allclose(data[0], expected, atol=1e-5)
    large = parts(batch_of(source, size=192))[1][0]  # each cell becomes four, vectors twice as long
    assert torch.allclose(large, 2 * whole[..., 4:28].repeat_interleave(2, -1).repeat_interleave(2, -2), atol=1e-5)


def test_drawn_crops_of_any_shape_keep_the_object_at_its_place(tmp_path: Path) -> None:
    source = moving(tmp_path / "v.mp4")
    batch = batch_of(source, [0, 1, 2, 3], seed=2, size=(62, 90), crop="random_resized", area=(0.5, 1.0), clips_per_video=4)
    _, data, _ = parts(batch)
    assert data.shape[-2:] == (16, 23)
    crop = batch.stream("video").crop
    assert crop is not None
    for one, field in zip(crop.tolist(), data, strict=True):
        (sx, _, ox), (_, sy, oy) = one
        found = inside(field, 6, (sy, sx), (-oy / sy, -ox / sx))
        if found.numel() >= 20:
            assert (found.median(1).values - torch.tensor([DX * sx, DY * sy])).abs().max() <= 0.5


def test_a_stride_stretches_displacements_and_repeated_frames_stand_still(tmp_path: Path) -> None:
    source = moving(tmp_path / "v.mp4")
    one, two = (parts(batch_of(source, frames=6, stride=s))[1][0] for s in (1, 2))
    first = parts(batch_of(source))[1][0]
    assert torch.allclose(two, 2 * first[:, ::2], atol=1e-5)
    assert one.shape == two.shape
    long = parts(batch_of(source, frames=8, stride=3))[1][0]  # 0, 3, 6, 9 and that again
    assert torch.allclose(long[:, :4], 3 * first[:, ::3], atol=1e-5)
    assert not long[:, 4:].any()


def test_frames_that_are_left_out_take_no_vectors_with_them(tmp_path: Path) -> None:
    """Seeking to key frames and skipping frames that nothing refers to: the same field as when everything is decoded."""
    options = {"x264-params": "keyint=6:min-keyint=6:scenecut=0:bframes=2:b-adapt=0:ref=2:threads=1"}
    source = moving(tmp_path / "v.mp4", n=40, h=256, w=256, options=options)
    every = parts(batch_of(source, size=256, frames=40))
    some = parts(batch_of(source, size=256, frames=4, stride=13, sampling="tsn"))
    with VideoFeed(open_table(source), settings(size=256, frames=4, sampling="tsn"), seed=0, needs=("motion",)) as feed:
        (batch,) = feed.batches([[0]])
    time = batch.stream("video").time
    assert time is not None
    at = (time[0] * 10).round().long()
    gaps = at.diff(prepend=2 * at[:1] - at[1:2]).float()
    assert torch.equal(some[2][0], every[2][0, at])
    assert torch.allclose(some[1][0], every[1][0][:, at] * gaps[:, None, None], atol=1e-4)


def test_flip_turns_dx_and_mirrors(tmp_path: Path) -> None:
    batch = batch_of(moving(tmp_path / "v.mp4"))
    batch = batch.with_stream("map", Stream(torch.rand(1, 1, T, 24, 32), crop=batch.stream("video").crop, kind="score"))
    out = Augment(AugmentSettings(flip=1))(batch, CounterDraw(0, batch.sample))
    before, after = batch.stream("motion"), out.stream("motion")
    assert torch.equal(after.data[:, 0], -before.data[:, 0].flip(-1))
    assert torch.equal(after.data[:, 1], before.data[:, 1].flip(-1))
    assert torch.equal(out.stream("map").data, batch.stream("map").data.flip(-1))
    assert torch.equal(out.stream("video").data, batch.stream("video").data.flip(-1))
    for name in ("motion", "map"):
        assert torch.equal(out.stream(name).crop, out.stream("video").crop)  # type: ignore[arg-type]
    assert (out.stream("motion").kind, out.stream("map").kind) == ("flow", "score")
    both = Stream(torch.rand(1, 4, T, 24, 32), kind="flow")
    turned = Augment(AugmentSettings(flip=1))(batch.with_stream("motion", both), CounterDraw(0, batch.sample)).stream("motion")
    assert torch.equal(turned.data, both.data.flip(-1) * torch.tensor([-1.0, 1, -1, 1]).view(1, 4, 1, 1, 1))
    for wrong in ({"rand": "rand-m7"}, {"mixup": 0.8}, {"cutmix": 1.0}):
        with pytest.raises(ConfigError, match=f"augment.{next(iter(wrong))} would tear the pixels from map and motion"):
            Augment(AugmentSettings.model_validate(wrong), classes=2)(batch, CounterDraw(0, batch.sample))
        with pytest.raises(ConfigError, match="would tear the pixels from motion"):
            Augment(AugmentSettings.model_validate(wrong), classes=2, needs={"video", "motion"})


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_turned_video_is_turned_with_its_vectors(tmp_path: Path, degrees: int) -> None:
    source = moving(tmp_path / "v.mp4", h=90, w=122)  # cells do not begin at the other end
    with av.open(str(source)) as old, av.open(str(tmp_path / "r.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    size = (90, 122) if degrees == 180 else (122, 90)
    plain = batch_of(source, size=(90, 122))
    batch = batch_of(tmp_path / "r.mp4", size=size)
    assert torch.equal(batch.stream("video").data, plain.stream("video").data.rot90(degrees // 90, (-2, -1)))
    _, data, valid = parts(batch)
    assert valid[0, 1:].all()
    dx, dy = {90: (DY, -DX), -90: (-DY, DX), 180: (-DX, -DY)}[degrees]
    y, x = square_at(6)
    mask = torch.zeros(90, 122)
    mask[y + 6 : y + SIDE - 6, x + 6 : x + SIDE - 6] = 1
    mask = mask.rot90(degrees // 90, (-2, -1))
    cells = torch.nn.functional.avg_pool2d(mask[None, None], 4, ceil_mode=True)[0, 0] == 1
    median = data[0, :, 6][:, cells].median(1).values
    assert (median - torch.tensor([dx, dy])).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("codec", "options", "suffix"),
    [
        ("libx265", {"crf": "8", "x265-params": "log-level=none"}, "mp4"),
        ("libx264", {"g": "1", "crf": "8"}, "mp4"),
        ("mjpeg", {"q:v": "3"}, "avi"),
        ("libvpx-vp9", {"crf": "10", "b:v": "0"}, "webm"),
    ],
)
def test_without_vectors_blocks_are_matched(tmp_path: Path, codec: str, options: dict[str, str], suffix: str) -> None:
    _, data, valid = parts(batch_of(moving(tmp_path / f"v.{suffix}", codec=codec, options=options)))
    assert not valid.any()
    for t in range(2, T):
        assert (inside(data[0], t).median(1).values - torch.tensor([DX, DY])).abs().max() <= 2
    assert data[0, :, :, -2:, :2].abs().max() == 0


def test_a_key_frame_between_others_is_left_to_the_guide(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=5:min-keyint=5:scenecut=0:bframes=0:ref=1"}
    _, data, valid = parts(batch_of(moving(tmp_path / "v.mp4", options=options)))
    assert valid[0].tolist() == [t % 5 > 0 for t in range(T)]
    assert not data[0, :, ::5].any()
    alone = parts(batch_of(moving(tmp_path / "one.mp4", n=1), frames=1))
    assert alone[1].shape == (1, 2, 1, 24, 32)
    assert not alone[1].any()


@pytest.mark.parametrize(("h", "w"), [(97, 131), (101, 118)])
def test_odd_sizes_and_objects_that_leave(tmp_path: Path, h: int, w: int) -> None:
    source = moving(tmp_path / "v.mp4", n=26, h=h, w=w)  # coded as 112 x 144; the square leaves on the right
    batch = batch_of(source, size=(h, w), frames=26)
    _, data, valid = parts(batch)
    assert data.shape == (1, 2, 26, -(-h // 4), -(-w // 4))
    assert torch.isfinite(data).all()
    assert valid[0, 1:].all()
    assert (inside(data[0], 6).median(1).values - torch.tensor([DX, DY])).abs().max() <= 0.5
    tiny = parts(batch_of(source, size=2, frames=26))[1]
    assert tiny.shape == (1, 2, 26, 1, 1)


def test_nothing_moves_in_a_still_video_or_a_picture(make_video: Callable[..., Path], tmp_path: Path) -> None:
    with av.open(str(tmp_path / "still.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10, options=X264)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(T):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    assert not parts(batch_of(tmp_path / "still.mp4"))[1].any()
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8).astype(np.uint8)).save(tmp_path / "p.png")
    _, data, valid = parts(batch_of(tmp_path / "p.png", size=32, frames=2))
    assert not data.any()
    assert not valid.any()


def test_pixels_and_samples_do_not_depend_on_it(tmp_path: Path) -> None:
    for i in range(3):
        moving(tmp_path / f"s/{i}.mp4", n=16)
    table = open_table(tmp_path / "s")
    chosen = settings(frames=4, stride=2, size=40, crop="multiscale", clips_per_video=2, decoder="pyav")
    lists = [range(5), range(5, 12)]
    plain = list(VideoFeed(table, chosen, seed=4).batches(lists))
    feeds = [VideoFeed(table, chosen.model_copy(update={"workers": n}), seed=4, needs=("video", "motion")) for n in (0, 2)]
    assert feeds[0].fingerprint() == VideoFeed(table, chosen, seed=4).fingerprint()
    here, there = (list(feed.batches(lists)) for feed in feeds)
    for a, b, c in zip(plain, here, there, strict=True):
        assert set(a.streams) == {"video"}
        for name in ("data", "time", "crop"):
            assert torch.equal(getattr(a.stream("video"), name), getattr(b.stream("video"), name))
        assert torch.equal(b.stream("motion").data, c.stream("motion").data)
        assert torch.equal(parts(b)[2], parts(c)[2])


def test_a_cache_in_memory_keeps_it_and_others_say_that_they_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving(tmp_path / "s/a.mp4")
    moving(tmp_path / "s/b.avi", codec="mjpeg", options={"q:v": "3"})
    plain = batch_of(tmp_path / "s", [0, 1], crop="multiscale", size=64)
    kept = batch_of(tmp_path / "s", [0, 1], crop="multiscale", size=64, cache="memory", cache_size=96)
    assert torch.equal(parts(plain)[2], parts(kept)[2])
    assert (parts(plain)[1] - parts(kept)[1]).abs().max() <= 1 / 16
    with VideoFeed(open_table(tmp_path / "s"), settings(cache="memory", size=64), seed=0, needs=("motion",)) as feed:
        cache = feed._cache
        assert cache is not None
        pixels = sum(f.numel() for f in cache._frames.values())  # type: ignore[attr-defined]
        assert pixels < cache.bytes < 1.1 * pixels
    with pytest.raises(ConfigError, match=r"data\.cache = device does not keep motion vectors; use data.cache = none, or masking.guide"):
        batch_of(tmp_path / "s", cache="device")
    monkeypatch.setattr("tubelet.data.beside.sharing", lambda: True)
    with pytest.raises(ConfigError, match=r"data\.cache = memory \(shared by several training processes\) does not keep motion"):
        batch_of(tmp_path / "s", cache="memory")


def test_prepared_sets_have_the_vectors_of_their_pieces(prepared_square: Path) -> None:
    _, data, valid = parts(batch_of(prepared_square))
    assert valid[0].tolist() == [t % 4 > 0 for t in range(T)]
    for t in (2, 6, 10):
        assert (inside(data[0], t).median(1).values - torch.tensor([DX, DY])).abs().max() <= 0.5


@pytest.fixture(scope="module")
def prepared_square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tubelet

    folder = tmp_path_factory.mktemp("square")
    moving(folder / "v/v.mp4")
    tubelet.prepare(folder / "v", folder / "out", size=96, settings=["gop=4", "crf=8"], workers=1)
    return folder / "out"


def test_items_of_one_file_get_it_in_one_pass_as_alone(tmp_path: Path) -> None:
    moving(tmp_path / "v.mp4", n=24)
    (tmp_path / "m.csv").write_text("path,start,end\nv.mp4,0,1.2\nv.mp4,0.6,1.8\nv.mp4,1.2,2.4\n")
    table, chosen = open_table(tmp_path / "m.csv"), settings(frames=4, stride=2, size=64)
    maker = ViewMaker(ItemReader(table, chosen, "pyav", beside=Beside.of(table, chosen, {"motion"})), Views())
    together = maker.__getitems__([0, 1, 2]).batch
    alone = [maker.__getitems__([i]).batch for i in range(3)]
    assert together is not None
    for i, one in enumerate(alone):
        assert one is not None
        assert torch.equal(together.stream("motion").data[i : i + 1], one.stream("motion").data)


def test_long_files_are_left_open_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_open_readers", reader.OpenReaders(frames=1))
    source = moving(tmp_path / "v.mp4")
    plain = VideoFeed(open_table(source), settings(decoder="pyav"), seed=0)
    feed = VideoFeed(open_table(source), settings(), seed=0, needs=("motion",))
    for _ in range(2):
        (a,), (b,) = plain.batches([[0]]), feed.batches([[0]])
        assert torch.equal(a.stream("video").data, b.stream("video").data)
        assert parts(b)[2][0, 1:].all()
    assert len(reader._open_readers._idle) == 2
    reader._open_readers.clear()


def test_what_cannot_be_brought_is_told(tmp_path: Path) -> None:
    table = open_table(moving(tmp_path / "v.mp4"))
    with pytest.raises(ConfigError, match="the model needs depth and smell, which the loader does not know"):
        VideoFeed(table, settings(), seed=0, needs={"video", "smell", "depth"})
    with pytest.raises(ConfigError, match=r"data\.decoder = torchcodec gives no motion vectors"):
        VideoFeed(table, settings(decoder="torchcodec"), seed=0, needs={"motion"})
    feed = VideoFeed(table, settings(decoder="auto"), seed=0, needs={"motion"})
    assert feed.decoder == "pyav"


def test_vectors_that_leave_the_frame_are_cut_off() -> None:
    names = ["source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"]
    vectors = np.zeros(3, [(name, np.int32) for name in names])
    vectors["source"], vectors["w"], vectors["h"], vectors["motion_scale"], vectors["motion_x"] = -1, 16, 16, 4, -8
    vectors["dst_x"], vectors["dst_y"] = [8, 40, -100], [8, 24, 8]  # the second hangs over two edges, the third lies beyond
    field = painted(vectors, 26, 42)
    assert field.shape == (7, 11, 2)
    assert (field[:4, :4, 0] == 2).all()
    assert (field[4:, 8:, 0] == 2).all()
    assert field.sum() == 2 * (16 + 3 * 3)


def test_means_over_parts_of_cells() -> None:
    begin, end = np.array([0.0, 0.5, 2.9, 7.0, -3.0]), np.array([1.0, 2.0, 3.1, 8.0, -2.0])
    assert np.allclose(averages(begin, end, 4), [[1, 0, 0, 0], [1 / 3, 2 / 3, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1], [1, 0, 0, 0]])
    field = np.stack(np.meshgrid(np.arange(6.0), np.zeros(4)), -1).astype(np.float32)
    cut = cut_field(field, (16, 24), Box(0, 4, 16, 16), (8, 8))
    assert cut.shape == (2, 2, 2)
    assert np.allclose(cut[0], [[0.75, 1.75]] * 2)  # columns 1-2 and 3-4, halved
