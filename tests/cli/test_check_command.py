"""``tubelet check`` from call to exit code, on small real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

import tubelet
from tubelet.api.checking import Report
from tubelet.data.check import Checked, Remark
from tubelet.data.source import open_table
from tubelet.errors import ConfigError


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two good videos and one that is text."""
    folder = tmp_path / "videos"
    folder.mkdir()
    with av.open(str(folder / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((24, 32, 3), 20 * i, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    shutil.copy(folder / "a.mp4", folder / "b [1].mp4")
    (folder / "c[b]*.mp4").write_text("text\n")
    return folder


def test_bad_files_are_told_written_down_and_left_out(cli, videos: Path, tmp_path: Path):
    got = cli("check", str(videos), "--bad", str(tmp_path / "bad.txt"), "--json", str(tmp_path / "new" / "c.json"), "--frames", "20")
    assert got.code == 1
    assert got.err == ""
    assert "3: 0 fine, 2 with warnings, 1 bad (3 videos)" in got.out
    assert "h264 (2)" in got.out
    assert "32x24 (2)" in got.out
    assert "  c[b]*.mp4: cannot be read: holds text, not a video\n" in got.out
    assert f"pretrain --exclude @{tmp_path / 'bad.txt'}" in got.out
    assert "fewer frames than asked for" in got.out
    assert "files with the same content: a.mp4, b [1].mp4" in got.out
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert lines[0].startswith(f"# tubelet check {videos}: 1 of 3 items are bad")
    assert lines[1:] == ["# cannot be read: holds text, not a video", "c[b]*.mp4"]
    assert list(open_table(videos, exclude=[f"@{tmp_path / 'bad.txt'}"]).keys) == ["a.mp4", "b [1].mp4"]
    told = json.loads((tmp_path / "new" / "c.json").read_text())
    assert (told["n_total"], told["n_warned"], told["n_bad"]) == (3, 2, 1)
    assert told["counts"] == {"unreadable": 1, "few_frames": 2}
    assert [item["status"] for item in told["items"]] == ["warning", "warning", "bad"]
    assert told["items"][0]["frames"] == 12
    assert told["items"][2]["problem"] == {"code": "unreadable", "text": "holds text, not a video"}


def test_good_videos_give_0_and_a_list_that_leaves_nothing_out(cli, videos: Path, tmp_path: Path):
    bad = tmp_path / "bad.txt"
    got = cli("check", str(videos), "--exclude", "c*", "--bad", str(bad), "--workers", "0", "--quiet")
    assert (got.code, got.out, got.err) == (0, "", "")
    assert len(open_table(videos, exclude=[f"@{bad}"])) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "error: nowhere: no such file or folder\n"),
        (["."], "error: . holds no video"),
        (["videos", "--exclude", "@gone.txt"], "error: exclude @gone.txt: no such file; give a file that tubelet check --bad wrote"),
        (["videos", "--json", "videos"], "--json: 'videos' is a folder; give a file\n"),
        (["videos", "--bad", "videos/a.mp4/x.txt"], "--bad: 'videos/a.mp4/x.txt' cannot be written"),
        (["videos", "--frames", "0", "--images", "item", "--timeout", "0"], "did you mean 'items'?"),
    ],
)
def test_where_nothing_was_checked_the_code_is_2(cli, videos: Path, monkeypatch, args: list[str], message: str):
    empty = videos.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty if args == ["."] else videos.parent)
    got = cli("check", *args)
    assert (got.code, got.out) == (2, "")
    assert message in got.err
    assert "Traceback" not in got.err


def test_the_command_passes_on_what_was_asked(cli, public):
    found = Report("v", [Checked("k", "k", "video")])
    recorder = public("check", gives=found)
    call = "check v w --split train --frames 64 --images frames --exclude a* --exclude @b --workers 3 --timeout 5"
    assert cli(*call.split()).code == 0
    (sources,), more = recorder.calls[0]
    assert sources == ["v", "w"]
    assert more.pop("progress") is None
    assert more == {"split": "train", "frames": 64, "images": "frames", "workers": 3, "timeout": 5.0, "exclude": ["a*", "@b"]}


def test_names_that_no_terminal_should_see_are_spelled_out(cli, public):
    key = "a\x1b[31m\n\udcff.mp4"
    public("check", gives=Report("v", [Checked(key, key, "video", Remark("unreadable", "bad"), (Remark("slow", "x"),))]))
    got = cli("check", "v")
    assert got.code == 1
    assert "  a\\x1b[31m\\n\\udcff.mp4: cannot be read: bad" in got.out


def test_many_bad_files_are_summed_up(cli, public):
    public("check", gives=Report("v", [Checked(f"{i}.mp4", "", "video", Remark("unreadable", "text")) for i in range(30)]))
    got = cli("check", "v")
    assert "30 bad:" in got.out
    assert "  ... and 10 more" in got.out
    assert "--bad bad.txt lists them" in got.out


def test_the_function_checks_its_arguments(videos: Path):
    with pytest.raises(ConfigError) as caught:
        tubelet.check(videos, frames=0, workers=-1, timeout=float("nan"), images="item")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4


def test_the_report_reads_as_text(videos: Path):
    report = tubelet.check([videos], workers=1, timeout=600)
    assert (report.n_total, report.n_bad, report.workers, report.duplicates) == (3, 1, 1, [["a.mp4", "b [1].mp4"]])
    lines = str(report).splitlines()
    assert lines[0].split(maxsplit=1) == ["items", "3: 2 fine, 0 with warnings, 1 bad (3 videos)"]
    assert lines[-1] == "c[b]*.mp4: holds text, not a video"
    assert dict(report.overview())["duration"] == "2.4 s in all; shortest 1.2 s, median 1.2 s, longest 1.2 s"


def test_a_dash_prints_the_json_and_nothing_else(cli, videos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = cli("check", str(videos), "--json", "-")
    assert json.loads(got.out)["n_total"] == len(json.loads(got.out)["items"]) > 0
    assert not (tmp_path / "-").exists()
