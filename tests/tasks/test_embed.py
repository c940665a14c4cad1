"""Embedding: pooling, views, failures, files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_embeddings import embeddings
from known_feed import GRID, Feed, Reader, table

from tubelet.core import Tokens
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.tasks.embed import Embeddings, embed, pool_tokens, writable


def test_views_are_averaged_and_rows_follow_the_table():
    seen: list[tuple[int, int]] = []
    found = embed(Reader(), Feed(5), table(5), progress=lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]  # the parts of EvalFeed that embed uses
    assert found.keys == tuple(f"clip{i}.mp4" for i in range(5))
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (5, 3)
    assert np.allclose(found.vectors[:, 0], [10 * i + 0.5 + 1.5 for i in range(5)])
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    assert found.classes == ("a", "b")
    assert np.isnan(found.start[0])
    assert (found.start[3], found.end[3]) == (3.0, 7.0)
    assert seen[-1] == (5, 5)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert (found.n_total, found.failures) == (5, ())


def test_slots_keep_the_order_of_events():
    found = embed(Reader(), Feed(1), table(1), pool="slots")  # type: ignore[arg-type]  # as above
    assert found.vectors.tolist() == [[1.0] * 3 + [3.0] * 3]
    assert found.pool == "slots"


def test_class_token():
    assert embed(Reader(class_token=True), Feed(1), table(1), pool="class").vectors.tolist() == [[-7.0] * 3]  # type: ignore[arg-type]  # as above
    assert embed(Reader(class_token=True), Feed(1), table(1)).vectors.tolist() == [[2.0] * 3]  # type: ignore[arg-type]  # the mean leaves it out
    with pytest.raises(ConfigError, match="no class token"):
        embed(Reader(), Feed(1), table(1), pool="class")  # type: ignore[arg-type]  # as above


def test_unknown_pool_suggests():
    with pytest.raises(ConfigError, match="did you mean 'slots'"):
        pool_tokens(Tokens(torch.zeros(1, 4, 2), torch.arange(4)[None], GRID), "slot")


def test_failures_have_no_row():
    found = embed(Reader(), Feed(5, bad=[0, 3]), table(5))  # type: ignore[arg-type]  # as above
    assert found.keys == ("clip1.mp4", "clip2.mp4", "clip4.mp4")
    assert found.labels.tolist() == [1, 0, 0]
    assert found.failures == (("clip0.mp4", "no video stream"), ("clip3.mp4", "no video stream"))
    assert str(found) == "3 / 5 embedded, 3 numbers each (mean)"


def test_nothing_readable():
    with pytest.raises(DataError, match=r"none of the 2 items could be read, e\.g\. clip0\.mp4: no video stream"):
        embed(Reader(), Feed(2, bad=[0, 1]), table(2))  # type: ignore[arg-type]  # as above


def test_a_vector_that_is_not_finite_names_the_item_and_the_mode_is_restored():
    model = Reader(spoil=21.0).train()
    with pytest.raises(CheckpointError, match=r"clip2\.mp4 is not finite"):
        embed(model, Feed(3), table(3))  # type: ignore[arg-type]  # as above
    assert model.training
    assert not any(model.modes)


def kept(n: int = 3) -> Embeddings:
    made = embeddings(np.random.default_rng(0).standard_normal((n, 4)), [i % 2 - (i == 2) for i in range(n)], ["run", "walk"])
    return replace(made, start=np.array([0.0, np.nan, 2.5])[:n], failures=(("bäd.mp4", "leer"),), n_total=n + 1, pool="slots")


def same(a: Embeddings, b: Embeddings) -> bool:
    arrays = all(np.array_equal(getattr(a, f), getattr(b, f), equal_nan=f != "labels") for f in ("start", "end", "vectors", "labels"))
    return arrays and all(getattr(a, f) == getattr(b, f) for f in ("keys", "classes", "failures", "n_total", "pool"))


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_files_read_back_the_same(tmp_path: Path, ending: str):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = kept().save(tmp_path / "new" / f"e{ending}")
    back = Embeddings.load(path)
    assert same(back, kept())
    assert back.vectors.dtype == np.float32
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_npz_needs_no_pickle_and_parquet_has_plain_columns(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    with np.load(kept().save(tmp_path / "e.npz"), allow_pickle=False) as data:
        assert sorted(data.files) == ["about", "end", "keys", "labels", "start", "vectors"]
    columns = pq.read_table(kept().save(tmp_path / "e.parquet")).to_pydict()
    assert columns["class"] == ["run", "walk", None]
    assert len(columns["vector"][0]) == 4


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12), min_size=1, max_size=4, unique=True)
)
def test_any_names_survive(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    e = replace(embeddings(np.ones((len(names), 2)), [-1] * len(names), []), keys=tuple(names))
    assert Embeddings.load(e.save(tmp_path_factory.mktemp("n") / "e.npz")).keys == tuple(names)


def test_file_names_that_are_no_text_can_be_written(tmp_path: Path):
    e = replace(kept(), keys=("a\udcff.mp4", "b", "c"))
    for name in ("e.npz", "e.parquet"):
        assert Embeddings.load(e.save(tmp_path / name)).keys[1:] == ("b", "c")


def test_refusals_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "there.npz").write_bytes(b"precious")
    for name, said in [
        ("x.npy", r"did you mean '\.npz'"),
        ("x", "no ending"),
        ("there.npz", "--overwrite"),
        ("x.parket", r"did you mean '\.parquet'"),
    ]:
        with pytest.raises(ConfigError, match=said):
            kept().save(tmp_path / name)
    assert (tmp_path / "there.npz").read_bytes() == b"precious"
    assert same(Embeddings.load(kept().save(tmp_path / "there.npz", overwrite=True)), kept())
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        writable(tmp_path / "folder.npz", overwrite=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'tubelet\[parquet\]'"):
        writable(tmp_path / "x.parquet")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"nonsense"])
@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_damaged_files(tmp_path: Path, content: bytes, ending: str):
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not hold embeddings"):
        Embeddings.load(path)


def test_other_npz_and_missing(tmp_path: Path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(DataError, match="does not hold embeddings"):
        Embeddings.load(tmp_path / "other.npz")
    with pytest.raises(DataError, match="no such file"):
        Embeddings.load(tmp_path / "gone.npz")
