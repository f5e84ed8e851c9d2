"""Frames of a clip, by a stated rule, without holding more of it than is kept.

    bytes ─ Clip.frames(n, side, rule) ─► n pictures (H, W, 3), evenly spread from start to end

`uniform` takes the frames nearest to n even places in time; `keyframes` those that are stored
whole, which costs a fraction where frames lie minutes apart: no other frame is decoded. A clip with
fewer frames gives what it has; a still is a clip of one. Only kept frames are turned into pixels,
made smaller as they are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_prep.errors import BrokenMedium, one_line
from data_prep.medium_file import Source, opened

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rule = Literal["uniform", "keyframes"]

SEEK_FROM_S = 30.0
"""Seconds from which on frames are sought one by one; shorter clips are read through."""
MAX_PIXELS = 64_000_000
"""Of a frame; a header that claims more is an attack or damage."""


class Clip:
    """A video file whose frames are decoded when they are asked for.

    Args:
        source: its bytes, or its file.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def frames(
        self, num_frames: int, *, side: int, rule: Rule = "uniform"
    ) -> list[NDArray[np.uint8]]:
        """Frames at even places, oldest first.

        Args:
            num_frames: most that are given.
            side: pixels of the short side above which a frame is made smaller.
            rule: which frames.

        Returns:
            (H, W, 3) uint8 RGB each, at least one.

        Raises:
            BrokenMedium: no frame decodes.
        """
        with _opened(self._source) as (container, stream):
            duration = _duration_s(container, stream)
            if duration is not None and duration >= SEEK_FROM_S:
                sought = _sought(container, stream, num_frames, duration, rule)
                found = [_pixels(frame, side) for frame in sought]
                if len(found) == num_frames:
                    return found
        # opened anew: not every stream can be sought in
        with _opened(self._source) as (container, stream):
            count = sum(1 for packet in container.demux(stream) if _counts(packet, rule))
        with _opened(self._source) as (container, stream):
            read = _read_through(container, stream, evenly(num_frames, count), rule)
            found = [_pixels(frame, side) for frame in read]
            if not found:
                raise BrokenMedium("broken video: no frame decodes")
            return found


def evenly(num_kept: int, num_all: int) -> list[int]:
    """Places of at most num_kept of num_all things: the middles of as many equal parts."""
    if num_all <= num_kept:
        return list(range(num_all))
    return [(2 * place + 1) * num_all // (2 * num_kept) for place in range(num_kept)]


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream.

    Raises:
        BrokenMedium: there is none, or it is too large.
    """
    import av

    try:
        with opened(source) as file, av.open(file, mode="r") as container:
            if not container.streams.video:
                raise BrokenMedium("broken video: there is no picture in the file")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                raise BrokenMedium(
                    f"too large video: {width} x {height} pixels, at most {MAX_PIXELS} a frame"
                )
            yield container, stream
    except BrokenMedium:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise BrokenMedium(f"broken video: {one_line(error)}") from error


def _duration_s(container: Any, stream: Any) -> float | None:
    """Seconds, as the file says; None where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1_000_000


def _counts(packet: Any, rule: Rule) -> bool:
    """Whether a packet holds a frame that may be asked for."""
    return bool(packet.size) and (rule == "uniform" or bool(packet.is_keyframe))


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container is; packets that do not decode are passed over."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError, EOFError):
            return
        try:
            yield from packet.decode()
        except (av.FFmpegError, EOFError):
            continue


def _sought(
    container: Any, stream: Any, num_frames: int, duration_s: float, rule: Rule
) -> Iterator[Any]:
    """Frames at even places in time; fewer where a place cannot be sought."""
    import av

    first_s = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)
    last_pts: int | None = None
    num_found = 0
    for place in range(num_frames):
        wanted_s = first_s + (place + 0.5) * duration_s / num_frames
        try:
            container.seek(int(wanted_s / stream.time_base), stream=stream, backward=True)
        except av.FFmpegError:
            continue
        frame = None
        for frame in _decoded(container, stream):
            if rule == "keyframes" or frame.time is None or frame.time >= wanted_s:
                break
        if frame is not None and (num_found == 0 or frame.pts != last_pts):
            last_pts, num_found = frame.pts, num_found + 1
            yield frame


def _read_through(container: Any, stream: Any, wanted: Sequence[int], rule: Rule) -> Iterator[Any]:
    """Frames of the places wanted, of all frames or of key frames; the last where fewer decode."""
    if rule == "keyframes":
        stream.codec_context.skip_frame = "NONKEY"
    last: Any = None
    place, num_found = 0, 0
    for frame in _decoded(container, stream):
        if rule == "keyframes" and not frame.key_frame:
            continue
        if num_found < len(wanted) and place == wanted[num_found]:
            yield frame
            last, num_found = None, num_found + 1
            if num_found == len(wanted):
                return
        else:
            last = frame
        place += 1
    if last is not None:
        yield last


def _pixels(frame: Any, side: int) -> NDArray[np.uint8]:
    """A frame as RGB, upright, its short side at most `side`."""
    short = min(frame.width, frame.height)
    scale = min(1.0, side / short)
    width, height = (max(1, round(each * scale)) for each in (frame.width, frame.height))
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    pixels: NDArray[np.uint8] = small.to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # phones store them lying down
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
