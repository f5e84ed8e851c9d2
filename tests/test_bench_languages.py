"""Names in two languages compared: what is hidden, what is asked, and a small run of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from PIL import Image

from benchmarks.languages import run as languages
from benchmarks.languages.names import hide_names, hits, match_characters, questions
from benchmarks.languages.run import Row, ask, main, ratio, render
from mmrec.config import load_config

pytestmark = pytest.mark.usefixtures("restored_torch")

SIGNS = "山水火木金土日月星風雨雪花鳥魚犬猫馬牛羊"
WORDS = (
    "mountain water fire tree gold earth sun moon star wind rain snow flower bird fish dog cat "
    "horse cow sheep"
).split()
ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{number:02}" for number in range(48)],
        "category": ["things"] * 48,
        "subcategory": [f"things/{number % 4}" for number in range(48)],
        "name_en": [f"a {WORDS[n % 20]} and a {WORDS[(n * 7 + n // 20) % 20]}" for n in range(48)],
        "name_zh": [
            None if n % 12 == 11 else SIGNS[n % 20] + SIGNS[(n * 7 + n // 20) % 20]
            for n in range(48)
        ],
        "image": [f"images/{number}.png" for number in range(48)],
        "sound": [f"sounds/{number}.wav" for number in range(48)],
        "sound_kind": ["effect"] * 48,
    }
)


def test_a_hidden_name_is_gone_and_its_item_keeps_the_other() -> None:
    items = ITEMS.with_columns(  # two items of one name
        pl.when(pl.col("item_id") == "i01")
        .then(pl.lit(ITEMS["name_zh"][0]))
        .otherwise("name_zh")
        .alias("name_zh")
    )
    found = [hide_names(items, share=0.2, seed=seed) for seed in range(12)]
    for indexed in found:
        lost = {}
        for column in ("name_en", "name_zh"):
            lost[column] = (items[column].is_not_null() & indexed[column].is_null()).to_numpy()
            kept = indexed[column].drop_nulls()
            assert not set(kept) & set(items[column].to_numpy()[lost[column]])
            assert set(kept) <= set(items[column])
            assert lost[column].sum() in (9, 10)  # a fifth of the 44 with two names, or one more
        assert not (lost["name_en"] & lost["name_zh"]).any()
        alone = items["name_zh"].is_null().to_numpy()
        assert not (alone & lost["name_en"]).any()
    assert hide_names(items, share=0.2, seed=3).equals(found[3])
    assert not found[3].equals(found[4])


def test_the_same_items_are_asked_for_in_both_languages() -> None:
    indexed = hide_names(ITEMS, share=0.2, seed=0)
    is_cold = np.arange(48) % 5 == 0
    asked = ask(ITEMS, indexed, is_cold)
    both = (indexed["name_en"].is_not_null() & indexed["name_zh"].is_not_null()).to_numpy()
    for kind, wanted in (("indexed", both), ("new", both & is_cold)):
        rows = np.flatnonzero(wanted).tolist()
        assert asked[kind, "en"].own.tolist() == asked[kind, "zh"].own.tolist() == rows != []
    for language, column in (("en", "name_en"), ("zh", "name_zh")):
        hidden = asked["hidden", language]  # type: ignore[index]
        assert indexed[column].to_numpy()[hidden.own].tolist() == [None] * len(hidden.own)
        assert hidden.texts == ITEMS[column].to_numpy()[hidden.own].tolist()


def test_hits_are_shares_of_orders_and_other_answers_stand_aside() -> None:
    names = pl.DataFrame({"name_en": ["a", "b", "a", "c"], "name_zh": [None] * 4})
    asked = questions(names, np.array([0, 3]), "en")
    assert asked.answers.astype(int).tolist() == [[1, 0, 1, 0], [0, 0, 0, 1]]
    scores = np.array([[0.5, 0.1, 0.9, 0.2], [0.0, 0.0, 0.0, 0.0]])
    assert hits(scores, asked, 1).tolist() == [1.0, 0.25]  # the second has no order at all
    assert hits(scores, asked, 2).tolist() == [1.0, 0.5]
    below = np.array([[0.1, 0.5, 0.0, 0.1], [0.3, 0.3, 0.4, 0.3]])
    assert hits(below, asked, 2).tolist() == [0.5, pytest.approx(1 / 3)]
    # the mean over shuffled orders of equal scores is the same
    random = np.random.default_rng(0)
    drawn = [hits(below + random.random(below.shape) * 1e-6, asked, 2) for _ in range(2000)]
    np.testing.assert_allclose(np.mean(drawn, axis=0), hits(below, asked, 2), atol=0.04)


def test_the_same_characters_find_what_is_indexed_and_nothing_else() -> None:
    indexed = hide_names(ITEMS, share=0.2, seed=0)
    asked = ask(ITEMS, indexed, np.zeros(48, np.bool_))
    found = {
        key: float(hits(match_characters(indexed, each.texts), each, 3).mean())
        for key, each in asked.items()
        if key[0] != "new"
    }
    assert found["indexed", "zh"] > 0.95 and found["indexed", "en"] > 0.95
    assert found["hidden", "zh"] < 0.15 and found["hidden", "en"] < 0.15  # chance is .06


def test_ratio_is_the_mean_of_each_seeds() -> None:
    rows = [
        Row("characters", "new", language, seed, 10, recall, 0.0)  # type: ignore[arg-type]
        for seed, pair in enumerate(((0.8, 0.4), (0.5, 0.5)))
        for language, recall in zip(("en", "zh"), pair, strict=True)
    ]
    assert ratio(rows, "characters", "new") == pytest.approx((0.75, 0.125**0.5))
    line = (
        "| characters | new | 10/10 | 0.650 ± 0.212 (0.0%) | 0.450 ± 0.071 (0.0%) | 0.75 ± 0.35 |"
    )
    assert line in render(rows).splitlines()


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Items with pictures and sounds that say nothing."""
    folder = tmp_path / "data" / "stamps"
    for name in ("images", "sounds"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(len(ITEMS)):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            folder / "images" / f"{number}.png"
        )
        soundfile.write(folder / "sounds" / f"{number}.wav", random.normal(0, 0.1, 800), 16000)
    ITEMS.write_csv(folder / "items.csv")
    return folder.parent


def test_a_small_run_trains_asks_and_writes(
    stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_config(languages.CONFIG).model_dump(mode="json")
    del settings["encoders"]["image"], settings["encoders"]["audio"]
    settings["training"] |= {"max_epochs": 12, "evaluate_every": 12, "fresh_items": None}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.setattr(languages, "CONFIG", config)
    monkeypatch.setattr(languages, "NUM_USERS", 100)
    monkeypatch.setattr(languages, "install_weights", lambda _: None)
    out = tmp_path / "out"
    asked = ["--data", str(stamps), "--out", str(out), "--seeds", "0"]
    main(asked)
    rows = [Row(**row) for row in json.loads((out / "results.json").read_text())["rows"]]
    assert Counter(row.searcher for row in rows) == {
        "characters": 6,
        "pieces": 6,
        "same characters": 6,
    }
    found = {(row.searcher, row.kind, row.language): row for row in rows}
    for language in ("en", "zh"):
        assert found["characters", "indexed", language].recall > 0.6, rows  # chance is .21
        assert found["characters", "hidden", language].unknown == 0
    assert (out / "results.md").read_text() == render(rows)
    assert main(["--data", str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        main([*asked, "--models", "letters"])
