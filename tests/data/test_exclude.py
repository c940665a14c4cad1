"""What a source leaves out: patterns, and lists of keys that are taken letter by letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data.exclude import list_keys, read_keys
from tubelet.data.faults import BadVideos, Fault
from tubelet.data.source import open_table
from tubelet.errors import DataError

NAMES = ("a/1.mp4", "a/2.mp4", "a/[12].mp4", "b/*.mp4", "b/3.mp4", "#4.mp4", ' "5".mp4')


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"x")
    return tmp_path


def keys(tree: Path, *exclude: str) -> set[str]:
    return set(open_table(tree / "videos", labels="none", exclude=exclude).keys)


def test_listed_keys_are_left_out_letter_by_letter_beside_patterns(tree: Path) -> None:
    (tree / "bad.txt").write_text("# why\na/[12].mp4\n\n# more\r\nb/*.mp4  \r\n", encoding="utf-8")
    at = f"@{tree / 'bad.txt'}"
    assert keys(tree, at) == set(NAMES) - {"a/[12].mp4", "b/*.mp4"}
    assert keys(tree, at, "a/*") == set(NAMES) - {"a/1.mp4", "a/2.mp4", "a/[12].mp4", "b/*.mp4"}
    assert keys(tree, "b/*.mp4") == set(NAMES) - {"b/*.mp4", "b/3.mp4"}, "a pattern goes on to be one"


def test_what_is_written_is_what_is_left_out(tree: Path) -> None:
    for name in NAMES:
        (tree / "one.txt").write_text(list_keys([(name, "a reason\nof two lines")], "head"), encoding="utf-8")
        assert keys(tree, f"@{tree / 'one.txt'}") == set(NAMES) - {name}


@given(st.lists(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=8), max_size=5))
def test_any_key_survives_the_file(tmp_path_factory, names: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(list_keys([(name, "why") for name in names], "head"), encoding="utf-8")
    assert read_keys(str(path)) == frozenset(names)


def test_a_list_without_keys_leaves_nothing_out(tree: Path) -> None:
    (tree / "none.txt").write_text(list_keys([], "nothing is bad"), encoding="utf-8")
    table = open_table(tree / "videos", labels="none", exclude=[f"@{tree / 'none.txt'}"])
    assert len(table) == len(NAMES)
    assert "it names no item" in table.notes[-1]


def test_the_bad_videos_of_a_run_are_accepted(tree: Path) -> None:
    file = tree / "run" / "bad_videos.jsonl"
    bad = BadVideos(file, max_rate=1.0)
    bad.add(2, [Fault(0, "a/[12].mp4", "x", "broken", 0, True), Fault(1, "#4.mp4", "y", "broken", 1, True)])
    assert keys(tree, f"@{file}") == set(NAMES) - {"a/[12].mp4", "#4.mp4"}
    with file.open("a") as out:
        out.write('{"path": "z", "key": "b/3.')  # as a run leaves it that is killed here
    assert keys(tree, f"@{file}") == set(NAMES) - {"a/[12].mp4", "#4.mp4"}


def test_keys_that_name_nothing_are_told(tree: Path) -> None:
    (tree / "bad.txt").write_text("\n".join(["a/1.mp4", "gone.mp4", "videos/a/2.mp4", "x", "y"]), encoding="utf-8")
    table = open_table(tree / "videos", labels="none", exclude=[f"@{tree / 'bad.txt'}"])
    assert len(table) == len(NAMES) - 1
    assert f"exclude @{tree / 'bad.txt'}: 4 of its 5 keys name no item here: gone.mp4, videos/a/2.mp4, x, ..." in table.notes


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("gone.txt", None, r"exclude @.*gone\.txt: no such file; give a file that tubelet check --bad wrote"),
        ("empty.txt", b"", r"exclude @.*empty\.txt: the file is empty"),
        ("blank.txt", b"\n  \n", r"the file is empty"),
        ("latin.txt", b"caf\xe9.mp4\n", r"not UTF-8 text"),
        ("quote.txt", b'a.mp4\n"b\n', r"quote\.txt, line 2: a line that begins with a quote must be a JSON string"),
        ("no.jsonl", b'{"path": "a"}\n', r"no\.jsonl, line 1: must be an object with a key"),
        ("list.jsonl", b'[1]\n{"key": "a"}\n', r"list\.jsonl, line 1: must be"),
        ("number.jsonl", json.dumps({"key": 3}).encode(), r"number\.jsonl, line 1: must be"),
    ],
)
def test_files_that_cannot_be_used(tree: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tree / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_table(tree / "videos", exclude=[f"@{tree / name}"])
    with pytest.raises(DataError, match="Is a directory"):
        open_table(tree / "videos", exclude=[f"@{tree}"])


def test_everything_listed_is_an_error(tree: Path) -> None:
    (tree / "all.txt").write_text(list_keys([(name, "") for name in NAMES], "all"), encoding="utf-8")
    with pytest.raises(DataError, match=r"exclude = @.*all\.txt leaves no item of 7"):
        open_table(tree / "videos", labels="none", exclude=[f"@{tree / 'all.txt'}"])


def test_missing_files_of_a_manifest_can_be_left_out(tree: Path) -> None:
    (tree / "m.csv").write_text("path\nvideos/a/1.mp4\nvideos/lost.mp4\n")
    with pytest.raises(DataError, match=r"1 files do not exist: .*line 3"):
        open_table(tree / "m.csv")
    (tree / "bad.txt").write_text("videos/lost.mp4\n")
    for exclude in (f"@{tree / 'bad.txt'}", "*lost*"):
        assert list(open_table(tree / "m.csv", exclude=[exclude]).keys) == ["videos/a/1.mp4"]
    assert len(open_table(tree / "m.csv", missing="keep")) == 2
