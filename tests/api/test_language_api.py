"""Retrieval and zero-shot classification from files to figures, with a model that knows colours by their names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tubelet
from tubelet.api.loading import Loaded
from tubelet.core import Batch, Losses, Method, Step, TokenGrid, Tokens
from tubelet.data.captions import captions
from tubelet.data.settings import DataSettings
from tubelet.errors import CheckpointError, ConfigError, DataError

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "olive": (150, 150, 20), "plum": (160, 30, 160)}
CLASSES = {"red": "RedThing", "green": "green_thing", "blue": "blue_thing", "olive": "green_thing", "plum": "RedThing"}


class Palette(Method):
    """A clip's vector is its mean colour, a text's that of the first colour it names, less grey."""

    def __init__(self, *, aligned: bool = True) -> None:
        super().__init__()
        self.aligned = aligned
        self.shift = nn.Parameter(torch.zeros(3))
        self.asked: list[str] = []
        self.clips = 0

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        raise AssertionError("an evaluation computes no loss")

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        raise AssertionError("asks for tokens where vectors are needed")

    def embed_video(self, batch: Batch, stream: str = "video") -> Tensor:
        self.clips += len(batch)
        return self._vector(batch.stream(stream).data.float().mean((2, 3, 4)))

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        named = [next((c for c in COLOURS if c in text.lower()), "red") for text in texts]
        return self._vector(torch.tensor([COLOURS[name] for name in named]).float())

    def _vector(self, rgb_B3: Tensor) -> Tensor:
        return nn.functional.normalize(rgb_B3 - rgb_B3.mean(1, keepdim=True) + self.shift, dim=1)


class Mute(Method):
    """A method that knows nothing of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def losses(self, phase: str, batch: Batch, at: Step) -> Losses:
        raise AssertionError("an evaluation computes no loss")

    def encode(self, batch: Batch, stream: str = "video", *, layers: Sequence[int] = ()) -> Tokens:
        return Tokens(torch.zeros(len(batch), 1, 2), torch.zeros(len(batch), 1, dtype=torch.int64), TokenGrid(("t",), (1,), (1,)))


