"""The made catalogues of `make transfer` say what they claim, and its gains are paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.transfer.run import FRESH, STARTS, Row, gains, measure, render
from benchmarks.transfer.world import write_world

pytestmark = pytest.mark.usefixtures("restored_torch")


def likeness(folder: Path) -> float:
    """How much more alike the looks of a user's items are than those of any two items (cosine)."""
    items = pl.read_parquet(folder / "items.parquet")
    looks = np.stack(items["look"].to_list())
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    row_of = {item: row for row, item in enumerate(items["item"])}
    within = []
    for (_,), own in pl.read_parquet(folder / "log.parquet").group_by("user"):
        rows = [row_of[item] for item in own["item"]]
        alike = looks[rows] @ looks[rows].T
        within.append((alike.sum() - len(rows)) / (len(rows) * (len(rows) - 1)))
    return float(np.mean(within) - (looks @ looks.T).mean())


def test_media_say_what_is_liked_where_tastes_overlap(tmp_path: Path) -> None:
    found = {}
    for overlaps in (True, False):
        folder = tmp_path / str(overlaps)
        write_world(folder, "x", overlaps=overlaps, num_items=120, num_users=100, seed=0)
        found[overlaps] = likeness(folder)
    # looks are half of a wish, and a wish asks for a pair: a little more alike, seed after seed
    assert found[True] > 0.02 and abs(found[False]) < 0.01


def test_look_and_sound_are_the_same_map_in_every_catalogue(tmp_path: Path) -> None:
    """Else nothing could be taken over: groups of looks lie in the same places."""
    centres = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        write_world(folder, "x", overlaps=True, num_items=200, num_users=5, seed=seed)
        looks = np.stack(pl.read_parquet(folder / "items.parquet")["look"].to_list())
        centres.append(looks)
    nearest = np.linalg.norm(centres[0][:, None] - centres[1], axis=-1).min(1)
    assert np.median(nearest) < 2.5  # noise of both; between groups it is about 6


def test_gains_are_differences_to_the_fresh_run_of_the_same_seed() -> None:
    figures = {(FRESH, 0): 0.1, (FRESH, 1): 0.3, ("films", 0): 0.2, ("films", 1): 0.44}
    figures |= {("strange", 0): 0.1, ("strange", 1): 0.28}
    rows = [Row(0.05, start, seed, 100, ndcg) for (start, seed), ndcg in figures.items()]
    found = {each.start: each for each in gains(rows)}
    assert found["films"].ndcg == pytest.approx(0.32)
    assert found["films"].mean == pytest.approx(0.12)
    assert found["films"].deviation == pytest.approx(0.04 / 2**0.5)
    assert found[FRESH].mean == found[FRESH].deviation == 0
    assert "| 5% | 100 | 0.2000 | 0.3200 | +0.1200 ± 0.0283 | 0.1900 | -0.0100 ± 0.0141 |" in (
        render(rows)
    )


def test_a_small_measurement_runs(tmp_path: Path) -> None:
    few = ["training.max_steps=2", "training.max_epochs=1"]
    rows = measure(tmp_path / "seed-0", [0.2], num_users=30, seed=0, changes=few)
    assert [row.start for row in rows] == list(STARTS)
    assert len({row.events for row in rows}) == 1 and all(0 <= row.ndcg <= 1 for row in rows)
