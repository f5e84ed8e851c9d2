"""Small changes of media: how large they are, and that item and seed alone decide them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_catalogue import photograph

from data_prep.shards import PreparedData
from mmrec.data.items import PreparedMedia
from mmrec.evaluation.perturbations import (
    PERTURBATIONS,
    PerturbedMedia,
    add_noise,
    encode_jpeg_again,
    make_typos,
)

pytest_plugins = ["tiny_run"]


def edits(first: str, second: str) -> int:
    """Damerau-Levenshtein distance (neighbours swapped count once), by its recurrence."""
    table = np.add.outer(np.arange(len(first) + 1), np.arange(len(second) + 1))
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            unlike = first[i - 1] != second[j - 1]
            best = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + unlike]
            if i > 1 and j > 1 and first[i - 2 : i] == second[j - 2 : j][::-1]:
                best.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(best)
    return int(table[-1, -1])


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        pytest.param({"title": "Alien"}, 1, id="one-word"),
        pytest.param({"title": "Die Hard", "plot": "A man in a tower. " * 6}, 2, id="two-fields"),
        pytest.param({"title": "Ирония судьбы, или С лёгким паром!"}, 1, id="cyrillic"),
        pytest.param({"title": "İIİ 2001"}, 1, id="capital-with-a-longer-small-form"),
        pytest.param({"title": "aa aa"}, 1, id="nothing-to-swap-or-replace"),
        pytest.param({"title": "12 3 -", "plot": ""}, 0, id="no-word"),
        pytest.param({}, 0, id="empty"),
    ],
)
def test_typos_are_one_letter_in_a_tenth_of_the_words(texts: dict[str, str], count: int) -> None:
    kept = dict(texts)
    for seed in range(30):
        found = make_typos(texts, np.random.default_rng(seed))
        assert list(found) == list(texts) and texts == kept
        changed = [edits(texts[name], found[name]) for name in texts]
        assert sum(changed) == count
        assert sum(texts[n].lower() != found[n].lower() for n in texts) == sum(map(bool, changed))
        assert set("".join(found.values()).lower()) <= set("".join(texts.values()).lower())


def test_all_kinds_of_typos_happen() -> None:
    found = {make_typos({"t": "crate"}, np.random.default_rng(seed))["t"] for seed in range(100)}
    assert "rcate" in found and "rate" in found and "create" not in found
    assert any(len(word) == 5 and sorted(word) != sorted("crate") for word in found)


def test_noise_has_the_stated_power() -> None:
    time = np.arange(16_000) / 16_000
    sound = np.stack([0.3 * np.sin(2 * np.pi * f * time) for f in (440, 600)], 1).astype(np.float32)
    for decibels in (10.0, 20.0):
        found, rate = add_noise((sound, 16_000), np.random.default_rng(0), decibels=decibels)
        assert (rate, found.shape, found.dtype) == (16_000, sound.shape, np.float32)
        power = np.square(sound).mean() / np.square(found - sound).mean()
        assert 10 * np.log10(power) == pytest.approx(decibels, abs=0.01)
    silence = np.zeros((800, 1), np.float32)
    assert (add_noise((silence, 8000), np.random.default_rng(0))[0] == 0).all()
    loud, _ = add_noise((np.ones((800, 1), np.float32), 8000), np.random.default_rng(0))
    assert np.abs(loud).max() <= 1


def test_a_second_jpeg_is_nearer_the_better_it_is() -> None:
    pixels = photograph(120, 90)
    random = np.random.default_rng(0)
    off = [
        np.abs(encode_jpeg_again(pixels, random, quality=(q, q)).astype(int) - pixels).mean()
        for q in (5, 50, 95)
    ]
    assert off[0] > 2 * off[1] > 2 * off[2] > 0


def test_item_and_seed_alone_decide(tiny_data: Path) -> None:
    media = PreparedMedia(PreparedData.open(tiny_data))
    for each in PERTURBATIONS.values():
        modality = each.modality

        def load(*seed: int, rows: tuple[int, ...] = (0, 1, 2)) -> list[str]:
            changed = PerturbedMedia(media, each, *seed)  # noqa: B023
            found = {row: changed.load(row, modality) for row in rows}  # noqa: B023
            return [repr([np.asarray(x).tolist() for x in parts(found[row])]) for row in (0, 1, 2)]

        assert load(0, 1) == load(0, 1, rows=(2, 1, 0))
        assert load(0, 1) != load(0, 2) and load(0, 1) != load(1, 1)
        others = {"text", "image", "audio"} - {modality}
        changed = PerturbedMedia(media, each, 0)
        for other in others:
            assert repr(changed.load(0, other)) == repr(media.load(0, other))
        assert len(changed) == len(media) and changed.digest(0, modality) is None


def parts(medium: object) -> list[object]:
    """What a medium consists of, for comparison."""
    if isinstance(medium, dict):
        return list(medium.values())
    return list(medium) if isinstance(medium, tuple) else [medium]
