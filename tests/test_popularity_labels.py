"""Hot and cold: labels by a quantile of training events, told of items nobody has met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.item_labels import hot, popularity_labels
from mmrec.errors import ConfigError
from mmrec.evaluation.item_labels import evaluate_labels
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS = 60, 60
FILLERS = ("the", "old", "in", "of", "and", "with")


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.8, [0] * 8 + [1] * 2),
        ([10, 9, 1, 1], 0.5, [1, 1, 0, 0]),
        ([1, 1, 1, 1, 7], 0.5, [0, 0, 0, 0, 1]),  # ties are cold: no more than a share is hot
        ([3, 3, 3], 0.5, [0, 0, 0]),
    ],
    ids=["a-fifth", "half", "ties", "all-alike"],
)
def test_hot_is_above_the_quantile(counts: list[int], share: float, expected: list[int]) -> None:
    found = np.array(counts)
    assert hot(found, share, found).astype(int).tolist() == expected
    at_most = [sum(other <= each for other in counts) for each in counts]  # by its definition
    cold = [each <= min(c for c, n in zip(counts, at_most, strict=True) if n >= share * len(counts))
            for each in counts]  # fmt: skip
    assert [not each for each in cold] == [bool(each) for each in expected]


def test_the_positive_class_is_one() -> None:
    labels, codes = popularity_labels("hot", 0.75, np.array([1, 9, 2, 1]))
    assert labels.labels == ("cold", "hot") and labels.places == {"cold": 0, "hot": 1}
    assert codes.values.tolist() == [0, 1, 0, 0] and codes.lengths.tolist() == [1, 1, 1, 1]
    assert labels.rates == pytest.approx((0.7, 0.3))
    with pytest.raises(ConfigError, match=r"popularity is 0.5, but no item .* at most \(2\)"):
        popularity_labels("hot", 0.5, np.array([2, 2, 2]))


def write_shop(source: Path) -> Path:
    """Every fourth item is grand, and met more often than others."""
    source.mkdir()
    random = np.random.default_rng(0)
    items = [
        {
            "id": f"i{number}",
            "form": ["round", "flat", "long"][number % 3],
            "title": " ".join(
                random.permutation(["grand" if number % 4 == 0 else "plain", *FILLERS[:3]])
            ),
        }
        for number in range(NUM_ITEMS)
    ]
    pl.DataFrame(items).write_csv(source / "items.csv")
    share = np.array([6.0 if number % 4 == 0 else 1.0 for number in range(NUM_ITEMS)])
    log = [
        (f"u{user}", f"i{item}", step)
        for user in range(NUM_USERS)
        for step, item in enumerate(
            random.choice(NUM_ITEMS, 9, replace=False, p=share / share.sum())
        )
    ]
    pl.DataFrame(log, ["user", "item", "at"], orient="row").write_csv(source / "log.csv")
    catalogue = {
        "name": "shop",
        "kind": "shop",
        "items": {
            "table": "items.csv",
            "id": "id",
            "text": ["title"],
            "attributes": {"form": {"type": "category"}},
        },
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "at"},
        "split": {"protocol": "leave_one_out", "cold_test": 0.25},
    }
    path = source / "catalogue.yaml"
    path.write_text(yaml.safe_dump(catalogue))
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("popular")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def shop_config(**labels: Any) -> Config:
    options = {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    return parse_config(
        {
            "name": "shop",
            "data": {"max_history": 10},
            "encoders": {"text": {"num_tokens": 4, "trainable_blocks": "all", "options": options}},
            "model": {
                "width": 16,
                "fusion": {
                    "num_latents": 2, "num_heads": 2, "dropout": 0.0, "feature_dropout": 0.0,
                    "modality_dropout": 0.0,
                },
                "history": {"num_blocks": 1, "num_heads": 2},
                "labels": {"form": {}, "demand": {"popularity": 0.7, "weight": 1.0, **labels}},
            },
            "training": {
                "max_epochs": 25,
                "batch_size": 16,
                "warmup_steps": 5,
                "learning_rate": 0.02,
                "precision": "fp32",
                "evaluate_every": 25,
            },
        }
    )  # fmt: skip


def test_labels_are_made_of_training_events_alone(shop: Path) -> None:
    assembly = assemble(shop_config(), shop)
    data = PreparedData.open(shop)
    split = data.split()
    counts = np.zeros(len(data.items), np.int64)
    for row in range(len(split.train)):
        np.add.at(counts, split.train.read(row).item_index, 1)
    counts = counts[assembly.item_index_of]
    labels = assembly.stream.item_labels
    assert labels is not None
    told = labels.of(np.arange(len(counts)))["demand"].numpy()
    assert (told[:, 1] == hot(counts, 0.7, counts)).all() and (told.sum(1) == 1).all()
    assert 0 < told[:, 1].mean() <= 0.3


def test_demand_of_items_nobody_met_is_told_from_their_media(shop: Path, tmp_path: Path) -> None:
    train(shop_config(), shop, tmp_path / "run")
    figures = evaluate_labels(load_run(tmp_path / "run"), "test")["demand"]
    assert figures["num_items"] == 15 and figures["num_labels"] == 2
    assert figures["macro_f1"] > figures["macro_f1_of_majority"] + 0.2
    assert figures["accuracy"] > figures["accuracy_of_majority"]
    recommender = Recommender.load(tmp_path / "run")
    told = {each["item_id"]: each["demand"]["hot"] for each in recommender.labels(["i0", "i1"])}
    assert told["i0"] > 0.5 > told["i1"]


def test_an_attribute_beside_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="popularity is 0.7 and 'colour' is named"):
        shop_config(attribute="colour")
