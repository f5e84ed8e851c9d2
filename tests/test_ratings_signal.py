"""A rating of 1 and one of 5 teach different things, where a run reads ratings, and only there.

Two logs differ in one rating alone: what one user gave the third item he met.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from data_prep.prepare import prepare
from mmrec.build import Assembly, assemble
from mmrec.config import Config, parse_config
from mmrec.data.batch import Batch, batch_loader
from mmrec.loaded import load_run
from mmrec.model import RecommenderModel
from mmrec.training.objective import Losses, compute_losses
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS, LEAST_LIKED = 12, 20, 4
USER, PLACE = 3, 2  # whose rating differs, and of which of his events
HEAD = {"stars": {"kind": "value", "weight": 1.0}}


def write_log(folder: Path, stars: int, *, thresholded: bool) -> Path:
    """A prepared log in which that rating is `stars`; low ratings are no targets if thresholded."""
    source = folder / "source"
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    log = []
    for user in range(NUM_USERS):
        for step, item in enumerate(random.permutation(NUM_ITEMS)[: 6 + user % 4]):
            given = int(random.integers(1, 6)) if step < 4 else 5  # the last two are asked for
            given = stars if (user, step) == (USER, PLACE) else given
            log.append((f"u{user}", f"i{item}", step, given))
    names = ["user", "item", "at", "stars"]
    pl.DataFrame(log, names, orient="row").write_csv(source / "log.csv")
    items = [{"id": f"i{number}", "title": f"thing {number}"} for number in range(NUM_ITEMS)]
    pl.DataFrame(items).write_csv(source / "items.csv")
    interactions: dict[str, Any] = {
        "table": "log.csv", "user": "user", "item": "item", "order": "at", "value": "stars",
    }  # fmt: skip
    if thresholded:
        interactions["targets"] = {"min_value": LEAST_LIKED}
    catalogue = {
        "name": "stars",
        "kind": "video",
        "repeats": "allow",
        "items": {"table": "items.csv", "id": "id", "text": ["title"]},
        "interactions": interactions,
    }
    (source / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    prepare(source / "catalogue.yaml", source, folder / "data", num_workers=1)
    return folder / "data"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, bool], Path]:
    """Prepared folders by the rating and by whether low ratings are no targets."""
    return {
        (stars, thresholded): write_log(
            tmp_path_factory.mktemp("stars"), stars, thresholded=thresholded
        )
        for stars in (1, 5)
        for thresholded in (False, True)
    }


def stars_config(*, values: bool = False, heads: dict[str, Any] | None = None) -> Config:
    """Two epochs without dropout, a batch of all users."""
    return parse_config(
        {
            "name": "stars",
            "data": {"max_history": 10},
            "model": {
                "item": "id",
                "width": 16,
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0, "start": True},
                "signals": {"values": values, "dropout": 0.0},
                "heads": heads or {},
            },
            "training": {
                "max_epochs": 2,
                "batch_size": NUM_USERS,
                "warmup_steps": 1,
                "learning_rate": 0.02,
                "precision": "fp32",
                "evaluate_every": 2,
            },
        }
    )


def first_batch(assembly: Assembly) -> Batch:
    return next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))


def where_they_differ(one: Tensor, five: Tensor) -> list[int]:
    same = (one == five) | (one.isnan() & five.isnan())
    return [int(place) for place in (~same).nonzero()[:, 0]]


def losses_of(model: RecommenderModel, batch: Batch, config: Config) -> Losses:
    return compute_losses(
        model, batch, None, config.training, modality_dropout=0.0, repeats_forbidden=False
    )


def test_the_rating_head_is_pulled_down_by_a_1_and_up_by_a_5(
    logs: dict[tuple[int, bool], Path],
) -> None:
    config = stars_config(heads=HEAD)
    model = assemble(config, logs[1, False]).model.eval()
    head = model.heads["stars"]
    for parameter in head.parameters():  # an untrained head says what is expected, no more
        torch.nn.init.normal_(parameter, std=0.3)
    batches = [first_batch(assemble(config, logs[stars, False])) for stars in (1, 5)]
    one, five = batches
    assert torch.equal(one.inputs, five.inputs) and torch.equal(one.targets, five.targets)
    labels = [each.heads["stars"].labels for each in batches]
    (place,) = where_they_differ(*labels)
    assert [float(each[place]) for each in labels] == [1.0, 5.0]
    told: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        told.append(output)

    head.register_forward_hook(keep)
    losses, gradients = [], []
    for batch in batches:
        model.zero_grad()
        loss = losses_of(model, batch, config).heads["stars"]
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([each.grad.flatten() for each in head.parameters()]))  # type: ignore[union-attr]
    assert abs(losses[0] - losses[1]) > 1e-3
    assert float((gradients[0] - gradients[1]).norm()) > 1e-3
    pulls = []
    for output in told:
        assert output.grad is not None
        pulls.append(float(output.grad[place]))
    assert pulls[1] < 0 < pulls[0]  # a step against them: less for the 1, more for the 5


def test_what_has_a_1_is_history_and_no_target_and_what_has_a_5_is_both(
    logs: dict[tuple[int, bool], Path],
) -> None:
    """The loss of lists has one term more, the cross-entropy of the item that has 5 stars."""
    config = stars_config()
    assemblies = [assemble(config, logs[stars, True]) for stars in (1, 5)]
    one, five = map(first_batch, assemblies)
    assert torch.equal(one.inputs, five.inputs) and torch.equal(one.targets, five.targets)
    (place,) = where_they_differ(one.counted, five.counted)
    assert bool(five.counted[place]) and five.num_counted == one.num_counted + 1
    item = int(five.targets[place])
    assert int(one.inputs[place + 1]) == item  # it is history in both
    model = assemblies[0].model.eval()
    with torch.no_grad():
        sums = [
            float(losses_of(model, each, config).loss) * each.num_counted for each in (one, five)
        ]
        items = model.embeddings(None)
        states = model.users(model.shown(items, five.inputs), five.offsets, signals=five.signals)
        logits = states[place] @ items.T / model.temperature + model.bias(model.counts)
        term = float(F.cross_entropy(logits[None], five.targets[place][None]))
    assert sums[1] - sums[0] == pytest.approx(term, rel=1e-4)


@pytest.mark.parametrize("read", ["nothing", "values", "head", "targets"])
def test_a_run_that_reads_no_ratings_does_not_know_of_them(
    logs: dict[tuple[int, bool], Path], tmp_path: Path, read: str
) -> None:
    """Bit for bit; one that reads them in any way learns something else from the other log."""
    config = stars_config(values=read == "values", heads=HEAD if read == "head" else None)
    states = []
    for stars in (1, 5):
        train(config, logs[stars, read == "targets"], tmp_path / str(stars))
        states.append(load_run(tmp_path / str(stars)).model.state_dict())
    one, five = states
    assert one.keys() == five.keys()
    same = all(torch.equal(one[name], five[name]) for name in one)
    assert same == (read == "nothing")
    if read == "nothing":
        lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("1", "5")]
        assert [without_clock(each) for each in lines] == [without_clock(lines[0])] * 2


def without_clock(lines: str) -> list[str]:
    """The losses and figures of a run's lines, which hold times as well."""
    found = []
    for line in lines.splitlines():
        values = yaml.safe_load(line)
        found.append(str({k: v for k, v in values.items() if "loss" in k or "@" in k}))
    return found
