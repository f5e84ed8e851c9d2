"""`make variety`: its figures are those of the lists, what is finished is not made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.variety.run import Row, curve, is_monotone, measure, render
from mmrec.evaluation.command import evaluate_run

pytestmark = pytest.mark.usefixtures("restored_torch")


def test_the_curve_is_a_mean_over_seeds_and_says_where_it_turns() -> None:
    rows = [Row(1.0, 0, 0.1, 0.5), Row(0.0, 0, 0.2, 0.4), Row(1.0, 1, 0.2, 0.7)]
    assert curve(rows) == [
        (0.0, 0.2, 0.4),
        (1.0, pytest.approx(0.15), pytest.approx(0.6)),
    ]
    assert is_monotone(rows) and not is_monotone([*rows, Row(2.0, 0, 0.1, 0.55)])
    assert "| 1 | 0.1500 | 0.6000 |" in render(rows, 30)


def test_a_small_measurement_runs_and_goes_on(tmp_path: Path) -> None:
    few = ["training.max_steps=2", "training.max_epochs=1", "training.log_every=1"]
    (row,) = measure(tmp_path, [3.0], num_users=30, seed=0, changes=few)
    found = evaluate_run(tmp_path / "weight-3", split="validation")["models"]["mmrec"]["all"]
    assert row.ndcg == pytest.approx(found["ndcg@10"])
    assert row.diversity == pytest.approx(found["diversity@10"])
    lines = (tmp_path / "weight-3" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert 0 < next(step["variety_loss"] for step in steps if "loss" in step) < 1
    kept = tmp_path / "weight-3" / "row.json"
    kept.write_text(json.dumps({"weight": 3.0, "seed": 0, "ndcg": 0.5, "diversity": 0.5}))
    assert measure(tmp_path, [3.0], num_users=30, seed=0, changes=few)[0].ndcg == 0.5
    # of another size nothing is kept
    assert measure(tmp_path, [3.0], num_users=31, seed=0, changes=few)[0].ndcg != 0.5
