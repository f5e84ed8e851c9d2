"""Head, middle and tail: cuts by hand, and metrics equal to those of a slow loop."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from mmrec.evaluation.breakdown import breakdowns, by_item, by_user, thirds

POPULARITY = np.array([30, 12, 12, 6, 10, 10, 10, 0, 0])  # 90 events


def test_items_are_cut_where_a_third_of_the_events_lies_below() -> None:
    # ascending 6 10 10 10 12 12 30: below lie 0, 6, 6, 6, 36, 36, 60 of 90
    assert thirds(POPULARITY, POPULARITY).tolist() == [2, 1, 1, 0, 0, 0, 0, -1, -1]


def test_users_are_cut_into_equal_numbers_and_equal_counts_stay_together() -> None:
    ones = np.ones(6, dtype=np.int64)
    assert thirds(np.array([1, 2, 3, 4, 5, 6]), ones).tolist() == [0, 0, 1, 1, 2, 2]
    assert thirds(np.array([5, 5, 5, 5, 5, 9]), ones).tolist() == [0, 0, 0, 0, 0, 2]
    assert thirds(np.zeros(3, dtype=np.int64), ones[:3]).tolist() == [-1, -1, -1]


def make_ranks() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for model in ("mmrec", "ease"):
        for user in range(20):
            for item in (user % 7, (user + 3) % 7):
                rows.append((model, user, item, "warm", float(generator.integers(1, 30))))
            if user % 2:
                rank = float(generator.integers(1, 30))
                rows.append((model, user, 7 + user % 4 // 2, "cold", rank))
                rows.append((model, user, 7 + user % 4 // 2, "cold_among_cold", 1.0))
    names = ["model", "user_index", "item_index", "slice", "rank"]
    return pl.DataFrame(rows, names, orient="row")


def slow(rows: list[tuple[int, str, float]]) -> tuple[float, float]:
    """HR@10 and NDCG@10 of (user, slice, rank), a mean over users of means over slices."""
    cases: dict[tuple[int, str], list[float]] = {}
    for user, name, rank in rows:
        cases.setdefault((user, name), []).append(rank)
    users: dict[int, list[tuple[float, float]]] = {}
    for (user, _), ranks in cases.items():
        gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= 10)
        ideal = sum(1 / math.log2(1 + place) for place in range(1, len(ranks) + 1))
        hit = float(any(rank <= 10 for rank in ranks))
        users.setdefault(user, []).append((hit, gain / ideal))
    means = np.array([np.mean(values, axis=0) for values in users.values()]).mean(0)
    return float(means[0]), float(means[1])


def test_by_item_equals_a_slow_loop() -> None:
    ranks = make_ranks()
    candidates = np.arange(8)  # the ninth item, without events, can never be shown
    found = by_item(ranks, POPULARITY, candidates)
    assert found is not None and list(found.groups) == ["head", "middle", "tail", "none"]
    assert found.groups["head"] == "head: 1 item, 30 events"
    assert found.groups["tail"] == "tail: 4 items, 6 to 10 events"
    assert found.groups["none"] == "no events: 1 item"
    parts = {"head": {0}, "middle": {1, 2}, "tail": {3, 4, 5, 6}, "none": {7, 8}}
    for model, groups in found.models.items():
        for name, items in parts.items():
            own = [
                (user, slice_name, rank)
                for m, user, item, slice_name, rank in ranks.rows()
                if m == model and item in items and slice_name != "cold_among_cold"
            ]
            hr, ndcg = slow(own)
            assert groups[name]["num_targets"] == len(own)
            assert groups[name]["hr@10"] == pytest.approx(hr)
            assert groups[name]["ndcg@10"] == pytest.approx(ndcg)


def test_by_user_counts_only_those_asked() -> None:
    ranks, events = make_ranks(), np.arange(30)
    found = by_user(ranks, events, "cold")  # odd users below 20
    assert found is not None
    assert found.groups == {
        "head": "head: 3 users, 15 to 19 events",
        "middle": "middle: 3 users, 9 to 13 events",
        "tail": "tail: 4 users, 1 to 7 events",
    }
    assert sum(group["num_users"] for group in found.models["ease"].values()) == 10
    warm = by_user(ranks, events, "warm")
    assert warm is not None and warm.groups["none"] == "no events: 1 user"
    assert by_user(ranks, events, "new_users") is None
    every = breakdowns(ranks, popularity=POPULARITY, candidates=np.arange(9), events=events)
    assert [(each.by, each.slice) for each in every] == [
        ("item", "all"),
        ("user", "warm"),
        ("user", "cold"),
    ]
