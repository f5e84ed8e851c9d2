"""The benchmark of search: what is asked of the stamps, and how answers are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.languages.names import questions
from benchmarks.search.run import Row, failures, interval, main, reciprocal_ranks, render
from benchmarks.search.stamps import Asked, ask, by_half, indexed_table, whole_table
from mmrec.retrieval.search import WAYS, Way


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A table of 80 items, some of which share a name or lack a sound."""
    folder = tmp_path / "stamps"
    folder.mkdir()
    pl.DataFrame(
        {
            "item_id": [f"i{number:02}" for number in range(80)],
            "name_en": [f"thing {number - number % 20 // 19}" for number in range(80)],
            "name_zh": [None if n % 10 == 9 else f"東西{n}" for n in range(80)],
            "image": [f"images/{number}.png" for number in range(80)],
            "sound": [None if n % 7 == 6 else f"sounds/{n}.wav" for n in range(80)],
        }
    ).write_csv(folder / "items.csv")
    return folder


def test_each_kind_of_question_has_what_its_name_says(stamps: Path) -> None:
    whole, indexed = whole_table(stamps), indexed_table(stamps, seed=3)
    names = {"en": "name_en", "zh": "name_zh"}
    asked = {(each.kind, each.language): each for each in ask(stamps, seed=3)}
    assert len(asked) == 8
    nameless = indexed["name_en"].is_null() & indexed["name_zh"].is_null()
    for (kind, language), each in asked.items():
        rows = each.questions.own
        assert len(rows) >= 5, kind
        if language is None:
            column = {"picture": "image", "sound": "sound"}[kind]
            paths = [str(stamps / whole[column][row]) for row in rows.tolist()]
            assert each.questions.texts == paths
            assert nameless.to_numpy()[rows].all()
            continue
        assert each.questions.texts == [whole[names[language]][row] for row in rows.tolist()]
        left = indexed[names[language]].to_numpy()[rows]
        if kind == "indexed":
            assert left.tolist() == each.questions.texts
        else:
            assert not set(each.questions.texts) & set(indexed[names[language]])
            assert (nameless.to_numpy()[rows] == (kind == "nameless")).all()


def test_the_halves_share_no_item(stamps: Path) -> None:
    sets: list[set[int]] = []
    for reported in (False, True):
        halves = [by_half(each, reported=reported).own for each in ask(stamps, seed=3)]
        sets.append({int(row) for each in halves for row in each})
    assert sets[0] and sets[1] and not sets[0] & sets[1]


def test_ranks_count_half_of_those_of_equal_score() -> None:
    names = pl.DataFrame({"name_en": ["a", "b", "a", "c"], "name_zh": [None] * 4})
    asked = questions(names, np.array([0, 3]), "en")
    scores = np.array([[0.5, 0.7, 0.9, 0.2], [0.1, 0.1, 0.0, 0.1]])
    # the first is behind "b" alone, as its namesake stands aside; the second ties with two
    assert reciprocal_ranks(scores, asked).tolist() == [1 / 2, 1 / 2]


def test_an_interval_lies_about_the_mean() -> None:
    values = (np.arange(400) % 4 == 0).astype(float)
    low, high = interval(values)
    assert low < 0.25 < high
    # that of a normal: 1.96 deviations of the mean each way
    assert high - low == pytest.approx(2 * 1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)
    assert interval(np.ones(5)) == (1.0, 1.0)


def row(kind: str, way: Way, recall: float, low: float) -> Row:
    language = "en" if kind in ("indexed", "nameless") else None
    return Row(kind, language, way, 50, recall, (low, 1.0), 0.5, (0.4, 0.6), 0.05)


def test_a_hybrid_below_a_half_or_media_at_chance_fail() -> None:
    good = [
        row("indexed", way, recall, 0.5) for way, recall in zip(WAYS, (0.9, 0.9, 0.8), strict=True)
    ]
    assert failures([*good, row("picture", "dense", 0.2, 0.06)]) == []
    assert (
        "indexed en: hybrid search" in failures([row("indexed", "hybrid", 0.85, 0.5), *good[1:]])[0]
    )
    assert "picture: found no better" in failures([row("picture", "dense", 0.2, 0.05)])[0]
    text = render([*good, row("picture", "dense", 0.2, 0.06)], 1)
    assert (
        "| indexed, en | 50 | hybrid | 0.900 (0.500–1.000) | 0.050 | 0.500 (0.400–0.600) |" in text
    )
    assert "| picture | 50 | dense | 0.200 (0.060–1.000) | 0.050 |" in text


def test_without_the_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert "no data there" in capsys.readouterr().err


def test_an_asked_half_keeps_its_answers(stamps: Path) -> None:
    each: Asked = ask(stamps, seed=3)[0]
    half = by_half(each, reported=True)
    assert half.answers.shape == (each.reported.sum(), 80)
    assert half.answers[np.arange(len(half.own)), half.own].all()
