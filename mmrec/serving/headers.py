"""What the header of a medium claims, looked at before anything is decoded."""

from __future__ import annotations

import io
import warnings
from typing import Any

from data_prep.errors import BrokenMedium, one_line
from data_prep.media import MediumKind
from data_prep.sound import NO_SOUND
from mmrec.serving.settings import Limits

_MAX_SAMPLES_A_SECOND = 2 * 192_000
"""Of all channels: two at the highest rate in use."""
_UNKNOWN_FRAMES = 2**48


def check_header(data: bytes, kind: MediumKind, limits: Limits) -> None:
    """Refuses a medium whose header claims more than the service takes, or says nothing.

    What is allowed is not said here: `refused_media` says it of whatever is wrong.

    Raises:
        BrokenMedium: too many pixels, too long, or no such medium.
    """
    if not data:
        raise BrokenMedium(f"broken {kind}: the file is empty")
    if kind == "image":
        _check_image(data, limits)
    elif kind == "audio":
        _check_audio(data, limits)
    else:
        _check_video(data, limits)


def _check_image(data: bytes, limits: Limits) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size: that is what is looked at here
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except UnidentifiedImageError:
        raise BrokenMedium("broken image: not an image format that is known") from None
    except Image.DecompressionBombError:
        raise BrokenMedium("too large image: its header claims far too many pixels") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise BrokenMedium(f"broken image: {one_line(error)}") from None
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise BrokenMedium(f"too large image: {width} x {height} pixels")


def _check_audio(data: bytes, limits: Limits) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            frames, rate, channels = file.frames, file.samplerate, file.channels
    except (soundfile.SoundFileError, RuntimeError):
        _check_length(_length_of_av(data), limits)
        return
    if rate * channels > _MAX_SAMPLES_A_SECOND:
        raise BrokenMedium(
            f"too fine audio: {channels} channels at {rate} Hz, at most {_MAX_SAMPLES_A_SECOND} "
            "samples a second in all"
        )
    if frames == 0:
        raise BrokenMedium("broken audio: it holds no samples")
    _check_length(None if not 0 < frames < _UNKNOWN_FRAMES else frames / rate, limits)


def _length_of_av(data: bytes) -> float | None:
    """Seconds of a sound that FFmpeg alone reads."""
    container: Any
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.audio:
                raise BrokenMedium(NO_SOUND)
            return None if container.duration is None else container.duration / 1_000_000
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        if isinstance(error, BrokenMedium):
            raise
        raise BrokenMedium(f"broken audio: {one_line(error)}") from None


def _check_length(seconds: float | None, limits: Limits) -> None:
    if seconds is None:
        raise BrokenMedium("broken audio: its header does not say how long it is")
    if seconds > limits.max_audio_s:
        raise BrokenMedium(f"too long audio: {seconds:.0f} seconds")


def _check_video(data: bytes, limits: Limits) -> None:
    import av

    container: Any
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            sizes = [each.codec_context for each in container.streams.video]
            width = max((each.width for each in sizes), default=0)
            height = max((each.height for each in sizes), default=0)
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise BrokenMedium(f"broken video: {one_line(error)}") from None
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise BrokenMedium(f"too large video: {width} x {height} pixels")
