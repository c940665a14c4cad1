"""What a manifest says beside the videos: captions drawn by counters, score maps cut as the pixels are."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.core import Batch, CounterDraw
from tubelet.data.beside import Beside
from tubelet.data.captions import captions
from tubelet.data.evaluation import ViewMaker
from tubelet.data.loader import ItemReader, VideoFeed
from tubelet.data.maps import cut_maps
from tubelet.data.settings import DataSettings, Views
from tubelet.data.source import open_table
from tubelet.errors import ConfigError, DataError

H, W = 48, 64


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate({"frames": 4, "stride": 1, "size": 32, "workers": 0, "decoder": "pyav", **changes})


@pytest.fixture(scope="module")
def place(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of eight frames."""
    folder = tmp_path_factory.mktemp("told")
    for name in "abcd":
        make_video(folder / f"{name}.mp4", 8, h=H, w=W)
    return folder


def manifest(place: Path, name: str, column: str, *values: str) -> Path:
    lines = [json.dumps({"path": f"{v}.mp4", column: value}) for v, value in zip("abcd", values, strict=True)]
    (place / name).write_text("\n".join(lines))
    return place / name


SAID = ("a dog ", '["one", " two", "three", "four"]', "", "[laughs] a man")


def text_of(source: Path, samples: range, **changes: object) -> dict[int, tuple[str, str]]:
    with VideoFeed(open_table(source), settings(**changes), seed=3, needs={"video", "text"}) as feed:
        batches = list(feed.batches([samples[i : i + 3] for i in range(0, len(samples), 3)]))
    return {k: (b.key[i], b.text[i]) for b in batches for i, k in enumerate(b.sample.tolist())}


@pytest.mark.parametrize("column", ["caption", "sentence"])
def test_captions_are_drawn_for_each_sample_and_epoch(place: Path, column: str) -> None:
    source = manifest(place, f"{column}.jsonl", column, *SAID)
    found = text_of(source, range(64))
    assert {text for key, text in found.values() if key == "a.mp4"} == {"a dog"}
    assert {text for key, text in found.values() if key == "c.mp4"} == {""}
    assert {text for key, text in found.values() if key == "d.mp4"} == {"[laughs] a man"}
    several = [text for key, text in found.values() if key == "b.mp4"]
    assert len(several) == 16
    assert set(several) == {"one", "two", "three", "four"}
    assert text_of(source, range(64), workers=2) == found
    assert text_of(source, range(30, 50)) == {k: found[k] for k in range(30, 50)}
    twice = text_of(source, range(64), clips_per_video=2, repeats=2)  # each clip of a visit has a draw of its own
    assert len({twice[k][1] for k in range(16) if twice[k][0] == "b.mp4"}) > 1


def test_they_are_part_of_what_a_run_must_keep_only_where_they_are_read(place: Path) -> None:
    one, other = (open_table(manifest(place, f"{i}.jsonl", "caption", *SAID[:3], said)) for i, said in enumerate(("x", "y")))
    plain = [VideoFeed(t, settings(), seed=0).fingerprint() for t in (one, other)]
    assert plain[0] == plain[1]
    assert "captions" not in plain[0]
    read = [VideoFeed(t, settings(), seed=0, needs={"text"}).fingerprint() for t in (one, other)]
    assert read[0]["captions"] != read[1]["captions"]
    assert {k: v for k, v in read[0].items() if k != "captions"} == plain[0]


def test_who_has_none_is_noted_and_nobody_with_one_is_an_error(place: Path) -> None:
    feed = VideoFeed(open_table(manifest(place, "m.jsonl", "caption", *SAID)), settings(), seed=0, needs={"text"})
    assert feed.notes == ("captions: 3 of 4 items have some, 6 in all; 1 have none, e.g. c.mp4",)
    assert VideoFeed(open_table(place / "m.jsonl"), settings(), seed=0).notes == ()
    for source in (place / "a.mp4", manifest(place, "empty.jsonl", "caption", "", "[]", " ", '[""]')):
        with pytest.raises(DataError, match=r"needs captions, and none of .* has one: .* column `caption`; `tubelet caption` writes one"):
            VideoFeed(open_table(source), settings(), seed=0, needs={"text"})


@pytest.mark.parametrize("wrong", ['["one", "two"', "['one', 'two']", "[1, 2]", '["one", 2]'])
def test_a_list_that_cannot_be_read_names_the_item(place: Path, wrong: str) -> None:
    with pytest.raises(DataError, match=r"^b\.mp4: its captions"):
        VideoFeed(open_table(manifest(place, "w.jsonl", "caption", "x", wrong, "", "")), settings(), seed=0, needs={"text"})


def test_captions_that_only_look_like_lists() -> None:
    assert captions("[music]", "k") == ["[music]"]
    assert captions(' [ "a", " b "] ', "k") == ["a", "b"]
    assert captions("  ", "k") == []


