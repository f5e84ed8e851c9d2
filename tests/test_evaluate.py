"""From scorers to the files of a run, slices and paired comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from mmrec.data.ragged import Ragged
from mmrec.evaluation.evaluate import (
    RANK_COLUMNS,
    SLICES,
    Evaluation,
    compare_models,
    evaluate_scorers,
    metrics_document,
    user_values,
    write_evaluation,
)
from mmrec.evaluation.protocol import Cases

USER_IDS = ["u0", "u1", "u2"]
ITEM_IDS = [f"i{item}" for item in range(6)]
POPULARITY = np.array([9, 5, 3, 1, 0, 0])


class Fixed:
    """One list for every case."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = torch.tensor(scores)

    def score(self, case_rows: np.ndarray, candidate_rows: slice) -> Tensor:
        return self.scores[candidate_rows].repeat(len(case_rows), 1)


def _cases() -> Cases:
    """User 0 has a warm and a cold case, user 1 two warm targets; items 4 and 5 are cold."""
    return Cases(
        user_index=np.array([0, 0, 1]),
        history=Ragged.from_rows([[0], [0], [1]]),
        seen=Ragged.from_rows([[0], [0], []]),
        targets=Ragged.from_rows([[1], [5], [0, 3]]),
        slice=["warm", "cold", "warm"],
        candidates=np.arange(6),
        candidate_is_cold=np.array([False] * 4 + [True] * 2),
        num_items=6,
    )


def _evaluation() -> Evaluation:
    scorers = {"mmrec": Fixed([6, 5, 4, 3, 2, 1]), "random": Fixed([1, 1, 1, 1, 1, 1])}
    return evaluate_scorers(scorers, _cases(), popularity=POPULARITY)


def test_slices_by_hand() -> None:
    models = _evaluation().models
    assert list(models) == ["mmrec", "random"]
    ours = models["mmrec"]
    assert list(ours) == list(SLICES) and ours["new_users"] is None
    every, warm, cold, among = (ours[name] for name in SLICES[:4])
    assert every is not None and warm is not None and cold is not None and among is not None
    assert (every["num_users"], every["num_targets"]) == (2, 4)
    assert (warm["num_users"], warm["num_targets"]) == (2, 3)
    assert (cold["num_users"], cold["num_targets"]) == (1, 1)
    # seen 0 is removed: item 1 is first for user 0, item 5 is fifth, and second among cold ones
    assert cold["hr@1"] == 0 and cold["hr@5"] == 1 and cold["mrr"] == pytest.approx(1 / 5)
    assert among["mrr"] == pytest.approx(1 / 2) and "coverage@1" not in among
    assert warm["hr@1"] == 1 and warm["recall@1"] == pytest.approx((1 + 0.5) / 2)
    assert every["mrr"] == pytest.approx(((1 + 1 / 5) / 2 + 1) / 2)
    assert warm["coverage@1"] == pytest.approx(2 / 6)
    assert warm["popularity@1"] == pytest.approx((5 + 9) / 2)
    assert models["random"]["cold"] is not None
    assert models["random"]["cold"]["mrr"] == pytest.approx(1 / 3)


def test_written_files_have_the_agreed_shape(tmp_path: Path) -> None:
    evaluation = _evaluation()
    document = metrics_document(
        evaluation,
        split="leave_one_out",
        protocol={"name": "leave_one_out", "hash": "abc"},
        data_hash="def",
        checkpoint="step-10",
        seed=0,
    )
    write_evaluation(tmp_path, "test", evaluation, document, user_ids=USER_IDS, item_ids=ITEM_IDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics-test.json",
        "ranks-test.parquet",
    ]
    read = json.loads((tmp_path / "metrics-test.json").read_text())
    keys = ["schema", "split", "protocol", "data_hash", "checkpoint", "seed", "models"]
    assert list(read) == keys
    assert read["models"]["mmrec"]["new_users"] is None
    assert read["models"]["mmrec"]["warm"]["hr@10"] == 1.0
    ranks = pl.read_parquet(tmp_path / "ranks-test.parquet")
    assert tuple(ranks.columns) == RANK_COLUMNS
    ours = ranks.filter(pl.col("model") == "mmrec").drop("model").rows()
    assert ours == [
        ("u0", "i1", "warm", 1.0),
        ("u0", "i5", "cold", 5.0),
        ("u1", "i0", "warm", 1.0),
        ("u1", "i3", "warm", 4.0),
        ("u0", "i5", "cold_among_cold", 2.0),
    ]


def test_metrics_can_be_made_again_from_the_ranks(tmp_path: Path) -> None:
    evaluation = _evaluation()
    write_evaluation(tmp_path, "test", evaluation, {}, user_ids=USER_IDS, item_ids=ITEM_IDS)
    ranks = pl.read_parquet(tmp_path / "ranks-test.parquet")
    for model, slices in evaluation.models.items():
        for slice_name, metrics in slices.items():
            if metrics is None:
                continue
            for metric in ("hr@5", "ndcg@10", "map@50", "mrr"):
                values = user_values(ranks, model=model, slice_name=slice_name, metric=metric)
                assert values["value"].mean() == pytest.approx(metrics[metric])


def test_comparison_of_two_models() -> None:
    generator = np.random.default_rng(0)
    users = [f"u{user:03d}" for user in range(300)]
    better = generator.integers(1, 40, size=300).astype(float)
    tables = [
        pl.DataFrame(
            {
                "model": [name] * 300,
                "user_id": users,
                "item_id": users,
                "slice": ["warm"] * 300,
                "rank": ranks,
            }
        )
        for name, ranks in (("mmrec", better), ("ease", better + 5), ("same", better))
    ]
    ranks = pl.concat(tables)
    worse = compare_models(ranks, "ease", "mmrec", metric="ndcg@10")
    assert worse.difference < 0 and worse.interval[1] < 0 and worse.p_value < 0.01
    assert worse.num_users == 300
    equal = compare_models(ranks, "same", "mmrec", metric="ndcg@10")
    assert equal.difference == 0 and equal.p_value == 1
    with pytest.raises(ValueError, match="nothing of model 'svd' on slice 'warm'"):
        compare_models(ranks, "svd", "mmrec", metric="ndcg@10")
    with pytest.raises(ValueError, match="metric 'auc@10'"):
        compare_models(ranks, "ease", "mmrec", metric="auc@10")


def test_progress_names_the_model() -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate_scorers(
        {"mmrec": Fixed([1.0] * 6)},
        _cases(),
        popularity=POPULARITY,
        progress=lambda name, done, total: calls.append((name, done, total)),
    )
    assert calls == [("mmrec", 3, 3)]
