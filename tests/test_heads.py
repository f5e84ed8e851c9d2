"""Heads: what users do with items, from labels to losses, figures and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from made_tables import things, write_tables
from sklearn.metrics import f1_score, log_loss, mean_absolute_error, roc_auc_score

from data_prep.prepare import prepare
from data_prep.shards import History
from fusion.heads import BilinearScorer, Head
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.labels import ITEM_PRIOR, USER_PRIOR, HeadSpec, ItemMeans, expected
from mmrec.errors import ConfigError, ItemNotFound, UserError
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.heads import binary_figures, calibration_error, heads_lines, value_figures
from mmrec.evaluation.schemas import ReportDocument
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.micro_batches import split_histories
from mmrec.training.objective import compute_losses, head_losses
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS, WIDTH = 12, 160, 16


def test_a_bilinear_step_follows_its_closed_form() -> None:
    """dL/dM = (sigma(u M p) - y) u p; a step parts the item that was liked from the other."""
    user = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    items = torch.tensor([[0.8, 0.5, 0.3], [0.2, 0.7, 0.1]])
    wanted = torch.tensor([1.0, 0.0])
    scorer = BilinearScorer(3)
    scorer.matrix.data = torch.diag(torch.tensor([1.0, 0.5, 2.0]))
    scores = scorer(user, items)
    np.testing.assert_allclose(scores.detach(), [0.4 + 0.075 + 0.12, 0.1 + 0.105 + 0.04], rtol=1e-6)
    F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum").backward()
    residual = scores.detach().sigmoid() - wanted
    closed = sum(residual[n] * torch.outer(user[n], items[n]) for n in range(2))
    torch.testing.assert_close(scorer.matrix.grad, closed)
    before = float((scores[0] - scores[1]).detach())
    scorer.matrix.data -= 0.5 * closed
    after = scorer(user, items).detach()
    assert float(after[0] - after[1]) > before


@pytest.mark.parametrize("scorer", ["cosine", "bilinear", "mlp"])
def test_a_head_begins_with_what_is_expected_and_learns(scorer: Any) -> None:
    torch.manual_seed(0)
    head = Head(WIDTH, scorer=scorer, base=3.5, spread=1.1)
    users, items = (F.normalize(torch.randn(200, WIDTH), dim=1) for _ in range(2))
    offsets = torch.randn(200)
    torch.testing.assert_close(head(users, items, offsets), 3.5 + offsets)
    wanted = 3.5 + offsets + 4 * (users * items).sum(1)
    optimiser = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        loss = (head(users, items, offsets) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2 * float((wanted - 3.5 - offsets).var())


def a_history(values: list[float]) -> History:
    n = len(values)
    return History(
        0, np.arange(n), None, np.arange(n).astype(np.int16) % 3, np.array(values, np.float32), None
    )


def test_labels_are_of_the_examples_alone() -> None:
    history = a_history([5, np.nan, 1, 4, 2])
    assert HeadSpec("binary", (1,), (), 0.0, 1.0).labels(history).tolist() == [0, 1, 0, 0, 1]
    among = HeadSpec("binary", (1,), (1, 2), 0.0, 1.0).labels(history)
    np.testing.assert_array_equal(among, [np.nan, 1, 0, np.nan, 1])
    np.testing.assert_array_equal(
        HeadSpec("value", (), (0, 1), 3.0, 1.0).labels(history), [5, np.nan, np.nan, 4, 2]
    )
    bare = History(0, np.arange(2), None, None, None, None)
    assert np.isnan(HeadSpec("value", (), (), 3.0, 1.0).labels(bare)).all()
    assert np.isnan(HeadSpec("binary", (1,), (), 0.0, 1.0).labels(bare)).all()


def test_what_is_expected_knows_earlier_values_alone() -> None:
    spec = HeadSpec("value", (), (), 3.0, 1.0)
    values = np.array([5, np.nan, 1, 4], np.float32)
    of_items = np.array([0.5, 0.0, -0.5, 0.25], np.float32)
    found = expected(spec, values, of_items)
    slow = []
    for place in range(4):
        told = [values[p] - 3.0 - of_items[p] for p in range(place) if not np.isnan(values[p])]
        slow.append(of_items[place] + sum(told) / (len(told) + USER_PRIOR))
    np.testing.assert_allclose(found, slow, rtol=1e-6)


def test_no_value_is_in_the_mean_it_is_told_from() -> None:
    means = ItemMeans(np.array([4.0, 1.0]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(means.offsets, [4 / (3 + ITEM_PRIOR), 1 / (1 + ITEM_PRIOR)])
    found = means.without_own(np.array([0, 1, 0]), np.array([2.0, 1.0, np.nan]))
    wanted = [2 / (2 + ITEM_PRIOR), 0.0, 4 / (3 + ITEM_PRIOR)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_figures_are_scikit_learns_and_a_rate_alone_has_no_auc() -> None:
    random = np.random.default_rng(0)
    told = random.uniform(0.01, 0.99, 500)
    wanted = (random.random(500) < told).astype(float)
    found = binary_figures(told, wanted, rate=0.5)
    assert found["auc"] == pytest.approx(roc_auc_score(wanted, told))
    assert found["log_loss"] == pytest.approx(log_loss(wanted, told))
    assert found["f1"][1] == pytest.approx(f1_score(wanted, told >= 0.5))
    assert sum(map(sum, found["confusion"])) == 500
    assert found["calibration_error"] < 0.06
    assert calibration_error(told, 1 - wanted) > 0.3
    # two clicks in a hundred: who says no to all is right in 98 of them and knows nothing
    rare = (np.arange(1000) % 50 == 0).astype(float)
    never = binary_figures(np.full(1000, 0.02), rare, rate=0.02)
    assert never["accuracy"] == pytest.approx(0.98) and never["auc"] == pytest.approx(0.5)
    assert never["recall"] == [1.0, 0.0]
    assert binary_figures(told, np.ones(500), rate=0.5)["auc"] is None
    values = value_figures(told, wanted, mean=0.5, means=np.full(500, 0.5))
    assert values["rmse"] == pytest.approx(float(np.sqrt(np.mean((told - wanted) ** 2))))
    assert values["mae"] == pytest.approx(mean_absolute_error(wanted, told))
    assert values["rmse_of_mean"] == pytest.approx(0.5)
    assert len(heads_lines({"click": found, "rare": never, "stars": values})) == 3


def write_shop(folder: Path) -> Path:
    """Users of two tastes; what suits them they buy and give five stars."""
    random = np.random.default_rng(0)
    log = []
    for user in range(NUM_USERS):
        for step, item in enumerate(random.permutation(NUM_ITEMS)[: 6 + user % 4]):
            likes = (item % 2) == (user % 2)
            log.append(
                (f"u{user}", f"i{item}", step, "buy" if likes else "view", 5 if likes else 2)
            )
    names = ["user", "item", "at", "what", "stars"]
    return write_tables(
        folder,
        items=things(NUM_ITEMS),
        log=pl.DataFrame(log, names, orient="row"),
        catalogue={
            "name": "shop",
            "kind": "shop",
            "repeats": "forbid",
            "interactions": {"order": "at", "event": "what", "value": "stars"},
        },
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    return folder / "data"


HEADS: dict[str, Any] = {
    "buys": {"kind": "binary", "positive": ["buy"], "weight": 1.0},
    "stars": {"kind": "value", "weight": 1.0},
}


def shop_config(heads: dict[str, Any] | None = None, **training: Any) -> Config:
    return parse_config(
        {
            "name": "shop",
            "data": {"max_history": 10},
            "model": {
                "item": "id",
                "width": WIDTH,
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0, "start": True},
                "signals": {"events": True, "values": True},
                "heads": HEADS if heads is None else heads,
            },
            "training": {
                "max_epochs": 40,
                "batch_size": 8,
                "warmup_steps": 5,
                "learning_rate": 0.02,
                "precision": "fp32",
                "evaluate_every": 40,
                **training,
            },
        }
    )


@pytest.fixture(scope="module")
def shop_run(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("heads_run") / "run"
    train(shop_config(), shop, run)
    return run


def test_the_loss_of_a_head_is_the_mean_over_its_labels(shop: Path) -> None:
    assembly = assemble(shop_config(), shop)
    model = assembly.model.eval()
    for head in model.heads.values():
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    batch = next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))
    items = model.embeddings(None)
    states = model.users(model.shown(items, batch.inputs), batch.offsets, signals=batch.signals)
    found = dict(zip(model.heads, head_losses(model, batch, states, items), strict=True))
    for name, head in model.heads.items():
        labels = batch.heads[name]
        assert int((~labels.labels.isnan()).sum()) == labels.total == len(batch.targets)
        terms = []
        for place, target in enumerate(batch.targets.tolist()):
            told = head(states[place : place + 1], items[target][None], labels.offsets[[place]])
            wanted = labels.labels[[place]]
            if name == "buys":
                terms.append(F.binary_cross_entropy_with_logits(told, wanted))
            else:
                terms.append(((told - wanted) / model.head_specs[name].spread).square().mean())
        torch.testing.assert_close(found[name], torch.stack(terms).mean())
    # in parts, and among ranks, the shares add up to the same
    config = assembly.config.training
    settings: dict[str, Any] = {"modality_dropout": 0.0, "repeats_forbidden": True}
    whole = compute_losses(model, batch, None, config, **settings)
    parts = [
        compute_losses(model, part, None, config, **settings) for part in split_histories(batch, 3)
    ]
    for name in model.heads:
        torch.testing.assert_close(sum(part.heads[name] for part in parts), whole.heads[name])
    ranks = [assemble(shop_config(), shop, rank=rank, world=2).stream for rank in (0, 1)]
    shares = [next(iter(batch_loader(each, epoch=0, first_batch=0, num_workers=0)))
              for each in ranks]  # fmt: skip
    for name in model.heads:
        assert all(each.heads[name].total == batch.heads[name].total for each in shares)
        counts = [int((~each.heads[name].labels.isnan()).sum()) for each in shares]
        assert sum(counts) == batch.heads[name].total


def test_heads_learn_and_their_figures_beat_what_is_expected_of_anybody(shop_run: Path) -> None:
    metrics = evaluate_run(shop_run)
    buys, stars = metrics["heads"]["buys"], metrics["heads"]["stars"]
    assert buys["num"] == stars["num"] == NUM_USERS
    assert buys["auc"] > 0.9 and buys["log_loss"] < buys["log_loss_of_rate"]
    assert stars["rmse"] < 0.7 * stars["rmse_of_item_and_user_means"]
    assert json.loads((shop_run / "metrics-test.json").read_text())["heads"] == metrics["heads"]
    page = (shop_run / "report.html").read_text()
    assert "What users do with items" in page and "RMSE of the means of item and user" in page
    report = ReportDocument.model_validate_json((shop_run / "report.json").read_text())
    assert report.heads["stars"]["rmse"] == stars["rmse"]
    logged = [json.loads(line) for line in (shop_run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["buys_loss"] for line in logged if "buys_loss" in line]
    assert losses[-1] < losses[0] and any("stars_loss" in line for line in logged)


def test_a_bundle_tells_what_the_run_tells(shop_run: Path) -> None:
    out = shop_run.parent / "out"
    export_run(shop_run, out, bundle=True)
    answers = []
    for path in (shop_run, out / "bundle"):
        recommender = Recommender.load(path)
        stored = recommender.predict(["i0", "i1"], "u0")
        given = recommender.predict(
            ["i0", "i1"], history=[("i2", "buy", None, 5.0), ("i3", "view", None, 2.0)]
        )
        answers.append([*stored, *given])
        # u0 likes what is even, and so does who bought it
        for liked, other in (stored, given):
            assert 0 < other["buys"] < liked["buys"] < 1 and liked["stars"] > other["stars"]
    for first, second in zip(*answers, strict=True):
        assert first == pytest.approx(second, abs=1e-5)
    with pytest.raises(ItemNotFound, match="item 'nothing' is not in the catalogue"):
        recommender.predict(["nothing"], "u0")


def test_a_model_without_heads_says_so(shop: Path, tmp_path: Path) -> None:
    train(shop_config({}, max_epochs=1, evaluate_every=1), shop, tmp_path / "run")
    with pytest.raises(UserError, match="the model has no heads; train one with model.heads"):
        Recommender.load(tmp_path / "run").predict(["i0"], "u0")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"kind": "binary"}, "a binary head needs the event types"),
        ({"kind": "value", "positive": ["buy"]}, "a value has none"),
        ({"kind": "binary", "positive": ["buy"], "weight": 0}, "greater than 0"),
        ({"kind": "stars"}, "'binary' or 'value'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shop_config({"head": head})


def test_labels_that_the_data_lack_are_refused_before_the_first_step(shop: Path) -> None:
    steals = {"steals": {"kind": "binary", "positive": ["steal"]}}
    with pytest.raises(ConfigError, match="steals.positive names .steal.; .* buy, view"):
        assemble(shop_config(steals), shop)
    alike = {"alike": {"kind": "binary", "positive": ["buy"], "among": ["buy"]}}
    with pytest.raises(ConfigError, match="model.heads.alike: .* all say the same"):
        assemble(shop_config(alike), shop)
