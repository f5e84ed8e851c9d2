"""Rounds of lists, simulated clicks and refits: the loop closes, and what goes round is learnt."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from benchmarks.feedback.run import Row, measure, pays, render
from benchmarks.feedback.world import CHANCE, CLICK, write_world
from data_prep.shards import PreparedData

pytestmark = pytest.mark.usefixtures("restored_torch")


def test_users_click_on_what_answers_their_wishes(tmp_path: Path) -> None:
    world = write_world(tmp_path / "source", num_items=80, num_users=50, seed=0)
    item_ids = [f"i{n}" for n in range(80)]
    rates = {True: [0, 0], False: [0, 0]}
    for user, user_id in enumerate(world.user_ids):
        clicked = set(world.clicks(user_id, item_ids, 1))
        assert clicked == set(world.clicks(user_id, item_ids, 1))
        # the same luck in whatever list the item stands
        assert world.clicks(user_id, ["i7"], 1) == [i for i in ["i7"] if i in clicked]
        for item, item_id in enumerate(item_ids):
            rate = rates[bool(world.likes[user, item])]
            rate[0] += item_id in clicked
            rate[1] += 1
    assert rates[True][0] / rates[True][1] == pytest.approx(CLICK, abs=0.1)
    assert rates[False][0] / rates[False][1] == pytest.approx(CHANCE, abs=0.02)


def test_what_one_round_shows_the_next_is_trained_on(tmp_path: Path) -> None:
    few = ["training.max_epochs=1"]
    row = measure(
        tmp_path / "seed", num_items=40, num_users=12, rounds=2, seed=0, changes=few,
        refit_epochs=1,
    )  # fmt: skip
    assert len(row.refit) == len(row.frozen) == 2 and row.refit[0] == row.frozen[0]
    log = pl.read_parquet(tmp_path / "seed/source/log.parquet")
    told = log.filter(pl.col("request_id").is_not_null())
    shown = told.filter(pl.col("event") == "shown")
    assert len(shown) == 12 * 5 and shown["propensity"].to_list() == [1.0] * len(shown)
    clicks = told.filter(pl.col("event") == "click")
    assert len(clicks) / len(shown) == pytest.approx(row.refit[0])
    data = PreparedData.open(tmp_path / "seed/data")
    histories = [data.split().train.read(user) for user in range(12)]
    # a list is an example beside what was met next; behind the last event there is nothing yet
    followed = shown.filter(pl.col("user").is_in(clicks["user"].implode()))
    assert sum(len(each.shown_items) for each in histories) == len(followed) > 0
    assert sum(len(each.item_index) for each in histories) == len(log) - len(shown)


def test_feedback_pays_where_the_reward_rises_above_the_frozen_models() -> None:
    assert pays(Row(0, [0.2, 0.3], [0.2, 0.2])) and pays(Row(0, [0.2, 0.15], [0.2, 0.1]))
    assert not pays(Row(0, [0.2, 0.2], [0.2, 0.2])) and not pays(Row(0, [0.2, 0.3], [0.2, 0.4]))
    table = render([Row(0, [0.2], [0.1]), Row(1, [0.4], [0.1])], num_users=2, num_items=3)
    assert "| 1 | 0.3000 ± 0.1414 | 0.1000 ± 0.0000 |" in table


@pytest.mark.slow
def test_feedback_pays(tmp_path: Path) -> None:
    row = measure(tmp_path / "seed", num_items=300, num_users=500, rounds=5, seed=0)
    assert pays(row) and row.refit[-1] > 1.1 * row.frozen[-1]
