"""The made logs of `make signals` say what they claim, and a signal that says something is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.signals.run import Difference, Row, differences, measure
from benchmarks.signals.world import DAY_S, EVENTS_PER_USER, GROUP_SIZE, SIGNALS, START, write_world

pytestmark = pytest.mark.usefixtures("restored_torch")


def said_by(folder: Path, signal: str) -> tuple[pl.DataFrame, np.ndarray]:
    """The log with the group of each item, and what the signal says at each event."""
    log = pl.read_csv(folder / "log.csv").with_columns(group=pl.col("item") // GROUP_SIZE)
    if signal == "users":
        regions = pl.read_csv(folder / "users.csv")["region"].str.strip_prefix("region ")
        said = regions.cast(pl.Int64).to_numpy()[log["user"].to_numpy()]
    elif signal == "times":
        said = (log["at"].to_numpy() % 86_400 < 12 * 3600).astype(int)
    else:
        column = {"events": "action", "values": "stars", "context": "device"}[signal]
        said = log[column].cast(pl.String).is_in(["buy", "5", "phone"]).to_numpy().astype(int)
    return log, said


@pytest.mark.parametrize("signal", [signal for signal in SIGNALS if signal != "shown"])
def test_a_signal_says_which_group_it_is_or_nothing(tmp_path: Path, signal: str) -> None:
    surprise = {}
    for carries in (True, False):
        folder = tmp_path / str(carries)
        write_world(folder, signal, carries=carries, num_users=200, seed=0)
        log, said = said_by(folder, signal)
        table = log.with_columns(said=said)
        if signal == "users":  # the region names the group that is asked for last
            last = table.group_by("user").agg(pl.all().sort_by("at").last())
            surprise[carries] = float((last["group"] != last["said"]).mean())
        else:  # within a user, events of which the same is said are of one group
            groups = table.group_by("user", "said").agg(pl.col("group").n_unique())
            surprise[carries] = float((groups["group"] > 1).mean())
    assert surprise[True] == 0 and surprise[False] > 0.8


def test_what_was_shown_says_how_often_it_is_taken(tmp_path: Path) -> None:
    """Where it carries taste both halves of a group are met alike, and one is seldom refused."""
    for carries in (True, False):
        folder = tmp_path / str(carries)
        write_world(folder, "shown", carries=carries, num_users=400, seed=0)
        log = pl.read_csv(folder / "log.csv").with_columns(
            pushed=pl.col("item") % GROUP_SIZE >= GROUP_SIZE // 2,
            day=(pl.col("at") - START) // DAY_S,
        )
        taken = log.filter(pl.col("action") == "take")
        assert len(taken) == 400 * EVENTS_PER_USER
        assert taken.select("user", "day").is_unique().all()
        # what comes behind the one that is taken was never shown
        assert (
            log.sort("at").group_by("user", "day").agg(pl.col("action").last())["action"] == "take"
        ).all()
        early = log.filter(pl.col("day") < EVENTS_PER_USER - 2)
        share_taken = {
            pushed: float((rows["action"] == "take").mean())
            for pushed in (True, False)
            for rows in [early.filter(pl.col("pushed") == pushed)]
        }
        met = float(taken.filter(pl.col("day") < EVENTS_PER_USER - 2)["pushed"].mean())
        asked = float(taken.filter(pl.col("day") >= EVENTS_PER_USER - 2)["pushed"].mean())
        if carries:
            assert share_taken[False] > 3 * share_taken[True]
            assert 0.45 < met < 0.65 and asked < 0.25
        else:
            assert share_taken[False] == pytest.approx(share_taken[True], abs=0.03)
            assert met == pytest.approx(0.5, abs=0.05) and asked == pytest.approx(0.5, abs=0.05)


def test_what_shows_is_told_from_what_does_not() -> None:
    rows = [
        Row("times", True, is_read, seed, ndcg)
        for is_read, figures in ((True, (0.37, 0.38)), (False, (0.18, 0.19)))
        for seed, ndcg in enumerate(figures)
    ]
    (found,) = differences(rows)
    assert found.with_it == pytest.approx(0.375) and found.without == pytest.approx(0.185)
    assert found.deviation == pytest.approx(0.01 / 2**0.5) and found.shows
    assert found.is_as_made
    assert not Difference("times", False, 0.191, 0.19, 0.005).shows
    assert Difference("times", False, 0.191, 0.19, 0.005).is_as_made
    assert not Difference("times", False, 0.15, 0.19, 0.005).is_as_made  # it does harm


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_that_says_what_is_wanted_is_read(tmp_path: Path, signal: str) -> None:
    """Of one that says nothing, the figure stays where it was."""
    change = {}
    for carries in (True, False):
        with_it, without = measure(tmp_path, signal, carries=carries, num_users=3000, seed=0)
        change[carries] = with_it.ndcg - without.ndcg
    assert change[True] > 0.08, change
    assert abs(change[False]) < 0.03, change
