"""What is said of the data: ties of time counted by hand, once a user."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_prep.shards import UNKNOWN_TIME
from mmrec.data.ragged import Ragged
from mmrec.evaluation.data_facts import data_facts
from mmrec.evaluation.protocol import Cases

CASES = Cases(
    user_index=np.array([0, 0, 2]),
    history=Ragged.from_rows([[0, 1, 2, 3], [0, 1], [1, 2, 3]]),
    seen=Ragged.from_rows([[], [], []]),
    targets=Ragged.from_rows([[4], [5], [4]]),
    slice=["warm", "cold", "warm"],
    candidates=np.arange(6),
    candidate_is_cold=np.arange(6) == 5,
    num_items=6,
    # of user 0 the longer history counts: 1 of 3 pairs is tied; of user 2 one time is not known
    history_time=Ragged.from_rows([[10, 10, 20, 30], [10, 10], [30, UNKNOWN_TIME, 30]]),
)


def data_of(order: str | None) -> Any:
    """As much of a prepared folder as is asked."""
    interactions = SimpleNamespace(order=order)
    return SimpleNamespace(
        user_ids=["a", "b", "c"], catalogue=SimpleNamespace(interactions=interactions)
    )


def test_facts_by_hand() -> None:
    facts = data_facts(data_of("position"), CASES)
    assert (facts.num_users, facts.num_users_asked) == (3, 2)
    assert (facts.num_candidates, facts.num_candidates_met) == (6, 2)
    assert facts.median_history == 3 and facts.ordered_by == "order"
    assert facts.tied_share == pytest.approx(1 / 3)
    assert (facts.first_time, facts.last_time) == (10, 30)


def test_a_log_without_times_says_so() -> None:
    unknown = Ragged.from_rows([[UNKNOWN_TIME] * n for n in (4, 2, 3)])
    for cases in (replace(CASES, history_time=None), replace(CASES, history_time=unknown)):
        facts = data_facts(data_of(None), cases)
        assert facts.tied_share is None and facts.first_time is None
        assert facts.ordered_by == "time"
