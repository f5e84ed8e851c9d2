"""The curve of accuracy against diversity begins at the plain lists and goes one way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrec.data.ragged import Ragged
from mmrec.evaluation import variety
from mmrec.evaluation.asked import Asked
from mmrec.evaluation.lists import intra_list_diversity
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.evaluation.variety import STRENGTHS, variety_curve, variety_curves
from mmrec.retrieval.rerank import METHODS, Method, choose_varied, gain_of

NUM_USERS, NUM_ITEMS = 60, 150


@pytest.fixture(scope="module")
def asked() -> Asked:
    """Users of one taste each among five, who met two items and are asked for a third."""
    random = np.random.default_rng(0)
    tastes = np.linalg.qr(random.normal(size=(8, 8)))[0][:5]
    items = tastes[np.arange(NUM_ITEMS) % 5] + 0.3 * random.normal(size=(NUM_ITEMS, 8))
    users = tastes[np.arange(NUM_USERS) % 5] + 0.2 * random.normal(size=(NUM_USERS, 8))
    near = [random.permutation(np.flatnonzero(np.arange(NUM_ITEMS) % 5 == user % 5))[:3]
            for user in range(NUM_USERS)]  # fmt: skip
    cases = Cases(
        user_index=np.arange(NUM_USERS),
        history=Ragged.from_rows([each[:2] for each in near]),
        seen=Ragged.from_rows([each[:2] for each in near]),
        targets=Ragged.from_rows([each[2:] for each in near]),
        slice=["warm"] * NUM_USERS,
        candidates=np.arange(NUM_ITEMS),
        candidate_is_cold=np.zeros(NUM_ITEMS, np.bool_),
        num_items=NUM_ITEMS,
    )
    unit = [torch.nn.functional.normalize(torch.from_numpy(each), dim=1).float()
            for each in (users, items)]  # fmt: skip
    return Asked(cases, *unit)


@pytest.mark.parametrize("method", METHODS)
def test_curve_starts_at_the_plain_lists_and_trades_accuracy_for_variety(
    asked: Asked, method: Method
) -> None:
    curve = variety_curve(asked, asked.items, method)
    assert [each.strength for each in curve] == list(STRENGTHS)
    ranking = rank_cases(VectorScorer(asked.users, asked.items), asked.cases)
    top = ranking.top_items[:, :10]
    plain = float(intra_list_diversity(top, asked.items).mean())
    assert curve[0].diversity == pytest.approx(plain, abs=1e-6)
    assert curve[0].recall == pytest.approx(float((ranking.rank <= 10).mean()))
    ndcg = np.where(ranking.rank <= 10, 1 / np.log2(1 + ranking.rank), 0).mean()
    assert curve[0].ndcg == pytest.approx(float(ndcg))
    diversity = [each.diversity for each in curve if each.diversity is not None]
    assert len(diversity) == len(STRENGTHS)
    assert min(np.diff(diversity)) >= -0.002 * diversity[-1] and diversity[-1] > 2 * diversity[0]
    assert curve[-1].ndcg < curve[0].ndcg


def test_both_curves_are_taken_on_an_even_part_of_many_cases(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = variety_curves(asked, asked.items)
    assert whole == [p for method in METHODS for p in variety_curve(asked, asked.items, method)]
    monkeypatch.setattr(variety, "MOST_CASES", 20)
    rows = np.linspace(0, NUM_USERS - 1, 20).astype(np.int64)
    part = Asked(asked.cases.take(rows), asked.users[rows], asked.items)
    expected = [p for method in METHODS for p in variety_curve(part, asked.items, method)]
    assert variety_curves(asked, asked.items) == expected != whole


def test_items_that_nothing_is_known_of_have_no_diversity(asked: Asked) -> None:
    curve = variety_curve(asked, torch.zeros(NUM_ITEMS, 4), "mmr", (0.0, 0.5))
    assert [each.diversity for each in curve] == [None, None] and curve[0].ndcg > 0


def test_a_list_is_as_long_as_there_are_items(asked: Asked) -> None:
    few = Asked(
        Cases(
            user_index=np.arange(1),
            history=Ragged.from_rows([[0]]),
            seen=Ragged.from_rows([[0]]),
            targets=Ragged.from_rows([[2]]),
            slice=["warm"],
            candidates=np.arange(3),
            candidate_is_cold=np.zeros(3, np.bool_),
            num_items=NUM_ITEMS,
        ),
        asked.users[:1],
        asked.items[:3],
    )
    (point,) = variety_curve(few, asked.items, "mmr", (0.5,))
    assert point.recall == 1 and point.diversity is not None


def test_variety_keeps_users_out_of_a_bubble() -> None:
    """Twenty rounds of users who take the first two of ten, and are read by the last five taken.

    Entropy of what a list shows over five categories, mean over ten users, in nats: without
    re-ranking lists narrow to about one category, with it they stay above half of the most.
    """
    random = np.random.default_rng(0)
    tastes = np.linalg.qr(random.normal(size=(8, 8)))[0][:5]
    category = np.arange(200) % 5
    vectors = tastes[category] + 0.3 * random.normal(size=(200, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def entropies(first: int, strength: float) -> list[float]:
        taken, found = list(range(first, first + 5)), []
        for _ in range(20):
            scores = vectors @ vectors[taken[-5:]].mean(0)
            scores[taken] = -np.inf
            pool = np.argsort(-scores)[:100]
            gain = gain_of("mmr", scores[pool], vectors[pool], strength)
            shown = pool[choose_varied(gain, len(pool), 10)]
            taken += shown[:2].tolist()
            share = np.bincount(category[shown], minlength=5) / 10
            found.append(-float((share[share > 0] * np.log(share[share > 0])).sum()))
        return found

    off, on = (np.mean([entropies(first, strength) for first in range(0, 100, 10)], axis=0)
               for strength in (0.0, 0.7))  # fmt: skip
    floor = 0.5 * np.log(5)
    assert off[5:].mean() < 0.5 * floor and on.min() > floor
