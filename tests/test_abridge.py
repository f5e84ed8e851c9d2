"""Films too large to keep: few small frames at their places, the same for every reader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_video import film, levels_of

import data_prep.media
from data_prep.abridge import MAX_FRAMES, abridge
from data_prep.errors import BrokenMedium
from data_prep.media import normalise
from data_prep.video import Clip

LEVELS = [int(250 * place / 1199) for place in range(1200)]  # two minutes


@pytest.fixture(scope="module")
def long_film() -> bytes:
    """A key frame each second, more than are kept."""
    return film(LEVELS, gop=10)


def middles(count: int) -> list[int]:
    return [LEVELS[(2 * place + 1) * len(LEVELS) // (2 * count)] for place in range(count)]


def test_key_frames_at_even_places_are_kept(long_film: bytes) -> None:
    kept = Clip(abridge(long_film, side=24))
    assert [frame.shape for frame in kept.frames(1000, side=24)] == [(24, 32, 3)] * MAX_FRAMES
    found = levels_of(kept, MAX_FRAMES)
    # a key frame lies up to ten frames, two levels, before its place
    differences = np.subtract(found, middles(MAX_FRAMES))
    assert differences.min() > -6 and differences.max() < 4
    assert levels_of(kept, 8) == pytest.approx(middles(8), abs=6)
    assert levels_of(kept, 8, rule="keyframes") == levels_of(kept, 8)


def test_a_film_of_few_key_frames_is_decoded_at_its_places() -> None:
    kept = Clip(abridge(film(LEVELS, gop=600), side=24))
    assert levels_of(kept, MAX_FRAMES) == pytest.approx(middles(MAX_FRAMES), abs=4)


def test_no_other_frame_than_key_frames_is_decoded(
    long_film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve hundred; by seeking, and by reading through where no place can be sought."""
    import data_prep.video

    decoded: list[bool] = []
    frames_of = data_prep.video._decoded

    def watched(container: Any, stream: Any) -> Any:
        for frame in frames_of(container, stream):
            decoded.append(bool(frame.key_frame))
            yield frame

    monkeypatch.setattr(data_prep.video, "_decoded", watched)
    abridge(long_film, side=24)
    assert decoded == [True] * MAX_FRAMES
    decoded.clear()
    monkeypatch.setattr(data_prep.video, "SEEK_FROM_S", 1e9)
    abridge(long_film, side=24)
    with av.open(io.BytesIO(long_film)) as container:
        num_keys = sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert all(decoded) and MAX_FRAMES <= len(decoded) <= num_keys < 300


def test_only_large_files_are_abridged_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = film(LEVELS[:400], gop=10, noise=60)
    assert normalise(large, kind="video").data == large
    monkeypatch.setattr(data_prep.media, "MAX_CLIP_BYTES", len(large) - 1)
    path = tmp_path / "film"  # whose name says nothing
    path.write_bytes(large)
    kept = normalise(path, kind="video", image_side=24)
    assert kept.extension == "mp4" and len(kept.data) < len(large)
    assert normalise(large, kind="video", image_side=24) == kept
    assert normalise(kept.data, kind="video", image_side=24) == kept


def test_a_large_file_that_is_no_film_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.media, "MAX_CLIP_BYTES", 100)
    with pytest.raises(BrokenMedium, match="broken video"):
        normalise(b"no film at all" * 100, kind="video")


def test_what_is_kept_is_a_film_that_plays(long_film: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept.mp4"
    path.write_bytes(abridge(long_film, side=24))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == MAX_FRAMES
    times = [frame.time for frame in frames]
    assert None not in times and len(set(times)) == MAX_FRAMES
