"""One backbone, five tasks from one settings file: next item, click, purchase, rating, category.

Users of a made shop like a kind of things, look at them and click; who clicks buys what is red or
blue, and gives what he bought more stars. Titles say kind and colour.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from made_tables import write_tables
from safetensors.torch import load_file

from data_prep.prepare import prepare
from mmrec.cli import main

pytestmark = pytest.mark.usefixtures("restored_torch")
NUM_ITEMS, NUM_USERS, LENGTH = 48, 240, 10
KINDS, COLOURS = ("boat", "lamp"), ("red", "blue", "green", "black")
FILLERS = ("old", "small", "plain", "new", "heavy", "light")
CONFIG: dict[str, Any] = {
    "name": "five-heads",
    "data": {"max_history": LENGTH},
    "encoders": {
        "text": {
            "num_tokens": 4,
            "trainable_blocks": "all",
            "options": {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
        }
    },
    "model": {
        "width": 16,
        "fusion": {"num_latents": 2, "num_heads": 2, "dropout": 0.0, "feature_dropout": 0.0},
        "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0},
        "signals": {"events": True, "values": True},
        "heads": {
            "ctr": {"kind": "binary", "positive": ["click", "buy"], "weight": 0.5},
            "cvr": {"kind": "binary", "positive": ["buy"], "among": ["click", "buy"],
                    "weight": 0.5},
            "rating": {"kind": "value", "weight": 0.5},
        },
        "labels": {"colour": {"weight": 0.5}},
    },
    "training": {
        "max_epochs": 30,
        "batch_size": 16,
        "warmup_steps": 5,
        "learning_rate": 0.01,
        "precision": "fp32",
        "evaluate_every": 30,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five_heads")
    random = np.random.default_rng(0)
    kind, colour = np.arange(NUM_ITEMS) % 2, np.arange(NUM_ITEMS) // 2 % 4
    titles = [
        f"{random.choice(FILLERS)} {COLOURS[c]} {KINDS[k]}"
        for k, c in zip(kind, colour, strict=True)
    ]
    log = []
    for user in range(NUM_USERS):
        likes = user % 2
        chance = np.where(kind == likes, 9.0, 1.0)
        met = random.choice(NUM_ITEMS, LENGTH, replace=False, p=chance / chance.sum())
        for step, item in enumerate(met):
            clicks = random.random() < (0.9 if kind[item] == likes else 0.1)
            buys = clicks and random.random() < (0.9 if colour[item] < 2 else 0.1)
            event = "buy" if buys else "click" if clicks else "view"
            log.append((f"u{user}", f"i{item}", step, event, {"buy": 5, "click": 3}.get(event, 1)))
    catalogue = write_tables(
        folder / "source",
        items=pl.DataFrame(
            {
                "id": [f"i{item}" for item in range(NUM_ITEMS)],
                "title": titles,
                "colour": [COLOURS[each] for each in colour],
            }
        ),
        log=pl.DataFrame(log, ["user", "item", "at", "what", "stars"], orient="row"),
        catalogue={
            "name": "shop",
            "kind": "shop",
            "repeats": "forbid",
            "items": {"attributes": {"colour": {"type": "category"}}},
            "interactions": {"order": "at", "event": "what", "value": "stars"},
            "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.2},
        },
    )
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def test_one_run_learns_five_tasks_and_reports_each_by_its_own_metric(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each figure beside what is known without a model; rates of the world are .9 and .1."""
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    assert main(["train", str(path), "--data", str(shop), "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    ours, popular = (metrics["models"][name]["warm"]["ndcg@10"] for name in ("mmrec", "popularity"))
    assert ours > 1.2 * popular
    heads, colour = metrics["heads"], metrics["labels"]["colour"]
    for name in ("ctr", "cvr"):
        assert heads[name]["auc"] > 0.7, name
        assert heads[name]["log_loss"] < 0.9 * heads[name]["log_loss_of_rate"], name
    assert heads["cvr"]["num"] < heads["ctr"]["num"]  # of those who clicked alone
    assert heads["rating"]["rmse"] < 0.9 * heads["rating"]["rmse_of_item_and_user_means"]
    assert colour["num_labels"] == 4
    assert colour["accuracy"] > colour["accuracy_of_majority"] + 0.3
    report = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in ("ctr", "cvr", "rating", "colour"))

    # one backbone: what the tasks have of their own is a few layers of one model
    weights = load_file(run / "checkpoints" / "final" / "model.safetensors")
    assert {"ctr", "cvr", "rating"} <= {part for key in weights for part in key.split(".")}
    assert len({key.split(".")[0] for key in weights if "history" in key.split(".")[0]}) == 1
    assert main(["predict", str(run), "--user", "u0", "--items", "i0,i1", "--json"]) == 0
    told = capsys.readouterr().out
    assert main(["predict", str(run), "--items", "i0,i1", "--json"]) == 0
    assert all(name in told for name in ("ctr", "cvr", "rating"))
    assert "colour" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"heads": {"ctr": {"kind": "binary"}}}, "model.heads.ctr: .*needs the event types"),
        ({"heads": {"rating": {"kind": "value", "positive": ["buy"]}}}, "a value has none"),
        ({"heads": {"rating": {"kind": "softmax"}}}, "rating.kind.*'binary' or 'value'"),
        ({"heads": {"ctr": {"kind": "binary", "positive": ["buy"], "num_classes": 3}}},
         "num_classes"),
        ({"heads": {"ctr": {"kind": "binary", "positive": ["buy"], "scorer": "dot"}}}, "scorer"),
        ({"labels": {"colour": {"popularity": 0.8, "labels": ["red"]}}}, "model.labels.colour"),
        ({"labels": {"colour": {"kind": "value"}}}, "model.labels.colour.kind"),
    ],
    ids=["no-class", "value-of-classes", "loss", "shape", "scorer", "two-sources", "label-kind"],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused_as_the_settings_are_read(
    section: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `describe`, which reads settings alone: no data, no model, no first batch."""
    path = tmp_path / "config.yaml"
    model = {**CONFIG["model"], **section}
    path.write_text(yaml.safe_dump({**CONFIG, "model": model}), encoding="utf-8")
    assert main(["describe", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
