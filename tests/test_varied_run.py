"""Variety of a trained model's own lists: the curve that evaluate writes, and a filter bubble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import parse_config
from mmrec.evaluation.variety import STRENGTHS, VarietyPoint
from mmrec.recommender import Recommender, Wishes
from mmrec.retrieval.rerank import METHODS
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS, NUM_KINDS = 200, 150, 5
NUM_ROUNDS, K, NUM_TAKEN = 20, 10, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items of five kinds that look like their kind, and users who mostly take one of them."""
    folder = tmp_path_factory.mktemp("varied")
    source = folder / "source"
    source.mkdir()
    random = np.random.default_rng(0)
    kind = np.arange(NUM_ITEMS) % NUM_KINDS
    look = np.eye(8)[kind] + 0.3 * random.normal(size=(NUM_ITEMS, 8))
    items = {"item": [f"i{n}" for n in range(NUM_ITEMS)], "look": look.tolist()}
    pl.DataFrame(items | {"kind": [f"k{n}" for n in kind]}).write_parquet(source / "items.parquet")
    log = []
    for user in range(NUM_USERS):
        share = np.where(kind == user % NUM_KINDS, 0.8, 0.2 / (NUM_KINDS - 1))
        met = random.choice(NUM_ITEMS, 10, replace=False, p=share / share.sum())
        log += [(f"u{user}", f"i{item}", at) for at, item in enumerate(met)]
    pl.DataFrame(log, ["user", "item", "at"], orient="row").write_parquet(source / "log.parquet")
    catalogue: dict[str, Any] = {
        "name": "varied",
        "kind": "simulated",
        "repeats": "forbid",
        "items": {
            "table": "items.parquet", "id": "item", "vectors": {"look": "look"},
            "attributes": {"kind": {"type": "category"}},
        },
        "interactions": {"table": "log.parquet", "user": "user", "item": "item", "order": "at"},
        "split": {"protocol": "leave_one_out"},
    }  # fmt: skip
    (source / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    prepare(source / "catalogue.yaml", source, folder / "data", num_workers=1)
    config = {
        "name": "varied",
        "data": {"max_history": 10},
        "encoders": {"vector.look": {"kind": "vector"}},
        "model": {
            "item": "content", "width": 16, "temperature": 0.2,
            "fusion": {"kind": "mean", "num_heads": 2},
            "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0},
        },
        "training": {
            "max_epochs": 8, "batch_size": 32, "warmup_steps": 5, "learning_rate": 0.01,
            "precision": "fp32", "evaluate_every": 8,
        },
    }  # fmt: skip
    train(parse_config(config), folder / "data", folder / "run")
    return folder / "run"


def test_evaluate_writes_the_curve(run: Path) -> None:
    assert main(["evaluate", str(run)]) == 0
    report = json.loads((run / "report.json").read_text())
    points = [VarietyPoint(**each) for each in report["variety"]]
    assert [(each.method, each.strength) for each in points] == [
        (method, strength) for method in METHODS for strength in STRENGTHS
    ]
    assert main(["evaluate", str(run), "--split", "validation"]) == 0
    plain = json.loads((run / "metrics-validation.json").read_text())["models"]["mmrec"]["all"]
    for method in METHODS:
        curve = [each for each in points if each.method == method]
        diversity = [each.diversity for each in curve if each.diversity is not None]
        assert curve[0].ndcg == pytest.approx(plain["ndcg@10"])  # the order of the scores
        assert len(diversity) == len(curve) and diversity[-1] > 1.5 * diversity[0]
        # a determinant is no mean of pairs: near its end DPP may stand still
        assert min(np.diff(diversity)) >= {"mmr": 0.0, "dpp": -0.01 * diversity[-1]}[method]
        assert curve[-1].ndcg < curve[0].ndcg
    page = (run / "report.html").read_text()
    assert "<h2>Varied lists" in page
    assert all(f"{p.ndcg:.4f}" in page and f"{p.diversity:.4f}" in page for p in points)


@pytest.mark.parametrize("method", METHODS)
def test_a_wish_for_variety_keeps_users_out_of_a_bubble(run: Path, method: str) -> None:
    """Twenty rounds of lists of ten, of which each user takes the first two.

    Entropy in nats of what a list shows over five kinds, the mean over ten users.
    """
    recommender = Recommender.load(run)
    kinds = recommender.retriever.items.attributes.words["kind"]

    def entropies(user: int, wishes: Wishes) -> list[float]:
        history = [f"i{user % NUM_KINDS + NUM_KINDS * at}" for at in range(5)]  # of one kind
        found = []
        for _ in range(NUM_ROUNDS):
            shown = [
                each.item_id for each in recommender.recommend(history=history, k=K, wishes=wishes)
            ]
            assert len(set(shown)) == K and not set(shown) & set(history)
            history += shown[:NUM_TAKEN]
            rows = [recommender.retriever.items.rows[item_id] for item_id in shown]
            names = [name for row in rows for name in kinds.of(row)]
            share = np.unique(names, return_counts=True)[1] / K
            found.append(-float((share * np.log(share)).sum()))
        return found

    off, on = (
        np.mean([entropies(user, wishes) for user in range(10)], axis=0)
        for wishes in (Wishes(), Wishes(diversity=0.7, diversify_by=method))  # type: ignore[arg-type]
    )
    print(f"{method}: off {off.round(2)}, on {on.round(2)}")
    floor = 0.5 * np.log(NUM_KINDS)
    assert off.mean() < 0.5 * floor and on.min() > floor
