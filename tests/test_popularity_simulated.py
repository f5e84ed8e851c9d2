"""Hot and cold on the simulated catalogue: what nobody has met is told from its text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep.drawing import TOPICS
from data_prep.prepare import prepare
from data_prep.simulate import read_item_truth, simulate
from mmrec.config import parse_config
from mmrec.evaluation.item_labels import evaluate_labels
from mmrec.loaded import load_run
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

KEPT_OF_OTHERS = 0.25


def write_fashion(source: Path) -> Path:
    """A simulated catalogue with one topic in fashion: of other items most events are dropped.

    As it is drawn, popularity has nothing to do with what an item shows.
    """
    path = simulate(source, num_items=240, num_users=400, num_new_items=0)
    attributes, _ = read_item_truth(source / "truth/items.parquet")
    ids = pl.read_csv(source / "items.csv")["item_id"].to_numpy()
    in_fashion = ids[attributes.topic == TOPICS.index("sea")].tolist()
    log = pl.read_parquet(source / "interactions.parquet")
    luck = pl.Series("luck", np.random.default_rng(0).random(len(log)))
    kept = log.filter(pl.col("item_id").is_in(in_fashion) | (luck < KEPT_OF_OTHERS))
    kept.write_parquet(source / "interactions.parquet")
    return path


@pytest.mark.slow
def test_the_demand_of_new_items_is_told_from_their_text(tmp_path: Path) -> None:
    source, data, run = tmp_path / "source", tmp_path / "data", tmp_path / "run"
    overrides = ["items.image=[]", "items.audio=[]", "split.cold_test=0.25"]
    prepare(write_fashion(source), source, data, overrides=overrides, num_workers=1)
    options = {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    config = parse_config(
        {
            "name": "fashion",
            "data": {"max_history": 20},
            "encoders": {
                "text": {"num_tokens": 8, "trainable_blocks": "all", "options": options}
            },
            "model": {
                "width": 16,
                "fusion": {"num_latents": 2, "num_heads": 2, "modality_dropout": 0.0},
                "history": {"num_blocks": 1, "num_heads": 2},
                "labels": {"demand": {"popularity": 0.75, "weight": 1.0}},
            },
            "training": {
                "max_epochs": 30,
                "batch_size": 32,
                "warmup_steps": 5,
                "learning_rate": 0.01,
                "precision": "fp32",
                "evaluate_every": 30,
            },
        }
    )  # fmt: skip
    train(config, data, run)
    figures = evaluate_labels(load_run(run), "test")["demand"]
    assert figures["num_items"] >= 50
    # four of five are cold, so that accuracy says little: never to say hot has .81 of it, and .45
    # of macro F1; to say hot at random as often as it is true has about .5
    assert figures["macro_f1"] > max(0.55, figures["macro_f1_of_majority"] + 0.15)
