"""Text-patch similarity: real folders of transformers, our own runs, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_clip import write_clip
from torch import Tensor
from torch.nn import functional as F

from tubelet.core import Batch, Frozen, Stream
from tubelet.errors import CheckpointError, ConfigError
from tubelet.guides._dual import Dual, open_dual
from tubelet.guides.similarity import Config, Similarity
from tubelet.nn.dual import DualShape, words

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Lookup:
    """An encoder of colours: a patch's vector is its mean colour, a text's the colour that it names."""

    def text(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([COLOURS.get(text, (0.0, 0.0, 0.0)) for text in texts])

    def patches(self, frames: Tensor, dense: str, window: int) -> Tensor:
        return F.normalize(F.avg_pool2d(frames, window).permute(0, 2, 3, 1), dim=-1)


def clip_with_squares(frames: int = 4) -> Tensor:
    """A red square on the left, a blue one on the right, on black: (1, 3, T, 32, 32)."""
    video = torch.zeros(1, 3, frames, 32, 32)
    video[:, 0, :, 8:16, 0:8] = 1
    video[:, 2, :, 8:16, 24:32] = 1
    return video


def batch_of(video: Tensor, *texts: str) -> Batch:
    return Batch({"video": Stream(video)}, {}, torch.arange(len(video)), text=texts)


def test_the_map_follows_the_words() -> None:
    guide = Similarity(dual=Frozen(Lookup(), path="lookup"), settings=Config(model="lookup", window=8))
    for word, column in (("red", 0), ("blue", 3)):
        field = guide(batch_of(clip_with_squares(), word), "video")
        assert field.data.shape == (1, 1, 2, 4, 4)
        assert divmod(int(field.data[0, 0, 0].argmax()), 4) == (1, column)
    ok = guide(batch_of(clip_with_squares().expand(2, -1, -1, -1, -1), "red", " "), "video").ok
    assert ok is not None
    assert ok.tolist() == [True, False]


@pytest.mark.parametrize(("slot", "maps"), [("first", 2), ("mean", 2), ("max", 2)])
def test_slots_take_one_frame_or_all(slot: str, maps: int) -> None:
    video = clip_with_squares()
    video[:, :, 1::2] = 0  # every second frame is black
    guide = Similarity(dual=Frozen(Lookup(), path="lookup"), settings=Config(model="x", window=8, slot=slot))  # type: ignore[arg-type]
    data = guide(batch_of(video, "red"), "video").data
    assert data.shape[2] == maps
    assert float(data.max()) == {"first": 1.0, "mean": 0.5, "max": 1.0}[slot]


def test_a_folder_of_transformers_is_used_as_transformers_does(clip: Path) -> None:
    dual, sha = open_dual(clip)
    assert len(sha) == 64
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    texts = ["abc", "a cab", ""]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.text_projection(model.text_model(**given).pooler_output)
    assert torch.allclose(dual.text(texts), F.normalize(pooled, dim=-1), atol=1e-6)
    frames = torch.rand(2, 3, 32, 32)
    hidden = model.vision_model(pixel_values=(frames - 0.5) / 0.5).last_hidden_state[:, 1:]
    wanted = F.normalize(model.visual_projection(model.vision_model.post_layernorm(hidden)), dim=-1).view(2, 4, 4, 8)
    assert torch.allclose(dual.patches(frames), wanted, atol=1e-6)
    assert dual.patches(frames, "resize_input").shape == (2, 8, 8, 8)
    assert dual.patches(frames, "per_patch", 16).shape == (2, 2, 2, 8)
    assert dual.patches(torch.rand(1, 3, 48, 64)).shape == (1, 4, 4, 8)
    with pytest.raises(ConfigError, match="window = 15 does not divide"):
        dual.patches(frames, "per_patch", 15)


def test_half_precision_around_it_makes_no_ties() -> None:
    guide = Similarity(dual=Frozen(Lookup(), path="lookup"), settings=Config(model="x", window=8))
    video = 0.5 + 0.01 * torch.rand(2, 3, 4, 32, 32)
    plain = guide(batch_of(video, "red", "blue"), "video").data
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = guide(batch_of(video, "red", "blue"), "video").data
    assert torch.equal(plain, within)
    assert within[0].unique().numel() == within[0].numel()


def test_long_captions_keep_their_end_token(clip: Path) -> None:
    dual, _ = open_dual(clip)
    long = "abcdefghijklmnopqrstuvwxyz" * 4
    assert bool(dual.text([long]).isfinite().all())
    assert torch.allclose(dual.text([long]), dual.text([long + " and more"]))
    assert not torch.allclose(dual.text([long]), dual.text(["abc"]))


def test_vectors_of_texts_are_remembered(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    dual = Dual(torch.nn.Identity(), lambda texts: asked.extend(texts) or torch.rand(len(texts), 3) + 0.1, lambda *a: torch.zeros(0))
    first = dual.text(["a", "b", "a"])
    assert torch.equal(first[0], first[2])
    assert torch.equal(dual.text(["b", "c "])[0], first[1])
    assert asked == ["a", "b", "c"]
    net = DualShape(dim=16, heads=2, out=8).build(size=(16, 16)).eval()
    texts = ["a", "a much longer sentence of nine words in all", "b c", ""]
    together, alone = (Dual(net, net.text, lambda *a: torch.zeros(0)) for _ in range(2))
    assert torch.equal(together.text(texts), torch.cat([alone.text([text]) for text in texts]))
    monkeypatch.setattr("tubelet.guides._dual.REMEMBERED", 2)
    assert dual.text(["d", "e", "f"]).shape == (3, 3)


def test_a_frozen_encoder_is_opened_late_and_recorded(clip: Path) -> None:
    guide = Config(model=str(clip)).build()
    assert guide.dual.path == str(clip)
    assert guide.dual.sha256 is None, "not opened yet"
    assert list(guide.parameters()) == [] == list(guide.state_dict())
    field = guide(batch_of(clip_with_squares(), "abc"), "video")
    assert field.data.shape == (1, 1, 2, 4, 4)
    assert guide.dual.sha256 is not None
    assert not any(p.requires_grad for p in guide.dual.inner.parameters())


def spoil(source: Path, out: Path, name: str, text: str | None) -> Path:
    for file in source.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    if text is None:
        (out / name).unlink()
    else:
        (out / name).write_text(text)
    return out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "{", "not understood by transformers"),
        ("config.json", json.dumps({"model_type": "bert"}), "holds a bert model"),
        ("model.safetensors", "nonsense", "weights cannot be loaded"),
        ("model.safetensors", None, "no weights there"),
        ("vocab.json", None, "tokenizer"),
    ],
)
def test_a_folder_with_something_wrong_is_explained(clip: Path, tmp_path: Path, name: str, text: str | None, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_dual(spoil(clip, tmp_path, name, text))


def test_missing_folders_and_models_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Nothing is downloaded"):
        open_dual("openai/clip-vit-base-patch32")
    with pytest.raises(CheckpointError, match="neither a transformers model"):
        open_dual(tmp_path)
    with pytest.raises(ConfigError, match=r"masking\.guide\.model: give the folder"):
        Config().build()
    guide = Similarity(dual=Frozen(Lookup(), path="lookup"), settings=Config(model="x", window=8))
    with pytest.raises(ConfigError, match="this batch has none"):
        guide(batch_of(clip_with_squares()), "video")


def test_words_are_hashed_and_cut() -> None:
    ids = words(["A red Square.", "", "one two three four five"], 4096, 4)
    assert ids.shape == (3, 4)
    assert ids[0, :3].tolist() == words(["a  RED square"], 4096, 9)[0].tolist()
    assert (ids[1] == 0).all()
    assert (ids > 0).sum(1).tolist() == [3, 0, 4]


def test_our_small_encoder_reads_other_sizes_and_has_no_holes() -> None:
    torch.manual_seed(0)
    for mixing in ("none", "attention"):
        net = DualShape(mixing=mixing, heads=4, dim=16, out=8).build(size=(32, 32))  # type: ignore[arg-type]
        assert net.patches(torch.rand(2, 3, 32, 48)).shape == (2, 4, 6, 8)
        assert bool(net.text(["", "a b"]).isfinite().all())
        one, two = torch.rand(1, 3, 32, 32).repeat(2, 1, 1, 1).chunk(2)
        two[..., 24:, 24:] = 0
        alike = (net.patches(one) - net.patches(two)).abs().amax(-1)[0] < 1e-6
        assert alike.sum() == (15 if mixing == "none" else 0)
    with pytest.raises(ConfigError, match="cannot be split into heads"):
        DualShape(dim=10, heads=4).build(size=(32, 32))
    with pytest.raises(ConfigError, match="multiple"):
        DualShape().build(size=(30, 32))
