"""``tubelet caption`` from call to exit code."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

import tubelet
from tubelet.api.captioning import Captioned
from tubelet.core import Frozen
from tubelet.data.source import open_table
from tubelet.errors import CheckpointError

DONE = Captioned(
    {"a.mp4": ("a dog", "a cat"), "b\x1b[1m.mp4": ("a \n",), "c.mp4": ()}, (("d.mp4", "holds text"),), 4, 2, 6, 3.0, Path("c.csv")
)


def test_options_reach_the_function(cli, public):
    recorder = public("caption", gives=DONE)
    call = "caption v w --model blip --out c.csv --frames 5 --batch 2 --prompt of --max-tokens 9 --split train --exclude a* --exclude @b"
    got = cli(*call.split(), "--workers", "3", "--device", "cpu", "--overwrite")
    ((sources,), asked) = recorder.calls[0]
    assert sources == ["v", "w"]
    assert asked.pop("progress") is None
    assert asked == {
        "model": "blip", "out": "c.csv", "frames": 5, "batch": 2, "prompt": "of", "max_tokens": 9, "split": "train",
        "exclude": ["a*", "@b"], "workers": 3, "device": "cpu", "overwrite": True,
    }  # fmt: skip
    assert got.code == 0
    assert got.out == (
        "3 / 4 videos captioned, 1 of them without words; 2 in this call, 2.00 captions a second\n"
        '  a.mp4: "a dog"\n  b\\x1b[1m.mp4: "a \\n"\n-> c.csv\n'
    )
    assert got.err == "1 of 4 videos could not be read:\n  d.mp4: holds text\n"


def test_defaults_are_those_of_the_paper(cli, public):
    recorder = public("caption", gives=DONE)
    assert cli("caption", "v", "--model", "m", "--out", "c.csv", "--quiet").out == ""
    asked = recorder.calls[0][1]
    assert (asked["frames"], asked["batch"], asked["prompt"], asked["max_tokens"], asked["workers"]) == (3, 8, None, 30, "auto")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A video and a text that is called one."""
    folder = tmp_path / "videos"
    folder.mkdir()
    with av.open(str(folder / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((24, 32, 3), 20 * i, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    (folder / "b.mp4").write_text("text\n")
    return folder


def test_a_manifest_is_written_and_what_is_wrong_told(cli, clips: Path, tmp_path: Path, monkeypatch):
    def opened(folder, *, device, prompt, max_tokens):
        assert (str(folder), str(device), prompt, max_tokens) == ("m", "cpu", "of", 30)
        return Frozen(lambda pictures: [f"step {p.mean() / 20:.0f}" for p in pictures], path="m", sha256="0")

    monkeypatch.setattr("tubelet.api.captioning.open_captioner", opened)
    (clips / "c.png").touch()
    out = tmp_path / "c.csv"
    got = cli("caption", str(clips), "--model", "m", "--out", str(out), "--device", "cpu", "--prompt", "of")
    assert got.code == 0
    assert got.out.startswith("1 / 2 videos captioned; ")
    assert got.out.endswith(f'  a.mp4: "step 2"\n-> {out}\n')
    assert got.err.splitlines() == [
        f"{clips}: 1 pictures left out (images = ignore)",
        "1 of 2 videos could not be read:",
        f"  b.mp4: {clips}/b.mp4: holds text, not a video",
    ]
    assert list(open_table(out).extra["caption"]) == ['["step 2", "step 6", "step 10"]', ""]
    again = cli("caption", str(clips), "--model", "m", "--out", str(out), "--device", "cpu")
    assert (again.code, again.out) == (2, "")
    assert again.err == f"error: --out {out} exists; give another name, or --overwrite\n"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nowhere", "--model", "m", "--out", "c.csv"], 1, "error: nowhere: no such file or folder\n"),
        (
            ["videos", "--model", "org/name", "--out", "c.csv", "--device", "cpu"],
            1,
            "error: org/name: no such folder of a captioner; nothing is",
        ),
        (["videos", "--model", "m", "--out", "c.json"], 2, "error: --out c.json: captions are written as a manifest, a .csv\n"),
        (["videos", "--model", "m", "--out", "videos"], 2, "error: --out videos is a folder; give a file such as videos/captioned.csv\n"),
        (
            ["videos", "--model", "m", "--out", "videos/a.mp4/c.csv"],
            2,
            "error: --out videos/a.mp4/c.csv cannot be written: no permission in",
        ),
        (["videos", "--modle", "m", "--out", "c.csv", "--frames", "0"], 2, "--modle: unknown option (did you mean '--model'?)"),
        (["videos", "--out", "c.csv"], 2, "--model: must be given (folder of an image captioner of transformers)"),
    ],
)
def test_mistakes_end_in_one_message_and_leave_nothing(cli, clips: Path, monkeypatch, args: list[str], code: int, message: str):
    monkeypatch.chdir(clips.parent)
    got = cli("caption", *args)
    assert (got.code, got.out) == (code, "")
    assert message in got.err
    assert "Traceback" not in got.err
    assert sorted(p.name for p in clips.parent.iterdir()) == ["videos"]


def test_a_damaged_model_is_exit_code_1(cli, public):
    public("caption", gives=CheckpointError("m: no captioner"))
    assert cli("caption", "v", "--model", "m", "--out", "c.csv").code == 1


def test_the_function_is_public():
    assert "caption" in tubelet.__all__
    assert tubelet.caption.__module__ == "tubelet.api.captioning"
