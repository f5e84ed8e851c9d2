"""Weights of tasks, as set or learned from their noise: the closed form, the log, a resumed run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import assert_same_run, train_until
from test_heads import shop_config, write_shop

from data_prep.prepare import prepare
from mmrec.errors import ConfigError
from mmrec.loss_weights import LossWeights
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

WEIGHTS = {"buys": 0.2, "values": 0.8}  # the second as a method of a dictionary
LOSSES = {"buys": torch.tensor(0.6), "values": torch.tensor(0.9)}


def total_of(weights: LossWeights) -> torch.Tensor:
    terms = [weights.of_task(name, loss) for name, loss in LOSSES.items()]
    return weights.of_next_item(torch.tensor(5.0)) + torch.stack(terms).sum()


def test_fixed_weights_are_as_set_and_have_no_parameter() -> None:
    weights = LossWeights(WEIGHTS, squared={"values"})
    torch.testing.assert_close(total_of(weights), torch.tensor(5 + 0.2 * 0.6 + 0.8 * 0.9))
    assert not weights.state_dict() and weights.current() == {}


def test_learned_weights_start_as_set_and_follow_the_formula() -> None:
    weights = LossWeights(WEIGHTS, learned=True, squared={"values"})
    s, buys, values = (float(each) for each in weights.current().values())
    assert list(weights.current()) == ["log_variance", "buys_log_variance", "values_log_variance"]
    assert math.exp(-buys) == pytest.approx(0.2) and math.exp(-values) / 2 == pytest.approx(0.8)
    wanted = math.exp(-s) * 5 + math.exp(-buys) * 0.6 + math.exp(-values) / 2 * 0.9
    assert float(total_of(weights).detach()) == pytest.approx(wanted + (s + buys + values) / 2)


def test_learned_weights_come_to_rest_where_theory_says() -> None:
    """d/ds [c exp(-s) L + s / 2] = 0 at s = log 2 c L: a weighted loss is a half then."""
    weights = LossWeights(WEIGHTS, learned=True, squared={"values"})
    optimiser = torch.optim.Adam(weights.parameters(), 0.05)
    for _ in range(600):
        optimiser.zero_grad()
        total_of(weights).backward()
        optimiser.step()
    found = [float(each) for each in weights.current().values()]
    assert found == pytest.approx([math.log(10), math.log(1.2), math.log(0.9)], abs=1e-3)


def test_a_run_learns_logs_and_resumes_its_weights(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    prepare(write_shop(tmp_path / "source"), tmp_path / "source", shop, num_workers=1)
    changes: dict[str, Any] = {"max_epochs": 1, "max_steps": 8, "checkpoint_every": 3,
                               "log_every": 1, "evaluate_every": 1}  # fmt: skip
    config = shop_config(loss_weights="learned", **changes)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, shop, whole)
    train_until(config, shop, broken, 5, resume=False)
    train(config, shop, broken, resume=True)
    assert_same_run(whole, broken)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 8
    for name, start in (("", 0.0), ("buys_", 0.0), ("stars_", -math.log(2))):
        logged = [line[f"{name}log_variance"] for line in steps]
        assert logged[0] == pytest.approx(start) and len(set(logged)) == 8
    assert all({"buys_loss", "stars_loss"} <= set(line) for line in steps)
    assert len(Recommender.load(whole).recommend("u0", k=3)) == 3
    # a run with fixed weights may start from it, and the other way round
    for start_from, kind in ((whole, "fixed"), (tmp_path / "fixed", "learned")):
        onwards = shop_config(loss_weights=kind, start_from=start_from, **changes)
        train(onwards, shop, tmp_path / kind)


def test_there_have_to_be_tasks() -> None:
    with pytest.raises(ConfigError, match="model.heads and model.labels are empty.*fixed"):
        shop_config({}, loss_weights="learned")
