import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from encoders.audio import AudioEncoder, AudioTransform
from encoders.encoder import find_unused_parameters


def tone(frequencies: list[float], duration_s: float, rate: int, channels: int = 1) -> np.ndarray:
    time = np.arange(round(duration_s * rate)) / rate
    wave = sum(np.sin(2 * np.pi * f * time) for f in frequencies) * 0.2 * (1 + np.sin(9 * time))
    return np.repeat(np.asarray(wave, np.float32)[:, None], channels, axis=1)


@pytest.fixture(scope="module")
def transform() -> AudioTransform:
    return AudioTransform()


@pytest.fixture
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder().eval()


def test_frames_are_64_bands_of_10_ms(transform: AudioTransform) -> None:
    sample = transform((tone([440.0], 1.0, 16000), 16000))
    assert sample is not None and sample.shape == (97, 64) and sample.dtype == torch.float32
    low = transform((tone([200.0], 1.0, 16000), 16000))
    high = transform((tone([4000.0], 1.0, 16000), 16000))
    assert low is not None and high is not None
    assert int(low.mean(dim=0).argmax()) < int(sample.mean(dim=0).argmax())
    assert int(sample.mean(dim=0).argmax()) < int(high.mean(dim=0).argmax())


def test_stereo_is_mixed_and_silence_is_finite(transform: AudioTransform) -> None:
    mono = transform((tone([440.0], 0.5, 16000), 16000))
    stereo = transform((tone([440.0], 0.5, 16000, channels=2), 16000))
    assert mono is not None and stereo is not None
    torch.testing.assert_close(mono, stereo)
    silence = transform((np.zeros((16000, 1), np.float32), 16000))
    assert silence is not None and bool(silence.isfinite().all())
    assert transform((np.zeros((0, 1), np.float32), 16000)) is None
    click = transform((np.ones((3, 1), np.float32), 16000))
    assert click is not None and click.shape == (1, 64)


def test_two_sample_rates_of_a_sound_agree(
    transform: AudioTransform, encoder: AudioEncoder
) -> None:
    sounds = ([300.0, 1200.0], [500.0, 3100.0, 5000.0])
    samples = [
        transform((tone(sound, 2.0, rate), rate)) for sound in sounds for rate in (16000, 44100)
    ]
    with torch.no_grad():
        vectors = encoder.pooled(encoder(transform.collate(samples)))
    first, resampled, second, _ = vectors - vectors.mean(dim=0)
    assert torch.cosine_similarity(vectors[0], vectors[1], dim=0) > 0.999
    assert torch.cosine_similarity(vectors[2], vectors[3], dim=0) > 0.999
    assert (first - resampled).norm() < 0.1 * (first - second).norm()


def test_long_sounds_give_windows_from_start_to_end() -> None:
    transform = AudioTransform(max_seconds=2.0)
    rate = 8000
    parts = [tone([frequency], 5.0, rate) for frequency in (200.0, 600.0, 1500.0, 3500.0)]
    sample = transform((np.concatenate(parts), rate))
    assert sample is not None and len(sample) <= 200
    peaks = [int(window.mean(dim=0).argmax()) for window in sample.chunk(4)]
    assert peaks == sorted(set(peaks))


def test_bad_sounds_are_refused(transform: AudioTransform) -> None:
    with pytest.raises(ValueError, match=r"\(samples, channels\)"):
        transform((np.zeros(5, np.float32), 16000))
    with pytest.raises(ValueError, match="not finite"):
        transform((np.full((500, 1), np.nan, np.float32), 16000))
    with pytest.raises(ValueError, match="max_seconds"):
        AudioTransform(max_seconds=0.0)
    with pytest.raises(ValueError, match="num_mels a multiple of 16"):
        AudioEncoder(num_mels=50)


def test_transform_pickles_and_its_fingerprint_follows_the_duration() -> None:
    transform = AudioTransform()
    copy = pickle.loads(pickle.dumps(transform))
    medium = (tone([440.0], 0.4, 22050), 22050)
    assert torch.equal(copy(medium), transform(medium))
    assert copy.fingerprint() == transform.fingerprint()
    assert AudioTransform(max_seconds=5.0).fingerprint() != transform.fingerprint()


