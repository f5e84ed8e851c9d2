"""The gap from training to validation: which targets, and what they are worth, by brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_prep.shards import History, PreparedData
from mmrec.data.ragged import Ragged
from mmrec.data.thinning import open_split
from mmrec.evaluation.gap import last_training_targets, training_gap
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import LoadedRun, load_run
from mmrec.training.summary import gap_line
from mmrec.training.validate import case_vectors

pytest_plugins = ["tiny_run"]

ROLES = ["warm", "warm", "warm", "cold_test", "warm"]
WHOLE = {3: [0, 3, 1, 2, 4], 5: [2, 3, 0, 1], 8: [1, 4]}
TRAIN = {3: [0, 1, 2], 5: [2, 0], 8: [1]}  # what is before the targets and not cold
VALUES = {3: [5.0, 1.0, 5.0, 2.0, 5.0], 5: [5.0, 5.0, 5.0, 5.0], 8: [5.0, 5.0]}


class Histories:
    """Stands for a HistoryIndex, in memory."""

    def __init__(self, rows: dict[int, list[int]], *, without_cold: bool) -> None:
        self.user_index, self.rows = np.array(list(rows)), rows
        self.without_cold = without_cold

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> History:
        user = int(self.user_index[row])
        items = np.array(self.rows[user])
        values = np.array(VALUES[user], np.float32)
        if self.without_cold:
            values = values[[ROLES[item] == "warm" for item in WHOLE[user]]]
        return History(user, items, None, None, values[: len(items)], None)


@pytest.mark.parametrize(
    ("min_value", "expected"),
    [
        pytest.param(None, [(3, 2, 3, "warm"), (5, 0, 2, "warm")], id="every-event"),
        pytest.param(3.0, [(3, 1, 2, "warm"), (5, 0, 2, "warm")], id="rated-well"),
        pytest.param(9.0, [], id="none"),
    ],
)
def test_the_last_event_that_training_counts(
    min_value: float | None, expected: list[tuple[Any, ...]]
) -> None:
    """Positions count the complete history; the first event of one is no target."""
    split: Any = SimpleNamespace(
        items=pl.DataFrame({"item_index": range(5), "role": ROLES}),
        train=Histories(TRAIN, without_cold=True),
        full=Histories(WHOLE, without_cold=False),
    )
    targets = SimpleNamespace(events=None, min_value=min_value)
    catalogue = SimpleNamespace(interactions=SimpleNamespace(targets=targets))
    data: Any = SimpleNamespace(catalogue=catalogue)
    found = last_training_targets(data, split, np.array([3, 5, 8]))
    assert found.columns == ["user_index", "item_index", "position", "slice"]
    assert found.rows() == expected


@pytest.mark.parametrize("share", [1e-6, 0.4, 0.8])
def test_the_last_event_that_is_known_where_a_share_is(tiny_data: Path, share: float) -> None:
    """Its place counts the complete history, of which training has seen a part."""
    data = PreparedData.open(tiny_data)
    split = open_split(data, None, share)
    users = split.train.user_index
    last = {int(user): int(split.train.read(row).item_index[-1]) for row, user in enumerate(users)}
    found = last_training_targets(data, split, users)
    assert len(found) > 10
    wholes = dict(zip(split.full.user_index.tolist(), range(len(split.full)), strict=True))
    for user, item, position, _ in found.iter_rows():
        assert item == last[user]
        assert split.full.read(wholes[user]).item_index[position] == item


def test_the_gap_by_brute_force(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    train, validation = [], []
    held_out = loaded.split.targets("validation").filter(pl.col("slice") == "warm")
    last = {
        int(user): loaded.split.train.read(row).item_index
        for row, user in enumerate(loaded.split.train.user_index)
    }
    for user, item, position in held_out.select("user_index", "item_index", "position").iter_rows():
        if len(last.get(user, ())) > 1:
            validation.append(ndcg_of(loaded, user, item, position))
            whole = full_history(loaded, user)
            target = int(last[user][-1])  # items do not repeat, so its place is known
            train.append(ndcg_of(loaded, user, target, whole.tolist().index(target)))
    gap = training_gap(loaded)
    assert gap is not None and gap.num_users == len(train) > 10
    assert gap.train_ndcg == pytest.approx(np.mean(train))
    assert gap.validation_ndcg == pytest.approx(np.mean(validation))
    assert gap.difference == pytest.approx(gap.train_ndcg - gap.validation_ndcg)
    assert gap.interval[0] < gap.difference < gap.interval[1]
    few = training_gap(loaded, max_users=5)
    assert few is not None and few.num_users == 5


def full_history(loaded: LoadedRun, user: int) -> np.ndarray:
    assert loaded.split is not None
    return loaded.split.full.read(loaded.split.full.user_index.tolist().index(user)).item_index


def ndcg_of(loaded: LoadedRun, user: int, target: int, position: int) -> float:
    """Scores every candidate for one history and counts those above the target."""
    assert loaded.data is not None and loaded.split is not None
    roles = loaded.split.items.sort("item_index")["role"].to_list()
    before = full_history(loaded, user)[:position].tolist()
    warm = [item for item in before if not roles[item].startswith("cold")]
    any_case = load_cases(loaded.data, loaded.split, "validation").take(np.array([0]))
    case = replace(any_case, history=Ragged.from_rows([warm]))
    users, items = case_vectors(loaded.model, case, loaded.content, loaded.item_index_of)
    scores = dict(zip(case.candidates.tolist(), (items @ users[0]).tolist(), strict=True))
    rivals = [score for item, score in scores.items() if item not in before and item != target]
    rank = 1 + sum(score > scores[target] for score in rivals)
    return 1 / np.log2(1 + rank) if rank <= 10 else 0.0


def test_the_gap_in_a_line() -> None:
    gap = {
        "num_users": 2000,
        "train_ndcg": 0.25,
        "validation_ndcg": 0.2,
        "difference": 0.05,
        "interval": [0.04, 0.06],
    }
    assert gap_line({"gap": gap}) == (
        "train-validation gap of NDCG@10: +0.0500 (+0.0400 to +0.0600); 0.2500 on targets of "
        "training, 0.2000 on validation, 2,000 users"
    )
    assert "no gap to tell" in gap_line({"gap": None})
