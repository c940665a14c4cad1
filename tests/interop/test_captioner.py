"""Image captioners of transformers: tiny random ones from a folder, and what is said of folders that hold none."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tubelet
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.captioner import open_captioner
from tubelet.playground import write
from tubelet.weights import sha256_of

pytest.importorskip("transformers")
WORDS = ["a", "dog", "cat", "red", "runs", "on", "the", "ground", "of", "video"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
VISION = LAYERS | {"image_size": 32, "patch_size": 16}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("models") / "blip"
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = LAYERS | ids | {"vocab_size": len(SPECIAL + WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 48}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION, projection_dim=32))
    _talkative(model.text_decoder.cls.predictions.decoder.weight, silent=len(SPECIAL))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), _bert(folder, BertTokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer, CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    folder = tmp_path_factory.mktemp("models") / "git"
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    config = GitConfig(vision_config=VISION, vocab_size=len(SPECIAL + WORDS), max_position_embeddings=48, **LAYERS, **ids)
    model = GitForCausalLM(config)
    _talkative(model.output.weight, silent=len(SPECIAL))
    model.save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(pictures, _bert(folder, BertTokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        OPTConfig,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("models") / "blip2"
    names = ["<pad>", "</s>", "<unk>", "<image>", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="</s>", eos_token="</s>", unk_token="<unk>", padding_side="left",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    text = OPTConfig(
        vocab_size=len(names), hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    former = LAYERS | {"encoder_hidden_size": 32, "vocab_size": 8, "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=VISION, qformer_config=former, text_config=text.to_dict(), num_query_tokens=4, image_text_hidden_size=16,
        image_token_index=3,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    head = model.language_model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    _talkative(head.weight, silent=4)
    model.config.text_config.tie_word_embeddings = model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(pictures, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def _bert(folder: Path, kind: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    return kind(str(folder / "vocab.txt"))


@torch.no_grad()
def _talkative(weight: torch.Tensor, *, silent: int) -> None:
    """Large random logits, so that answers depend on the picture; none of the first ``silent`` tokens is worth saying."""
    torch.nn.init.normal_(weight, std=2.0)
    weight[:silent] *= 0.01


def pictures(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 4 * i, 64, 3), np.uint8) // (1 + i) for i in range(n)]


@pytest.mark.parametrize("kind", ["blip", "git", "blip2"])
def test_a_model_says_the_same_of_a_picture_alone_and_among_others(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    captioner = open_captioner(folder, device=CPU, max_tokens=6)
    assert (captioner.path, captioner.sha256, list(captioner.parameters())) == (str(folder), sha256_of(folder), [])
    model = captioner.inner.model
    assert (model.dtype, model.training, any(p.requires_grad for p in model.parameters())) == (torch.float32, False, False)
    said = captioner(pictures(5))
    assert said == [captioner([picture])[0] for picture in pictures(5)]
    assert {word for text in said for word in text.split()} <= set(WORDS)
    assert all(1 <= len(text.split()) <= 6 for text in said)
    assert len(set(said)) > 1, "what is said depends on the picture"
    model.to(torch.bfloat16)  # as on CUDA
    half = captioner(pictures(5))
    assert half == captioner(pictures(5))
    assert {word for text in half for word in text.split()} <= set(WORDS)


@pytest.mark.parametrize("kind", ["blip", "git", "blip2"])
def test_a_prompt_is_continued_and_not_repeated(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    plain, asked = (open_captioner(folder, device=CPU, max_tokens=6, prompt=prompt)(pictures(3)) for prompt in (None, "a Video  of"))
    assert plain != asked
    assert not any(text.startswith("a video of") for text in asked)
    assert all(1 <= len(text.split()) <= 6 for text in asked), asked


def test_a_folder_captions_videos(blip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "world", clips=4, scene="easy", size=32)
    source = tmp_path / "world" / "manifest.csv"
    one = tubelet.caption(source, model=blip, out=tmp_path / "a.csv", max_tokens=6, device="cpu")
    two = tubelet.caption(source, model=str(blip), out=tmp_path / "b.csv", max_tokens=6, device="cpu", batch=1)
    assert one.captions == two.captions
    assert all(one.captions.values())
    assert capfd.readouterr() == ("", "")


def test_a_model_without_a_processor_for_both_takes_no_prompt(blip: Path) -> None:
    from tubelet.interop.captioner import _Captioner

    inner = open_captioner(blip, device=CPU).inner
    alone = _Captioner(inner.model, None, inner.pictures, inner.tokenizer, prompt=None, max_tokens=30)
    assert alone(pictures(2)) == inner(pictures(2))
    with pytest.raises(ConfigError, match="a blip model takes none"):
        _Captioner(inner.model, None, inner.pictures, inner.tokenizer, prompt="a", max_tokens=30)


def refused(folder: Path | str, said: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        open_captioner(folder, device=CPU)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_captioner_is_explained(blip: Path, tmp_path: Path) -> None:
    refused("Salesforce/blip2-opt-2.7b", "nothing is downloaded; if it is a model's name on a hub: fetch it first (hf download Salesforce/")
    refused(tmp_path / "gone", "no such folder of a captioner; nothing is downloaded")
    refused(tmp_path, "holds no config.json")
    snapshot = tmp_path / "snapshots" / "12ab"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refused(tmp_path, f"give {snapshot}")
    refused(snapshot, "does not name a model_type")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(snapshot, "holds a bert model, which makes no text of pictures; captioners are blip")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "blip"}))
    refused(snapshot, "no weights there")


def test_folders_in_which_something_is_missing(blip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cut, bare, small = (Path(shutil.copytree(blip, tmp_path / name)) for name in ("cut", "bare", "small"))
    (cut / "model.safetensors").write_bytes((blip / "model.safetensors").read_bytes()[:1000])
    refused(cut, "no captioner that transformers can load")
    for file in bare.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    refused(bare, "its processor cannot be loaded")
    tensors = load_file(small / "model.safetensors")
    name = next(name for name in tensors if "qkv.weight" in name)
    del tensors[name]
    save_file(tensors, small / "model.safetensors", metadata={"format": "pt"})
    refused(small, f"its weights lack 1 tensors of the model, first {name}")


def test_a_model_of_another_task_is_told_at_once(blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BlipForConditionalGeneration

    def generate(self: Any, **given: Any) -> Any:
        raise ValueError("You must provide text\nwith an image token")

    monkeypatch.setattr(BlipForConditionalGeneration, "generate", generate)
    refused(blip, "this blip model cannot caption a picture: You must provide text")


def test_the_missing_package_is_named(blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.auto.modeling_auto", None)
    refused(blip, 'captions need the package transformers: pip install "tubelet[text]"', ConfigError)
