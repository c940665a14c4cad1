"""Encoders and classifiers as graphs: the same numbers in ONNX Runtime and in a program that torch alone opens, for any batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tubelet
from helpers import shaken
from tubelet.cli import run as command
from tubelet.core import TokenGrid
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop import graphs
from tubelet.methods.classifier import Config as ClassifierConfig
from tubelet.methods.videomae import Config
from tubelet.nn.video import AXES
from tubelet.train.checkpoint import write_tensors

METHOD: dict[str, Any] = {"kind": "videomae", "dim": 16, "depth": 2, "heads": 2, "patch": [2, 8, 4],
                          "decoder": {"dim": 16, "depth": 1, "heads": 2}}  # fmt: skip
DATA = {"frames": 4, "size": [16, 24], "stride": 2, "workers": 0}
SIZE = (16, 24)
KINDS: dict[str, dict[str, Any]] = {
    "as released": {},
    "class token": {"class_token": True, "position": "learned"},
    "cosine": {"attention": "cosine"},
    "bias": {"attention": "bias", "position": "separable"},
    "no bias": {"attention": "no_bias", "position": "sincos3d"},
    "scaled": {"init_values": 0.1, "position": "sincos2d"},
}


def trained(path: Path, **changes: Any) -> tuple[Path, Any]:
    method = METHOD | changes
    model = shaken(Config.model_validate(method).build(masking=None, frames=4, size=SIZE))
    config = {"method": method, "masking": None, "data": DATA, "train": {"steps": 1}}
    write_tensors(path / "model.safetensors", model.state_dict(), {"format": 1, "config": config})
    return path, model


def tuned(path: Path, **changes: Any) -> tuple[Path, Any]:
    settings = ClassifierConfig.model_validate(changes)
    model = shaken(settings.build(encoder=Config.model_validate(METHOD).build_encoder(frames=4, size=SIZE), classes=3))
    config = {"method": METHOD, "data": DATA, "classifier": settings.model_dump(mode="json"), "classes": ["hop", "run", "sit"], "views": {},
              "train": {"steps": 1}}  # fmt: skip
    write_tensors(path / "model.safetensors", model.state_dict(), {"format": 1, "config": config})
    return path, model


def clips(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 4, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(batch + 40))


def by_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda video: torch.from_numpy(session.run(None, {"video": video.numpy()})[0])


def by_torch(file: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(file).module()


WAYS = {"onnx": ("a.onnx", by_onnx), "torch-export": ("a.pt2", by_torch)}


@pytest.mark.parametrize("to", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_answers_what_the_run_does(tmp_path: Path, kind: str, to: Any) -> None:
    run, model = trained(tmp_path / "run", **KINDS[kind])
    name, opened = WAYS[to]
    tubelet.export(run, tmp_path / name, to=to)
    ask = opened(tmp_path / name)
    for batch in (1, 3, 7):
        with torch.no_grad():
            wanted = model.encoder(clips(batch)).x
        assert wanted.shape == (batch, 2 * 2 * 6 + (kind == "class token"), 16)
        assert torch.allclose(ask(clips(batch)), wanted, atol=1e-4)
        assert not torch.allclose(ask(clips(batch).flip(2)), wanted, atol=1e-2)


@pytest.mark.parametrize("to", WAYS)
@pytest.mark.parametrize("pool", ["mean", "slots", "class"])
def test_pooled_answers_are_those_of_embed(tmp_path: Path, pool: str, to: Any) -> None:
    run, _ = trained(tmp_path / "run", class_token=True)
    name, opened = WAYS[to]
    tubelet.export(run, tmp_path / name, to=to, pool=pool)
    wanted = tubelet.tasks.embed.pool_tokens(tubelet.load(run, device="cpu").encode(clips(3)), pool)
    assert wanted.shape == (3, 32 if pool == "slots" else 16)
    assert torch.allclose(opened(tmp_path / name)(clips(3)), wanted, atol=1e-4)


@pytest.mark.parametrize("to", WAYS)
@pytest.mark.parametrize("settings", [{}, {"pool": "slots", "norm": "tokens"}, {"pool": "attentive"}], ids=str)
def test_a_fine_tuned_run_answers_logits_and_names_its_classes(tmp_path: Path, settings: dict[str, Any], to: Any) -> None:
    run, model = tuned(tmp_path / "run", **settings)
    name, opened = WAYS[to]
    done = tubelet.export(run, tmp_path / name, to=to)
    assert "3 classes" in str(done)
    with torch.no_grad():
        assert torch.allclose(opened(tmp_path / name)(clips(2)), model(clips(2)), atol=1e-4)
    about = said(tmp_path / name)
    assert json.loads(about["classes"]) == ["hop", "run", "sit"]
    assert (json.loads(about["stride"]), json.loads(about["size"]), about["output"]) == (2, [16, 24], "logits")
    assert len(about["weights_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(about)
    tubelet.export(run, tmp_path / name, to=to, encoder=True, overwrite=True)
    assert opened(tmp_path / name)(clips(2)).shape == (2, 24, 16)


def said(file: Path) -> dict[str, str]:
    if file.suffix == ".onnx":
        return {p.key: p.value for p in pytest.importorskip("onnx").load(str(file)).metadata_props}
    extra = {"tubelet.json": ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra["tubelet.json"])


def test_settings_are_not_for_a_trained_head(tmp_path: Path) -> None:
    run, _ = tuned(tmp_path / "run")
    for to, out in (("hf", "hf"), ("official", "a.pth"), ("onnx", "a.onnx")):
        with pytest.raises(ConfigError, match=r"frames=8: a fine-tuned classifier keeps its settings"):
            tubelet.export(run, tmp_path / out, to=to, settings=["frames=8"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keeps a run as it is"):
        tubelet.export(run, tmp_path / "a.safetensors", to="safetensors", settings=["nonsense=3"])


def test_a_program_opens_where_tubelet_is_not(tmp_path: Path) -> None:
    run, model = trained(tmp_path / "run")
    tubelet.export(run, tmp_path / "a.pt2", to="torch-export", pool="mean")
    torch.save(clips(3), tmp_path / "clips.pt")
    code = (
        "import sys, torch\nsys.modules['tubelet'] = None\n"
        "ask = torch.export.load('a.pt2').module()\ntorch.save(ask(torch.load('clips.pt')).detach(), 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    with torch.no_grad():
        wanted = model.encoder(clips(3)).x.mean(1)
    assert torch.allclose(torch.load(tmp_path / "out.pt"), wanted, atol=1e-4)


def test_other_clips_than_the_runs_and_weights_of_others(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run")
    tubelet.export(run, tmp_path / "official.pth", to="official")
    more = ["frames=8", "size=[32,24]"]
    tubelet.export(tmp_path / "official.pth", tmp_path / "a.pt2", to="torch-export", settings=[*more, "method.heads=2"])
    loaded = tubelet.load(run, settings=more, device="cpu")
    video = torch.randint(0, 256, (2, 3, 8, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(by_torch(tmp_path / "a.pt2")(video), loaded.encode(video).x, atol=1e-4)


def test_large_weights_lie_beside_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "ONE_FILE", 1000)
    run, model = trained(tmp_path / "run")
    done = tubelet.export(run, tmp_path / "out" / "a.onnx", to="onnx")
    first = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert first[1].endswith(".data")
    assert first[1] in str(done)
    assert first[:1] == ["a.onnx"]
    again = tubelet.export(run, tmp_path / "out" / "a.onnx", to="onnx", overwrite=True)
    assert len(list((tmp_path / "out").iterdir())) == 3  # the older weights are left to whoever reads them, and named
    assert f"no renamed graph reads it: {first[1]} (" in str(again)
    assert "earlier exports" not in str(done)
    with torch.no_grad():
        assert torch.allclose(by_onnx(tmp_path / "out" / "a.onnx")(clips(2)), model.encoder(clips(2)).x, atol=1e-4)


@pytest.mark.parametrize("to", WAYS)
def test_a_graph_that_computes_something_else_is_not_written(tmp_path: Path, to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trained(tmp_path / "run")
    monkeypatch.setattr(graphs.Deployed, "reference", lambda self, video: self.answer(self.encoder(video.flip(2))))
    with pytest.raises(CheckpointError, match=r"differs from the model by .*; nothing was written"):
        tubelet.export(run, tmp_path / WAYS[to][0], to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("to", WAYS)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, to: Any) -> None:
    run, model = trained(tmp_path / "run")
    model.encoder.trunk.blocks[0].mlp.fc1.weight.data[0, 0] = float("nan")
    config = {"method": METHOD, "masking": None, "data": DATA, "train": {"steps": 1}}
    write_tensors(run / "model.safetensors", model.state_dict(), {"format": 1, "config": config})
    with pytest.raises(CheckpointError, match="answer is not finite"):
        tubelet.export(run, tmp_path / WAYS[to][0], to=to)


@pytest.mark.parametrize("to", WAYS)
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trained(tmp_path / "run")

    def full(*_: Any, **__: Any) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graphs, "write_onnx" if to == "onnx" else "write_program", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*(No space left|disk is full)"):
        tubelet.export(run, tmp_path / WAYS[to][0], to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained(tmp_path / "run")
    for to, out, more, message in (
        ("onnx", "a.pt2", {}, r"must end in \.onnx"),
        ("torch-export", "a.onnx", {}, r"must end in \.pt2"),
        ("hf", "folder", {"pool": "mean"}, "pooled answers are for onnx and torch-export"),
        ("onnx", "a.onnx", {"pool": "class"}, "no class token"),
    ):
        with pytest.raises(ConfigError, match=message):
            tubelet.export(run, tmp_path / out, to=to, **more)  # type: ignore[arg-type]
    monkeypatch.setattr("tubelet.interop.graphs.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'to=onnx needs onnx and onnxscript: pip install "tubelet\[onnx\]"'):
        tubelet.export(run, tmp_path / "a.onnx", to="onnx")
    monkeypatch.undo()
    assert command(["export", str(run), str(tmp_path / "b.pt2"), "--to", "torch-export", "--pool", "maen"]) == 2
    assert "mean" in capsys.readouterr().err
    assert command(["export", str(run), str(tmp_path / "b.pt2"), "--to", "torch-export", "--pool", "mean"]) == 0
    assert "answers features" in capsys.readouterr().out


def test_positions_are_of_the_grid(tmp_path: Path) -> None:
    """A graph holds the table as a constant: that of its clips."""
    encoder = Config.model_validate(METHOD).build_encoder(frames=4, size=SIZE).eval()
    graph = graphs.Deployed(encoder=encoder, answer=graphs.pooled(encoder, "tokens"), frames=8, size=(32, 24))
    grid = TokenGrid.of((8, 32, 24), (2, 8, 4), AXES)
    assert torch.equal(graph.places[0], encoder.position.table(grid))


@pytest.mark.parametrize(("to", "out"), [("torch-export", "a.pt2"), ("official", "a.pth")])
def test_torchs_archives_on_a_full_disk_end_in_one_error(tmp_path: Path, to: str, out: str) -> None:
    """A limit on the size of files stands for a full disk. torch's writer ended the whole process there."""
    run, _ = trained(tmp_path / "run")
    code = (
        "import resource, signal, sys\nfrom tubelet.cli import run\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"sys.exit(run(['export', {str(run)!r}, {str(tmp_path / out)!r}, '--to', {to!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"cannot write {tmp_path / out}" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
