"""Frames of clips: the right ones, in order, of short and long clips, stills and damaged files."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny_catalogue import clip

from data_prep.errors import BrokenMedium
from data_prep.media import normalise
from data_prep.video import Clip, evenly

SIZE = (48, 64)


def film(levels: list[int], *, rate: int = 10, gop: int = 12, noise: int = 0) -> bytes:
    """A clip of one grey level a frame, H.264 in MP4."""
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=rate)
        video.height, video.width = SIZE
        video.pix_fmt, video.gop_size = "yuv420p", gop
        for level in levels:
            pixels = np.full((*SIZE, 3), level) + random.integers(0, noise + 1, (*SIZE, 3))
            pixels = pixels.clip(0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
    return buffer.getvalue()


def levels_of(clip: Clip, num_frames: int, **settings: str) -> list[float]:
    found = clip.frames(num_frames, side=256, **settings)  # type: ignore[arg-type]
    return [float(frame.mean()) for frame in found]


def test_frames_are_the_middles_of_equal_parts_in_order() -> None:
    levels = list(range(0, 240, 6))  # 40 frames, 4 seconds
    found = levels_of(Clip(film(levels)), 4)
    np.testing.assert_allclose(found, [levels[place] for place in (5, 15, 25, 35)], atol=4)
    assert levels_of(Clip(film(levels[:3])), 8) == pytest.approx(levels[:3], abs=4)
    backwards = levels_of(Clip(film(levels[::-1])), 4)
    assert backwards == sorted(backwards, reverse=True)


def test_a_long_clip_is_sought_in() -> None:
    levels = [int(250 * place / 699) for place in range(700)]  # 70 seconds
    wanted = [levels[place] for place in (87, 262, 437, 612)]
    clip = Clip(film(levels, gop=50))
    assert levels_of(clip, 4) == pytest.approx(wanted, abs=4)
    # a key frame lies up to 50 frames, 18 levels, before the place
    keys = levels_of(clip, 4, rule="keyframes")
    assert keys == sorted(keys) and len(keys) == 4
    assert all(-20 < found - place < 4 for found, place in zip(keys, wanted, strict=True))


def test_frames_are_made_smaller_never_larger() -> None:
    clip = Clip(film([100] * 4))
    assert {frame.shape for frame in clip.frames(2, side=24)} == {(24, 32, 3)}
    assert {frame.shape for frame in clip.frames(2, side=500)} == {(*SIZE, 3)}


def test_stills_and_animations_are_clips() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(buffer, "PNG")
    assert levels_of(Clip(buffer.getvalue()), 8) == pytest.approx([200], abs=2)
    assert normalise(buffer.getvalue(), kind="video").extension == "png"
    pictures = [Image.fromarray(np.full((40, 50), 60 * k, np.uint8)) for k in range(4)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    assert normalise(buffer.getvalue(), kind="video").extension == "gif"
    assert levels_of(Clip(buffer.getvalue()), 8) == pytest.approx([0, 60, 120, 180], abs=2)


def test_what_comes_before_damage_is_used_and_rubbish_is_named() -> None:
    whole = film(list(range(0, 240, 6)), noise=60)
    with pytest.raises(BrokenMedium, match="broken video"):
        Clip(whole[: len(whole) // 3]).frames(4, side=64)  # its index stands at the end
    with pytest.raises(BrokenMedium, match="broken video"):
        Clip(b"no film at all" * 100).frames(4, side=64)
    damaged = bytearray(whole)
    middle = len(damaged) // 2
    damaged[middle : middle + 400] = bytes(400)
    assert len(Clip(bytes(damaged)).frames(4, side=64)) == 4


def test_a_film_without_sound_says_so() -> None:
    with pytest.raises(BrokenMedium, match="there is no sound in the file"):
        normalise(film([0, 100]), kind="audio")
    assert normalise(clip(sound=True), kind="audio").extension == "flac"


def test_places_are_the_middles_of_equal_parts() -> None:
    assert evenly(4, 40) == [5, 15, 25, 35] and evenly(1, 9) == [4]
    assert evenly(8, 3) == [0, 1, 2] and evenly(4, 0) == []


@pytest.mark.realdata
def test_real_clips_give_frames(shared_data: Path) -> None:
    """Camera clips and silent exercises, MP4 and AVI: every one decodes, none is read whole."""
    paths = sorted((shared_data / "videos").glob("*.*"))
    paths = [path for path in paths if path.suffix in (".mp4", ".avi")]
    paths += sorted((shared_data / "exercise-clips" / "video").glob("*.mp4"))[:20]
    assert len(paths) >= 30
    for path in paths:
        frames = Clip(path.read_bytes()).frames(8, side=128)
        assert 1 <= len(frames) <= 8, path
        assert all(min(frame.shape[:2]) <= 128 and frame.dtype == np.uint8 for frame in frames)
