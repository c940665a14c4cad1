"""The folder: real files that decode, sound at the events, continued after a kill, never another's files touched."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import av
import numpy as np
import pytest

import tubelet.playground as pg
from tubelet.errors import ConfigError, DataError
from tubelet.playground import _write

SMALL = {"scene": "full", "seed": 5, "size": 48, "frames": 8}


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 and sound (samples,) float of a video file, each from second 0."""
    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    with av.open(str(path)) as file:
        pieces = [(frame.pts * frame.time_base, frame.to_ndarray()[0], frame.rate) for frame in file.decode(audio=0)]
    out = np.zeros(round(float(pieces[-1][0]) * pieces[0][2]) + len(pieces[-1][1]))
    for at, samples, rate in pieces:
        assert rate == pg.AUDIO_RATE
        start = round(float(at) * rate)
        out[max(start, 0) : max(start + len(samples), 0)] = samples[max(-start, 0) :]
    return frames, out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("playground") / "new" / "folder"
    seen = []
    manifest = pg.write(out, clips=4, verify=True, progress=lambda done, total: seen.append((done, total)), **SMALL)
    assert manifest == out / "manifest.csv"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return out


def test_manifest_and_files_say_the_same_as_the_clips(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["path", "label", "caption", "start", "end"]
    world = pg.build("full", size=48, frames=8)
    for index, row in enumerate(rows):
        clip = world.render(5, index)
        assert (row["label"], row["caption"], row["split"], int(row["index"])) == (clip.motion, clip.caption, "train", index)
        frames, _ = decode(folder / row["path"])
        assert frames.shape == clip.frames.shape
        assert np.abs(frames.astype(int) - clip.frames).mean() < 6
        with np.load(folder / row["truth"]) as truth:
            np.testing.assert_array_equal(truth["masks"], clip.masks)
            np.testing.assert_array_equal(truth["valid"], clip.valid)
            np.testing.assert_allclose(truth["flow"], clip.flow, atol=1 / 128)
            np.testing.assert_array_equal(truth["event_second"], [event.second for event in clip.events])
            assert truth["objects"].tolist() == [[o.size, o.texture, o.colour, o.shape, o.motion] for o in clip.objects]


def test_rate_and_length(folder, tmp_path):
    with av.open(str(folder / "clips/000000.mp4")) as file:
        stream = file.streams.video[0]
        assert (float(stream.average_rate), stream.frames, stream.codec_context.name) == (24, 8, "h264")
        assert file.streams.audio[0].codec_context.name == "aac"
    pg.write(tmp_path, clips=1, scene="easy", fps=29.97)
    with av.open(str(tmp_path / "clips/000000.mp4")) as file:
        assert abs(float(file.streams.video[0].average_rate) - 29.97) < 0.001


def test_writing_again_gives_the_same_bytes_for_any_number_of_clips(folder, tmp_path):
    pg.write(tmp_path, clips=2, **SMALL)
    first, second = files(folder), files(tmp_path)
    for name in second.keys() - {"manifest.csv"}:
        assert second[name] == first[name], name


def test_sound_begins_at_the_events_and_is_silent_without(tmp_path):
    world = pg.build("full", size=32, frames=48, objects=1)
    checked = silent = 0
    for index in range(60):
        clip = world.render(8, index)
        if clip.events and clip.motion not in ("side_to_side", "hop", "stop_and_go", "grow"):
            continue
        if not clip.events and silent > 3:
            continue
        path = tmp_path / f"{index}.mp4"
        path.write_bytes(_write.encode(clip))
        _, sound = decode(path)
        assert abs(len(sound) / pg.AUDIO_RATE - 2.0) < 0.15
        if not clip.events:
            silent += 1
            assert np.abs(sound).max() < 1e-3
        times = [event.second for event in clip.events]
        for before, at in zip([-1.0, *times], times, strict=False):
            if at - before < 0.2 or at > 1.9:
                continue
            start, stop = (round(max(t, 0) * pg.AUDIO_RATE) for t in (at - 0.08, at + 0.08))
            loud = np.abs(sound[start:stop])
            onset = start + int((loud > 0.2 * loud.max()).argmax())
            assert loud.max() > 0.05
            assert abs(onset / pg.AUDIO_RATE - at) < 0.03
            checked += 1
    assert checked > 15
    assert silent > 2


def test_larger_objects_sound_lower():
    from tubelet.playground._sound import tone

    def hertz(size: float) -> float:
        wave = tone("cross", size=size, shape=0, gain=1.0)
        return float(np.abs(np.fft.rfft(wave, 16000)).argmax())

    assert abs(hertz(0.2) - 525) < 15
    assert hertz(0.06) > 1600


def test_a_killed_run_is_continued(folder, tmp_path):
    class KilledError(Exception):
        pass

    def kill(done: int, _: int) -> None:
        if done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        pg.write(tmp_path, clips=4, progress=kill, **SMALL)
    assert not (tmp_path / "manifest.csv").exists()
    # What a kill in the middle of a clip leaves: a half temporary file and a truth without its video.
    (tmp_path / "clips" / ".000002.mp4.part").write_bytes(b"half")
    (tmp_path / "truth" / "000002.npz").write_bytes(b"half")
    kept = (tmp_path / "clips/000000.mp4").stat().st_mtime_ns
    pg.write(tmp_path, clips=4, **SMALL)
    assert (tmp_path / "clips/000000.mp4").stat().st_mtime_ns == kept
    assert files(tmp_path) == files(folder)


def test_more_clips_extend_and_damaged_ones_are_drawn_again(folder, tmp_path):
    pg.write(tmp_path, clips=2, **SMALL)
    (tmp_path / "truth/000001.npz").write_bytes(b"damaged")
    (tmp_path / "clips/000000.mp4").write_bytes(b"")
    pg.write(tmp_path, clips=4, **SMALL)
    assert files(tmp_path) == files(folder)


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"thesis\.txt"):
            pg.write(tmp_path, clips=1, overwrite=overwrite, **SMALL)
    assert files(tmp_path) == {"thesis.txt": b"mine"}
    with pytest.raises(DataError, match="is a file"):
        pg.write(tmp_path / "thesis.txt", clips=1, **SMALL)


