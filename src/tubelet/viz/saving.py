"""Pictures and animations into files: whole or not at all, and never over what is there unless asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tubelet.config import did_you_mean
from tubelet.errors import ConfigError
from tubelet.train.checkpoint import atomic
from tubelet.viz import _text as text

ENDINGS = (".png", ".gif", ".mp4")
GIF_PIXELS = 2**27  # of all frames together: they are held in memory to find one palette
CLOCK = 90_000  # ticks a second in an mp4
Timed = tuple[Image.Image, float]


def writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, once it is sure that a picture can be written there. Raises ConfigError for another ending than .png, .gif or .mp4, a
    folder, or a file that is there already."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; give a file such as {path / 'picture.png'}")
    if path.suffix not in ENDINGS:
        wrong = f"unknown ending {path.suffix!r}{did_you_mean(path.suffix, ENDINGS)}" if path.suffix else "no ending"
        raise ConfigError(f"--out {path}: {wrong}; there are {', '.join(ENDINGS)}")
    if path.exists() and not overwrite:
        raise ConfigError(f"--out {path} exists already; add --overwrite to replace it, or choose another name")
    return path


def save_picture(path: str | Path, image: Image.Image, *, overwrite: bool = False) -> Path:
    """Write a .png. Raises ConfigError as :func:`writable`."""
    path = writable(path, overwrite=overwrite)
    with atomic(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def save_animation(path: str | Path, frames: Iterable[Timed], *, overwrite: bool = False) -> Path:
    """Write (picture, seconds that it stays) as .mp4 (H.264, yuv420p) or .gif (for ever). All pictures have one size.

    An mp4 takes frames one by one, so it may be long; a gif is held in memory and limited to GIF_PIXELS. Raises ConfigError as
    :func:`writable`, for .png, for a gif that is too large, and where there are no frames.
    """
    path = writable(path, overwrite=overwrite)
    if path.suffix == ".png":
        raise ConfigError(f"--out {path}: a .png does not move; there are .gif and .mp4")
    queue = iter(frames)
    first = next(queue, None)
    if first is None:
        raise ConfigError(f"--out {path}: an animation needs at least one frame")
    with atomic(path) as temporary:
        (_gif if path.suffix == ".gif" else _mp4)(temporary, chain([first], queue))
    return path


def _mp4(path: Path, frames: Iterator[Timed]) -> None:
    """Each frame has the time stamp that its seconds give. Sides are made even by repeating the last row or column."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(25), options={"crf": "16", "preset": "veryfast", "bf": "0"})
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, CLOCK)
        stream.codec_context.time_base = Fraction(1, CLOCK)
        clock, size = 0.0, None
        lasts: dict[int | None, int] = {}  # ticks of frames that the encoder still holds, by time stamp

        def mux(packets: list[av.Packet]) -> None:
            for packet in packets:
                packet.duration = lasts.pop(packet.pts)  # the encoder knows the rate only, which would cut the last frame short
                file.mux(packet)

        for image, seconds in frames:
            rgb = np.asarray(image.convert("RGB"))
            rgb = np.pad(rgb, ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)), mode="edge")
            if size is None:
                size = rgb.shape
                stream.height, stream.width = size[:2]
            assert rgb.shape == size, "frames of one size"
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = round(clock * CLOCK), Fraction(1, CLOCK)
            clock += seconds
            lasts[frame.pts] = round(clock * CLOCK) - frame.pts
            mux(stream.encode(frame))
        mux(stream.encode(None))


def _gif(path: Path, frames: Iterator[Timed]) -> None:
    """One palette for all frames, so that still parts do not flicker. Times are kept to a hundredth of a second."""
    kept: list[Image.Image] = []
    ends = [0.0]
    room = GIF_PIXELS
    for image, seconds in frames:
        room -= image.width * image.height
        if room < 0:
            raise ConfigError(
                f"--out {path}: more than {len(kept)} frames of {image.width} x {image.height} pixels are too many for a .gif; write .mp4"
            )
        kept.append(image.convert("RGB"))
        ends.append(ends[-1] + seconds)
    marks = [round(100 * end) for end in ends]
    times = [10 * max(2, after - before) for before, after in pairwise(marks)]
    palette = _palette(kept)
    small = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in kept]
    small[0].save(path, format="GIF", save_all=True, append_images=small[1:], duration=times, loop=0, optimize=False)


def _palette(images: list[Image.Image], pixels: int = 2**20) -> Image.Image:
    """256 colours for all of them, from about so many of their pixels."""
    coarse = math.ceil(math.sqrt(sum(i.width * i.height for i in images) / pixels))
    size = (max(1, images[0].width // coarse), max(1, images[0].height // coarse))
    strip = Image.new("RGB", (size[0], size[1] * len(images)))
    for k, image in enumerate(images):
        strip.paste(image.resize(size, Image.Resampling.NEAREST), (0, k * size[1]))
    found = np.reshape(strip.quantize(253, method=Image.Quantize.MEDIANCUT).getpalette() or [], (-1, 3))
    found[(found > 247).all(1)] = 255  # Pillow looks colours up in steps of 4: white is white only where nothing is near it
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(value) for colour in [(255, 255, 255), text.INK, text.FAINT, *found[:253]] for value in colour])
    return palette
