"""The one door for media: bytes as they come -> checked, normalised bytes -> arrays.

    file bytes -> normalise -> Medium (what a shard keeps) -> decode_image / decode_audio -> array

Preparing, scoring and serving all pass through `normalise`, so no file is seen differently in
training and in use. Whatever cannot be used raises `BrokenMedium` with its reason.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.errors import BrokenMedium

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MediumKind = Literal["image", "audio", "video"]

IMAGE_SIDE = 256
"""Pixels of the short side above which an image is made smaller; smaller ones keep their bytes."""
MIN_IMAGE_SIDE = 4
"""Pixels; anything smaller is a tracking pixel or a placeholder."""
MAX_PIXELS = 100_000_000
"""A header that claims more is an attack or damage: it is refused before anything is decoded."""
JPEG_QUALITY = 90
NO_SOUND = "broken audio: there is no sound in the file"
_BLOCK_SAMPLES = 2**18
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


def normalise(data: bytes, *, kind: MediumKind, image_side: int = IMAGE_SIDE) -> Medium:
    """Check one medium and bring it to the form that shards keep.

    Image: JPEG and PNG keep their bytes where the short side is at most `image_side` pixels;
    everything else is turned upright (EXIF), laid on white, made smaller (never larger) and
    written as JPEG. Audio: FLAC at its own rate, one or two channels. Video: its bytes, if at
    least one frame decodes.

    Raises:
        BrokenMedium: the bytes are empty, damaged or not of this kind.
    """
    return normalise_with_preview(data, kind=kind, image_side=image_side)[0]


def normalise_with_preview(
    data: bytes, *, kind: MediumKind, image_side: int = IMAGE_SIDE
) -> tuple[Medium, NDArray[np.uint8] | None]:
    """Like `normalise`; also returns an image's pixels, (H, W, 3) upright, decoded once for both.

    The pixels serve to find near-duplicates; they are those before a re-encoding.
    """
    if not data:
        raise BrokenMedium(f"broken {kind}: the file is empty")
    if kind == "image":
        return _normalise_image(data, image_side)
    if kind == "audio":
        return Medium("audio", "flac", _to_flac(data)), None
    return Medium("video", _video_extension(data), data), None


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a normalised image: (H, W, 3) uint8 RGB, upright, alpha laid on white.

    Raises:
        BrokenMedium: the bytes are not a whole image.
    """
    return _decode_image(data, image_side=None)[0]


def decode_audio(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Decode sound: samples (num_samples, channels) float32 in [-1, 1] and the rate in Hz.

    soundfile reads most formats; what it cannot (AAC, a film's sound track) goes through PyAV.

    Raises:
        BrokenMedium: there is no sound in the bytes.
    """
    import soundfile  # here, not at the top: a worker that meets only images never loads it

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError):
        blocks = list(_blocks_of_av(data))
        rate = blocks[0][0] if blocks else 0
        silence = np.empty((0, 1), np.float32)
        samples = np.concatenate([piece for _, piece in blocks]) if blocks else silence
    if samples.shape[0] == 0:
        raise BrokenMedium("broken audio: it holds no samples")
    if not np.isfinite(samples).all():
        raise BrokenMedium("broken audio: samples that are not numbers")
    return samples, int(rate)


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
        raise BrokenMedium(f"broken image: {_one_line(error)}") from error


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


def _to_flac(data: bytes) -> bytes:
    """FLAC with 16 bits a sample: an Ogg stream carries a random serial, FLAC is reproducible.

    Block by block: an hour of sound is never in memory as samples.
    """
    import soundfile

    try:
        return _encode_flac(data, _blocks_of_soundfile(data))
    except (soundfile.SoundFileError, RuntimeError):
        return _encode_flac(data, _blocks_of_av(data))


def _encode_flac(data: bytes, blocks: Iterator[tuple[int, NDArray[np.float32]]]) -> bytes:
    """Blocks of samples as FLAC; the bytes themselves where they are FLAC already."""
    import soundfile

    buffer = io.BytesIO()
    file, kept = None, False
    try:
        for rate, block in blocks:
            if not np.isfinite(block).all():
                raise BrokenMedium("broken audio: samples that are not numbers")
            if len(block) == 0:
                continue
            kept = kept or (data[:4] == b"fLaC" and block.shape[1] <= 2)
            if kept:
                continue  # only looked through
            if block.shape[1] > 2:
                block = block.mean(axis=1, keepdims=True)
            if file is None:
                channels = block.shape[1]
                file = soundfile.SoundFile(
                    buffer, "w", rate, channels, format="FLAC", subtype="PCM_16"
                )
            file.write(np.clip(block, -1, 1))
    finally:
        if file is not None:
            file.close()
    if kept:
        return data
    if file is None:
        raise BrokenMedium("broken audio: it holds no samples")
    return buffer.getvalue()


def _blocks_of_soundfile(data: bytes) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Rate and samples (n, channels), block by block."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        # not file.blocks(): where a stream ends before its header says, that pads the last block
        # with whatever the memory held
        while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            yield file.samplerate, block


def _blocks_of_av(data: bytes) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The same of whatever FFmpeg decodes.

    Raises:
        BrokenMedium: there is no sound in the bytes, or it does not decode.
    """
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.audio:
                raise BrokenMedium(NO_SOUND)
            rate = int(container.streams.audio[0].rate)
            resampler = av.AudioResampler(format="fltp", rate=rate)
            for frame in container.decode(audio=0):
                for piece in _planes(resampler.resample(frame)):
                    yield rate, piece
            for piece in _planes(resampler.resample(None)):
                yield rate, piece
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        if isinstance(error, BrokenMedium):
            raise
        raise BrokenMedium(f"broken audio: {_one_line(error)}") from error


def _planes(frames: list[Any]) -> list[NDArray[np.float32]]:
    return [np.ascontiguousarray(frame.to_ndarray().T, dtype=np.float32) for frame in frames]


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
        raise BrokenMedium(f"broken video: {_one_line(error)}") from error
    if data[4:8] == b"ftyp":
        return "mp4"
    return next((_VIDEO_EXTENSIONS[name] for name in names if name in _VIDEO_EXTENSIONS), "mp4")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
