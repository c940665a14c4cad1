"""A folder of clips: ``clips/*.mp4``, ``truth/*.npz``, ``manifest.csv``. A killed run goes on where it stopped."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from tubelet.config import config_class, did_you_mean, differences, kinds, parse
from tubelet.errors import ConfigError, DataError
from tubelet.playground._scene import Clip, Scene, SceneSettings
from tubelet.playground._sound import RATE
from tubelet.playground.verify import verify_clip

_FAMILY = "tubelet.playground"
MARKER = "playground.json"
_FORMAT = 2  # of the folder and of what is drawn: raise it when clips of a seed change
_COLUMNS = ("path", "label", "caption", "start", "end", "split", "scene", "seed", "index", "truth")
# mbtree=0: with it x264 (AVX-512) gives files that differ by chance from run to run, measured on frames of 48 and 64 pixels.
_TUNING = {
    "preset": "veryfast",
    "crf": "18",
    "threads": "1",
    "x264-params": "threads=1:lookahead-threads=1:keyint=24:mbtree=0:log-level=none",
}


def scene_settings(scene: str | SceneSettings = "full", **settings: Any) -> SceneSettings:
    """Checked settings of a kind of scene; a setting that is None keeps its default. Raises ConfigError listing all mistakes."""
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(scene, SceneSettings):
        return parse(type(scene), {**scene.model_dump(), **given}, "playground") if given else scene
    known = scene_kinds()
    if scene not in known:
        problems = [f"unknown scene {scene!r}{did_you_mean(scene, known)}; there are {', '.join(known)}"]
        try:
            parse(config_class(_FAMILY, "full"), given)
        except ConfigError as error:
            problems += error.problems
        raise ConfigError(problems, where="playground")
    cls = config_class(_FAMILY, scene)
    assert issubclass(cls, SceneSettings)
    return parse(cls, given, "playground")


def scene_kinds() -> list[str]:
    """The kinds of scene: modules of this package with settings of a scene, and the user's own files."""
    return [kind for kind in kinds(_FAMILY) if kind != "verify" and issubclass(config_class(_FAMILY, kind), SceneSettings)]


