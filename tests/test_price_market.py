"""A simulated market where the price alone decides: what it earns, and what its scale is made of.

Users meet items by chance and buy the cheaper the rather, by the log of the price; what else they
look at they leave. New items are asked about: of an item that training met, its purchases tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

import mmrec.evaluation.heads as heads
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.evaluation.heads import binary_figures, evaluate_heads
from mmrec.loaded import load_run
from mmrec.training.start import start_content
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS, LENGTH = 200, 300, 10
LEAST, MOST = np.log(2), np.log(2000)  # prices from 2 to 2,000, even on a log scale
SLOPE = 3.0  # log odds of a purchase that a price 2.7 times as high costs
TITLES = ("one of those", "one of these")  # in turn by price, so that they say nothing of it


def write_market(folder: Path, prices: dict[int, float] | None = None) -> Path:
    """A prepared log of views and purchases; some prices may be others than those that decided."""
    source = folder / "source"
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    log_price = random.uniform(LEAST, MOST, NUM_ITEMS)
    shown = np.round(np.exp(log_price), 2)
    for number, price in (prices or {}).items():
        shown[number] = price
    place = log_price.argsort().argsort()
    items = [
        {"id": f"i{number}", "title": TITLES[place[number] % 2], "price": shown[number]}
        for number in range(NUM_ITEMS)
    ]
    pl.DataFrame(items).write_csv(source / "items.csv")
    log = []
    for user in range(NUM_USERS):
        for step, item in enumerate(random.permutation(NUM_ITEMS)[:LENGTH]):
            chance = 1 / (1 + np.exp(SLOPE * (log_price[item] - (LEAST + MOST) / 2)))
            buys = random.random() < chance
            log.append((f"u{user}", f"i{item}", step, "buy" if buys else "view"))
    pl.DataFrame(log, ["user", "item", "at", "what"], orient="row").write_csv(source / "log.csv")
    catalogue = {
        "name": "market",
        "kind": "shop",
        "repeats": "forbid",
        "items": {
            "table": "items.csv",
            "id": "id",
            "text": ["title"],
            "attributes": {"price": {"type": "number"}},
        },
        "interactions": {
            "table": "log.csv", "user": "user", "item": "item", "order": "at", "event": "what",
        },
        "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.2},
    }  # fmt: skip
    (source / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    prepare(source / "catalogue.yaml", source, folder / "data", num_workers=1)
    return folder / "data"


def market_config(*, reads_prices: bool) -> Config:
    """Contents alone, of titles that say nothing, with prices or without."""
    encoders: dict[str, Any] = {
        "text": {"num_tokens": 4, "options": {"width": 16, "num_layers": 1, "num_heads": 2}}
    }
    if reads_prices:
        encoders["attributes"] = {"kind": "fields", "options": {"price": "log", "num_knots": 8}}
    return parse_config(
        {
            "name": "market",
            "encoders": encoders,
            "data": {"max_history": LENGTH},
            "model": {
                "item": "content",
                "width": 16,
                "popularity": False,
                "fusion": {"num_latents": 2, "num_heads": 2, "dropout": 0.0,
                           "feature_dropout": 0.0, "modality_dropout": 0.0},
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0},
                "heads": {"buys": {"kind": "binary", "positive": ["buy"], "weight": 5.0}},
            },
            "training": {
                "max_epochs": 4,
                "batch_size": 32,
                "fresh_items": None,
                "warmup_steps": 5,
                "learning_rate": 0.01,
                "precision": "fp32",
                "evaluate_every": 4,
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_market(tmp_path_factory.mktemp("market"))


def cold_items(data: Path) -> list[int]:
    roles = PreparedData.open(data).split().items
    return roles.filter(pl.col("role").str.starts_with("cold"))["item_index"].to_list()


def auc_on_new_items(run: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """AUC of the head on events of the test that fall on items nobody had met in training."""
    loaded = load_run(run)
    assert loaded.data is not None and loaded.split is not None
    is_cold = heads.is_cold_item(loaded.split)
    windows = heads.told_windows(loaded.split, "test")
    cold = is_cold[np.concatenate([each.items for each in windows])]
    given: list[tuple[Any, Any]] = []

    def keep(told: Any, wanted: Any, *, rate: float) -> dict[str, Any]:
        given.append((told, wanted))
        return binary_figures(told, wanted, rate=rate)

    monkeypatch.setattr(heads, "binary_figures", keep)
    evaluate_heads(loaded, "test")
    ((told, wanted),) = given
    told, wanted = told[cold], wanted[cold]
    assert len(wanted) > 100 and 0.2 < wanted.mean() < 0.8
    auc = binary_figures(told, wanted, rate=0.5)["auc"]
    assert auc == pytest.approx(roc_auc_score(wanted, told), abs=1e-12)
    assert auc == pytest.approx(share_of_pairs(told, wanted), abs=1e-9)
    return float(auc)


def share_of_pairs(told: Any, wanted: Any) -> float:
    """How often what was bought stands above what was not; ties are half."""
    yes, no = told[wanted == 1], told[wanted == 0]
    gaps = yes[:, None] - no[None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


@pytest.mark.parametrize("reads_prices", [True, False], ids=["price", "no price"])
def test_the_price_alone_tells_what_is_bought(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_prices: bool
) -> None:
    """AUC above .9 with the price, about .5 without."""
    train(market_config(reads_prices=reads_prices), market, tmp_path / "run")
    auc = auc_on_new_items(tmp_path / "run", monkeypatch)
    print(f"AUC on new items, price read {reads_prices}: {auc:.4f}")
    if reads_prices:
        assert auc > 0.9
    else:
        assert auc == pytest.approx(0.5, abs=0.07)


def test_the_price_of_an_item_held_out_is_in_no_statistic(market: Path, tmp_path: Path) -> None:
    """Knots, and what contents are centred on, are those of the items of training."""
    held_out = cold_items(market)
    assert len(held_out) > 10
    moved = write_market(tmp_path / "moved", {held_out[0]: 1e9, held_out[1]: 1e-6})
    warm = next(row for row in range(NUM_ITEMS) if row not in held_out)
    other = write_market(tmp_path / "other", {warm: 1e9})
    assert cold_items(moved) == held_out == cold_items(other)
    config = market_config(reads_prices=True)
    found = {}
    for name, data in (("as it was", market), ("held out", moved), ("trained on", other)):
        torch.manual_seed(0)
        assembly = assemble(config, data)
        start_content([assembly])
        document = json.dumps(assembly.encoder_documents["attributes"], sort_keys=True)
        found[name] = (document, assembly.model.state_dict())
    plain, (document, state) = found["as it was"], found["held out"]
    assert document == plain[0] and "1000000000" not in document
    assert all(torch.equal(state[name], plain[1][name]) for name in state)
    assert found["trained on"][0] != plain[0]
