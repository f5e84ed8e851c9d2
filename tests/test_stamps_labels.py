"""Real stamps nobody has labelled: by names of their categories alone, and by labels of others.

The log beside them is drawn at random: nothing of what is told comes from users.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import Config, parse_config
from mmrec.evaluation.item_labels import evaluate_labels
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.training.train import train
from mmrec.weights import folder_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("restored_torch")]

CATALOGUE: dict[str, Any] = {
    "name": "stamps",
    "kind": "simulated",
    "repeats": "forbid",
    "items": {
        "table": "items.csv",
        "id": "item_id",
        "text": ["name_en"],
        "image": ["image"],
        "attributes": {
            "category": {"type": "category"},
            "subcategory": {"type": "set", "separator": "/"},
        },
    },
    "interactions": {
        "table": "log.csv", "user": "user_id", "item": "item_id", "order": "position",
    },
    "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.2, "seed": 0},
}  # fmt: skip
TEMPLATES = ["{}", "a {}.", "a picture of {}", "something about {}"]


@pytest.fixture(scope="module")
def stamps(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and names, users who take anything: the folder above source and data."""
    for name in ("minilm", "efficientnet-lite0"):
        if folder_of(name) is None:
            pytest.skip(f"weights {name} are not installed: mmrec weights install {name}")
    folder = tmp_path_factory.mktemp("stamps")
    source = folder / "source"
    shutil.copytree(shared_data / "stamps" / "images", source / "images")
    shutil.copyfile(shared_data / "stamps" / "items.csv", source / "items.csv")
    ids = pl.read_csv(source / "items.csv", infer_schema=False)["item_id"].to_list()
    random = np.random.default_rng(0)
    log = [
        (f"u{user}", ids[item], position)
        for user in range(300)
        for position, item in enumerate(random.permutation(len(ids))[:12])
    ]
    names = ["user_id", "item_id", "position"]
    pl.DataFrame(log, names, orient="row").write_csv(source / "log.csv")
    (folder / "catalogue.yaml").write_text(json.dumps(CATALOGUE), encoding="utf-8")
    prepare(folder / "catalogue.yaml", source, folder / "data", num_workers=1)
    return folder


def configure(labels: dict[str, Any], **training: Any) -> Config:
    return parse_config(
        {
            "name": "stamps",
            "data": {"max_history": 16},
            "encoders": {
                "image": {"kind": "timm", "weights": "efficientnet-lite0", "num_tokens": 4},
                "text": {
                    "kind": "transformers",
                    "weights": "minilm",
                    "num_tokens": 8,
                    "options": {"max_length": 32},
                },
            },
            "model": {
                "width": 64,
                "fusion": {"kind": "mean"},
                "history": {"num_blocks": 1, "num_heads": 2},
                "labels": labels,
            },
            "training": {
                "max_epochs": 10,
                "batch_size": 32,
                "fresh_items": 256,
                "learning_rate": 2e-3,
                "warmup_steps": 10,
                "precision": "fp32",
                "evaluate_every": 10,
                **training,
            },
        }
    )


def test_categories_of_new_pictures_are_told_by_their_names_alone(
    stamps: Path, tmp_path: Path
) -> None:
    """Pictures and names were drawn together (CLIP), of other stamps; no category was told."""
    run = tmp_path / "run"
    train(configure({}, alignment_weight=1.0), stamps / "data", run)
    data = PreparedData.open(stamps / "data")
    roles = data.split().items.filter(pl.col("role") == "cold_test")
    cold = [data.items.item_ids[row] for row in roles["item_index"]]
    table = pl.read_csv(stamps / "source" / "items.csv", infer_schema=False)
    category = dict(table.select("item_id", "category").iter_rows())
    labels = sorted(set(category.values()))
    pictures = tmp_path / "pictures.csv"
    table.filter(pl.col("item_id").is_in(cold)).select("item_id", "image").write_csv(pictures)
    recommender = Recommender.load(run)
    new = recommender.new_items(pictures, stamps / "source")
    found = recommender.classify(new, labels, templates=TEMPLATES, k=1)
    right: dict[str, list[bool]] = {}
    for each in found:
        wanted = category[each["item_id"]]
        right.setdefault(wanted, []).append(wanted in each["classes"])
    assert len(found) == len(cold) > 100
    # the mean over categories: a third of all stamps are symbols, which to guess is no skill
    balanced = np.mean([np.mean(hits) for hits in right.values()])
    assert len(labels) == 16 and balanced > 3 / len(labels), balanced


def test_labels_of_new_stamps_are_told_better_than_the_commonest(
    stamps: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    labels = {"category": {"weight": 1.0}, "topics": {"attribute": "subcategory", "weight": 1.0}}
    train(configure(labels), stamps / "data", run)
    figures = evaluate_labels(load_run(run), "test")
    category, topics = figures["category"], figures["topics"]
    assert category["accuracy"] > category["accuracy_of_majority"] + 0.2, category
    assert category["macro_f1"] > 3 * category["macro_f1_of_majority"], category
    assert topics["p@1"] > topics["p@1_of_majority"] + 0.2, topics
    assert topics["p@3"] > topics["p@3_of_majority"] + 0.1, topics