def test_padding_and_neighbours_do_not_matter(encoder: AudioEncoder) -> None:
    for frames in (1, 15, 16, 17, 33, 97, 300):
        mel = torch.randn(1, frames, 64)
        mask = torch.ones(1, frames, dtype=torch.bool)
        alone = encoder({"mel": mel, "mask": mask, "present": torch.tensor([True])})
        padded = torch.randn(2, 340, 64)  # what lies under the padding is arbitrary
        padded[0, :frames] = mel[0]
        real = torch.arange(340) < torch.tensor([[frames], [340]])
        together = encoder({"mel": padded, "mask": real, "present": torch.tensor([True, True])})
        torch.testing.assert_close(together.values[:1], alone.values, atol=1e-5, rtol=1e-5)
        assert int(alone.mask.sum()) == min(-(-frames // 16), 16)
        assert torch.equal(together.mask[:1], alone.mask)


def test_absent_rows_are_masked_and_touch_nobody(
    transform: AudioTransform, encoder: AudioEncoder
) -> None:
    sample = transform((tone([440.0], 3.0, 16000), 16000))
    inputs = transform.collate([sample, None])
    before = encoder(inputs)
    assert before.values.shape == (2, 16, 128)
    assert bool(before.mask[0].all()) and not before.mask[1].any()
    inputs["mel"][1] = torch.nan
    assert torch.equal(encoder(inputs).values, before.values)
    nothing = encoder(transform.collate([None]))
    assert not nothing.mask.any() and not encoder.pooled(nothing).isnan().any()
    assert torch.equal(encoder.above(encoder.below(inputs)).values, before.values)


def test_gradient_reaches_every_parameter_of_a_small_network(encoder: AudioEncoder) -> None:
    inputs = {"mel": torch.randn(2, 90, 64), "mask": torch.ones(2, 90, dtype=torch.bool)}
    inputs["present"] = torch.tensor([True, True])
    assert find_unused_parameters(encoder.train(), lambda: encoder(inputs).values.pow(2)) == []
    assert 200_000 < sum(p.numel() for p in encoder.parameters()) < 400_000


def test_fingerprint_follows_the_weights(encoder: AudioEncoder) -> None:
    before = encoder.fingerprint()
    with torch.no_grad():
        encoder.join.weight[0, 0] += 1.0
    assert encoder.fingerprint() != before


def test_a_probe_tells_pitches_apart(transform: AudioTransform, encoder: AudioEncoder) -> None:
    """Even untrained, the tokens keep what a linear probe needs: chance is a quarter."""
    rng = np.random.default_rng(0)
    bands, samples, labels = (200.0, 600.0, 1500.0, 4000.0), [], []
    for index in range(64):
        frequency = bands[index % 4] * rng.uniform(0.85, 1.15)
        wave = tone([frequency], rng.uniform(0.3, 0.8), 16000)
        wave += rng.normal(0, 0.02, wave.shape).astype(np.float32)
        samples.append(transform((wave, 16000)))
        labels.append(index % 4)
    with torch.no_grad():
        vectors = encoder.pooled(encoder(transform.collate(samples)))
    targets = torch.nn.functional.one_hot(torch.tensor(labels)).float()
    weights = torch.linalg.lstsq(vectors[:40], targets[:40], driver="gelsd").solution
    right = (vectors[40:] @ weights).argmax(dim=1) == torch.tensor(labels[40:])
    assert float(right.float().mean()) > 0.7


@pytest.mark.realdata
def test_real_sounds_at_two_rates_agree(
    shared_data: Path, transform: AudioTransform, encoder: AudioEncoder
) -> None:
    files = sorted(p for p in (shared_data / "stamps").rglob("*") if p.suffix in (".ogg", ".wav"))
    samples = []
    for file in files[:8]:
        wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
        halved = resample_poly(wave, 16000, rate, axis=0).astype(np.float32)
        samples += [transform((wave, rate)), transform((halved, 16000))]
    with torch.no_grad():
        vectors = encoder.pooled(encoder(transform.collate(samples)))
    similarity = torch.cosine_similarity(vectors[0::2], vectors[1::2])
    assert len(similarity) == 8 and float(similarity.min()) > 0.99
