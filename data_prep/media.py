"""The one door for media: bytes as they come -> checked, normalised bytes -> arrays.

    file -> normalise -> Medium (what a shard keeps) -> decode_image, Sound, Clip

Preparing, scoring and serving all pass through `normalise`, so no file is seen differently in
training and in use. Whatever cannot be used raises `BrokenMedium` with its reason.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.abridge import MAX_CLIP_BYTES, abridge
from data_prep.errors import BrokenMedium, one_line
from data_prep.medium_file import Source, size_of, whole
from data_prep.sound import to_flac

if TYPE_CHECKING:
    from numpy.typing import NDArray

MediumKind = Literal["image", "audio", "video"]

IMAGE_SIDE = 256
"""Pixels of the short side above which an image is made smaller; smaller ones keep their bytes."""
MIN_IMAGE_SIDE = 4
"""Pixels; anything smaller is a tracking pixel or a placeholder."""
MAX_PIXELS = 100_000_000
"""A header that claims more is an attack or damage: it is refused before anything is decoded."""
JPEG_QUALITY = 90
_EXIF_ORIENTATION = 0x0112
_VIDEO_EXTENSIONS = {
    "mp4": "mp4", "mov": "mp4", "webm": "webm", "matroska": "mkv", "avi": "avi", "gif": "gif",
    "jpeg_pipe": "jpg", "png_pipe": "png", "webp_pipe": "webp",
}  # fmt: skip


@dataclass(frozen=True)
class Medium:
    """One medium as a shard keeps it; `data` decodes, it was tried."""

    kind: MediumKind
    extension: str
    data: bytes


def normalise(source: Source, *, kind: MediumKind, image_side: int = IMAGE_SIDE) -> Medium:
    """Check one medium and bring it to the form that shards keep.

    Image: JPEG and PNG keep their bytes where the short side is at most `image_side` pixels;
    everything else is turned upright (EXIF), laid on white, made smaller (never larger) and
    written as JPEG. Audio: FLAC at its own rate, one or two channels. Video: its bytes, if at
    least one frame decodes; of a file of more than 8 MiB 64 frames, no larger than an image, see
    `abridge`.

    Args:
        source: the bytes, or the file, of which a sound or a video is never whole in memory.
        kind: what it should be.
        image_side: pixels.

    Raises:
        BrokenMedium: the bytes are empty, damaged or not of this kind.
        OSError: the file cannot be read.
    """
    return normalise_with_preview(source, kind=kind, image_side=image_side)[0]


def normalise_with_preview(
    source: Source, *, kind: MediumKind, image_side: int = IMAGE_SIDE
) -> tuple[Medium, NDArray[np.uint8] | None]:
    """Like `normalise`; also returns an image's pixels, (H, W, 3) upright, decoded once for both.

    The pixels serve to find near-duplicates; they are those before a re-encoding.
    """
    size = size_of(source)
    if size == 0:
        raise BrokenMedium(f"broken {kind}: the file is empty")
    if kind == "image":
        return _normalise_image(whole(source), image_side)
    if kind == "audio":
        return Medium("audio", "flac", to_flac(source)), None
    if size > MAX_CLIP_BYTES:
        return Medium("video", "mp4", abridge(source, side=image_side)), None
    data = whole(source)
    return Medium("video", _video_extension(data), data), None


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a normalised image: (H, W, 3) uint8 RGB, upright, alpha laid on white.

    Raises:
        BrokenMedium: the bytes are not a whole image.
    """
    return _decode_image(data, image_side=None)[0]


def _normalise_image(data: bytes, image_side: int) -> tuple[Medium, NDArray[np.uint8]]:
    pixels, form, short_side = _decode_image(data, image_side=image_side)
    if short_side <= image_side and form in ("jpg", "png"):
        return Medium("image", form, data), pixels
    height, width = pixels.shape[:2]
    scale = image_side / min(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="420"
    )
    return Medium("image", "jpg", encoded), pixels


def _decode_image(
    data: bytes, *, image_side: int | None
) -> tuple[NDArray[np.uint8], Literal["jpg", "png", "other"], int]:
    """Pixels, format and the short side of the original.

    With `image_side`, a larger JPEG is decoded at the smallest size that still covers it: the
    cosine transform then yields fewer pixels, about three times faster on photographs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is checked below; EXIF warnings change nothing
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                _check_size(width, height)
                short_side = min(width, height)
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
                if image.format == "JPEG" and image.mode in ("RGB", "L"):
                    pixels = _decode_jpeg(data, width, height, image_side)
                    return _upright(pixels, orientation), "jpg", short_side
                form: Literal["jpg", "png", "other"] = (
                    "png" if image.format == "PNG" else "jpg" if image.format == "JPEG" else "other"
                )
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image)), form, short_side
    except BrokenMedium:
        raise
    except UnidentifiedImageError as error:
        raise BrokenMedium("broken image: not an image format that is known") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BrokenMedium(f"broken image: {one_line(error)}") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_IMAGE_SIDE:
        raise BrokenMedium(
            f"too small image: {width} x {height} pixels, at least {MIN_IMAGE_SIDE} a side"
        )
    if width * height > MAX_PIXELS:
        raise BrokenMedium(f"too large image: {width} x {height} pixels, at most {MAX_PIXELS}")


def _decode_jpeg(data: bytes, width: int, height: int, image_side: int | None) -> NDArray[np.uint8]:
    decode = partial(simplejpeg.decode_jpeg, data, colorspace="RGB")
    if image_side is None or min(width, height) <= image_side:
        pixels: NDArray[np.uint8] = decode()
        return pixels
    scale = image_side / min(width, height)
    pixels = decode(
        min_height=max(1, round(height * scale)), min_width=max(1, round(width * scale))
    )
    return pixels


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply the eight EXIF orientations (TIFF 6.0, tag 274) to (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey: Pillow's own conversion clips at 255 and would give a white picture
        values = np.asarray(image, dtype=np.float64)
        scaled = np.clip(values / 257 if values.max(initial=0) > 255 else values, 0, 255)
        return np.repeat(scaled.round().astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, layer)
    return np.array(image.convert("RGB"))


def _video_extension(data: bytes) -> str:
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.video:
                raise BrokenMedium("broken video: there is no picture in the file")
            if next(container.decode(video=0), None) is None:
                raise BrokenMedium("broken video: no frame decodes")
            names = container.format.name.split(",")
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        if isinstance(error, BrokenMedium):
            raise
        raise BrokenMedium(f"broken video: {one_line(error)}") from error
    if data[4:8] == b"ftyp":
        return "mp4"
    return next((_VIDEO_EXTENSIONS[name] for name in names if name in _VIDEO_EXTENSIONS), "mp4")