def loaded(model: Method | None = None) -> Loaded:
    data = DataSettings(frames=2, stride=1, size=16, workers=0, cache="none")
    return Loaded((model or Palette()).eval(), data, {"method": {"kind": "palette"}}, Path("runs/toy/model.safetensors"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a clip of each colour, 32x32, and all.csv: captions (two of olive's, none of plum's), labels, splits."""
    home = tmp_path_factory.mktemp("colours")
    for name, rgb in COLOURS.items():
        with av.open(str(home / f"{name}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"crf": "10"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for _ in range(4):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), rgb, np.uint8), format="rgb24")))
            out.mux(stream.encode(None))
    captions = {name: f"a {name} thing" for name in COLOURS} | {"olive": json.dumps(["olive", "an olive thing"]), "plum": ""}
    write(home / "all.csv", [(name, captions[name], CLASSES[name], "test" if name in ("red", "green") else "train") for name in COLOURS])
    return home


def write(path: Path, rows: Sequence[tuple[str, str, str, str]]) -> Path:
    import csv

    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "label", "split"), *((f"{row[0]}.mp4", *row[1:]) for row in rows)])
    return path


def test_retrieve(colours, tmp_path):
    seen: list[tuple[int, int]] = []
    found = tubelet.retrieve(
        loaded(), colours / "all.csv", json_out=tmp_path / "r.json", progress=lambda done, total: seen.append((done, total))
    )
    assert found.text_to_video.queries == ("a blue thing", "a green thing", "olive", "an olive thing", "a red thing")
    assert found.text_to_video.ranks.tolist() == [1] * 5
    assert found.video_to_text.queries == ("blue.mp4", "green.mp4", "olive.mp4", "red.mp4")
    # olive's two captions have one vector, and one of them is enough
    assert found.video_to_text.ranks.tolist() == [1] * 4
    assert (found.n_scored, found.n_total, found.uncaptioned, found.failures) == (4, 4, 1, ())
    assert str(found).endswith("4 / 4 videos scored, 1 without caption left out")
    assert json.loads((tmp_path / "r.json").read_text())["details"]["run"] == "runs/toy/model.safetensors"
    assert seen[-1] == (4, 4)


def test_captions_that_lead_astray(colours):
    rows = [("red", "a red thing", "", ""), ("green", "a blue thing", "", ""), ("blue", "a green thing", "", "")]
    manifest = write(colours / "astray.csv", rows)
    found = tubelet.retrieve(loaded(), manifest)
    ranks = dict(zip(found.text_to_video.queries, found.text_to_video.ranks.tolist(), strict=True))
    assert ranks["a red thing"] == 1
    assert ranks["a blue thing"] > 1
    assert ranks["a green thing"] > 1
    assert dict(zip(found.text_to_video.queries, found.text_to_video.first, strict=True))["a blue thing"] == "blue.mp4"


def test_a_caption_of_several_videos_is_one_query(colours):
    manifest = write(colours / "same.csv", [("red", "a red thing", "", ""), ("plum", "a red thing", "", ""), ("blue", "blue", "", "")])
    found = tubelet.retrieve(loaded(), manifest)
    assert found.text_to_video.queries == ("blue", "a red thing")
    assert found.text_to_video.right.tolist() == [1, 2]
    assert found.text_to_video.ranks.tolist() == [1, 1]
    assert found.video_to_text.candidates == 2


def test_split_limit_exclude_and_views(colours):
    model = Palette()
    found = tubelet.retrieve(loaded(model), colours / "all.csv", split="test", settings=["views.clips=3"])
    assert set(found.video_to_text.queries) == {"red.mp4", "green.mp4"}
    assert model.clips == 6
    assert found.details["views"]["clips"] == 3
    assert tubelet.retrieve(loaded(), colours / "all.csv", limit=2).video_to_text.queries == ("blue.mp4", "olive.mp4"), "evenly spread"
    left = tubelet.retrieve(loaded(), colours / "all.csv", exclude=["*olive*", "red*"])
    assert left.video_to_text.queries == ("blue.mp4", "green.mp4")
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        tubelet.retrieve(loaded(), colours / "all.csv", limit=0)


def test_what_cannot_be_read_is_listed_and_its_captions_are_not_asked(colours):
    (colours / "bad.mp4").write_bytes(b"no video")
    rows = [("red", "red", "a", ""), ("bad", "bad", "b", ""), ("blue", "blue", "b", "")]
    manifest = write(colours / "bad.csv", rows)
    found = tubelet.retrieve(loaded(), manifest)
    assert (found.n_scored, found.n_total) == (2, 3)
    assert [key for key, _ in found.failures] == ["bad.mp4"]
    assert found.text_to_video.queries == ("blue", "red")
    score = tubelet.zeroshot(loaded(), manifest)
    assert (score.n_scored, score.n_total, [key for key, _ in score.failures]) == (2, 3, ["bad.mp4"])


@pytest.mark.parametrize("model", [Mute(), Palette(aligned=False)])
@pytest.mark.parametrize("ask", [tubelet.retrieve, tubelet.zeroshot])
def test_a_model_that_is_not_aligned(colours, model, ask):
    with pytest.raises(ConfigError, match=r"model of runs/toy.* is not aligned with text.*method\.align.*recipe tgm.*dual"):
        ask(loaded(model), colours / "all.csv")


def test_no_captions_and_broken_ones(colours):
    with pytest.raises(DataError, match=r"none of the \d items has a caption; .* column 'caption'.*`tubelet caption` writes one"):
        tubelet.retrieve(loaded(), colours / "red.mp4")
    with pytest.raises(DataError, match="none of the 1 items has a caption"):
        tubelet.retrieve(loaded(), write(colours / "none.csv", [("red", "", "", "")]))
    with pytest.raises(DataError, match=r"red\.mp4: its captions begin like a JSON list"):
        tubelet.retrieve(loaded(), write(colours / "broken.csv", [("red", '["a", ', "", "")]))


def test_captions_of_a_value():
    assert captions("  a dog ", "x") == ["a dog"]
    assert captions("", "x") == captions(" ", "x") == captions("[]", "x") == []
    assert captions('["a dog", " ", "two dogs "]', "x") == ["a dog", "two dogs"]
    assert captions("[laughs] a dog", "x") == ["[laughs] a dog"]
    with pytest.raises(DataError, match=r"x: .*other things than texts"):
        captions('["a", 1]', "x")


def test_weights_that_are_not_finite(colours):
    model = Palette()
    with torch.no_grad():
        model.shift.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"the text .* is not finite"):
        tubelet.retrieve(loaded(model), colours / "all.csv")


def test_zeroshot(colours, tmp_path):
    model = Palette()
    score = tubelet.zeroshot(
        loaded(model), colours / "all.csv", prompts=["a {}", "{} here"], json_out=tmp_path / "z.json", picture=tmp_path / "z.png"
    )
    # table order: RedThing, blue_thing, green_thing
    assert model.asked == ["a Red Thing", "Red Thing here", "a blue thing", "blue thing here", "a green thing", "green thing here"]
    assert score.classes == ("RedThing", "blue_thing", "green_thing")
    assert {key for key, pair in score.predictions.items() if pair[0] == pair[1]} >= {"red.mp4", "green.mp4", "blue.mp4"}
    assert score.n_scored == 5
    assert json.loads((tmp_path / "z.json").read_text())["confusion"] == score.confusion().tolist()
    assert (tmp_path / "z.png").read_bytes().startswith(b"\x89PNG")


def test_zeroshot_chooses_among_the_classes_of_the_whole_source(colours):
    score = tubelet.zeroshot(loaded(), colours / "all.csv", prompts="a {}", split="test")
    assert score.classes == ("RedThing", "blue_thing", "green_thing")
    assert (score.value, score.n_scored, score.details["prompts"]) == (1, 2, ["a {}"])
    assert len(tubelet.zeroshot(loaded(), colours / "all.csv", limit=3).predictions) == 3


def test_mistakes_of_zeroshot_are_told_before_the_work(colours, tmp_path):
    model = Palette()
    with pytest.raises(ConfigError, match=r"has no \{\} where the class's name goes"):
        tubelet.zeroshot("no/such/run", colours / "all.csv", prompts=["a video"])
    with pytest.raises(ConfigError, match="pictures are written as"):
        tubelet.zeroshot("no/such/run", colours / "all.csv", picture=tmp_path / "z.txt")
    with pytest.raises(DataError, match="no labels found"):
        tubelet.zeroshot(loaded(model), colours / "red.mp4")
    with pytest.raises(DataError, match="at least two classes"):
        tubelet.zeroshot(loaded(model), write(colours / "one.csv", [("red", "", "red", "")]))
    assert model.clips == 0