def test_other_settings_and_fewer_clips_are_refused_unless_overwritten(tmp_path):
    pg.write(tmp_path, clips=2, **SMALL)
    before = files(tmp_path)
    with pytest.raises(DataError, match="seed 5, asked 6"):
        pg.write(tmp_path, clips=2, **{**SMALL, "seed": 6})
    with pytest.raises(DataError, match=r"scene\.frames 8, asked 6"):
        pg.write(tmp_path, clips=2, **{**SMALL, "frames": 6})
    with pytest.raises(DataError, match="more than 1 clips"):
        pg.write(tmp_path, clips=1, **SMALL)
    assert files(tmp_path) == before
    pg.write(tmp_path, clips=1, overwrite=True, **{**SMALL, "seed": 6})
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["000000.mp4"]
    assert json.loads((tmp_path / "playground.json").read_text())["seed"] == 6


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied")])
def test_a_full_or_forbidden_disk_is_said_and_finished_clips_stay(tmp_path, monkeypatch, code, words):
    write_bytes = _write._atomic

    def fail(path, data, **kwargs):
        if path.name == "000001.mp4":
            raise OSError(code, "Permission denied" if code == errno.EACCES else "No space left on device", str(path))
        return write_bytes(path, data, **kwargs)

    monkeypatch.setattr(_write, "_atomic", fail)
    with pytest.raises(DataError, match=words):
        pg.write(tmp_path, clips=3, **SMALL)
    monkeypatch.undo()
    assert (tmp_path / "clips/000000.mp4").exists()
    pg.write(tmp_path, clips=3, **SMALL)


def test_a_full_device_leaves_no_half_file(tmp_path):
    """A real device without space."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not on this system")
    (tmp_path / ".clip.mp4.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        _write._atomic(tmp_path / "clip.mp4", b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_wrong_counts_and_a_clip_that_fails_its_check(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="clips"):
        pg.write(tmp_path, clips=0, **SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tubelet.playground.verify.MASK_IOU", 1.1)
    with pytest.raises(DataError, match="clip 0: the truth does not agree"):
        pg.write(tmp_path, clips=1, verify=True, **SMALL)


@pytest.mark.parametrize("size", [16, "16x64", 2048])
def test_smallest_and_largest_frames_encode(tmp_path, size):
    pg.write(tmp_path, clips=1, scene="easy", size=size, frames=2)
    frames, _ = decode(tmp_path / "clips/000000.mp4")
    assert frames.shape[:2] == (2, 2048 if size == 2048 else 16)
