"""Large media on their way from the processes to the writer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_catalogue import RED_PNG

from data_prep.media_pool import MediumJob, load_media


@pytest.fixture
def jobs(tmp_path: Path) -> list[MediumJob]:
    """Forty media, every other one a sound of more than a megabyte."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (400_000, 2)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, 44_100, format="FLAC")
    (tmp_path / "sound").write_bytes(buffer.getvalue())
    (tmp_path / "picture").write_bytes(RED_PNG)
    kinds = (MediumJob(tmp_path / "sound", "audio"), MediumJob(tmp_path / "picture", "image"))
    return [*kinds] * 20


def test_large_media_wait_in_files_and_are_the_same(jobs: list[MediumJob], tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    one = list(load_media(jobs, image_side=32, num_workers=1))
    found, most_waiting = [], 0
    for loaded in load_media(jobs, image_side=32, num_workers=2, aside=aside):
        found.append(loaded)
        most_waiting = max(most_waiting, sum(path.is_file() for path in aside.rglob("*")))
    assert found == one and all(loaded.medium is not None for loaded in one)
    assert most_waiting > 0 and list(aside.iterdir()) == []


def test_nothing_is_left_where_the_writer_stops(jobs: list[MediumJob], tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    media = load_media(jobs, image_side=32, num_workers=2, aside=aside)
    next(media)
    assert list(aside.iterdir()) != []
    media.close()  # type: ignore[attr-defined]
    assert list(aside.iterdir()) == []


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_film_that_cannot_be_read_is_a_reason(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    jobs = [MediumJob(tmp_path / name, kind) for name in ("nothing", "folder")]  # type: ignore[arg-type]
    nothing, folder = load_media(jobs, image_side=32, num_workers=1)
    assert nothing.reason == "missing file"
    assert folder.reason.startswith("unreadable file")
