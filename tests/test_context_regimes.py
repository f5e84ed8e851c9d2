"""Taste of morning and evening: the list follows the hour, and a silent device does no harm.

The made log is that of `benchmarks.signals.world`: mornings are for one of a user's two groups of
items, evenings for the other; or devices say nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import polars as pl
import pytest

from benchmarks.signals.run import CONFIG, ndcg_on_test
from benchmarks.signals.world import (
    DAY_S,
    EVENING_H,
    EVENTS_PER_USER,
    GROUP_SIZE,
    HOUR_S,
    MORNING_H,
    START,
    write_world,
)
from data_prep.prepare import prepare
from mmrec.config import load_config
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.training.train import train
from mmrec.training.validate import case_vectors, rank

pytestmark = pytest.mark.usefixtures("restored_torch")

ASKED_AT = START + EVENTS_PER_USER * DAY_S  # a day after the last: gaps as training knows them


def world(folder: Path, signal: str, *, carries: bool, num_users: int, seed: int) -> Path:
    """A prepared log."""
    source = folder / "source"
    catalogue = write_world(source, signal, carries=carries, num_users=num_users, seed=seed)
    prepare(catalogue, source, folder / "data", num_workers=1)
    return folder / "data"


def trained(data: Path, run: Path, signal: str, *, is_read: bool, seed: int) -> Path:
    """A run that reads the signal, or does not."""
    changes = [f"model.signals.{signal}={str(is_read).lower()}", f"training.seed={seed}"]
    train(load_config(CONFIG, changes), data, run)
    return run


def recall_on_test(run: Path) -> float:
    """Mean Recall@10 over the test cases, each asked at the hour of its target."""
    loaded = load_run(run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    ranks = rank(cases, users, items).rank
    return float(case_metrics(ranks, cases.targets.offsets, ks=(10,))["recall@10"].mean())


def groups_by_hour(source: Path) -> dict[str, tuple[int, int]]:
    """Of each user who has met both, the group of his mornings and that of his evenings."""
    log = pl.read_csv(source / "log.csv").with_columns(
        group=pl.col("item") // GROUP_SIZE, evening=pl.col("at") % DAY_S // HOUR_S >= EVENING_H
    )
    found: dict[str, dict[bool, int]] = {}
    for user, group, evening in log.select("user", "group", "evening").iter_rows():
        found.setdefault(str(user), {})[evening] = group
    return {user: (each[False], each[True]) for user, each in found.items() if len(each) == 2}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_user_gets_what_suits_the_hour(tmp_path: Path) -> None:
    """Lists of ten change with the hour and are of the right group; the targets are found more."""
    data = world(tmp_path, "times", carries=True, num_users=3000, seed=0)
    recall = {}
    for is_read in (True, False):
        run = trained(data, tmp_path / f"read-{is_read}", "times", is_read=is_read, seed=0)
        recall[is_read] = recall_on_test(run)
    print(f"Recall@10 with the hour {recall[True]:.4f}, without {recall[False]:.4f}")
    assert recall[True] > 1.3 * recall[False]
    recommender = Recommender.load(tmp_path / "read-True")
    suits, changes = [], []
    regimes = groups_by_hour(tmp_path / "source")
    for user in list(regimes)[:40]:
        lists = []
        for hour, group in zip((MORNING_H + 1, EVENING_H + 1), regimes[user], strict=True):
            asked = recommender.recommend(user, k=10, time=ASKED_AT + hour * HOUR_S)
            lists.append({each.item_id for each in asked})
            suits.append(np.mean([int(item) // GROUP_SIZE == group for item in lists[-1]]))
        changes.append(len(lists[0] - lists[1]))
    print(
        f"of ten {10 * np.mean(suits):.2f} are of the hour's group, {np.mean(changes):.2f} change"
    )
    assert np.mean(suits) > 0.8 and np.mean(changes) > 7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_device_that_says_nothing_costs_no_more_than_a_hundredth(tmp_path: Path) -> None:
    """NDCG@10, mean over four seeds of 3,000 users each."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(4):
        folder = tmp_path / f"seed-{seed}"
        data = world(folder, "context", carries=False, num_users=3000, seed=seed)
        for is_read, figures in found.items():
            run = trained(data, folder / f"read-{is_read}", "context", is_read=is_read, seed=seed)
            figures.append(ndcg_on_test(run))
    print(f"a device that says nothing: read {found[True]}, not read {found[False]}")
    assert mean(found[True]) > 0.99 * mean(found[False]), found
