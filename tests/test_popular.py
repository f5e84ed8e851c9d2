"""Popular items as of an instant: windows, half-lives, and what is done without times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards import UNKNOWN_TIME, History
from mmrec.cli import main
from mmrec.errors import UserError
from mmrec.recommender import Recommendation, Recommender, Wishes
from mmrec.retrieval.popular import EventTimes, Trend, popularity, read_event_times
from mmrec.retrieval.retriever import Users

pytest_plugins = ["tiny_run"]

NOW, HOUR = 1_700_000_000, 3_600


class Timed:
    """Three users who met items at known hours before now; one event has no time."""

    user_ids: Sequence[str] = ("a", "b", "c")
    events = (((1, 30), (2, 3)), ((1, 28), (2, 2), (3, 1)), ((1, 26), (4, None), (3, -5)))

    def index_of(self, user_id: str) -> int | None:
        return self.user_ids.index(user_id) if user_id in self.user_ids else None

    def complete(self, user_index: int) -> History:
        rows, ages = zip(*self.events[user_index], strict=True)
        times = [UNKNOWN_TIME if age is None else NOW - age * HOUR for age in ages]
        return History(user_index, np.array(rows), np.array(times), None, None, None)

    def attributes(self, user_index: int) -> Mapping[str, Any]:
        return {}


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    retriever = Recommender.load(tiny_run).retriever
    users: Users = Timed()
    items = replace(retriever.items, is_candidate=np.ones(14, np.bool_))
    return Recommender(replace(retriever, users=users, items=items))


def top(found: Sequence[Recommendation]) -> dict[str, float]:
    return {each.item_id: each.score for each in found if each.score > 0}


@pytest.mark.parametrize(
    ("trend", "expected"),
    [
        (Trend(), {"i1": 3, "i2": 2, "i3": 1}),
        (Trend(window_hours=24), {"i2": 2, "i3": 1}),
        (Trend(window_hours=1), {"i3": 1}),
        (
            Trend(half_life_hours=2),
            {"i3": 1, "i2": 2**-1 + 2**-0.5, "i1": 2**-14.5 + 2**-13.5 + 2**-12.5},
        ),
        (Trend(window_hours=2, half_life_hours=1), {"i3": 1, "i2": 0.5}),
    ],
    ids=["all", "day", "hour", "fading", "both"],
)
def test_events_count_by_their_age(
    recommender: Recommender, trend: Trend, expected: dict[str, float]
) -> None:
    found = recommender.popular(k=14, time=NOW, wishes=Wishes(trend=trend))
    assert top(found) == pytest.approx(expected)
    assert list(top(found)) == sorted(expected, key=lambda item: -expected[item])
    assert {each.basis for each in found} == {"popularity"}


def test_the_list_changes_as_the_window_moves(recommender: Recommender) -> None:
    wishes = Wishes(trend=Trend(window_hours=6))
    lists = [
        top(recommender.popular(k=14, time=NOW + hours * HOUR, wishes=wishes))
        for hours in (-26, 0, 6)
    ]
    assert lists == [{"i1": 3}, {"i2": 2, "i3": 1}, {"i3": 1}]


def test_it_is_the_fall_back_of_who_has_no_history(recommender: Recommender) -> None:
    wishes = Wishes(trend=Trend(window_hours=24), without=("i2",))
    found = recommender.recommend(history=[], k=14, time=NOW, wishes=wishes)
    assert top(found) == {"i3": 1} and found[0].basis == "popularity"
    # a user with a history is not asked for what is popular
    with_history = recommender.recommend(history=["i5"], k=3, time=NOW)
    assert with_history == recommender.recommend(
        history=["i5"], k=3, time=NOW, wishes=Wishes(trend=Trend(window_hours=24))
    )


def test_without_a_trend_training_events_count(recommender: Recommender) -> None:
    found = recommender.popular(k=14)
    counts = recommender.retriever.counts
    assert [each.score for each in found] == sorted(counts.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.zeros(0, np.int64), "no event has a known time: popularity counts training events"),
        (
            np.array([NOW - 48 * HOUR]),
            "the log reaches from 2023-11-12T22:13:20+00:00 to 2023-11-12",
        ),
    ],
    ids=["no-times", "old"],
)
def test_counts_stand_in_and_it_is_told(
    recommender: Recommender,
    times: np.ndarray[Any, np.dtype[np.int64]],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    retriever = replace(recommender.retriever)
    vars(retriever)["event_times"] = EventTimes(np.ones(len(times), np.int64), times)
    found = popularity(retriever, NOW, Trend(window_hours=1))
    np.testing.assert_array_equal(found, retriever.counts)
    assert message in caplog.text


def test_a_log_without_times_has_none(tiny_run: Path) -> None:
    found = read_event_times(Recommender.load(tiny_run).retriever.users)
    assert len(found.time) == len(found.item_index) == 0


def test_trends_of_a_wrong_form_are_one_line() -> None:
    with pytest.raises(UserError, match="window of popularity is 0 hours: give one above 0"):
        Trend(window_hours=0)
    with pytest.raises(UserError, match="half-life of popularity is nan hours"):
        Trend(half_life_hours=float("nan"))


def test_words_of_the_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["popular", str(tiny_run), "-k", "3", "--without", "i1", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert len(items) == 3 and "i1" not in [each["item_id"] for each in items]
    assert main(["popular", str(tiny_run), "--window", "24"]) == 0
    assert "no event has a known time" in capsys.readouterr().err
    assert main(["popular", str(tiny_run), "--fade", "-1"]) == 2
    assert "half-life of popularity is -1 hours" in capsys.readouterr().err
