"""Abridges a film to a few small frames, so that hours of it take no more room than a clip.

    a file of more than 8 MiB ─ Clip.frames ─► at most 64 frames, evenly spread ─► MP4 of JPEGs

The frames are key frames, which a film stores whole every few seconds: each costs one seek and one
decode. Where a film has few of them, they are decoded at their even places. Every frame that is
kept is a key frame, so that both rules of a clip find the same ones again.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from data_prep.errors import BrokenMedium, one_line
from data_prep.video import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from data_prep.medium_file import Source

MAX_CLIP_BYTES = 8 * 1024 * 1024
"""Above this a film is abridged; a clip of seconds is seldom as large."""
MAX_FRAMES = 64
"""Eight times what encoders look at unless told otherwise; some 30 KB each at 256 pixels."""
_QUALITY = 90
_FRAMES_A_SECOND = 10  # a player shows them quickly; encoders see places, not times


def abridge(source: Source, *, side: int) -> bytes:
    """At most 64 frames of a film, evenly spread, as an MP4 of JPEGs without sound.

    Args:
        source: the film.
        side: pixels of the short side above which frames are made smaller.

    Raises:
        BrokenMedium: no frame decodes.
        OSError: the file cannot be read.
    """
    clip = Clip(source)
    frames = clip.frames(MAX_FRAMES, side=side, rule="keyframes")
    if len(frames) < MAX_FRAMES // 2:
        frames = clip.frames(MAX_FRAMES, side=side)
    return _mux(frames)


def _mux(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """Frames (H, W, 3) as an MP4, the same bytes for the same frames."""
    import av

    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("mjpeg", rate=_FRAMES_A_SECOND)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuvj420p"
            for place, frame in enumerate(frames):
                # encoded as pictures are: simplejpeg's settings do not follow FFmpeg's version
                packet = av.Packet(simplejpeg.encode_jpeg(frame, quality=_QUALITY))
                packet.stream, packet.time_base = stream, Fraction(1, _FRAMES_A_SECOND)
                packet.pts = packet.dts = place
                packet.duration, packet.is_keyframe = 1, True
                container.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise BrokenMedium(f"broken video: {one_line(error)}") from error
    return buffer.getvalue()
