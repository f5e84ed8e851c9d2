"""Frames of a clip, by a stated rule, without holding more of it than is kept.

    bytes ─ Clip.frames(n, side, rule) ─► n pictures (H, W, 3), evenly spread from start to end

`uniform` takes the frames nearest to n even places in time; `keyframes` those that are stored
whole, which costs a fraction where frames lie minutes apart. A clip with fewer frames gives what it
has; a still is a clip of one. Only kept frames are turned into pixels, made smaller as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_prep.errors import BrokenMedium

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
        data: its bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data

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
        with _opened(self._data) as (container, stream):
            duration = _duration_s(container, stream)
            if duration is not None and duration >= SEEK_FROM_S:
                found = _sought(container, stream, num_frames, duration, rule)
                if len(found) == num_frames:
                    return [_pixels(frame, side) for frame in found]
            count = sum(1 for packet in container.demux(stream) if _counts(packet, rule))
        # opened anew: not every stream can be sought in
        with _opened(self._data) as (container, stream):
            found = _read_through(container, stream, evenly(num_frames, count), rule)
            if not found:
                raise BrokenMedium("broken video: no frame decodes")
            return [_pixels(frame, side) for frame in found]


def evenly(num_kept: int, num_all: int) -> list[int]:
    """Places of at most num_kept of num_all things: the middles of as many equal parts."""
    if num_all <= num_kept:
        return list(range(num_all))
    return [(2 * place + 1) * num_all // (2 * num_kept) for place in range(num_kept)]


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream.

    Raises:
        BrokenMedium: there is none, or it is too large.
    """
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
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
        what = " ".join(str(error).split()) or type(error).__name__
        raise BrokenMedium(f"broken video: {what}") from error


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
) -> list[Any]:
    """Frames at even places in time; fewer where a place cannot be sought."""
    import av

    first_s = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)
    found: list[Any] = []
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
        if frame is not None and (not found or frame.pts != found[-1].pts):
            found.append(frame)
    return found


def _read_through(container: Any, stream: Any, wanted: Sequence[int], rule: Rule) -> list[Any]:
    """Frames of the places wanted, of all frames or of key frames; the last where fewer decode."""
    found: list[Any] = []
    last, place = None, 0
    for frame in _decoded(container, stream):
        if rule == "keyframes" and not frame.key_frame:
            continue
        last = frame
        if len(found) < len(wanted) and place == wanted[len(found)]:
            found.append(frame)
            last = None
            if len(found) == len(wanted):
                break
        place += 1
    return found if last is None or len(found) == len(wanted) else [*found, last]


def _pixels(frame: Any, side: int) -> NDArray[np.uint8]:
    """A frame as RGB, upright, its short side at most `side`."""
    short = min(frame.width, frame.height)
    scale = min(1.0, side / short)
    width, height = (max(1, round(each * scale)) for each in (frame.width, frame.height))
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    pixels: NDArray[np.uint8] = small.to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # phones store them lying down
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
