"""Sources become one sorted table; what is wrong is named with its place."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data.source import open_table
from tubelet.data.table import Row, Strings, Table
from tubelet.errors import DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b/2.mp4", "b/1.MKV", "a/x.avi", "a/.hidden.mp4", ".git/y.mp4", "a/notes.txt", "a/thumb.jpg", "__MACOSX/z.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def manifest(folder: Path, text: str, name: str = "m.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_folder_is_searched_sorted_and_labelled_by_class_folders(tree: Path) -> None:
    table = open_table(tree)
    assert list(table.keys) == ["a/x.avi", "b/1.MKV", "b/2.mp4"]
    assert table.classes == ("a", "b")
    assert table.labels.tolist() == [0, 1, 1]
    assert table.item(1).path == str(tree / "b/1.MKV")
    assert "1 pictures left out" in table.notes[0]


def test_folder_without_classes_or_with_labels_none_is_unlabelled(tree: Path) -> None:
    assert open_table(tree / "b").classes == ()
    assert open_table(tree, labels="none").classes == ()
    (tree / "top.mp4").write_bytes(b"x")
    assert open_table(tree).classes == ()
    with pytest.raises(DataError, match=r"1 items lie in no class folder, e\.g\. top\.mp4"):
        open_table(tree, labels="folder")


def test_split_folders(tmp_path: Path) -> None:
    for name in ("train/run/1.mp4", "train/sit/2.mp4", "test/run/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    table = open_table(tmp_path, split="test")
    assert list(table.keys) == ["test/run/3.mp4"]
    assert table.classes == ("run", "sit"), "classes come from the whole source, so that splits agree"
    assert open_table(tmp_path).classes == ("run", "sit")
    with pytest.raises(DataError, match=r"no sub-folder 'tset' \(did you mean 'test'\?\); it has test, train"):
        open_table(tmp_path, split="tset")


def test_a_folder_that_holds_a_manifest_says_so(tree: Path) -> None:
    """A playground has its splits in its manifest, not in sub-folders."""
    manifest(tree, "path,split\na/x.avi,train\n", "manifest.csv")
    with pytest.raises(DataError, match=r"no sub-folder 'train'.*Its splits may be in manifest\.csv: give that file"):
        open_table(tree, split="train")
    with pytest.raises(DataError, match=r"Its splits may be in manifest\.csv"):
        open_table(f"file://{tree}", split="train")


def test_pictures_as_items_or_frames(tmp_path: Path) -> None:
    for name in ("s1/001.jpg", "s1/002.jpg", "s2/001.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no video .*\.mp4.*3 pictures: set images = items"):
        open_table(tmp_path)
    assert [open_table(tmp_path, images="items").item(i).kind for i in range(3)] == ["image"] * 3
    table = open_table(tmp_path, images="frames")
    assert [(table.item(i).key, table.item(i).kind) for i in range(2)] == [("s1", "frames"), ("s2", "frames")]


def test_manifest_aliases_segments_extra_columns_and_split(tree: Path) -> None:
    path = manifest(
        tree,
        "file,label,start,end,subset,caption,who\n"
        'b/2.mp4,run,0.5,2,train,"a man, running",eve\nb/2.mp4,sit,2,,train,,adam\na/x.avi,lie,,,test,x,\n',
    )
    table = open_table(path, split="train")
    assert list(table.keys) == ["b/2.mp4#0.5-2", "b/2.mp4#2-"]
    assert table.classes == ("lie", "run", "sit")
    assert (table.item(0).start, table.item(0).end, table.item(1).end) == (0.5, 2.0, None)
    assert list(table.extra["caption"]) == ["a man, running", ""]
    assert list(table.extra["who"]) == ["eve", "adam"]
    assert table.item(0).path == str(tree / "b/2.mp4")
    assert any("all splits are used: test (1), train (2); data.split = train" in note for note in open_table(path).notes)
    assert not table.notes
    with pytest.raises(DataError, match=r"no row has split = 'trian' \(did you mean 'train'\?\); there are test \(1\), train \(2\)"):
        open_table(path, split="trian")
    assert open_table(path, labels="who", split="train").classes == ("adam", "eve")
    with pytest.raises(DataError, match=r"no column 'wo' for the labels \(did you mean 'who'\?\)"):
        open_table(path, labels="wo")


def test_jsonl_tsv_and_lists(tree: Path) -> None:
    lines = [json.dumps({"path": "b/2.mp4", "label": 10}), json.dumps({"path": "a/x.avi", "label": 9})]
    table = open_table(manifest(tree, "\n".join(lines), "m.jsonl"))
    assert table.classes == ("9", "10"), "labels that are all numbers sort as numbers"
    assert list(open_table(manifest(tree, "path\tlabel\nb/2.mp4\tq\n", "m.tsv")).classes) == ["q"]
    assert list(open_table(manifest(tree, "# mine\nb/2.mp4\n\na/x.avi\n", "l.txt")).keys) == ["a/x.avi", "b/2.mp4"]
    for text in ("b/2.mp4 1\na/x.avi 0\n", "b/2.mp4,1\na/x.avi,0\n", "b/2.mp4 0 120 1\na/x.avi 0 80 0\n"):
        table = open_table(manifest(tree, text, "l.txt"))
        assert (list(table.keys), table.labels.tolist()) == (["a/x.avi", "b/2.mp4"], [0, 1])
    assert open_table(manifest(tree, "b/2.mp4 0 -1\n", "l.txt")).classes == ()
    assert open_table(manifest(tree, "b/2.mp4,run\n", "l.csv")).classes == ("run",), "a .csv without header"
    (tree / "with space.mp4").write_bytes(b"x")
    assert list(open_table(manifest(tree, "with space.mp4 3\n", "l.txt")).keys) == ["with space.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pth,label\nb/2.mp4,1\n", r"no column that names the file \(did you mean 'path'\?\); it has pth, label"),
        ("file,start,end\nb/2.mp4,1,x\n", r"m\.csv, line 2: end must be seconds .* got 'x'"),
        ("file,start,end\nb/2.mp4,-1,2\n", r"line 2: start must be seconds .* got '-1'"),
        ("file,start,end\nb/2.mp4,x,2\n,1,2\nb/2.mp4,3,2\n", r"(?s)line 2: start must .*line 3: no file .*line 4: start 3 is not before"),
        ("file,start,end\nb/2.mp4,nan,2\n", r"line 2: start must be seconds"),
        ("file,start,end\nb/2.mp4,2,2\n", r"line 2: start 2 is not before end 2"),
        ("file,label\nb/2.mp4,1\na/x.avi,\n", r"1 of 2 rows have no label \(line 3\)"),
        ("file,label\nb/2.mp4,1\nb/2.mp4,2\n", r"same item twice: b/2\.mp4 .*line 2; .*line 3"),
        ("file,label\nb/2.mp4,1\nb/../b/2.mp4,2\n", r"same item twice"),
        ("file,label\nb/2.mp4,1,3\n", r"line 2: 3 fields, the header has 2"),
        ("file,file\nb/2.mp4,1\n", r"column names repeat"),
        ("file,label\n,1\n", r"line 2: no file in column 'file'"),
        (
            "file,label\nb/9.mp4,1\nb/2.mp4,2\n",
            r"1 files do not exist: .*line 2: .*b/9\.mp4\. Relative paths start at the manifest's folder",
        ),
        ("file,label\n", r"has a header but no rows"),
        ("", r"m\.csv is empty"),
        ('file,label\n"b/2.mp4,1\n', r"not readable as CSV"),
    ],
)
def test_manifest_mistakes(tree: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_table(manifest(tree, text))


def test_other_mistakes(tree: Path) -> None:
    (tree / "latin.csv").write_bytes("file,label\nb/2.mp4,ok\na/x.avi,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv, line 3: not UTF-8 text \(byte 0xe9\)"):
        open_table(tree / "latin.csv")
    with pytest.raises(DataError, match="zero bytes"):
        open_table(manifest(tree, "file\n\0\n"))
    with pytest.raises(DataError, match=r"line 1: not valid JSON"):
        open_table(manifest(tree, "{'path': 1}\n", "m.jsonl"))
    with pytest.raises(DataError, match=r"line 1: must be an object .* found list"):
        open_table(manifest(tree, "[1]\n", "m.jsonl"))
    with pytest.raises(DataError, match="no such file or folder"):
        open_table(tree / "nowhere")
    with pytest.raises(DataError, match=r"unknown kind of file \.foo; known are videos \(.*\.mp4"):
        open_table(manifest(tree, "x", "v.foo"))
    with pytest.raises(DataError, match="no split column"):
        open_table(manifest(tree, "file\nb/2.mp4\n"), split="train")
    with pytest.raises(DataError, match="a single file has no split"):
        open_table(tree / "b/2.mp4", split="train")
    with pytest.raises(DataError, match="no data source"):
        open_table([])
    with pytest.raises(DataError, match=r"exclude = \* leaves no item of 3"):
        open_table(tree, exclude=["*"])
    with pytest.raises(DataError, match=r"label 'b' is not one of the 1 classes"):
        open_table(tree, classes=["a"])


def test_pipes_and_devices_are_refused(tree: Path) -> None:
    os.mkfifo(tree / "b" / "pipe.mp4")
    assert len(open_table(tree)) == 3, "in a folder a pipe is no video"
    for source in (tree / "b/pipe.mp4", manifest(tree, "file\nb/pipe.mp4\n"), Path("/dev/zero")):
        with pytest.raises(DataError, match="pipe, socket or device"):
            open_table(source)


def test_several_sources_get_unique_keys(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "2.mp4").write_bytes(b"y")
    assert list(open_table([tree / "b", other]).keys) == ["b/1.MKV", "b/2.mp4", f"{other.name}/2.mp4"]
    with pytest.raises(DataError, match="same item twice"):
        open_table([tree, tree / "b"], labels="none")
    assert list(open_table([tree / "a", other / "2.mp4"], labels="none").keys) == ["2.mp4", "x.avi"]


def test_links_to_folders_are_followed_once(tree: Path) -> None:
    (tree / "b" / "loop").symlink_to(tree, target_is_directory=True)
    assert len(open_table(tree)) == 3


def test_remote_folder_and_manifest() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("/remote/run/1.mp4", "/remote/sit/2.mp4", "/remote/.x/3.mp4"):
        fs.pipe_file(name, b"x")
    fs.pipe_file("/remote/list.csv", b"file,label\nrun/1.mp4,z\n")
    table = open_table("memory://remote")
    assert (list(table.keys), table.classes) == (["run/1.mp4", "sit/2.mp4"], ("run", "sit"))
    assert table.item(0).path == "memory:///remote/run/1.mp4"
    assert open_table("memory://remote/list.csv").item(0).path == "memory://remote/run/1.mp4"
    with pytest.raises(DataError, match="no such file"):
        open_table("memory://nowhere")
    with pytest.raises(DataError, match="cannot be opened"):
        open_table("nosuchprotocol://x")


def test_fingerprint_tells_tables_apart_but_not_places(tree: Path) -> None:
    a = manifest(tree, "file,label\nb/2.mp4,x\na/x.avi,y\n")
    moved = manifest(tree, "file,label\na/x.avi,y\nb/2.mp4,x\n", "n.csv")
    assert open_table(a).fingerprint() == open_table(moved).fingerprint()
    assert open_table(a).fingerprint() != open_table(manifest(tree, "file,label\nb/2.mp4,y\na/x.avi,x\n", "o.csv")).fingerprint()
    assert open_table(a).fingerprint() != open_table(manifest(tree, "file,label,end\nb/2.mp4,x,3\na/x.avi,y,\n", "p.csv")).fingerprint()


def test_select_and_pickle_keep_the_table(tree: Path) -> None:
    table = open_table(tree)
    part = table.select([2, 0])
    assert (list(part.keys), part.classes, part.labels.tolist()) == (["b/2.mp4", "a/x.avi"], ("a", "b"), [1, 0])
    assert pickle.loads(pickle.dumps(table)).fingerprint() == table.fingerprint()


@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=8), max_size=8))
def test_strings_hold_any_text(values: list[str]) -> None:
    surrogates_ok = [v.encode("utf-8", "ignore").decode() for v in values]
    column = Strings(surrogates_ok)
    assert list(column) == surrogates_ok
    assert [column[-i - 1] for i in range(len(column))] == surrogates_ok[::-1]
    assert list(column[1:]) == surrogates_ok[1:]
    with pytest.raises(IndexError):
        column[len(column)]


def test_many_rows_are_compact_and_quick() -> None:
    rows = [Row(f"/data/videos/part{i % 100}/video_{i:07d}.mp4", f"part{i % 100}/video_{i:07d}.mp4") for i in range(20000)]
    table = Table(rows)
    assert len(pickle.dumps(table)) < 150 * len(rows)
    assert np.array_equal(table.select(range(10)).labels, np.full(10, -1))


def test_a_folder_and_its_manifest_list_the_same_files(tmp_path: Path) -> None:
    for i in range(5000):
        folder = tmp_path / f"c{i % 10}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.mp4").touch()
    manifest(tmp_path, "file\n" + "\n".join(f"c{i % 10}/{i}.mp4" for i in range(5000)))
    found, told = open_table(tmp_path), open_table(tmp_path / "m.csv")
    assert len(found) == 5000
    assert sorted(found.keys) == sorted(told.keys)


def test_real_tables(shared) -> None:
    train = open_table(shared("data/actions/jhmdb/split.csv"), split="train")
    test = open_table(shared("data/actions/jhmdb/split.csv"), split="test")
    assert (len(train), len(test)) == (570, 225)
    assert train.classes == test.classes
    assert len(train.classes) == 21
    assert open_table(shared("data/faces/grid_s1/split.csv"), labels="digit").labels.max() == 9
    with pytest.raises(DataError, match="no column that names the file"):
        open_table(shared("data/long/speaker_sentences.csv"))


def test_a_manifest_inside_a_folder_is_named_where_it_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(b"x")
    (tmp_path / "manifest.csv").write_text("path,label\nclips/a.mp4,x\n")
    assert any("holds manifest.csv, which is not read" in note for note in open_table(tmp_path).notes)
    assert not open_table(tmp_path, labels="none").notes
    assert not open_table(tmp_path / "manifest.csv").notes
