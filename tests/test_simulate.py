"""The simulated catalogue: one seed, one set of bytes; tastes that only joint media explain."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
import yaml
from numpy.typing import NDArray
from PIL import Image

from data_prep.drawing import (
    GESTURES,
    SAMPLE_RATE_HZ,
    SHAPES,
    TEXTURES,
    TIMBRES,
    TOPICS,
    draw_picture,
    synthesise_sound,
    write_text,
)
from data_prep.errors import DataError
from data_prep.simulate import read_item_truth, read_user_truth, simulate
from data_prep.tastes import (
    POPULARITY_SPREAD,
    Attributes,
    Floats,
    affinity,
    answers_wish,
    draw_attributes,
    draw_log,
    draw_wishes,
)

SMALL = {"num_items": 48, "num_users": 30, "events_per_user": 6, "num_new_items": 4}


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = hashes(simulate(tmp_path / "a", seed=3, **SMALL).parent)
    second = hashes(simulate(tmp_path / "b", seed=3, **SMALL).parent)
    other = hashes(simulate(tmp_path / "c", seed=4, **SMALL).parent)
    assert first == second
    assert first["interactions.parquet"] != other["interactions.parquet"]
    assert first["media/i00003.jpg"] != other["media/i00003.jpg"]


def test_more_users_do_not_change_the_items(tmp_path: Path) -> None:
    first = hashes(simulate(tmp_path / "a", **SMALL).parent)
    second = hashes(simulate(tmp_path / "b", **{**SMALL, "num_users": 40}).parent)
    same = [name for name in first if name.startswith("media/")] + ["items.csv"]
    assert all(first[name] == second[name] for name in same)


def test_a_second_run_leaves_the_folder_and_other_files_are_refused(tmp_path: Path) -> None:
    catalogue = simulate(tmp_path / "a", **SMALL)
    written = catalogue.stat().st_mtime_ns
    assert simulate(tmp_path / "a", **SMALL).stat().st_mtime_ns == written
    with pytest.raises(DataError, match="already holds other files"):
        simulate(tmp_path / "a", seed=9, **SMALL)
    with pytest.raises(DataError, match="num_items is 7; it must be at least 40"):
        simulate(tmp_path / "b", num_items=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_files_are_whole_but_for_the_two_broken_ones(tmp_path: Path) -> None:
    folder = simulate(tmp_path / "a", **SMALL).parent
    document = yaml.safe_load((folder / "catalogue.yaml").read_text())
    items = pl.read_csv(folder / document["items"]["table"])
    assert document["name"] == "simulated" and document["repeats"] == "forbid"
    assert items["item_id"].n_unique() == SMALL["num_items"]
    assert items["picture"].null_count() >= 1
    assert items["sound"].null_count() >= 1
    assert items["title"].null_count() >= 1
    broken = []
    for row in items.iter_rows(named=True):
        assert sum(row[column] is None for column in ("title", "picture", "sound")) <= 1
        if row["picture"]:
            try:
                assert Image.open(folder / row["picture"]).convert("RGB").size == (96, 96)
            except OSError:
                broken.append(row["picture"])
        if row["sound"]:
            try:
                samples, rate = soundfile.read(folder / row["sound"])
                assert rate == SAMPLE_RATE_HZ and 1.7 < len(samples) / rate < 2.3
            except soundfile.LibsndfileError:
                broken.append(row["sound"])
    assert len(broken) == 2
    new = pl.read_csv(folder / "new_items" / "items.csv")
    assert new.columns == items.columns and len(new) == SMALL["num_new_items"]
    assert all((folder / "new_items" / path).is_file() for path in new["picture"])


def test_the_log_is_ordered_and_repeats_nothing(tmp_path: Path) -> None:
    folder = simulate(tmp_path / "a", **SMALL).parent
    log = pl.read_parquet(folder / "interactions.parquet")
    assert log.schema["user_id"] == pl.String and log.schema["item_id"] == pl.String
    assert log["timestamp"].is_sorted()
    for _, events in log.group_by("user_id", maintain_order=True):
        assert events["position"].to_list() == list(range(len(events)))
        assert events["item_id"].n_unique() == len(events)
    new = pl.read_parquet(folder / "truth" / "new_items.parquet")
    assert not set(new["item_id"]) & set(log["item_id"])
    attributes, popularity = read_item_truth(folder / "truth" / "items.parquet")
    assert len(attributes) == len(popularity) == SMALL["num_items"]
    assert len(read_user_truth(folder / "truth" / "users.parquet")) == SMALL["num_users"]


def conditional_entropy_bits(liked: NDArray[np.bool_], known: NDArray[np.int64]) -> float:
    """H(liked | known), with `known` an integer code per item, for one user."""
    total = 0.0
    for code in np.unique(known):
        share = liked[known == code].mean()
        for part in (share, 1 - share):
            if part > 0:
                total -= (known == code).mean() * part * np.log2(part)
    return total


def test_no_single_medium_explains_liking_and_the_media_together_do() -> None:
    rng = np.random.default_rng(0)
    items, wishes = draw_attributes(rng, 4096), draw_wishes(rng, 40)
    picture = items.texture * 4 + items.shape
    sound = items.gesture * 4 + items.timbre
    text = items.topic * 4 + items.mood
    known = {
        "nothing": np.zeros(len(items), dtype=np.int64),
        "picture": picture,
        "sound": sound,
        "text": text,
        "picture and sound": picture * 16 + sound,
        "all": items.texture * 16 + items.gesture * 4 + items.topic,
    }
    liked = answers_wish(items, wishes)
    left = {
        name: np.mean([conditional_entropy_bits(row, codes) for row in liked])
        for name, codes in known.items()
    }
    explained = {name: 1 - bits / left["nothing"] for name, bits in left.items()}
    assert explained["all"] == pytest.approx(1.0)
    assert explained["picture"] < 0.3 and explained["sound"] < 0.2 and explained["text"] < 0.2
    assert explained["picture"] + explained["sound"] + explained["text"] < 0.6
    assert explained["picture and sound"] > 1.5 * (explained["picture"] + explained["sound"])


def probe_accuracy(features: Floats, codes: NDArray[np.int64]) -> float:
    """Accuracy on the second half of a least-squares classifier fitted on the first."""
    inputs = np.column_stack([features, np.ones(len(features))])
    half = len(codes) // 2
    weights = np.linalg.lstsq(inputs[:half], np.eye(4)[codes[:half]], rcond=None)[0]
    return float(((inputs[half:] @ weights).argmax(1) == codes[half:]).mean())


def test_mean_colour_does_not_tell_the_texture() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(4, size=600)
    pictures = [draw_picture(rng, texture=TEXTURES[c], shape="disc", side=48) for c in codes]
    means = np.array([picture.reshape(-1, 3).mean(0) for picture in pictures])
    assert probe_accuracy(means / 255, codes) < 0.36  # chance .25, two deviations .29


def test_mean_spectrum_does_not_tell_rising_from_falling() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(2, size=300)
    sounds = [synthesise_sound(rng, gesture=GESTURES[c], timbre="pure") for c in codes]
    spectra = np.array([np.abs(np.fft.rfft(sound, 4096 * 8)) for sound in sounds])
    bands = np.log(spectra[:, :16000].reshape(len(sounds), 20, 800).mean(2) + 1e-6)
    assert probe_accuracy(bands, codes) < 0.62  # chance .5, two deviations .58


def test_no_single_word_gives_the_topic_away() -> None:
    rng = np.random.default_rng(3)
    topics = rng.integers(4, size=800)
    texts = [" ".join(write_text(rng, topic=TOPICS[t], mood="calm")).lower() for t in topics]
    words = {word.strip(".,:;?") for text in texts for word in text.split()}
    for word in words:
        having = np.array([word in text for text in texts])
        if having.sum() >= 20:
            coverage = np.bincount(topics[having], minlength=4) / np.bincount(topics, minlength=4)
            assert coverage.max() - coverage.min() < 0.4, word
    assert len(set(texts)) == len(texts)


def test_the_oracle_beats_popularity_by_far() -> None:
    rng = np.random.default_rng(4)
    items = draw_attributes(rng, 400)
    popularity = rng.normal(0, POPULARITY_SPREAD, 400)
    log, wishes = draw_log(items, popularity, 300, 12, seed=0)
    oracle_hits: list[bool] = []
    popular_hits: list[bool] = []
    counts = np.bincount(log["item_index"].to_numpy(), minlength=400)
    for (user,), events in log.sort("position").group_by("user_index"):
        met = events["item_index"].to_numpy()
        row = np.array([user])
        scores = affinity(items, wishes.rows(row), items.shape[met[-2:-1]])[0] + popularity
        for hits, order in ((oracle_hits, scores), (popular_hits, counts.astype(float))):
            unseen = order.copy()
            unseen[met[:-1]] = -np.inf
            hits.append(met[-1] in np.argsort(-unseen)[:10])
    assert np.mean(oracle_hits) > 3 * np.mean(popular_hits)
    assert np.mean(oracle_hits) > 0.25


def test_every_attribute_value_can_be_drawn() -> None:
    rng = np.random.default_rng(5)
    for shape in SHAPES:
        for texture in TEXTURES:
            picture = draw_picture(rng, texture=texture, shape=shape)
            assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    for gesture in GESTURES:
        for timbre in TIMBRES:
            sound = synthesise_sound(rng, gesture=gesture, timbre=timbre, duration_s=0.3)
            assert sound.dtype == np.float32 and 0.1 < np.abs(sound).max() <= 0.7
    with pytest.raises(ValueError, match="texture 'woven' is not one of"):
        draw_picture(rng, texture="woven", shape="disc")
    with pytest.raises(ValueError, match="gesture 'still' is not one of"):
        synthesise_sound(rng, gesture="still", timbre="pure")


def test_cells_are_equally_filled() -> None:
    items = draw_attributes(np.random.default_rng(6), 640)
    cells = items.texture * 16 + items.gesture * 4 + items.topic
    assert np.bincount(cells, minlength=64).tolist() == [10] * 64
    assert isinstance(items, Attributes)
