"""Cases of a split: inputs without cold items, seen items with them, candidates, the hash."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_prep.shards import History
from mmrec.data.ragged import Ragged
from mmrec.evaluation.protocol import (
    Cases,
    load_cases,
    protocol_document,
    training_histories,
    training_popularity,
)

ROLES = ["warm", "warm", "warm", "cold_test", "cold_validation", "no_events", "warm"]
# complete histories; user 8 has no event before his target
HISTORIES = {5: [0, 3, 1, 4, 2, 0, 6], 7: [2, 1, 0, 3, 6], 8: [1, 2]}


class _Histories:
    """Stands for a HistoryIndex, in memory."""

    def __init__(self, rows: dict[int, list[int]], *, with_time: bool = True) -> None:
        self.user_index = np.array(list(rows))
        self.rows, self.with_time = rows, with_time

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> History:
        user = int(self.user_index[row])
        items = np.array(self.rows[user], dtype=np.int64)
        time = 1_000 + np.arange(len(items), dtype=np.int64) if self.with_time else None
        return History(user, items, time, None, None, None)


def _targets(*rows: tuple[int, int, int, str]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema=["user_index", "item_index", "position", "slice"], orient="row"
    )


def _split(targets: pl.DataFrame, *, with_time: bool = True) -> Any:
    return SimpleNamespace(
        name="leave_one_out-cold",
        hash="h",
        manifest={"protocol": "leave_one_out"},
        items=pl.DataFrame(
            {"item_index": range(7), "role": ROLES, "num_train_events": [4, 3, 2, 0, 0, 0, 1]}
        ).reverse(),
        train=_Histories({5: [0, 1], 7: [2, 1]}),
        full=_Histories(HISTORIES, with_time=with_time),
        targets=lambda which: targets,
    )


class _Items:
    """Stands for an ItemTable of seven items."""

    def __init__(self, spans: dict[int, tuple[int | None, int | None]]) -> None:
        self.spans = spans

    def __len__(self) -> int:
        return 7

    def record(self, item_index: int) -> dict[str, Any]:
        start, end = self.spans.get(item_index, (None, None))
        return {"id": str(item_index), "available": {"from": start, "until": end}}


def _data(
    repeats: str = "forbid", spans: dict[int, tuple[int | None, int | None]] | None = None
) -> Any:
    """Data whose catalogue says from and until when items are available, where spans are given."""
    items = SimpleNamespace(available=None if spans is None else "columns")
    catalogue = SimpleNamespace(repeats=repeats, items=items)
    users: list[dict[str, Any]] = [{}] * 10
    return SimpleNamespace(catalogue=catalogue, items=_Items(spans or {}), user_attributes=users)


LEAVE_ONE_OUT = _targets((7, 3, 3, "cold"), (5, 6, 6, "warm"), (5, 3, 1, "cold"), (7, 6, 4, "warm"))


def _rows(ragged: Ragged | None) -> list[list[int]]:
    assert ragged is not None
    return [ragged[row].tolist() for row in range(len(ragged))]


def test_inputs_lack_cold_items_and_seen_items_hold_them() -> None:
    cases = load_cases(_data(), _split(LEAVE_ONE_OUT), "test")
    assert cases.user_index.tolist() == [5, 5, 7, 7]
    assert cases.slice == ["warm", "cold", "warm", "cold"]
    assert _rows(cases.targets) == [[6], [3], [6], [3]]
    assert _rows(cases.history) == [[0, 1, 2, 0], [0], [2, 1, 0], [2, 1, 0]]
    assert _rows(cases.history_time) == [
        [1000, 1002, 1004, 1005],
        [1000],
        [1000, 1001, 1002],
        [1000, 1001, 1002],
    ]
    assert _rows(cases.seen) == [[0, 1, 2, 3, 4], [0], [0, 1, 2, 3], [0, 1, 2]]
    assert cases.history_event is None


def test_candidates_are_items_with_events_and_cold_ones_are_those_asked_for() -> None:
    for which, cold in (("test", 3), ("validation", 4)):
        cases = load_cases(_data(), _split(LEAVE_ONE_OUT), which)  # type: ignore[arg-type]
        assert cases.candidates.tolist() == [0, 1, 2, 3, 4, 6]
        assert cases.candidates[cases.candidate_is_cold].tolist() == [cold]
        assert cases.num_items == 7


def test_nothing_is_seen_where_items_repeat() -> None:
    cases = load_cases(_data("allow"), _split(LEAVE_ONE_OUT), "test")
    assert _rows(cases.seen) == [[], [], [], []]


def test_a_target_met_before_is_not_removed() -> None:
    cases = load_cases(_data(), _split(_targets((5, 0, 5, "warm"))), "test")
    assert _rows(cases.seen) == [[1, 2, 3, 4]]


def test_targets_at_one_position_are_one_list_and_users_without_history_stay() -> None:
    by_time = _targets(
        (7, 6, 2, "warm"), (7, 0, 2, "warm"), (7, 3, 2, "cold"), (8, 1, 0, "new_users")
    )
    cases = load_cases(_data(), _split(by_time, with_time=False), "test")
    assert cases.slice == ["warm", "cold", "new_users"]
    assert _rows(cases.targets) == [[6, 0], [3], [1]]
    assert _rows(cases.history) == [[2, 1], [2, 1], []]
    assert cases.history_time is None


def test_candidates_are_those_available_at_the_targets_time() -> None:
    """Targets of users 5 and 7 lie at 1006, 1001, 1004 and 1003, in the order of the cases."""
    spans = {0: (None, 1004), 1: (1003, None), 3: (1002, 1005), 6: (1005, 1006)}
    cases = load_cases(_data(spans=spans), _split(LEAVE_ONE_OUT), "test")
    assert cases.candidates.tolist() == [0, 1, 2, 3, 4, 6]
    lacking = cases.unavailable(np.arange(4), 0, 6)
    assert lacking is not None
    assert [cases.candidates[row].tolist() for row in lacking] == [
        [0, 3],  # 6 is the target: it was met, though the catalogue says it was gone
        [1, 6],  # 3 is the target
        [0],  # at its last instant 0 is gone; 6 is the target
        [6],  # at its first instant 1 is there
    ]
    part = cases.unavailable(np.array([1, 0]), 1, 4)
    assert part is not None and part.tolist() == [[True, False, False], [False, False, True]]
    taken = cases.take(np.array([3])).unavailable(np.array([0]), 0, 6)
    assert taken is not None and taken.tolist() == [lacking[3].tolist()]


def test_without_instants_every_candidate_is_available() -> None:
    spans: dict[int, tuple[int | None, int | None]] = {0: (None, 1004)}
    assert load_cases(_data(), _split(LEAVE_ONE_OUT), "test").availability is None
    no_time = load_cases(_data(spans=spans), _split(LEAVE_ONE_OUT, with_time=False), "test")
    assert no_time.availability is None and no_time.unavailable(np.arange(2), 0, 6) is None


def test_no_target_gives_no_case() -> None:
    empty = LEAVE_ONE_OUT.clear()
    assert len(load_cases(_data(), _split(empty), "validation")) == 0


def test_taken_cases_are_the_same_cases() -> None:
    cases = load_cases(_data(), _split(LEAVE_ONE_OUT), "test")
    taken = cases.take(np.array([2, 0]))
    assert taken.slice == ["warm", "warm"] and _rows(taken.history) == [[2, 1, 0], [0, 1, 2, 0]]
    assert len(taken) == 2 and taken.candidates is cases.candidates


def test_training_side() -> None:
    split = _split(LEAVE_ONE_OUT)
    assert training_popularity(split).tolist() == [4, 3, 2, 0, 0, 0, 1]
    assert _rows(training_histories(split)) == [[0, 1], [2, 1]]


def test_hash_changes_with_every_rule() -> None:
    split = _split(LEAVE_ONE_OUT)
    documents = [
        protocol_document(split, "test", repeats="forbid"),
        protocol_document(split, "validation", repeats="forbid"),
        protocol_document(split, "test", repeats="allow"),
        protocol_document(split, "test", repeats="forbid", available=True),
    ]
    assert len({document["hash"] for document in documents}) == 4
    again = protocol_document(split, "test", repeats="forbid")
    assert again == documents[0] and again["name"] == "leave_one_out-cold"


def test_cases_that_do_not_fit_together_are_refused() -> None:
    rows = Ragged.from_rows([[1]])
    arguments: dict[str, Any] = {
        "user_index": np.array([0]),
        "history": rows,
        "seen": rows,
        "targets": rows,
        "slice": ["warm"],
        "candidates": np.arange(2),
        "candidate_is_cold": np.zeros(2, dtype=bool),
        "num_items": 2,
    }
    Cases(**arguments)
    with pytest.raises(ValueError, match="slice 'hot': allowed are warm, cold, new_users"):
        Cases(**{**arguments, "slice": ["hot"]})
    with pytest.raises(ValueError, match="parts of 1 cases"):
        Cases(**{**arguments, "seen": Ragged.from_rows([[1], [1]])})
    with pytest.raises(ValueError, match="differ in length"):
        Cases(**{**arguments, "candidates": np.arange(3)})