def write(
    out: str | Path, *, clips: int, seed: int = 0, scene: str | SceneSettings = "full", verify: bool = False, overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Render clips 0 .. ``clips`` - 1 of a seed into the folder ``out``; returns its ``manifest.csv``.

    settings: size, frames, fps, motions and what else the scene's ``Config`` has; None keeps the default. verify: check every clip's masks
    and flow against its pixels. overwrite: clear a playground of other settings first. progress: called with (clips done, clips in all).

    A folder that holds a playground of the same seed and settings is continued, also with a larger ``clips``: what is there stays.
    Raises ConfigError for wrong settings; DataError for a folder that holds other things, other settings or more clips, for a full disk
    (clips written so far stay), and for a clip that fails its check.
    """
    config = scene_settings(scene, **settings)
    if clips < 1:
        raise ConfigError(f"clips must be at least 1, got {clips}", where="playground")
    out = Path(out)
    world = config.build()
    with _disk(out):
        _claim(out, config, world.kind, seed, clips, overwrite)
        rows = []
        for index in range(clips):
            row = _kept(out, world, seed, index)
            if row is None:
                clip = world.render(seed, index)
                if verify:
                    verify_clip(clip).require(f"{out}, clip {index}")
                row = _store(out, clip)
            rows.append(row)
            if progress is not None:
                progress(index + 1, clips)
        table = io.StringIO()
        writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return _atomic(out / "manifest.csv", table.getvalue().encode(), durable=True)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Errors of the file system in words."""
    try:
        yield
    except FFmpegError:
        raise  # an OSError too, but encoding is done in memory: not the disk's fault
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space" if full else f"{error.strerror or error}; make it writable"
        raise DataError(f"{error.filename or out}: cannot write: {what} and run the same command again, finished clips are kept") from error


def _claim(out: Path, config: SceneSettings, kind: str, seed: int, clips: int, overwrite: bool) -> None:
    """Make the folder ours: new or empty, or a playground of the same settings."""
    mine = {"format": _FORMAT, "seed": seed, "scene": {**config.model_dump(mode="json"), "kind": kind}}
    marker = out / MARKER
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder for the playground")
    strangers = [path.name for path in out.iterdir() if path.name != f".{MARKER}.part"] if out.is_dir() else []
    if strangers and not marker.exists():
        raise DataError(f"{out} holds files that are no playground's ({strangers[0]}, but no {MARKER}); name a new or empty folder")
    if marker.exists():
        try:
            theirs = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            theirs = {}
        changed = differences(theirs if isinstance(theirs, dict) else {}, mine)
        more = _count(out) > clips
        if overwrite and (changed or more):
            for part in ("clips", "truth"):
                shutil.rmtree(out / part, ignore_errors=True)
            (out / "manifest.csv").unlink(missing_ok=True)
        elif changed:
            listed = ", ".join(f"{path} {old!r}, asked {new!r}" for path, old, new in changed)
            raise DataError(f"{out} holds a playground of other settings ({listed}); name another folder or overwrite it")
        elif more:
            raise DataError(f"{out} holds more than {clips} clips of this playground; ask for at least as many, or overwrite it")
    out.mkdir(parents=True, exist_ok=True)
    _atomic(marker, (json.dumps(mine, indent=1) + "\n").encode(), durable=True)
    for part in ("clips", "truth"):
        (out / part).mkdir(exist_ok=True)


def _count(out: Path) -> int:
    """One more than the highest clip number there is."""
    return max((int(path.stem) + 1 for path in (out / "clips").glob("*.mp4") if path.stem.isdecimal()), default=0)


def _row(clip_index: int, *, label: str, caption: str, split: str, scene: str, seed: int) -> dict[str, Any]:
    name = f"{clip_index:06d}"
    return {
        "path": f"clips/{name}.mp4", "label": label, "caption": caption, "start": "", "end": "", "split": split, "scene": scene,
        "seed": seed, "index": clip_index, "truth": f"truth/{name}.npz",
    }  # fmt: skip


def _kept(out: Path, world: Scene, seed: int, index: int) -> dict[str, Any] | None:
    """The row of a clip that an earlier run finished. The video is renamed last, so where it is, all is."""
    name = f"{index:06d}"
    video = out / "clips" / f"{name}.mp4"
    try:
        if video.stat().st_size == 0:
            return None
        with np.load(out / "truth" / f"{name}.npz") as truth:
            label, caption = str(truth["motion"]), str(truth["caption"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return _row(index, label=label, caption=caption, split=world.split(index), scene=world.kind, seed=seed)


def _store(out: Path, clip: Clip) -> dict[str, Any]:
    row = _row(clip.index, label=clip.motion, caption=clip.caption, split=clip.split, scene=clip.scene, seed=clip.seed)
    _atomic(out / row["truth"], pack(truth_arrays(clip)))
    _atomic(out / row["path"], encode(clip))
    return row


def _atomic(path: Path, data: bytes, *, durable: bool = False) -> Path:
    """All of the file or nothing of it; ``durable`` waits for the disk, which clips, that can be drawn again, need not."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return path


def truth_arrays(clip: Clip) -> dict[str, NDArray[Any]]:
    """What ``truth/*.npz`` holds; flow is float16 (to 1/256 pixel up to 8 pixels a frame)."""
    return {
        "masks": clip.masks,
        "flow": clip.flow.astype(np.float16),
        "valid": clip.valid,
        "tracks": clip.tracks,
        "objects": np.array([[thing.size, thing.texture, thing.colour, thing.shape, thing.motion] for thing in clip.objects]),
        "event_second": np.array([event.second for event in clip.events], np.float64),
        "event_kind": np.array([event.kind for event in clip.events], "U8"),
        "event_object": np.array([event.object for event in clip.events], np.int64),
        "motion": np.array(clip.motion),
        "caption": np.array(clip.caption),
        "fps": np.array(clip.fps),
    }


def pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    """An .npz as numpy reads it, the same bytes for the same arrays; compressed lightly, which is 5 times faster and hardly larger."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue(), compresslevel=1)
    return buffer.getvalue()


def encode(clip: Clip) -> bytes:
    """An mp4 file: H.264 in yuv420p on one thread, AAC mono at AUDIO_RATE."""
    buffer = io.BytesIO()
    rate = Fraction(clip.fps).limit_denominator(1001)
    with av.open(buffer, "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=rate, options=_TUNING)
        video.height, video.width = clip.frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = file.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 48_000
        for t, picture in enumerate(clip.frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = t, 1 / rate
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(clip.audio[None], format="fltp", layout="mono")
        sound.rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        file.mux(audio.encode(sound))
        file.mux(audio.encode(None))
    return buffer.getvalue()
