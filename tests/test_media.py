from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image
from tiny_catalogue import RED_PNG, clip, encode, photograph, wave

from data_prep.errors import BrokenMedium
from data_prep.media import decode_image, normalise
from data_prep.sound import decode_audio


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        pytest.param(encode(photograph(100, 80)), "jpg", id="small-jpeg"),
        pytest.param(encode(photograph(600, 256)), "jpg", id="short-side-at-the-limit"),
        pytest.param(RED_PNG, "png", id="small-png"),
    ],
)
def test_small_images_keep_their_bytes(data: bytes, extension: str) -> None:
    medium = normalise(data, kind="image")
    assert (medium.extension, medium.data) == (extension, data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_large_images_are_made_smaller_and_stay_alike(form: str) -> None:
    pixels = photograph(900, 1200, seed=3)
    medium = normalise(encode(pixels, form), kind="image")
    assert medium.extension == "jpg"
    small = decode_image(medium.data)
    assert small.shape == (256, 341, 3)
    wanted = np.asarray(Image.fromarray(pixels).resize((341, 256), Image.Resampling.BICUBIC))
    assert np.abs(small.astype(int) - wanted).mean() < 4


def test_images_are_never_made_larger() -> None:
    medium = normalise(encode(photograph(20, 30), "WEBP"), kind="image")
    assert decode_image(medium.data).shape == (20, 30, 3)
    assert normalise(encode(photograph(90, 90)), kind="image", image_side=32).extension == "jpg"


def test_normalising_twice_changes_nothing() -> None:
    for data, kind in ((encode(photograph(500, 700)), "image"), (wave(), "audio")):
        once = normalise(data, kind=kind)  # type: ignore[arg-type]
        assert normalise(once.data, kind=kind) == once  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [64, 700], ids=["kept", "re-encoded"])
def test_exif_rotation_is_applied(orientation: int, side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(side, side + side // 2, seed=4), exif=exif.tobytes(), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image).convert("RGB")
    decoded = decode_image(normalise(data, kind="image").data)
    wanted = np.asarray(upright.resize((decoded.shape[1], decoded.shape[0])))
    assert np.abs(decoded.astype(int) - wanted).mean() < 3


def test_alpha_is_laid_on_white() -> None:
    layer = np.zeros((8, 8, 4), dtype=np.uint8)
    layer[:4] = [255, 0, 0, 255]
    pixels = decode_image(encode(layer, "PNG"))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[7, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.new("L", (9, 9), 128), id="grey"),
        pytest.param(Image.new("P", (9, 9)), id="palette"),
        pytest.param(Image.new("1", (9, 9)), id="black-and-white"),
        pytest.param(Image.fromarray(np.full((9, 9), 33000, dtype=np.uint16)), id="16-bit"),
    ],
)
def test_other_modes_become_rgb(image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    pixels = decode_image(normalise(buffer.getvalue(), kind="image").data)
    assert pixels.shape == (9, 9, 3) and pixels.dtype == np.uint8
    if image.mode.startswith("I"):
        assert pixels[0, 0].tolist() == [128, 128, 128]


def test_cmyk_jpeg_decodes() -> None:
    buffer = io.BytesIO()
    Image.fromarray(photograph(40, 40)).convert("CMYK").save(buffer, "JPEG")
    assert decode_image(normalise(buffer.getvalue(), kind="image").data).shape == (40, 40, 3)


JPEG = encode(photograph(300, 300))


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        pytest.param("image", b"", "empty", id="empty"),
        pytest.param("image", b"<html>not found</html>", "broken image", id="html"),
        pytest.param("image", JPEG[: len(JPEG) // 2], "broken image", id="truncated-jpeg"),
        pytest.param("image", encode(photograph(90, 90), "PNG")[:-900], "broken image", id="png"),
        pytest.param("image", encode(photograph(1, 1), "PNG"), "too small", id="tracking-pixel"),
        pytest.param("audio", b"RIFFnonsense", "broken audio", id="not-sound"),
        pytest.param("audio", wave()[:40], "broken audio", id="header-only"),
        pytest.param("audio", clip(), "no sound", id="silent-film"),
        pytest.param("video", b"nonsense" * 50, "broken video", id="not-a-film"),
        pytest.param("video", wave(), "broken video", id="sound-as-film"),
    ],
)
def test_broken_media_say_why(kind: str, data: bytes, reason: str) -> None:
    with pytest.raises(BrokenMedium, match=reason) as caught:
        normalise(data, kind=kind)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["WAV", "OGG", "FLAC"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_becomes_flac_at_its_own_rate(form: str, channels: int) -> None:
    data = wave(0.3, rate=22050, channels=channels, form=form)
    medium = normalise(data, kind="audio")
    assert medium.extension == "flac" and medium.data[:4] == b"fLaC"
    samples, rate = decode_audio(medium.data)
    wanted, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert rate == 22050 and samples.shape == wanted.shape and samples.dtype == np.float32
    assert np.abs(samples - wanted).max() < 1e-4
    assert normalise(data, kind="audio").data == medium.data


def test_many_channels_become_one() -> None:
    samples, _ = decode_audio(normalise(wave(channels=6), kind="audio").data)
    assert samples.shape[1] == 1


def test_a_film_keeps_its_bytes_and_its_sound_can_be_read() -> None:
    data = clip(sound=True)
    medium = normalise(data, kind="video")
    assert (medium.extension, medium.data) == ("mp4", data)
    samples, rate = decode_audio(data)
    assert rate == 8000 and samples.shape[0] > 0


def with_a_gap(ogg: bytes, samples: int) -> bytes:
    """An Ogg stream that lost some samples after its first page of sound, and counts them yet."""
    pages = [b"OggS" + page for page in ogg.split(b"OggS")[1:]]
    return b"".join(pages[:3] + [_shift(page, samples) for page in pages[3:]])


def _shift(page: bytes, samples: int) -> bytes:
    shifted = bytearray(page)
    end = int.from_bytes(page[6:14], "little") + samples  # the granule position
    shifted[6:14] = end.to_bytes(8, "little")
    shifted[22:26] = bytes(4)
    checksum = 0  # CRC-32 of Ogg: 0x04C11DB7, not reflected, nothing added
    for byte in shifted:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum >> 31 else 0)
    shifted[22:26] = checksum.to_bytes(4, "little")
    return bytes(shifted)


def test_a_stream_shorter_than_it_says_is_read_the_same_each_time() -> None:
    samples = 0.1 * np.random.default_rng(0).normal(size=90_000)  # of several pages
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 22_050, format="OGG", subtype="VORBIS")
    data = with_a_gap(buffer.getvalue(), 40_000)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        claimed, held = file.frames, len(file.read())
    assert claimed == held + 40_000
    junk = [np.full(70_000, np.nan, np.float32) for _ in range(4)]  # what freed memory then holds
    del junk
    made = {normalise(data, kind="audio").data for _ in range(4)}
    assert len(made) == 1
    assert len(soundfile.read(io.BytesIO(made.pop()))[0]) == held
