"""Captions: which frames are asked, the manifest that comes out, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import tubelet
from tubelet.api.captioning import key_frames
from tubelet.data.source import open_table
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.playground import write


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("videos")
    write(home / "world", clips=6, scene="easy", size=32)
    folders = home / "folders"
    for i in range(6):
        place = folders / ("train" if i < 4 else "test") / ("left" if i % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.mp4").write_bytes((home / "world" / "clips" / f"{i:06d}.mp4").read_bytes())
    return home


def grey(pictures: Sequence[np.ndarray]) -> list[str]:
    return [f"grey {picture.mean():.3f}" for picture in pictures]


def test_frames_are_the_middles_of_equal_parts() -> None:
    assert key_frames(30, 3).tolist() == [5, 15, 25]
    assert key_frames(8, 3).tolist() == [1, 4, 6]
    assert key_frames(2, 3).tolist() == [0, 1]
    assert key_frames(1, 3).tolist() == [0]


@pytest.mark.parametrize("what", ["world/manifest.csv", "folders"])
def test_the_manifest_takes_the_place_of_its_sources(videos: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "captioned.csv"
    result = tubelet.caption(videos / what, model=grey, out=out)
    assert str(result).startswith("6 / 6 videos captioned; 6 in this call")
    before, after = open_table(videos / what), open_table(out)
    assert before.fingerprint() == after.fingerprint()
    said = [json.loads(text) for text in after.extra["caption"]]
    assert all(1 <= len(texts) <= 3 for texts in said)
    assert len({text for texts in said for text in texts}) > 6
    if what == "folders":
        assert len(open_table(out, split="test")) == 2 == len(open_table(videos / what, split="test"))
    assert not list(tmp_path.glob(".*"))


def test_a_stopped_call_goes_on(videos: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "c.csv", []

    def breaks(pictures: Sequence[np.ndarray]) -> list[str]:
        asked.append(len(pictures))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return grey(pictures)

    with pytest.raises(KeyboardInterrupt):
        tubelet.caption(videos / "folders", model=breaks, out=out)
    journal = tmp_path / ".c.csv.part.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"key": "cut off')
    assert not out.exists()
    with pytest.raises(ConfigError, match="begun with other frames"):
        tubelet.caption(videos / "folders", model=grey, out=out, frames=2)
    result = tubelet.caption(videos / "folders", model=grey, out=out)
    assert (result.new, len(result.captions)) == (3, 6)
    whole = tubelet.caption(videos / "folders", model=grey, out=tmp_path / "d.csv")
    assert whole.captions == result.captions
    with pytest.raises(ConfigError, match="exists; give another name, or --overwrite"):
        tubelet.caption(videos / "folders", model=grey, out=out)
    assert tubelet.caption(videos / "folders", model=grey, out=out, overwrite=True).new == 6


def test_what_cannot_be_read_is_listed_and_stays_in_the_manifest(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.mp4").write_bytes((videos / "world" / "clips" / "000000.mp4").read_bytes())
    (folder / "text.mp4").write_text("no video")
    result = tubelet.caption(folder, model=grey, out=tmp_path / "c.csv")
    assert [key for key, _ in result.failures] == ["text.mp4"]
    assert open_table(tmp_path / "c.csv").extra["caption"][1] == "[]"
    (folder / "good.mp4").unlink()
    with pytest.raises(DataError, match="none of 1 videos can be read"):
        tubelet.caption(folder, model=grey, out=tmp_path / "d.csv")


def test_empty_and_repeated_sentences_are_dropped(videos: Path, tmp_path: Path) -> None:
    said = iter([["a dog", " ", "a dog "], *[[""] * 3] * 5])
    result = tubelet.caption(videos / "folders", model=lambda pictures: next(said), out=tmp_path / "c.csv")
    assert sorted(map(len, result.captions.values())) == [0, 0, 0, 0, 0, 1]
    assert "5 of them without words" in str(result)


@pytest.mark.parametrize(("settings", "said"), [({"frames": 0}, "frames must be at least 1"), ({"out": "c.json"}, "as a manifest, a .csv")])
def test_mistakes_are_said(videos: Path, tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tubelet.caption(videos, **({"model": grey, "out": tmp_path / "c.csv"} | settings))  # type: ignore[arg-type]


def write_blip(folder: Path) -> Path:
    """A tiny random BLIP with a tokenizer of a few words."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        "[ENC]",
        *["a", "dog", "cat", "red", "runs", "on", "the", "ground", "of", "video"],
    ]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    config = BlipConfig(text_config=text | {"pad_token_id": 0}, vision_config=vision | {"patch_size": 16}, projection_dim=16)
    model = BlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.text_decoder.cls.predictions.decoder.weight, std=1.0)
    model.save_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizer(str(folder / "vocab.txt")))
    processor.save_pretrained(folder)
    return folder


def test_a_captioner_of_transformers_from_a_folder(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    blip = write_blip(tmp_path / "blip")
    one = tubelet.caption(videos / "folders", model=blip, out=tmp_path / "a.csv", max_tokens=6, device="cpu")
    two = tubelet.caption(videos / "folders", model=blip, out=tmp_path / "b.csv", max_tokens=6, device="cpu", batch=1)
    assert one.captions == two.captions
    known = {"a", "dog", "cat", "red", "runs", "on", "the", "ground", "of", "video", "[DEC]"}
    assert any(one.captions.values())
    assert {word for texts in one.captions.values() for text in texts for word in text.split()} <= known | {"[UNK]", "[ENC]"}
    started = tubelet.caption(videos / "folders", model=blip, out=tmp_path / "c.csv", max_tokens=6, device="cpu", prompt="a video of")
    assert not any(text.startswith("a video of") for texts in started.captions.values() for text in texts)
    (blip / "vocab.txt").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (blip / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="its processor cannot be loaded"):
        tubelet.caption(videos / "folders", model=blip, out=tmp_path / "e.csv", device="cpu")


def test_folders_that_hold_no_captioner_are_explained(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="nothing is downloaded"):
        tubelet.caption(videos / "folders", model="Salesforce/blip2-opt-2.7b", out=tmp_path / "c.csv")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        tubelet.caption(videos / "folders", model=tmp_path, out=tmp_path / "c.csv")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="no captioner that transformers can load"):
        tubelet.caption(videos / "folders", model=tmp_path, out=tmp_path / "c.csv")
