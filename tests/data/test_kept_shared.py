"""Several training processes on a machine have one memory cache together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory without a name")

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from tubelet.data import cache
from tubelet.data.loader import VideoFeed
from tubelet.data.settings import DataSettings
from tubelet.data.source import open_table
from tubelet.errors import TubeletError
from tubelet.train.distributed import process_group

source, out, mode = sys.argv[1:]
if mode == "small":
    cache.free_bytes = lambda device: 1000
decoded, decode = [], cache._Decode.__getitems__
cache._Decode.__getitems__ = lambda self, numbers: (decoded.extend(numbers), decode(self, numbers))[1]
settings = DataSettings(frames=4, stride=2, size=32, workers=0, decoder="pyav", cache="memory", max_bad_rate=0.9)
found = {}
with process_group(torch.device("cpu")) as ranks:
    try:
        feed = VideoFeed(open_table(source), settings, seed=5)
        found["kind"] = type(feed._cache).__name__
        feed.workers = 1  # decoding processes look at the same pages
        (batch,) = feed.batches([range(16)])
        found["pixels"] = hashlib.sha256(batch.stream("video").data.contiguous().numpy().tobytes()).hexdigest()
        links = [os.readlink(f.path) for f in os.scandir("/proc/self/fd") if os.path.islink(f.path)]
        found["open"] = sum("memfd" in link for link in links)
        feed.close()
    except TubeletError as error:
        found["error"] = str(error)
    found["decoded"] = len(decoded)
    Path(f"{out}.{ranks.rank}").write_text(json.dumps(found))
    ranks.together(lambda: None)
"""  # fmt: skip


def run(tmp_path: Path, source: Path, mode: str, processes: int) -> list[dict]:
    script, out = tmp_path / "script.py", tmp_path / f"{mode}{processes}"
    script.write_text(SCRIPT)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    args = [*launcher, str(script), str(source), str(out), mode]
    running = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        said, _ = running.communicate(timeout=120)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)  # torchrun's processes too
    assert running.returncode == 0, said
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]


def test_one_process_decodes_and_all_cut_the_same_clips(numbered_set: Path, tmp_path: Path) -> None:
    (numbered_set / "broken.mp4").write_bytes(b"hello")
    try:
        (alone,) = run(tmp_path, numbered_set, "plain", 1)
        two = run(tmp_path, numbered_set, "plain", 2)
    finally:
        (numbered_set / "broken.mp4").unlink()
    assert (alone["kind"], alone["decoded"]) == ("MemoryCache", 9)
    assert [x["kind"] for x in two] == ["SharedCache"] * 2
    assert [x["decoded"] for x in two] == [9, 0]
    assert [x["pixels"] for x in two] == [alone["pixels"]] * 2
    assert [x["open"] for x in two] == [0, 0], "what is mapped needs no open file"


@pytest.mark.slow
def test_what_does_not_fit_ends_all_with_the_same_words(numbered_set: Path, tmp_path: Path) -> None:
    one, other = run(tmp_path, numbered_set, "small", 2)
    assert one["error"] == other["error"]
    assert "data.cache = memory: 0.00 GiB of frames do not fit" in one["error"]
