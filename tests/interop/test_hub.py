"""Weights by their name on the hub: from a cache that a test fills, never from a network."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tubelet
from tubelet.cli import run as command
from tubelet.errors import CheckpointError, ConfigError
from tubelet.interop.hub import HubId, hub_id, origin, snapshot

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
HF: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 2,
                      "num_attention_heads": 4, "intermediate_size": 64, "layer_norm_eps": 1e-6, "use_mean_pooling": False}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; a socket that is opened fails the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr("socket.socket.connect", refused)
    return tmp_path / "cache"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (command(args), *capsys.readouterr())

    return call


def saved(folder: Path, seed: int = 0, **how: Any) -> Path:
    """A tiny random model of transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model = transformers.VideoMAEModel(transformers.VideoMAEConfig(**HF))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder, **how)
    return folder


def kept(cache: Path, folder: Path, name: str = "org/tiny", commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A folder's files in the cache, as the hub's client lays them out."""
    place = cache / f"models--{name.replace('/', '--')}"
    shot = place / "snapshots" / commit
    for path in (place / "blobs", place / "refs", shot):
        path.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (shot / path.name).symlink_to(Path("../../blobs") / blob.name)
    if ref is not None:
        (place / "refs" / ref).write_text(commit)
    return shot


def clip() -> torch.Tensor:
    return torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_names() -> None:
    assert hub_id("runs/first") is None
    assert hub_id(Path("/data/hf/x")) is None
    assert hub_id("hf://MCG-NJU/videomae-base") == HubId("MCG-NJU/videomae-base")
    assert hub_id(Path("hf://MCG-NJU/videomae-base")) == HubId("MCG-NJU/videomae-base"), "a Path loses a slash"
    assert hub_id("hf://a/b@refs/pr/1") == HubId("a/b", "refs/pr/1")
    assert hub_id("hf://a/b@new--try") == HubId("a/b", "new--try")
    assert str(hub_id("hf://a/b@v1.0")) == "hf://a/b@v1.0"
    for wrong in (
        "hf://",
        "hf://a/b/c",
        "hf://a/my model",
        "hf://a/b@",
        "hf://../x",
        "hf://a/b@../../x",
        "hf://a--b/c",
        "hf://a/b@x y",
        "hf:///",
    ):
        with pytest.raises(ConfigError, match="write hf://ORGANISATION/NAME"):
            hub_id(wrong)
        with pytest.raises(ConfigError, match="write hf://ORGANISATION/NAME"):
            tubelet.load(wrong)


def test_importing_tubelet_imports_no_client() -> None:
    code = "import sys, tubelet; tubelet.load; tubelet.convert; import tubelet.cli; assert 'huggingface_hub' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_cache_holds_is_read_without_a_network(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shot = kept(cache, saved(tmp_path / "model"))
    wanted = tubelet.load(tmp_path / "model", device="cpu").encode(clip()).x
    capsys.readouterr()
    for name in ("hf://org/tiny", "hf://org/tiny@main", f"hf://org/tiny@{COMMIT}", Path("hf://org/tiny")):
        loaded = tubelet.load(name, device="cpu")
        assert torch.equal(loaded.encode(clip()).x, wanted)
        assert loaded.path == shot / "model.safetensors"
        assert origin(loaded.path) == f"hf://org/tiny@{COMMIT}"
        assert f"commit {COMMIT} in {shot}" in capsys.readouterr().err
    assert origin(tmp_path / "model" / "model.safetensors") is None


def test_a_revision_is_its_own_weights(cache: Path, tmp_path: Path) -> None:
    kept(cache, saved(tmp_path / "one"))
    kept(cache, saved(tmp_path / "two", seed=1), commit=OTHER, ref="v2")
    new = tubelet.load("hf://org/tiny@v2", device="cpu")
    assert new.path.parent.name == OTHER
    assert not torch.equal(new.encode(clip()).x, tubelet.load("hf://org/tiny", device="cpu").encode(clip()).x)


def test_a_model_in_parts(cache: Path, tmp_path: Path) -> None:
    shot = kept(cache, saved(tmp_path / "parts", max_shard_size="10KB"))
    loaded = tubelet.load("hf://org/tiny", device="cpu")
    assert loaded.path == shot / "model.safetensors.index.json"
    assert torch.equal(loaded.encode(clip()).x, tubelet.load(tmp_path / "parts", device="cpu").encode(clip()).x)


def test_nothing_is_fetched_unasked(cache: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    with pytest.raises(
        CheckpointError, match=r"hf://org/tiny is not in the local cache .*cache\), and nothing is downloaded unasked; add --dow"
    ):
        tubelet.load("hf://org/tiny")
    kept(cache, saved(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="hf://org/tiny@v9 is not in the local cache"):
        tubelet.load("hf://org/tiny@v9")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    kept(cache, tmp_path / "bare", "org/bare")
    with pytest.raises(CheckpointError, match="without its weights: nothing is downloaded unasked"):
        tubelet.load("hf://org/bare")
    for line in ("embed hf://o/n v --out x.npz", "knn hf://o/n v", "probe hf://o/n v", "finetune hf://o/n v --out r", "export hf://o/n e",
                 "convert hf://o/n c"):  # fmt: skip
        code, out, err = cli(*line.split())
        assert (code, out) == (1, ""), line
        assert err.startswith("error: hf://o/n is not in the local cache"), line


class Server:
    """In place of snapshot_download: ``holds`` is the repository, what is asked for goes into the cache."""

    def __init__(self, cache: Path, holds: Path) -> None:
        self.cache, self.holds, self.calls = cache, holds, list[dict[str, Any]]()

    def __call__(self, name: str, **how: Any) -> str:
        from fnmatch import fnmatch

        self.calls.append({"name": name, **how})
        assert not how["local_files_only"]
        part = self.cache.parent / f"part{len(self.calls)}"
        part.mkdir()
        for path in self.holds.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in how["allow_patterns"]):
                (part / path.name).write_bytes(path.read_bytes())
        shot = self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
        for path in shot.iterdir() if shot.exists() else ():
            path.unlink()
        return str(kept(self.cache, part, name))


@pytest.mark.parametrize("pickled", [False, True])
def test_with_download_settings_and_weights_come_and_nothing_else(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bool
) -> None:
    holds = saved(tmp_path / "model")
    for name in ("modeling_x.py", "README.md", "training_args.bin", "tf_model.h5"):
        (holds / name).write_bytes(b"x")
    (holds / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    state = tubelet.weights.read_weights(holds / "model.safetensors")  # type: ignore[attr-defined]  # imported with load
    torch.save(state, holds / "pytorch_model.bin")
    if pickled:
        (holds / "model.safetensors").unlink()
    server = Server(cache, holds)
    monkeypatch.setattr("huggingface_hub.snapshot_download", server)
    loaded = tubelet.load("hf://org/tiny", device="cpu", download=True)
    weights = "pytorch_model.bin" if pickled else "model.safetensors"
    assert {path.name for path in loaded.path.parent.iterdir()} == {"config.json", "preprocessor_config.json", weights}
    assert loaded.path.name == weights
    assert loaded.config["method"]["mean"] == [0.5] * 3
    assert [call["revision"] for call in server.calls] == ([None, COMMIT] if pickled else [None])


def test_options_of_every_command_ask_for_it(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()

    def fetch(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(not local_files_only)
        raise errors.OfflineModeIsEnabled("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for line in ("embed hf://o/n v --out x.npz", "knn hf://o/n v", "probe hf://o/n v", "finetune hf://o/n v --out r", "export hf://o/n e",
                 "convert hf://o/n c"):  # fmt: skip
        code, _, err = cli(*line.split(), "--download")
        assert code == 1, line
        assert "hf download o/n --local-dir FOLDER" in err, line
    assert asked == [True] * 6


def _answer(status: int) -> Any:
    import inspect

    module = inspect.signature(errors.HfHubHTTPError.__init__).parameters["response"].annotation
    client = __import__("httpx2" if "httpx2" in str(module) else "httpx")
    return client.Response(status, request=client.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: errors.RepositoryNotFoundError("no", response=_answer(404)), "the hub has no such model, or it is private"),
        (lambda: errors.GatedRepoError("no", response=_answer(403)), r"is gated: accept its terms at https://huggingface\.co/o/n"),
        (lambda: errors.RevisionNotFoundError("no", response=_answer(404)), "has no revision v3"),
        (lambda: errors.HfHubHTTPError("no", response=_answer(401)), "the hub answers 401"),
        (lambda: errors.HfHubHTTPError("down", response=_answer(503)), "could not be fetched, .*down; fetch it on a machine"),
        (lambda: errors.LocalEntryNotFoundError("cannot find"), r"does not hold it: LocalEntryNotFoundError, cannot find; fetch it on a"),
        (lambda: errors.OfflineModeIsEnabled("offline"), r"hf download o/n --revision v3 --local-dir FOLDER\) and give that folder"),
        (lambda: ConnectionError("refused"), "ConnectionError, refused"),
        (lambda: errors.HFValidationError("bad id"), "is no name on the hub: bad id"),
    ],
)
def test_each_failure_is_one_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], said: str) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise make()

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises((CheckpointError, ConfigError), match=said) as caught:
        snapshot(HubId("o/n", "v3"), download=True)
    assert "hf://o/n@v3" in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_repository_without_weights(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", Server(cache, tmp_path / "bare"))
    with pytest.raises(CheckpointError, match=f"hf://o/n has no weights that are read: at commit {COMMIT}"):
        snapshot(HubId("o/n"), download=True)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'tubelet\[hub\]'"):
        tubelet.load("hf://o/n")


def test_export_and_convert(cache: Path, tmp_path: Path) -> None:
    kept(cache, saved(tmp_path / "model"))
    tubelet.export("hf://org/tiny", tmp_path / "a.safetensors", to="official")
    tubelet.convert("hf://org/tiny", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="which is read"):
        tubelet.convert("hf://org/tiny", cache / "models--org--tiny" / "snapshots" / COMMIT, overwrite=True)


def test_a_frozen_classifier_finds_its_start_again_where_the_cache_has_moved(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(cache, saved(tmp_path / "model"))
    clips = tubelet.make_playground(tmp_path / "clips", clips=6, scene="easy", size=16, frames=8)
    short = ["classifier.frozen=true", "steps=2", "train.batch=2", "data.workers=0", "views.clips=1", "views.crops=1"]
    run = tubelet.finetune("hf://org/tiny", clips, out=tmp_path / "run", settings=short, train="all", test=None, quiet=True).path
    before = tubelet.load_classifier(run, device="cpu").predict(clip())
    cache.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"hf://org/tiny@{COMMIT} is not in the local cache"):
        tubelet.load_classifier(run, device="cpu")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert torch.equal(tubelet.load_classifier(run, device="cpu").predict(clip()), before)