def test_a_replacement_brings_its_own_words(place: Path, tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_bytes((place / f"{name}.mp4").read_bytes() if name != "b" else b"broken")
    source = manifest(tmp_path, "m.jsonl", "caption", "it is a", "it is b", "it is c", "it is d")
    found = text_of(source, range(16), max_bad_rate=1.0)
    assert all(text == f"it is {key[0]}" for key, text in found.values())
    assert {key for key, _ in found.values()} == {"a.mp4", "c.mp4", "d.mp4"}


def test_evaluation_reads_the_first(place: Path) -> None:
    table, chosen = open_table(manifest(place, "m.jsonl", "caption", *SAID)), settings()
    maker = ViewMaker(ItemReader(table, chosen, "pyav", beside=Beside.of(table, chosen, {"text"})), Views(clips=2))
    batch = maker.__getitems__([0, 1, 2]).batch
    assert batch is not None
    assert batch.text == ("a dog", "a dog", "one", "one", "", "")


def with_maps(place: Path, *maps: np.ndarray | None) -> Path:
    (place / "maps").mkdir(exist_ok=True)
    for name, values in zip("abcd", maps, strict=True):
        (place / f"maps/{name}.npy").unlink(missing_ok=True)
        if values is not None:
            np.save(place / f"maps/{name}.npy", values)
    return manifest(place, "maps.jsonl", "saliency", *(f"maps/{name}.npy" for name in "abcd"))


def mapped(source: Path, samples: range = range(4), **changes: object) -> Batch:
    with VideoFeed(open_table(source), settings(maps="saliency", **changes), seed=1, needs={"video", "map"}) as feed:
        return next(feed.batches([samples]))


def ramp() -> np.ndarray:
    """(12, 16) over 48 x 64: 100 y + x of each cell."""
    return 100.0 * np.arange(12)[:, None] + np.arange(16)[None]


def test_a_map_follows_the_crop(place: Path) -> None:
    source = with_maps(place, *[ramp()] * 4)
    whole = mapped(source, crop="centre", size=(H, W)).stream("map")
    assert whole.kind == "score"
    assert whole.data.dtype == torch.float32
    assert whole.data.shape == (4, 1, 4, 12, 16)
    assert torch.equal(whole.data, torch.from_numpy(ramp()).float().expand(4, 1, 4, -1, -1))
    centre = mapped(source, crop="centre", size=24).stream("map").data  # 48 x 48 from x = 8, two cells become one
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(ramp()[None, :, 2:14]).float(), 2)
    assert torch.allclose(centre, expected.expand(4, 1, 4, -1, -1))
    batch = mapped(source, crop="random_resized", size=32)
    video, drawn = batch.stream("video"), batch.stream("map")
    assert video.crop is not None
    assert torch.equal(drawn.crop, video.crop)  # type: ignore[arg-type]
    at = (torch.arange(8) + 0.5) * 4  # centres of the clip's cells, and where they were in the source
    for (sx, _, ox), (_, sy, oy), cells in ((*c, d) for c, d in zip(video.crop.tolist(), drawn.data[:, 0, 0], strict=True)):
        x, y = (at - ox) / sx / 4 - 0.5, (at - oy) / sy / 4 - 0.5
        inside = ((x > 0.5) & (x < 14.5))[None] & ((y > 0.5) & (y < 10.5))[:, None]
        assert ((cells - (100 * y[:, None] + x[None]))[inside].abs() <= 60).all()  # within half a cell of the map


def test_the_maps_of_an_item_lie_evenly_over_its_time(place: Path) -> None:
    steps = np.arange(4.0)[:, None, None] * np.ones((1, 3, 4))
    source = with_maps(place, steps, steps[:1], steps[:2], steps.astype(np.int8)[0])
    batch = mapped(source, frames=8)
    found = {key: [float(x) for x in m[0, :, 0, 0]] for key, m in zip(batch.key, batch.stream("map").data, strict=True)}
    assert found == {"a.mp4": [0, 0, 1, 1, 2, 2, 3, 3], "b.mp4": [0] * 8, "c.mp4": [0] * 4 + [1] * 4, "d.mp4": [0] * 8}
    late = mapped(source, frames=2, sampling="tsn").stream("map").data
    assert late.shape == (4, 1, 2, 8, 8)


@pytest.mark.parametrize("changes", [{"cache": "memory"}, {"cache": "device"}, {"workers": 2}, {"cache": "memory", "workers": 1}])
def test_maps_are_the_same_from_caches_and_processes(place: Path, changes: dict[str, object]) -> None:
    source = with_maps(place, *[np.random.default_rng(i).random((3, 9, 7)) for i in range(4)])
    plain, other = (mapped(source, crop="multiscale", **c).stream("map").data for c in ({}, {"cache_size": 48, **changes}))
    assert torch.allclose(plain, other, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (None, "cannot be read as .npy"),
        (np.zeros(5), r"must be numbers \(S, H, W\) or \(H, W\), it is float64 \(5,\)"),
        (np.zeros((0, 4, 4)), "must be numbers"),
        (np.array([[1.0, np.nan]]), "NaN or infinity"),
        (np.array([["a"]]), "must be numbers"),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"workers": 1}, {"cache": "memory"}])
