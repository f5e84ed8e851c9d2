"""Gaps between two samples: figures beside slow references, and what chance alone may not do."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from encoders.characters import learn_characters
from encoders.text import TextTransform, train_vocabulary
from mmrec.drift.buckets import category_gap, number_gap, unseen_gap
from mmrec.drift.features import record_lines
from mmrec.drift.lines import large
from mmrec.drift.state_gaps import REGULARISATION, classifier_gap, kernel_gap
from mmrec.drift.texts import familiar, text_lines
from mmrec.drift.two_samples import share_gap, stability_gap

SEEDS = range(5)


def draw(size: int, width: int = 16, *, seed: int, by: float = 0.0) -> np.ndarray:
    """States whose first channel is moved by so many deviations."""
    states = np.random.default_rng(seed).standard_normal((size, width))
    states[:, 0] += by
    return states


def test_auc_is_the_share_of_pairs_that_the_classifier_orders() -> None:
    earlier, new = draw(40, seed=0), draw(60, seed=1, by=1.0)
    states, is_new = np.concatenate([earlier, new]), np.repeat([0, 1], [40, 60])
    shares = []
    for known, asked in StratifiedKFold(5, shuffle=True, random_state=3).split(states, is_new):
        scaler = StandardScaler().fit(states[known])
        fitted = LogisticRegression(C=REGULARISATION, max_iter=1000, class_weight="balanced")
        fitted.fit(scaler.transform(states[known]), is_new[known])
        scores = fitted.decision_function(scaler.transform(states[asked]))
        pairs = [
            (a < b) + (a == b) / 2
            for a, side in zip(scores, is_new[asked], strict=True)
            for b, other in zip(scores, is_new[asked], strict=True)
            if (side, other) == (0, 1)
        ]
        shares.append(np.mean(pairs))
    gap = classifier_gap(earlier, new, seed=3)
    assert gap.figure == pytest.approx(np.mean(shares), abs=1e-12)
    assert gap.interval is not None and gap.interval[0] < gap.figure < gap.interval[1]


def test_error_of_the_auc_is_that_of_many_draws() -> None:
    """Two normal sides one deviation apart, scored by the channel itself: no folds."""
    aucs = []
    for seed in range(300):
        a, b = draw(50, 1, seed=seed), draw(80, 1, seed=1000 + seed, by=1.0)
        aucs.append(float((a < b.T).mean()))
    gap = classifier_gap(draw(50, 1, seed=0), draw(80, 1, seed=1, by=1.0))
    assert gap.interval is not None
    assert (gap.interval[1] - gap.interval[0]) / 3.92 == pytest.approx(np.std(aucs), rel=0.25)


def test_mmd_is_that_of_a_loop_over_pairs() -> None:
    earlier, new = draw(12, 4, seed=0), draw(9, 4, seed=1, by=1.5)
    whole = np.concatenate([earlier, new])
    squared = [[float(((a - b) ** 2).sum()) for b in whole] for a in whole]
    median = np.median([squared[i][j] for i in range(21) for j in range(i)])
    kernel = [[math.exp(-each / median) for each in row] for row in squared]
    pairs = {"within": [], "new": [], "across": [], "all": []}  # type: ignore[var-annotated]
    for i in range(21):
        for j in range(21):
            if i != j:
                sides = (i < 12) + (j < 12)
                pairs[("new", "across", "within")[sides]].append(kernel[i][j])
                pairs["all"].append(kernel[i][j])
    mean = {name: float(np.mean(each)) for name, each in pairs.items()}
    mmd = mean["within"] + mean["new"] - 2 * mean["across"]
    gap = kernel_gap(earlier, new)
    assert gap.figure == pytest.approx(mmd / 4 / (1 - mean["all"]), rel=1e-4)
    assert gap.p_value is not None and gap.p_value < 0.05


def test_permutations_of_samples_of_one_set_are_as_far_apart() -> None:
    p_values = [kernel_gap(draw(30, seed=s), draw(30, seed=90 + s)).p_value for s in range(40)]
    assert 0.3 < np.mean(np.array(p_values, float)) < 0.7  # of a uniform: .5 and .05 of error
    assert kernel_gap(draw(30, seed=0), draw(30, seed=1, by=5.0)).p_value == 0.001
    # one division is among those that are counted, and a point has no spread
    assert kernel_gap(np.ones((20, 3)), np.ones((20, 3))).p_value == 1.0


def test_stability_is_the_sum_over_buckets() -> None:
    earlier, new = np.array([30.0, 0.0, 70.0, 0.0]), np.array([10.0, 5.0, 35.0, 0.0])
    p = [30.5 / 101.5, 0.5 / 101.5, 70.5 / 101.5]
    q = [10.5 / 51.5, 5.5 / 51.5, 35.5 / 51.5]
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    gap = stability_gap(earlier, new, num_earlier=100, num_new=50)
    assert gap.figure == pytest.approx(by_hand)
    # .001 of a chi-square of two degrees of freedom lies above 2 ln 1000
    assert gap.limit == pytest.approx(0.25 + 2 * math.log(1000) * (1 / 100 + 1 / 50))


def test_numbers_fall_into_equal_parts_of_the_earlier_side() -> None:
    earlier = np.arange(100.0)
    assert number_gap(earlier, earlier).figure == 0
    assert number_gap(earlier, earlier + 1e-6).figure == 0  # edges lie between values
    assert number_gap(earlier, np.append(earlier[:50], [np.nan] * 50)).is_large  # unknown: a bucket
    assert number_gap(
        np.full(100, 2000.0), np.full(100, 2020.0)
    ).is_large  # one value, then another
    nothing = np.full(100, np.nan)
    assert number_gap(nothing, nothing).figure == 0 and number_gap(nothing, earlier).is_large


def test_members_of_a_set_share_their_item() -> None:
    sets = [["a", "b"]] * 50 + [["a"]] * 30 + [[]] * 20
    other = [["a", "b"]] * 30 + [["a"]] * 50 + [[]] * 20
    counts = np.array([55.0, 25.0, 20.0]), np.array([65.0, 15.0, 20.0])
    expected = stability_gap(*counts, num_earlier=100, num_new=100)
    assert category_gap(sets, other) == expected
    # words that are rare on both sides share a bucket
    rare = [[f"w{number}"] for number in range(100)]
    assert category_gap(rare, [[f"v{number}"] for number in range(100)]).figure == 0


def test_words_that_are_new_are_told_beyond_those_of_a_long_tail() -> None:
    earlier, new = [["a"], ["a"], ["b"], ["c", "a"]] * 10, [["a", "d"], [], ["b"]] * 10
    gap = unseen_gap(earlier, new, limit=0.1)
    assert gap.figure == pytest.approx(1 / 3) and gap.is_large
    # where every word is one item's own, all are unseen however the items are dealt out
    own = [[f"w{number}"] for number in range(80)]
    gap = unseen_gap(own[:40], own[40:], limit=0.1)
    assert gap.figure == 1 and gap.limit == pytest.approx(1.1)


def test_less_is_a_gap_where_either_side_counts() -> None:
    sizes = {"num_earlier": 1000, "num_new": 1000, "limit": 0.1}
    assert share_gap(0.5, 0.2, **sizes, two_sided=True).is_large  # type: ignore[arg-type]
    assert not share_gap(0.5, 0.2, **sizes, two_sided=False).is_large  # type: ignore[arg-type]
    few = sizes | {"num_earlier": 20, "num_new": 20}
    assert not share_gap(0.2, 0.5, **few, two_sided=True).is_large  # type: ignore[arg-type]


TYPES = {"year": "number", "genre": "category", "tags": "set"}


def records(size: int, *, seed: int) -> list[dict[str, Any]]:
    """Attributes with a long tail of values."""
    random = np.random.default_rng(seed)
    chances = 1 / np.arange(1, 41)
    words = random.choice(40, (size, 2), p=chances / chances.sum())
    years = random.integers(1990, 2020, size).astype(float)
    return [
        {"year": year, "genre": f"g{a}", "tags": [f"t{a}", f"t{b}"]}
        for year, (a, b) in zip(years, words, strict=True)
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"year": 2025.0}, ["year stability"]),
        ({"year": None}, ["year stability"]),
        ({"genre": "g7"}, ["genre stability"]),
        ({"tags": ["new"]}, ["tags stability", "tags values not met before"]),
    ],
    ids=["year", "unknown", "genre", "tags"],
)
def test_an_attribute_that_moves_is_told_alone(changes: dict[str, Any], told: list[str]) -> None:
    moved = [
        each if number % 2 else {k: v for k, v in (each | changes).items() if v is not None}
        for number, each in enumerate(records(300, seed=1))
    ]
    found = large(record_lines("attributes", TYPES, records(300, seed=0), moved))
    assert [f"{line.name} {line.measure}" for line in found] == told


@pytest.mark.parametrize("size", [20, 60, 400])
def test_halves_of_one_set_are_not_told_apart(size: int) -> None:
    for seed in SEEDS:
        whole = records(2 * size, seed=seed)
        assert not large(record_lines("attributes", TYPES, whole[:size], whole[size:]))
        states = draw(2 * size, 48, seed=seed) * np.exp(-np.arange(48) / 8)
        assert not classifier_gap(states[:size], states[size:], seed=seed).is_large
        assert not kernel_gap(states[:size], states[size:], seed=seed).is_large


@pytest.mark.parametrize("by", [1.0, 2.0])
def test_one_channel_that_moves_is_told(by: float) -> None:
    gap = classifier_gap(draw(400, 48, seed=0), draw(400, 48, seed=1, by=by))
    assert gap.is_large and gap.figure > 0.65


ENGLISH = ["a quiet river", "the old garden", "a red letter", "the river garden"] * 10
CHINESE = ["小狗", "大象 和 河马"] * 20


def test_texts_that_a_vocabulary_does_not_know_are_told() -> None:
    english = [{"title": text} for text in ENGLISH]
    chinese = [{"title": text} for text in CHINESE]
    pieces = TextTransform(train_vocabulary(ENGLISH, 200))
    unknown, length, cut = text_lines(pieces, english, chinese, is_learnt=True)
    assert (unknown.earlier, unknown.new, unknown.verdict) == (0, 1, "large")
    assert "vocabulary=characters" in unknown.advice
    assert not large(text_lines(pieces, english, english, is_learnt=True))
    assert unknown.measure == "unknown pieces" and length.name == cut.name == "all"
    # bytes stand for signs that a vocabulary of characters does not hold
    characters = TextTransform(learn_characters(ENGLISH))
    lines = text_lines(characters, english, chinese, is_learnt=True)
    assert "unknown pieces" not in [line.measure for line in large(lines)]


def test_texts_with_signs_that_no_other_has_are_told_from_the_rest() -> None:
    transform = TextTransform(train_vocabulary(ENGLISH, 200))
    earlier = [{"a": "sea", "b": "ease"}, {"a": "Sea"}, {"a": "sex"}, {"a": ""}]
    new = [{"a": "ease"}, {"a": "x"}, {"a": "sea", "b": "小"}]
    kept, kept_new = familiar(transform, earlier, new)
    assert kept.tolist() == [True, True, False, True]  # no other has an x
    assert kept_new.tolist() == [True, True, False]


def test_lengths_are_counted_before_texts_are_cut() -> None:
    short, long = [{"a": "river", "b": "garden"}] * 30, [{"a": " ".join(["river"] * 12)}] * 30
    transform = TextTransform(train_vocabulary(ENGLISH, 200), max_length=8)
    lines = {line.measure: line for line in text_lines(transform, short, long, is_learnt=True)}
    assert lines["length"].new is not None and lines["length"].new >= 12
    assert (lines["cut off"].earlier, lines["cut off"].new) == (0, 1)
    assert lines["length"].verdict == lines["cut off"].verdict == "large"
    in_chunks = TextTransform(transform.tokenizer_json, max_length=8, max_chunks=4)
    found = text_lines(in_chunks, short, long, is_learnt=True)
    assert [line.measure for line in large(found)] == ["length"]


def test_a_side_of_few_items_is_told_nothing() -> None:
    transform = TextTransform(train_vocabulary(ENGLISH, 200))
    few = [{"title": text} for text in CHINESE[:19]]
    lines = text_lines(transform, [{"title": text} for text in ENGLISH], few, is_learnt=True)
    assert [line.verdict for line in lines] == ["too few"] and not large(lines)
    assert lines[0].row()["figure"] is None


@pytest.mark.realdata
def test_chinese_stamps_are_told_and_halves_are_not(shared_data: Path) -> None:
    with open(shared_data / "stamps" / "items.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name_zh"]]
    names, chinese = ([{"name": row[key]} for row in rows] for key in ("name_en", "name_zh"))
    english = TextTransform(train_vocabulary([row["name_en"] for row in rows], 4000))
    found = large(text_lines(english, names, chinese, is_learnt=True))
    assert ("name", "unknown pieces") in [(line.name, line.measure) for line in found]
    of_rows = [{"category": row["category"], "path": row["subcategory"].split("/")} for row in rows]
    types = {"category": "category", "path": "set"}
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(rows))
        for size in (40, len(rows) // 2):
            halves = order[:size], order[size : 2 * size]
            assert not large(record_lines(
                "attributes", types, *([of_rows[row] for row in half] for half in halves)
            ))  # fmt: skip
            for texts in (names, chinese):  # a vocabulary of one half lacks signs of the other
                side, other = ([texts[row] for row in half] for half in halves)
                learnt = TextTransform(train_vocabulary([each["name"] for each in side], 4000))
                assert not large(text_lines(learnt, side, other, is_learnt=True))
