"""Clips to tokens: the order of frames counts, padding and neighbours do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoder_families import MAKERS, build

from encoders.video import PLACE_CHANNELS, VideoEncoder, VideoTransform, places, waves


class Pictures:
    """A clip of given frames."""

    def __init__(self, frames: np.ndarray) -> None:
        self.all_frames = frames

    def frames(self, num_frames: int, *, side: int, rule: str) -> list[np.ndarray]:
        return list(self.all_frames[:num_frames])


def some_clip(num_frames: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (num_frames, 70, 90, 3), dtype=np.uint8)


def make(num_tokens: int = 32, num_frames: int = 6) -> tuple[VideoEncoder, VideoTransform]:
    image = build(MAKERS["small"])
    encoder = VideoEncoder(image, most=num_frames, num_tokens=num_tokens)
    return encoder.eval(), VideoTransform(image.transform, num_frames=num_frames)


def test_a_clip_played_backwards_has_another_vector() -> None:
    encoder, transform = make(num_tokens=4)
    forwards, backwards = (
        transform(Pictures(frames)) for frames in (some_clip(4), some_clip(4)[::-1])
    )
    with torch.inference_mode():
        tokens = encoder(transform.collate([forwards, backwards]))
    first, second = tokens.values
    assert not torch.allclose(first, second, atol=1e-3)
    # the pictures are the same, only their places differ
    own = tokens.values[..., :-PLACE_CHANNELS]
    torch.testing.assert_close(own[0].flip(0), own[1])


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6])
def test_padding_and_neighbours_do_not_matter(num_frames: int) -> None:
    encoder, transform = make(num_tokens=8)
    sample, other = transform(Pictures(some_clip(num_frames))), transform(Pictures(some_clip(6, 1)))
    with torch.inference_mode():
        alone = encoder(transform.collate([sample]))
        together = transform.collate([other, None, sample])
        together["images"][~together["mask"]] = torch.nan
        found = encoder(together)
    torch.testing.assert_close(found.values[2], alone.values[0])
    assert torch.equal(found.mask[2], alone.mask[0]) and not found.mask[1].any()
    assert int(alone.mask.sum()) == min(8, 16 * num_frames)


def test_places_run_from_first_to_last() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False] * 3])
    assert places(mask).tolist() == [0.0, 0.5, 1.0, 0.0]
    found = waves(torch.tensor([0.0, 0.5, 1.0]))
    assert found.shape == (3, PLACE_CHANNELS)
    np.testing.assert_allclose(found[:, 0], [1, 0, -1], atol=1e-6)  # half a turn in all


def test_frames_and_tokens_are_bounded() -> None:
    encoder, transform = make(num_tokens=8, num_frames=3)
    sample = transform(Pictures(some_clip(50)))
    assert sample.shape == (3, 3, 64, 64)
    tokens = encoder(transform.collate([sample]))
    assert tokens.values.shape == (1, 8, encoder.width)
    assert encoder.width == encoder.image.width + PLACE_CHANNELS


def test_settings_out_of_range_are_refused_and_change_the_fingerprint() -> None:
    image = build(MAKERS["small"]).transform
    with pytest.raises(ValueError, match="frames is 0"):
        VideoTransform(image, num_frames=0)
    with pytest.raises(ValueError, match="rule is 'random': allowed are uniform and keyframes"):
        VideoTransform(image, rule="random")  # type: ignore[arg-type]
    prints = {
        VideoTransform(image, num_frames=4).fingerprint(),
        VideoTransform(image, num_frames=8).fingerprint(),
        VideoTransform(image, num_frames=8, rule="keyframes").fingerprint(),
    }
    assert len(prints) == 3
