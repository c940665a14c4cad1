"""Key frames: which, in which size, and what happens where there are none."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tubelet.data.keyframes import SHORT_SIDE, key_frames, read_key_frames
from tubelet.data.source import open_table
from tubelet.errors import DataError


def test_frames_are_the_middles_of_equal_parts() -> None:
    assert key_frames(30, 3).tolist() == [5, 15, 25]
    assert key_frames(8, 3).tolist() == [1, 4, 6]
    assert key_frames(2, 3).tolist() == [0, 1]
    assert key_frames(1, 3).tolist() == [0]
    assert key_frames(7, 1).tolist() == [3]


@pytest.mark.parametrize("workers", [0, 2])
def test_large_frames_are_shrunk_and_broken_files_named(tmp_path: Path, workers: int) -> None:
    for name, h, w in (("large.mp4", 800, 1200), ("small.mp4", 32, 48)):
        with av.open(str(tmp_path / name), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
            for i in range(4):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((h, w, 3), 40 * i, np.uint8), format="rgb24")))
            out.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("text")
    found = dict(read_key_frames(open_table(tmp_path), range(3), count=2, workers=workers))
    large, small, text = found[0], found[1], found[2]
    assert isinstance(text, str)
    assert text.endswith("text.mp4: holds text, not a video")
    assert [p.shape for p in large] == [(SHORT_SIDE, 1152, 3)] * 2
    assert [p.shape for p in small] == [(32, 48, 3)] * 2
    for pictures in (large, small):
        assert all(isinstance(p, np.ndarray) and p.dtype == np.uint8 and p.flags.c_contiguous and p.flags.writeable for p in pictures)
        assert [float(p.mean()) for p in pictures if isinstance(p, np.ndarray)] == pytest.approx([40, 120], abs=2)


def test_keys_of_a_manifest_name_its_items_each_one_otherwise(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "m.csv").write_text("path,key\na.mp4,first\nb.mp4,\n")
    assert list(open_table(tmp_path / "m.csv").keys) == ["b.mp4", "first"]
    (tmp_path / "m.csv").write_text("path,key,split\na.mp4,same,train\nb.mp4,same,test\n")
    with pytest.raises(DataError, match=r"m\.csv, line 3: the key 'same' is that of .*m\.csv, line 2 already"):
        open_table(tmp_path / "m.csv")
    assert len(open_table(tmp_path / "m.csv", split="test")) == 1
