"""Drift of what is asked: the same users are none, others are; the window is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.recommend import RankedRecommendation, recommend_next
from mmrec.retrieval.retriever import Asked, Retriever
from mmrec.serving import asked_drift
from mmrec.serving.asked_drift import FEW, WINDOW, AskedDrift

pytest_plugins = ["tiny_run"]


@pytest.fixture(scope="module")
def retriever(tiny_run: Path) -> Retriever:
    return load_retriever(tiny_run)


class Drift(AskedDrift):
    """One with a clock of its own."""

    def __init__(self, retriever: Retriever) -> None:
        self.now = 1000.0
        super().__init__(lambda: self.now)
        self.learn(retriever)
        self._retriever = retriever

    def ask(self, users: Sequence[Asked], times: int = 1, **changes: Any) -> None:
        for user in users:
            found = recommend_next(self._retriever, user, 3)
            for _ in range(times):
                told = {"model_hash": self._retriever.model_hash, "plain": True, **changes}
                self.saw(told.pop("model_hash"), user, found, **told)


def stored(retriever: Retriever) -> list[Asked]:
    users = map(retriever.stored_user, range(len(retriever.users.user_ids)))
    return [each for each in users if len(each.history)]


def test_the_users_it_knows_are_no_drift(retriever: Retriever) -> None:
    drift, users = Drift(retriever), stored(retriever)
    assert drift.model_hash == retriever.model_hash and drift.figures() == {}
    drift.ask(users, times=1 + FEW // len(users))
    figures = drift.figures()
    assert set(figures) == {"popularity_drift", "score_drift", "unknown_items"}
    assert figures["popularity_drift"].figure < 0.01 and figures["score_drift"].figure < 0.01
    assert figures["unknown_items"].figure == 0


def test_others_are(retriever: Retriever) -> None:
    """Who brings nothing but the item that fewest met, and half of what he brings is not known."""
    met = np.flatnonzero(retriever.counts > 0)
    rare = met[np.argmin(retriever.counts[met])]
    user = retriever.given_user([retriever.items.item_ids[rare], "of elsewhere"])
    assert user.num_unknown == 1
    drift = Drift(retriever)
    drift.ask([user], times=FEW)
    assert all(each.is_large for each in drift.figures().values())
    assert drift.figures()["unknown_items"].figure == 0.5


def test_items_without_events_are_a_class_of_their_own(retriever: Retriever) -> None:
    user = stored(retriever)[0]
    added = Asked(**{**vars(user), "history": np.full(4, len(retriever.counts) + 7)})
    drift = Drift(retriever)
    drift.ask([user], times=FEW)
    before = drift.figures()["popularity_drift"].figure
    found = recommend_next(retriever, user, 1)
    for _ in range(WINDOW):
        drift.saw(retriever.model_hash, added, found, plain=True)
    assert drift.figures()["popularity_drift"].figure > before + 1


def test_the_window_ends_by_number_and_by_time(retriever: Retriever) -> None:
    users = stored(retriever)
    odd = retriever.given_user([retriever.items.item_ids[users[0].history[0]], "x", "y", "z"])
    drift = Drift(retriever)
    drift.ask([odd], times=WINDOW)
    assert drift.figures()["unknown_items"].figure == 0.75
    drift.ask(users[:1], times=WINDOW)
    assert drift.figures()["unknown_items"].figure == 0
    drift.now += asked_drift.WINDOW_S + 1
    assert drift.figures() == {}
    drift.ask([odd], times=FEW - 1)
    assert drift.figures() == {}
    drift.ask([odd])
    assert drift.figures()["unknown_items"].figure == 0.75


def test_only_scores_that_can_be_compared_are(retriever: Retriever) -> None:
    users, drift = stored(retriever), Drift(retriever)
    drift.ask(users[:1], times=FEW, plain=False)
    assert "score_drift" not in drift.figures()
    drift.ask(users[:1], times=WINDOW, model_hash="another")
    assert "score_drift" not in drift.figures()
    ranked = [RankedRecommendation(1, "i1", 0.5, None, "history", retrieval_rank=1)]
    for _ in range(WINDOW):
        drift.saw(retriever.model_hash, users[0], ranked, plain=True)
    assert "score_drift" not in drift.figures()
    drift.learn(retriever)
    assert drift.figures() == {}


def test_the_index_is_that_of_a_slow_loop(retriever: Retriever) -> None:
    """Edges are deciles of the training events of users' items; each user counts as one."""
    drift, users = Drift(retriever), stored(retriever)
    values = [int(retriever.counts[row]) for user in users for row in user.history]
    edges = sorted({float(np.quantile(values, tenth / 10)) for tenth in range(1, 10)})

    def classes(some: Sequence[Asked]) -> np.ndarray[Any, Any]:
        found = np.zeros(len(edges) + 2)
        for user in some:
            for row in user.history:
                count = int(retriever.counts[row])
                place = sum(edge <= count for edge in edges) if count else len(edges) + 1
                found[place] += 1 / len(user.history)
        return found

    asked = users[: len(users) // 4]
    times = 1 + FEW // len(asked)
    drift.ask(asked, times=times)
    earlier, new = classes(users), classes(asked) * times
    filled = earlier + new > 0
    p, q = earlier[filled] + 0.5, new[filled] + 0.5
    p, q = p / p.sum(), q / q.sum()
    expected = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    assert drift.figures()["popularity_drift"].figure == pytest.approx(expected)
