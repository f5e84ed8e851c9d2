"""A medium that is refused, in one line: which file, what is wrong with it, what is allowed.

    picture: 'a.png': too large image: 40000 x 8 pixels; allowed is a picture such as JPEG, …

The name is said as it was uploaded and means nothing else: no file is ever looked up by it.
"""

from __future__ import annotations

from data_prep.media import MIN_IMAGE_SIDE
from mmrec.serving.faults import Fault
from mmrec.serving.settings import Limits

_MAX_NAME = 80


def shown_name(name: str | None) -> str:
    """A file's name to be printed: quoted, what does not print escaped, a long one cut short."""
    if not name:
        return "a file without a name"
    quoted = repr(name)  # escapes line breaks, control characters and lone surrogates of any kind
    return quoted if len(quoted) <= _MAX_NAME else f"{quoted[:_MAX_NAME]}…{quoted[0]}"


def refused_medium(
    field: str, name: str | None, kind: str, reason: Exception | str, limits: Limits
) -> Fault:
    """The answer to a medium that cannot be used.

    Args:
        field: that it came in.
        name: of its file, as uploaded.
        kind: that the field holds: image, audio or video.
        reason: what is wrong.
        limits: of the service.
    """
    allowed = {
        "image": f"a picture such as JPEG, PNG or WebP, of {MIN_IMAGE_SIDE} to {limits.max_side} "
        f"pixels a side and at most {limits.max_pixels} in all",
        "audio": "a sound such as WAV, FLAC, MP3, OGG or M4A, of at most "
        f"{limits.max_audio_s:g} seconds",
        "video": f"a clip such as MP4 or WebM, of at most {limits.max_side} pixels a side and "
        f"{limits.max_pixels} a frame",
    }[kind]
    line = f"{field}: {shown_name(name)}: {reason}; allowed is {allowed}"
    return Fault(422, "broken_medium", line, field=field)