def test_a_map_that_cannot_be_used_stops_with_item_and_file(
    place: Path, wrong: np.ndarray | None, why: str, changes: dict[str, object]
) -> None:
    source = with_maps(place, ramp(), wrong, ramp(), ramp())
    with pytest.raises(DataError, match=why) as told:
        mapped(source, **changes)
    assert str(told.value).startswith("b.mp4: ")
    assert str(place / "maps/b.npy") in str(told.value)


def test_what_is_missing_in_settings_and_manifest_is_told(place: Path) -> None:
    table = open_table(with_maps(place, *[ramp()] * 4))
    with pytest.raises(ConfigError, match=r"needs score maps: set data\.maps"):
        VideoFeed(table, settings(), seed=0, needs={"map"})
    with pytest.raises(DataError, match=r"data\.maps = saliencey: the items have no such column.*saliency"):
        VideoFeed(table, settings(maps="saliencey"), seed=0, needs={"map"})
    hole = manifest(place, "hole.jsonl", "saliency", "maps/a.npy", "", "maps/a.npy", "maps/a.npy")
    with pytest.raises(DataError, match=r"b\.mp4: its column 'saliency' names no map"):
        mapped(hole)


def test_maps_of_prepared_sets_are_those_of_their_sources(place: Path, tmp_path: Path) -> None:
    import tubelet

    source = with_maps(place, *[np.random.default_rng(i).random((2, 6, 8)) for i in range(4)])
    tubelet.prepare(source, tmp_path / "out", size=48, settings=["maps=[saliency]", "preset=ultrafast"], workers=1)
    raw, out = (mapped(s, crop="centre") for s in (source, tmp_path / "out"))
    assert torch.allclose(raw.stream("map").data, out.stream("map").data, atol=1e-5)
    table = open_table(tmp_path / "out")
    table.extra["other"] = ["x"] * 4
    feed = VideoFeed(table, settings(maps="other"), seed=0, needs={"map"})
    with pytest.raises(DataError, match="holds no side data 'other'"):
        next(feed.batches([[0]]))


def test_the_manifest_is_where_paths_begin(place: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", ramp())
    for where in ("m.npy", str(tmp_path / "m.npy")):
        (tmp_path / "m.csv").write_text(f"path,saliency\n{place}/a.mp4,{where}\n")
        table = open_table(tmp_path / "m.csv")
        for same in (table, table.select([0])):
            feed = VideoFeed(same, settings(maps="saliency"), seed=0, needs={"map"})
            assert next(feed.batches([[0]])).stream("map").data.any()


def test_moving_with_a_batch_keeps_kinds_and_words(place: Path) -> None:
    table = open_table(with_maps(place, *[ramp()] * 4))
    table.extra["caption"] = ["a", "b", "c", "d"]
    feed = VideoFeed(table, settings(maps="saliency"), seed=0, needs={"text", "map", "motion"})
    parcel = feed._maker.__getitems__([0, 1])
    batch = parcel.batch
    assert batch is not None
    assert len(parcel.tensors()) == 3 + 4 + 3 + 1 + 1  # video, motion, map; the item's row, the sample
    assert all(any(x is y for y in parcel.tensors()) for x in (batch.stream("motion").valid, batch.stream("map").data, batch.sample))
    copied = pickle.loads(pickle.dumps(feed._maker)).__getitems__([0, 1]).batch  # as in a process that is spawned
    assert copied.text == batch.text
    assert torch.equal(copied.stream("motion").data, batch.stream("motion").data)
    moved = batch.to("cpu").rows(1, 2)
    assert (moved.text, {k: s.kind for k, s in moved.streams.items()}) == (
        (batch.text[1],),
        {"video": "pixels", "motion": "flow", "map": "score"},
    )
    if torch.cuda.is_available():
        pinned = parcel.pin_memory().batch
        assert pinned is not None
        assert pinned.text == batch.text
        assert pinned.stream("motion").kind == "flow"


def test_a_crop_beyond_the_map_takes_its_edge() -> None:
    maps = np.arange(4.0, dtype=np.float32).reshape(1, 1, 4)
    crop = np.array([[1, 0, 8], [0, 1, 0]], np.float32)  # begins eight pixels left of the frame
    found = cut_maps(maps, np.zeros(1, np.float32), crop, (4, 16), (4, 16))
    assert found[0, 0, 0].tolist() == [0, 0, 0, 1]


def test_the_draw_has_the_name_that_tests_fix() -> None:
    from tubelet.core import FixedDraw
    from tubelet.data.table import Row, Table

    table = Table([Row("a.mp4", "a.mp4", extra={"caption": '["x", "y"]'})])
    beside = Beside.of(table, settings(), {"text"})
    draw = FixedDraw(CounterDraw(0, torch.arange(3)), {"data/caption": torch.tensor([0.0, 0.49, 0.51])})
    assert beside.text([0, 0, 0], draw) == ("x", "x", "y")
