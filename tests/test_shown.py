"""What was shown and not met: kept beside the history, an example of no, and below what was met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
import yaml

from data_prep.build_splits import part_shown
from data_prep.errors import DataError
from data_prep.prepare import prepare
from data_prep.shards import History, PreparedData
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.labels import not_met
from mmrec.evaluation.command import evaluate_run
from mmrec.recommender import Recommender
from mmrec.training.micro_batches import split_histories
from mmrec.training.objective import compute_losses, shown_loss_of
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS, WIDTH = 12, 120, 16


def test_events_are_parted_from_what_was_shown() -> None:
    events = pl.DataFrame(
        [
            (0, 5, "show"), (0, 1, "buy"), (0, 6, "show"), (0, 7, "show"), (0, 2, "view"),
            (1, 3, None), (1, 8, "show"),
        ],
        ["user_index", "item_index", "event"],
        orient="row",
    )  # fmt: skip
    met, shown = part_shown(events, ["show"])
    assert met["item_index"].to_list() == [1, 2, 3]
    assert shown.rows() == [(0, 5, 0), (0, 6, 1), (0, 7, 1), (1, 8, 1)]
    assert part_shown(events, [])[0] is events


def test_what_is_met_later_is_no_example_of_no() -> None:
    history = History(
        0, np.array([1, 2, 1]), None, None, None, None,
        shown_items=np.array([1, 2, 9, 1]), shown_before=np.array([0, 2, 1, 3]),
    )  # fmt: skip
    # 1 is met after both times but the last; 2 was met before it was shown, and not afterwards
    assert not_met(history).tolist() == [False, True, True, True]


def write_shop(folder: Path, shown: list[str] | None = None) -> Path:
    """Users of two tastes: of two items shown they take the one that suits them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    items = [{"id": f"i{number}", "title": f"thing {number}"} for number in range(NUM_ITEMS)]
    pl.DataFrame(items).write_csv(folder / "items.csv")
    log = []
    for user in range(NUM_USERS):
        mine = random.permutation(np.arange(user % 2, NUM_ITEMS, 2))[: 4 + user % 2]
        for step, item in enumerate(mine):
            other = int(random.choice(np.arange(1 - user % 2, NUM_ITEMS, 2)))
            log.append((f"u{user}", f"i{other}", 3 * step, "show"))
            log.append((f"u{user}", f"i{item}", 3 * step + 1, "show"))
            log.append((f"u{user}", f"i{item}", 3 * step + 2, "buy"))
    pl.DataFrame(log, ["user", "item", "at", "what"], orient="row").write_csv(folder / "log.csv")
    catalogue: dict[str, Any] = {
        "name": "shop",
        "kind": "shop",
        "repeats": "forbid",
        "items": {"table": "items.csv", "id": "id", "text": ["title"]},
        "interactions": {
            "table": "log.csv", "user": "user", "item": "item", "order": "at",
            "event": "what", "shown": ["show"] if shown is None else shown,
        },
    }  # fmt: skip
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    return folder / "catalogue.yaml"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def shop_config(**training: Any) -> Config:
    return parse_config(
        {
            "name": "shop",
            "data": {"max_history": 10},
            "model": {
                "item": "id",
                "width": WIDTH,
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0, "start": True},
                "heads": {"click": {"kind": "binary", "positive": ["buy"], "weight": 1.0}},
            },
            "training": {
                "max_epochs": 30,
                "batch_size": 8,
                "warmup_steps": 5,
                "learning_rate": 0.02,
                "precision": "fp32",
                "evaluate_every": 30,
                "shown_weight": 0.5,
                **training,
            },
        }
    )


def test_histories_hold_what_was_met_and_beside_it_what_was_shown(shop: Path) -> None:
    data = PreparedData.open(shop)
    split = data.split()
    # counts are of what was met
    assert split.items["num_events"].sum() == sum(4 + user % 2 for user in range(NUM_USERS))
    for row in range(len(split.full)):
        full = split.full.read(row)
        assert len(full.shown_items) == 2 * len(full.item_index)
        assert full.shown_before.tolist() == sorted(2 * list(range(len(full.item_index))))
        assert (full.shown_items % 2 != full.item_index[0] % 2).sum() == len(full.item_index)
        train_row = int(np.searchsorted(split.train.user_index, full.user_index))
        trained = split.train.read(train_row)
        # what was shown after the last training event would tell of what is asked for
        assert trained.shown_before.max() == len(trained.item_index) - 1
        assert len(trained.shown_items) == 2 * len(trained.item_index)


def test_pairs_stand_behind_their_positions_whoever_shares_the_batch(shop: Path) -> None:
    assembly = assemble(shop_config(), shop)
    model = assembly.model.eval()
    batch = next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))
    place, shown = batch.shown
    assert batch.num_shown == len(place) == len(batch.targets)  # one of two shown is not met
    taste = assembly.item_index_of[batch.targets[place].numpy()] % 2
    assert (assembly.item_index_of[shown.numpy()] % 2 != taste).all()
    items, bias = model.embeddings(None), model.bias(model.counts)
    states = model.users(model.shown(items, batch.inputs), batch.offsets)
    terms = []
    for position, item in zip(place.tolist(), shown.tolist(), strict=True):
        scores = items @ states[position] / model.temperature + bias
        target = int(batch.targets[position])
        terms.append(-F.logsigmoid(scores[target] - scores[item]))
    found = shown_loss_of(model, batch, states, (items, bias))
    torch.testing.assert_close(found, torch.stack(terms).mean())
    settings: dict[str, Any] = {"modality_dropout": 0.0, "repeats_forbidden": True}
    config = assembly.config.training
    whole = compute_losses(model, batch, None, config, **settings)
    parts = [
        compute_losses(model, part, None, config, **settings) for part in split_histories(batch, 3)
    ]
    assert whole.shown_loss is not None
    torch.testing.assert_close(sum(each.shown_loss for each in parts), whole.shown_loss)
    torch.testing.assert_close(sum(each.heads["click"] for each in parts), whole.heads["click"])
    ranks = [assemble(shop_config(), shop, rank=rank, world=2).stream for rank in (0, 1)]
    shares = [next(iter(batch_loader(each, epoch=0, first_batch=0, num_workers=0)))
              for each in ranks]  # fmt: skip
    assert sum(each.shown.shape[1] for each in shares) == batch.num_shown
    assert all(each.num_shown == batch.num_shown for each in shares)


def test_a_click_is_told_from_what_was_only_shown(shop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shop_config(), shop, run)
    click = evaluate_run(run)["heads"]["click"]
    # of the test each user's last item, and what was shown beside it
    assert click["num"] == 2 * NUM_USERS and click["positive_share"] == 0.5
    assert click["auc"] > 0.9 and click["log_loss"] < 0.8 * click["log_loss_of_rate"]
    liked, other = Recommender.load(run).predict(["i4", "i5"], history=["i0", "i2"])
    assert liked["click"] > 0.5 > other["click"]


def test_a_sampled_loss_has_the_items_shown_at_hand(shop: Path, tmp_path: Path) -> None:
    train(shop_config(candidates=64, max_epochs=1, evaluate_every=1), shop, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event": None}, "shown needs event"),
        ({"targets": {"events": ["show"]}}, "targets.events and shown both name 'show'"),
    ],
)
def test_catalogues_that_contradict_themselves_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_shop(tmp_path / "source")
    document = yaml.safe_load(path.read_text())
    document["interactions"] |= changes
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(DataError, match=message):
        prepare(path, tmp_path / "source", tmp_path / "data", num_workers=1)
