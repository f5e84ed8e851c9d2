"""Windows of a sound and their loudness: BS.1770, one gain, no clipping, silence left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor

from encoders.audio import AudioEncoder, AudioTransform
from encoders.encoder import Transform
from encoders.musicnn import MusicTransform
from encoders.sound import (
    HIGHEST_PEAK,
    SAMPLE_RATE_HZ,
    Samples,
    measure_loudness,
    resampled_windows,
)
from encoders.spectrogram import SpectrogramTransform
from mmrec.encoder_parts import rebuild_encoder

TARGET = -23.0
FINGERPRINTS = {
    "small": "09805a74823d6ccbb475eba509d0cc48ae691089bca35f532049b156f8282731",
    "musicnn": "14b0b938579ea739f67b2e58aecf1325a8268bebff35e01733bb4c8864dae2fd",
    "spectrogram": "98c0bb2b97c9558c239fab304467e304ca281b4bfa557e014858799d277d132d",
}


def tone(seconds: float, gain: float = 0.1, rate: int = SAMPLE_RATE_HZ) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (gain * np.sin(2 * np.pi * 997 * time)).astype(np.float32)[:, None]


def spectrogram(loudness: float | None = None) -> SpectrogramTransform:
    settings = {"num_frames": 128, "num_mels": 32, "max_seconds": 4.0, "mean": -4.0, "std": 4.0}
    return SpectrogramTransform(**settings, loudness=loudness)  # type: ignore[arg-type]


TRANSFORMS: dict[str, Callable[[float | None], Transform]] = {
    "small": lambda loudness: AudioTransform(loudness=loudness),
    "musicnn": lambda loudness: MusicTransform(loudness=loudness),
    "spectrogram": spectrogram,
}


def slow_loudness(mono: np.ndarray) -> float:
    """BS.1770-4 by its own steps: both filters by formula, gates by loops."""
    rate = SAMPLE_RATE_HZ
    w, gain = 2 * np.pi * 1500.0 / rate, 10 ** (4.0 / 40)  # a shelf of 4 dB
    cos, root = np.cos(w), 2 * np.sqrt(gain) * np.sin(w) / np.sqrt(2)
    b = gain * np.array(
        [(gain + 1) + (gain - 1) * cos + root, -2 * ((gain - 1) + (gain + 1) * cos),
         (gain + 1) + (gain - 1) * cos - root]
    )  # fmt: skip
    a = np.array(
        [(gain + 1) - (gain - 1) * cos + root, 2 * ((gain - 1) - (gain + 1) * cos),
         (gain + 1) - (gain - 1) * cos - root]
    )  # fmt: skip
    shelved = lfilter(b / a[0], a / a[0], mono.astype(np.float64))
    w = 2 * np.pi * 38.0 / rate
    alpha, cos = np.sin(w) / (2 * 0.5), np.cos(w)
    b = np.array([(1 + cos) / 2, -1 - cos, (1 + cos) / 2])
    a = np.array([1 + alpha, -2 * cos, 1 - alpha])
    weighed = lfilter(b / a[0], a / a[0], shelved)
    powers = []
    for start in range(0, len(weighed) - 6400 + 1, 1600):
        powers.append(np.mean(weighed[start : start + 6400] ** 2))
    loud = [power for power in powers if -0.691 + 10 * np.log10(power) > -70]
    threshold = -0.691 + 10 * np.log10(np.mean(loud)) - 10
    loud = [power for power in loud if -0.691 + 10 * np.log10(power) > threshold]
    return float(-0.691 + 10 * np.log10(np.mean(loud)))


def test_loudness_is_that_of_the_recommendation() -> None:
    """A tone of 997 Hz at full scale has -3.01 LUFS; gates leave out what is quiet."""
    full = measure_loudness(torch.from_numpy(tone(5.0, 1.0)[:, 0]))
    assert full == pytest.approx(-3.01, abs=0.1)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 5 * SAMPLE_RATE_HZ)
    pieces = [noise, 0.02 * noise, 1e-5 * noise, tone(3.0)[:, 0]]
    for mono in (noise, 5 * noise, np.concatenate(pieces), np.cumsum(noise) / 100):
        found = measure_loudness(torch.from_numpy(mono.astype(np.float32)))
        assert found == pytest.approx(slow_loudness(mono), abs=0.01)
    alone = slow_loudness(noise)
    assert slow_loudness(np.concatenate([noise, 1e-3 * noise])) == pytest.approx(alone, abs=0.3)


def brought(samples: np.ndarray) -> Tensor:
    medium = (samples, SAMPLE_RATE_HZ)
    return torch.cat(resampled_windows(medium, window_s=2.0, max_windows=4, loudness=TARGET))


@pytest.mark.parametrize("gain", [0.003, 0.1, 0.9])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 60.0])
def test_a_sound_is_brought_to_the_loudness(gain: float, seconds: float) -> None:
    found = measure_loudness(brought(tone(seconds, gain)))
    assert found == pytest.approx(TARGET, abs=0.05)


def test_windows_of_a_long_sound_have_one_gain() -> None:
    samples = np.concatenate([tone(20.0, 0.01), tone(20.0, 0.2)])
    quiet, *_, loud = brought(samples).chunk(4)
    assert float(loud.abs().max() / quiet.abs().max()) == pytest.approx(20, rel=0.01)


def test_silence_stays_and_peaks_never_clip() -> None:
    assert bool((brought(np.zeros((5000, 1), np.float32)) == 0).all())
    nearly = tone(1.0, 1e-5)  # -103 LUFS
    assert torch.equal(brought(nearly)[:, None], torch.from_numpy(nearly))
    clicks = np.zeros((5 * SAMPLE_RATE_HZ, 1), np.float32)
    clicks[::4000] = 0.5
    for gain in (0.1, 1.0, 2.0):
        peak = float(brought((gain * clicks).astype(np.float32)).abs().max())
        assert peak == pytest.approx(HIGHEST_PEAK, rel=1e-4) and peak < 1


@pytest.mark.parametrize("num_samples", [1, 2, 399, 6399, 6400])
def test_very_short_sounds_are_measured_as_if_they_went_on(num_samples: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.01, (num_samples, 1)).astype(np.float32)
    found = brought(samples)
    assert found.shape == (num_samples,) and bool(found.isfinite().all())
    assert float(found.abs().max()) < 1
    for make in TRANSFORMS.values():
        sample = make(TARGET)((samples, SAMPLE_RATE_HZ))
        assert sample is not None and bool(sample.isfinite().all())
        assert make(TARGET)((np.zeros((0, 1), np.float32), SAMPLE_RATE_HZ)) is None


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_tone_at_two_gains_is_one_sound_with_loudness_alone(name: str) -> None:
    make = TRANSFORMS[name]
    loud, quiet = ((tone(4.0, gain), SAMPLE_RATE_HZ) for gain in (0.3, 0.03))
    torch.testing.assert_close(make(TARGET)(loud), make(TARGET)(quiet), atol=5e-3, rtol=1e-3)
    assert float((make(None)(loud) - make(None)(quiet)).abs().max()) > 0.1
    silence = (np.zeros((20_000, 1), np.float32), SAMPLE_RATE_HZ)
    assert torch.equal(make(TARGET)(silence), make(None)(silence))


def test_an_embedding_depends_on_the_gain_without_loudness_alone() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder().eval()
    media = [(tone(4.0, gain), SAMPLE_RATE_HZ) for gain in (0.3, 0.03)]
    distances = []
    for loudness in (None, TARGET):
        transform = AudioTransform(loudness=loudness)
        with torch.no_grad():
            first, second = encoder.pooled(encoder(transform.collate([*map(transform, media)])))
        distances.append(float((first - second).norm() / first.norm()))
    assert distances[0] > 0.02 > 1e-3 > distances[1]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_key_of_a_cache_depends_on_it(name: str) -> None:
    make = TRANSFORMS[name]
    prints = [make(loudness).fingerprint() for loudness in (None, -23.0, -16.0)]
    assert len(set(prints)) == 3
    assert make(-23).fingerprint() == prints[1]


def test_caches_that_were_made_without_it_are_still_right() -> None:
    """Fingerprints of the transforms before there was such a setting."""
    assert AudioTransform().fingerprint() == FINGERPRINTS["small"]
    assert MusicTransform().fingerprint() == FINGERPRINTS["musicnn"]
    assert spectrogram().fingerprint() == FINGERPRINTS["spectrogram"]


@pytest.mark.parametrize("loudness", [0.0, -200.0, True, "loud"])
def test_other_settings_are_refused(loudness: object) -> None:
    for make in TRANSFORMS.values():
        with pytest.raises(ValueError, match="loudness is"):
            make(loudness)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["small", "musicnn"])
def test_it_is_an_option_that_a_document_keeps(kind: str) -> None:
    document = {"modality": "audio", "kind": kind, "num_tokens": 4, "options": {"loudness": -23}}
    parts = rebuild_encoder(document)
    assert parts.transform.fingerprint() == TRANSFORMS[kind](-23.0).fingerprint()


class Counted(Samples):
    """A sound that notes what is read of it."""

    def __init__(self, samples: np.ndarray, rate_hz: int) -> None:
        super().__init__(samples, rate_hz)
        object.__setattr__(self, "asked", [])

    def read(self, start: int, stop: int) -> np.ndarray:
        self.asked.append(stop - start)  # type: ignore[attr-defined]
        return super().read(start, stop)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_more_is_read_than_is_heard(name: str) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, (180 * 8000, 2)).astype(np.float32)
    sound, make = Counted(samples, 8000), TRANSFORMS[name]
    torch.testing.assert_close(make(None)(sound), make(None)((samples, 8000)), atol=0, rtol=0)
    assert 0 < sum(sound.asked) <= 60 * 8000  # type: ignore[attr-defined]
