"""Sound read by stretches, and what is kept of long ones."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_catalogue import clip, wave

import data_prep.sound
from data_prep.errors import BrokenMedium, one_line
from data_prep.sound import Sound, decode_audio, to_flac

RATE = 8000


def noise(seconds: float, channels: int = 2, form: str = "FLAC") -> bytes:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, (round(seconds * RATE), channels)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"RIFF....WAVE", "not of a format that is known, or damaged", id="broken-wav"),
        pytest.param(noise(3.0, 1, "OGG")[:2000], "it ends earlier than it says", id="cut-off-ogg"),
        pytest.param(noise(0.0, 1, "WAV"), "it holds no samples", id="no-samples"),
    ],
)
def test_what_is_no_sound_is_said_in_words(data: bytes, reason: str) -> None:
    for read in (to_flac, decode_audio):
        with pytest.raises(BrokenMedium) as caught:
            read(data)
        assert str(caught.value) == f"broken audio: {reason}"


def test_an_error_is_told_without_its_number() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("no such file").read_bytes()
    assert one_line(caught.value) == "No such file or directory"
    assert one_line(ValueError("a\n b")) == "a b" and one_line(EOFError()) == "EOFError"


@pytest.mark.parametrize("channels", [1, 2])
def test_stretches_are_those_of_the_whole(channels: int) -> None:
    data = noise(30.0, channels)
    whole, rate = decode_audio(data)
    sound = Sound(data)
    assert (sound.rate_hz, sound.num_samples) == (rate, len(whole)) == (RATE, 30 * RATE)
    for start, stop in ((0, 1), (0, 4096), (5000, 123_457), (30 * RATE - 7, 30 * RATE)):
        np.testing.assert_array_equal(sound.read(start, stop), whole[start:stop])
    np.testing.assert_array_equal(sound.read(), whole)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(wave(0.3), id="wav"),
        pytest.param(noise(0.3, form="OGG"), id="ogg"),
        pytest.param(clip(sound=True), id="film"),
    ],
)
def test_what_cannot_be_sought_in_is_decoded_at_once(data: bytes) -> None:
    whole, rate = decode_audio(data)
    sound = Sound(data)
    assert (sound.rate_hz, sound.num_samples) == (rate, len(whole))
    np.testing.assert_array_equal(sound.read(5, 50), whole[5:50])


def test_a_stretch_costs_no_more_than_itself() -> None:
    data = noise(300.0)
    tracemalloc.start()
    try:
        assert Sound(data).read(200 * RATE, 201 * RATE).shape == (RATE, 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6  # whole it is 19 MB


def test_damage_is_named_when_it_is_met() -> None:
    data = bytearray(noise(30.0))
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    sound = Sound(bytes(data))
    assert len(sound.read(0, RATE)) == RATE
    with pytest.raises(BrokenMedium, match="broken audio"):
        sound.read(0, 30 * RATE)
    for broken in (b"no sound at all", noise(3.0)[:-9000]):
        with pytest.raises(BrokenMedium, match="broken audio"):
            Sound(broken)


@pytest.mark.parametrize("form", ["FLAC", "WAV"])
def test_of_a_long_sound_even_stretches_are_kept(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_prep.sound, "MAX_SECONDS", 10)
    monkeypatch.setattr(data_prep.sound, "_BLOCK_SAMPLES", 3001)
    data = noise(61.0, form=form)
    whole, _ = decode_audio(data)
    size, last = RATE // 2, 61 * RATE - RATE // 2
    starts = [place * last // 19 for place in range(20)]
    wanted = np.concatenate([whole[start : start + size] for start in starts])
    found, rate = decode_audio(to_flac(data))
    assert rate == RATE and found.shape == (10 * RATE, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert to_flac(to_flac(data)) == to_flac(data)
    whole_song = noise(10.0)
    assert to_flac(whole_song) == whole_song


def test_the_track_of_a_long_film_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(sound=True)
    whole, rate = decode_audio(to_flac(data))
    monkeypatch.setattr(data_prep.sound, "MAX_SECONDS", 0.05)
    found, same_rate = decode_audio(to_flac(data))
    assert same_rate == rate and 0 < len(found) <= 0.05 * rate < len(whole)


def test_a_file_is_read_as_its_bytes_are(tmp_path: Path) -> None:
    for number, data in enumerate((noise(0.5), noise(0.5, form="OGG"), clip(sound=True))):
        path = tmp_path / f"{number}.mp3"  # which none of them is
        path.write_bytes(data)
        assert to_flac(path) == to_flac(data)
