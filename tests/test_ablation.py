"""The ablation: plans that name real settings, differences paired by user and seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.ablation.run import (
    COMPLETE,
    FIGURES,
    HERE,
    ROOT,
    Part,
    load_plan,
    render,
    row_of,
    run_folder,
)
from mmrec.config import change, load_config


def test_every_part_changes_the_run_and_nothing_is_misspelt() -> None:
    plan = load_plan(HERE / "movielens-1m.yaml")
    base = load_config(ROOT / plan.config)
    whole, *parts = plan.parts
    assert whole.name == COMPLETE and not whole.settings
    complete = change(base, plan.settings_of(whole, 0), "complete")
    assert len(parts) > 10 and len({part.slug for part in parts}) == len(parts)
    for part in parts:
        assert change(base, plan.settings_of(part, 0), part.name) != complete


def write_ranks(out: Path, part: Part, seed: int, rank: dict[str, list[float]]) -> None:
    folder = run_folder(out, part, seed) / "run"
    folder.mkdir(parents=True)
    rows = [
        {"model": "mmrec", "user_id": f"u{user}", "item_id": "i", "slice": name, "rank": value}
        for name, values in rank.items()
        for user, value in enumerate(values)
    ]
    pl.DataFrame(rows).write_parquet(folder / "ranks-validation.parquet")


def test_differences_are_paired_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    whole, part = Part(COMPLETE, {}), Part("id part", {"model.item": "content"})
    slices = ("warm", "cold", "cold_among_cold")
    for seed in (0, 1, 2):
        write_ranks(tmp_path, whole, seed, dict.fromkeys(slices, [1.0, 3.0, 50.0]))
    for seed in (0, 2):
        write_ranks(tmp_path, part, seed, dict.fromkeys(slices, [1.0, 7.0 + seed, 50.0]))
    row = row_of(part, (0, 1, 2), tmp_path)
    assert row is not None and row["seeds"] == [0, 2]
    figure = row["figures"]["warm ndcg@10"]
    gain = [1 / np.log2(rank + 1) for rank in (3.0, 7.0, 9.0)]
    less = [(gain[1] - gain[0]) / 3, (gain[2] - gain[0]) / 3]
    assert figure["by_seed"] == pytest.approx(less)
    assert figure["difference"] == pytest.approx(np.mean(less))
    assert figure["low"] <= figure["difference"] <= figure["high"]
    assert row["figures"]["cold hr@10"]["difference"] == pytest.approx(0.0)
    assert row_of(Part("never run", {}), (0,), tmp_path) is None

    complete = row_of(whole, (0, 1, 2), tmp_path)
    assert complete is not None
    lines = render([complete, row]).splitlines()
    assert lines[0].count("|") == len(FIGURES) + 3
    assert "± .0000" in lines[2] and lines[3].startswith("| id part | 2 | .")
    assert f"(-{abs(np.mean(less)):.4f}".replace("0.", ".") in lines[3]
