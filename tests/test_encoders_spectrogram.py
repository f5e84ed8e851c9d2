"""Spectrogram transformers: the library's own states, windows of long sounds, every cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from encoders.spectrogram import SpectrogramEncoder, SpectrogramTransform, WindowEncoder
from mmrec.config import EncoderConfig
from mmrec.encoder_parts import make_encoder, rebuild_encoder
from mmrec.errors import ConfigError, WeightsError

RATE = 16_000
CONFIG = ASTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_length=128, num_mel_bins=64,
)  # fmt: skip


def tone(seconds: float, frequency: float = 440.0) -> tuple[np.ndarray, int]:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[:, None], RATE


def model() -> Any:
    torch.manual_seed(0)
    return ASTModel(CONFIG).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as transformers saves them."""
    path = tmp_path_factory.mktemp("ast")
    model().save_pretrained(path)
    ASTFeatureExtractor(max_length=128, num_mel_bins=64, mean=-4.0, std=4.5).save_pretrained(path)
    return path


def parts_of(folder: Path | None, **options: Any) -> Any:
    config = EncoderConfig(
        kind="transformers", weights=None if folder is None else str(folder), options=options
    )
    return make_encoder("audio", config, texts=list, vector_width=lambda _: 0)


def test_a_window_is_what_the_librarys_extractor_gives() -> None:
    extractor = ASTFeatureExtractor(max_length=128, num_mel_bins=64, mean=-4.0, std=4.5)
    transform = SpectrogramTransform(
        num_frames=128, num_mels=64, max_seconds=1.28, mean=-4.0, std=4.5
    )
    for seconds in (0.01, 0.6, 1.28):
        samples, rate = tone(max(seconds, 0.03))
        expected = extractor(samples[:, 0], sampling_rate=rate, return_tensors="np")
        found = transform((samples, rate))
        assert found is not None and found.shape == (1, 128, 64)
        np.testing.assert_allclose(found[0], expected["input_values"][0], atol=1e-4)


def test_states_are_those_of_the_library() -> None:
    reference = model()
    images = torch.randn(3, 128, 64)
    with torch.inference_mode():
        expected = reference(images).last_hidden_state
        encoder = WindowEncoder(model(), num_tokens=4).eval()
        states = encoder.run(encoder.begin({"images": images}), 0, 2)
        torch.testing.assert_close(encoder.finish(states), expected)
        tokens = encoder({"images": images, "present": torch.ones(3, dtype=torch.bool)})
        summary = encoder.norm(states[:, :2].mean(dim=1))
    assert tokens.values.shape == (3, 4, 32) and bool(tokens.mask.all())
    torch.testing.assert_close(encoder.pooled(tokens), summary)


def test_windows_run_from_the_start_of_a_sound_to_its_end() -> None:
    transform = SpectrogramTransform(
        num_frames=128, num_mels=64, max_seconds=4.0, mean=-4.0, std=4.5
    )
    assert transform.most == 3
    low, high = tone(10.0, 200.0)[0], tone(10.0, 5000.0)[0]
    sample = transform((np.concatenate([low, high]), RATE))
    assert sample is not None and len(sample) == 3
    assert int(sample[0].mean(dim=0).argmax()) < int(sample[2].mean(dim=0).argmax())
    short = transform(tone(2.0))
    assert short is not None and len(short) == 2
    assert transform((np.zeros((0, 1), np.float32), RATE)) is None
    with pytest.raises(ValueError, match="a window of this model takes 1.28"):
        SpectrogramTransform(num_frames=128, num_mels=64, max_seconds=1.0, mean=0.0, std=1.0)


def test_a_folder_of_weights_is_read_and_rebuilt_without_it(folder: Path) -> None:
    parts = parts_of(folder, max_seconds=4.0, tokens_per_window=4)
    assert isinstance(parts.encoder, SpectrogramEncoder)
    assert (parts.transform.mean, parts.transform.std) == (-4.0, 4.5)
    inputs = parts.transform.collate([parts.transform(tone(3.0)), None])
    rebuilt = rebuild_encoder(parts.document)
    rebuilt.encoder.load_state_dict(parts.encoder.state_dict())
    assert rebuilt.transform.fingerprint() == parts.transform.fingerprint()
    with torch.inference_mode():
        first, second = (each.encoder.eval()(inputs) for each in (parts, rebuilt))
    torch.testing.assert_close(first.values, second.values)
    assert first.mask.sum(dim=1).tolist() == [12, 0]


def test_what_is_no_spectrogram_transformer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a spectrogram transformer needs weights"):
        parts_of(None)
    with pytest.raises(ConfigError, match="options.seconds is not known"):
        parts_of(folder, seconds=3)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="model_type is 'bert'"):
        parts_of(tmp_path)
    with pytest.raises(WeightsError, match="neither an installed name"):
        parts_of(tmp_path / "nowhere")
