"""Intervals and tests of many models at once equal those of one at a time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mmrec.evaluation.metrics import bootstrap_interval, paired_test
from mmrec.evaluation.significance import (
    bootstrap_intervals,
    intervals_and_tests,
    paired_p_values,
    values_by_model,
)


def test_intervals_of_columns_are_those_of_one_model() -> None:
    values = np.random.default_rng(0).random((80, 3))
    found = bootstrap_intervals(values, num_samples=200)
    for column, interval in enumerate(found):
        alone = bootstrap_interval(values[:, column], num_samples=200)
        assert interval == pytest.approx(alone, abs=1e-12)


def test_p_values_of_columns_are_those_of_one_pair() -> None:
    generator = np.random.default_rng(1)
    theirs = generator.random((60, 3))
    # no user is level, so that both draw the same signs
    ours = theirs[:, :1] + generator.normal([0.0, 0.05, 0.4], 0.3, size=(60, 3))
    found = paired_p_values(ours - theirs[:, :1], num_samples=300)
    for column in range(3):
        alone = paired_test(ours[:, column], theirs[:, 0], num_samples=300)
        assert found[column] == pytest.approx(alone)
    assert paired_p_values(np.zeros((5, 1)), num_samples=50).tolist() == [1.0]


def make_ranks(**ranks: list[float]) -> pl.DataFrame:
    rows = [
        (model, f"u{user}", "i", "warm", rank)
        for model, own in ranks.items()
        for user, rank in enumerate(own)
    ]
    return pl.DataFrame(rows, ["model", "user_id", "item_id", "slice", "rank"], orient="row")


def test_ours_is_tested_against_each_baseline() -> None:
    ranks = make_ranks(mmrec=[1.0] * 30, ease=[2.0] * 30, random=[40.0] * 30)
    intervals, tests = intervals_and_tests(
        ranks,
        ["mmrec", "ease", "random"],
        slices=["warm"],
        metrics=("hr@10", "ndcg@10"),
        tested="ndcg@10",
    )
    assert intervals["random"]["warm"]["hr@10"] == (0.0, 0.0)
    assert intervals["mmrec"]["warm"]["ndcg@10"] == pytest.approx((1.0, 1.0))
    assert [(each.second, each.num_users) for each in tests] == [("ease", 30), ("random", 30)]
    assert tests[0].difference == pytest.approx(1 - 1 / np.log2(3))
    assert tests[1].p_value < 0.01


def test_models_that_were_asked_of_other_users_are_refused() -> None:
    ranks = make_ranks(mmrec=[1.0, 2.0], ease=[1.0])
    with pytest.raises(ValueError, match="'ease' and 'mmrec' were not asked for the same users"):
        values_by_model(ranks, ["mmrec", "ease"], slice_name="warm", metric="mrr")
