"""Which frames a decoder may leave out: those that no other frame refers to."""

from __future__ import annotations

from av.video.codeccontext import VideoCodecContext

_MARKED = {"h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8"}  # codecs whose frames say whether others refer to them


def says_what_is_unused(context: VideoCodecContext) -> bool:
    """Whether frames of this codec say truly that no other frame refers to them, and FFmpeg's decoder skips them by that.

    Not with two fields, which may be two packets, and not with HEVC's temporal layers, where it is said of the frame's own layer only.
    """
    if context.field_order > 1:
        return False
    if context.name == "hevc":
        record = context.extradata or b""  # HEVCDecoderConfigurationRecord: bits 2-4 of byte 21 count the layers
        return len(record) > 22 and record[0] == 1 and record[21] >> 3 & 7 == 1
    return context.name in _MARKED
