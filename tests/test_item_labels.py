"""Labels of items: from an attribute to a loss, figures on cold items, and answers on new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
import yaml
from made_tables import write_tables
from several_ranks import final_of, finish, start
from sklearn.metrics import f1_score

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from fusion.labels import LabelHead
from mmrec.build import assemble
from mmrec.cli import main
from mmrec.config import Config, change, parse_config
from mmrec.data.batch import batch_loader
from mmrec.data.item_labels import ItemLabels, LabelSet
from mmrec.data.ragged import Ragged
from mmrec.errors import ConfigError, ItemNotFound, UserError
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.item_labels import category_figures, labels_lines, set_figures
from mmrec.evaluation.schemas import ReportDocument
from mmrec.mix import assemble_mix
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.item_labels import label_losses
from mmrec.training.objective import compute_losses
from mmrec.training.train import train

pytest_plugins = ["several_ranks"]
pytestmark = pytest.mark.usefixtures("restored_torch", "nobody_left")

NUM_ITEMS, NUM_USERS, WIDTH = 80, 60, 16
COLOURS = ("red", "green", "blue")
TAGS = ("bird", "ship", "tree", "king")
FILLERS = ("the", "old", "in", "of", "and", "with")


@pytest.mark.parametrize("kind", ["category", "set"])
def test_a_head_begins_with_how_common_labels_are_and_its_cost_is_torchs(kind: Any) -> None:
    torch.manual_seed(0)
    rates = torch.tensor([0.5, 0.3, 0.2])
    base = rates.log() if kind == "category" else rates.logit()
    head = LabelHead(WIDTH, kind=kind, base=base)
    content = F.normalize(torch.randn(4, WIDTH), dim=1)
    torch.testing.assert_close(head.probabilities(content), rates.expand(4, 3))
    torch.nn.init.normal_(head.out.weight)
    logits = head(content)
    if kind == "category":
        wanted = torch.tensor([2, 0, 0, 1])
        costs = head.surprise(content, F.one_hot(wanted, 3).float())
        slow = F.cross_entropy(logits, wanted, reduction="none")
    else:
        labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
        costs = head.surprise(content, labels)
        told = logits.sigmoid()
        slow = -(labels * told.log() + (1 - labels) * (1 - told).log()).sum(1)
    torch.testing.assert_close(costs, slow)


def test_labels_of_a_step_are_of_its_rows_and_nan_where_nothing_is_known() -> None:
    rates = (0.6, 0.4)
    tags = LabelSet("tags", "set", ("bird", "ship"), rates)
    colour = LabelSet("colour", "category", ("red", "blue"), rates)
    records: list[dict[str, Any]] = [
        {"tags": ["ship", "bird", "ship"], "colour": "blue"},
        {"tags": ["tree"], "colour": "grey"},  # labels that are not told
        {"tags": []},
    ]
    sets = {"tags": tags, "hue": colour}
    codes = {
        name: Ragged.from_rows(each.codes(record) for record in records)
        for name, each in sets.items()
    }
    found = ItemLabels(sets, codes).of(np.array([2, 0, 1]))
    nan = np.nan
    np.testing.assert_array_equal(found["tags"], [[nan, nan], [1, 1], [0, 0]])
    np.testing.assert_array_equal(found["hue"], [[nan, nan], [0, 1], [nan, nan]])
    assert ItemLabels(sets, codes).of(np.zeros(0, np.int64))["tags"].shape == (0, 2)


def test_figures_by_hand_and_of_scikit_learn() -> None:
    told = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.2, 0.2, 0.6]])
    wanted = np.array([0, 1, 1, -1])  # the last one's label is not told
    found = category_figures(told, wanted)
    assert found["accuracy"] == 0.5 and found["accuracy_of_majority"] == 0.25
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]], bool)
    some = set_figures(told, labels, np.array([0.9, 0.5, 0.1]))
    assert some["p@1"] == 0.75 and some["p@1_of_majority"] == 0.5
    assert some["p@3"] == some["p@3_of_majority"] == pytest.approx(5 / 12)
    expected = f1_score(labels, told >= 0.5, average="macro", zero_division=0.0)
    assert some["macro_f1"] == pytest.approx(expected)
    sizes = {"num_items": 4, "num_labels": 3, "unknown_labels": 1}
    lines = labels_lines({"colour": sizes | found, "tags": sizes | some})
    assert lines[0].startswith("colour: accuracy 0.5000 (majority 0.2500), macro F1")
    assert "P@1 0.7500 (majority 0.5000)" in lines[1]


def write_shop(folder: Path) -> Path:
    """Items whose titles name their colour and tags among other words; users who take anything."""
    random = np.random.default_rng(0)
    items = []
    for number in range(NUM_ITEMS):
        colour = COLOURS[min(int(random.integers(4)), 2)]
        tags = [tag for tag in TAGS if random.random() < 0.4]
        words = [colour, *tags, *random.choice(FILLERS, 3)]
        title = " ".join(random.permutation(words))
        items.append({"id": f"i{number}", "title": title, "colour": colour, "price": number})
        items[-1]["tags"] = "|".join(tags)
    log = [
        (f"u{user}", f"i{item}", step)
        for user in range(NUM_USERS)
        for step, item in enumerate(random.permutation(NUM_ITEMS)[:8])
    ]
    attributes = {
        "colour": {"type": "category"},
        "tags": {"type": "set"},
        "price": {"type": "number"},
    }
    return write_tables(
        folder,
        items=pl.DataFrame(items),
        log=pl.DataFrame(log, ["user", "item", "at"], orient="row"),
        catalogue={
            "name": "shop",
            "kind": "shop",
            "items": {"attributes": attributes},
            "interactions": {"order": "at"},
            "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.25},
        },
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared shop; one of its cold items has a tag that no other has."""
    folder = tmp_path_factory.mktemp("labels")
    source, data = folder / "source", folder / "data"
    catalogue = write_shop(source)
    prepare(catalogue, source, data, num_workers=1)
    cold = PreparedData.open(data).split().items.filter(pl.col("role") == "cold_test")
    row = int(cold["item_index"][0])
    table = pl.read_csv(source / "items.csv")
    tags = table["tags"].to_list()
    tags[row] = "|".join(filter(None, [tags[row], "unheard"]))
    table.with_columns(tags=pl.Series(tags)).write_csv(source / "items.csv")
    prepare(catalogue, source, data, num_workers=1)
    return data


LABELS: dict[str, Any] = {
    "colour": {"weight": 1.0},
    "motif": {"attribute": "tags", "weight": 1.0},
}


def shop_config(labels: dict[str, Any] | None = None, **training: Any) -> Config:
    return parse_config(
        {
            "name": "shop",
            "data": {"max_history": 10},
            "encoders": {
                "text": {
                    "num_tokens": 8,
                    "trainable_blocks": "all",
                    "options": {
                        "width": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0,
                        "vocabulary_size": 200,
                    },
                }
            },
            "model": {
                "width": WIDTH,
                "fusion": {
                    "num_latents": 2, "num_heads": 2, "dropout": 0.0, "feature_dropout": 0.0,
                    "modality_dropout": 0.0,
                },
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0},
                "labels": LABELS if labels is None else labels,
            },
            "training": {
                "max_epochs": 25,
                "batch_size": 16,
                "warmup_steps": 5,
                "learning_rate": 0.01,
                "precision": "fp32",
                "evaluate_every": 25,
                **training,
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def shop_run(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("labels_run") / "run"
    train(shop_config(), shop, run)
    return run


def test_items_of_training_alone_teach_labels(shop: Path) -> None:
    assembly = assemble(shop_config(), shop)
    records = [assembly.data.items.record(int(row)) for row in assembly.item_index_of]
    every = {tag for each in records for tag in each["attributes"].get("tags", [])}
    motif, colour = (assembly.model.label_sets[name] for name in ("motif", "colour"))
    assert set(motif.labels) == every == set(TAGS)  # not the tag of a cold item
    colours = [record["attributes"]["colour"] for record in records]
    assert list(colour.labels) == sorted(set(colours), key=lambda each: -colours.count(each))
    wanted = [(colours.count(each) + 0.5) / (len(colours) + 1) for each in colour.labels]
    assert colour.rates == pytest.approx(wanted)
    named = assemble(shop_config({"tags": {"labels": ["ship", "bird"]}}), shop)
    assert set(named.model.label_sets["tags"].labels) == {"ship", "bird"}


def test_the_loss_is_a_mean_over_items_whatever_their_events(shop: Path) -> None:
    config = shop_config(fresh_items=30)
    assembly = assemble(config, shop)
    model = assembly.model.train()
    batch = next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))
    generator = torch.Generator().manual_seed(0)
    for head in model.label_heads.values():
        torch.nn.init.normal_(head.out.weight, generator=generator)
    content = F.normalize(torch.randn(len(batch.fresh), WIDTH, generator=generator), dim=1)
    content.requires_grad_()
    weight = batch.inverse_probability
    assert len(weight.unique()) > 1
    found = label_losses(model, content, weight, batch.item_labels)
    for name, head in model.label_heads.items():
        spec = model.label_sets[name]
        total, shares = torch.zeros(()), 0.0
        for place, row in enumerate(assembly.item_index_of[batch.fresh]):
            own = assembly.data.items.record(int(row))["attributes"].get(spec.attribute)
            if not own:
                continue
            members = [own] if spec.kind == "category" else own
            labels = torch.tensor([[float(label in members) for label in spec.labels]])
            cost = head.surprise(content[place : place + 1], labels)[0]
            total, shares = total + weight[place] * cost, shares + float(weight[place])
        torch.testing.assert_close(found[name], total / shares)
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert content.grad is not None and bool((content.grad != 0).any())
    # a step whose items have no label says nothing, and does no harm
    nothing = {name: torch.full_like(each, torch.nan) for name, each in batch.item_labels.items()}
    silent = label_losses(model, content, weight, nothing)
    assert all(float(each.detach()) == 0 for each in silent.values())


def test_a_step_has_no_labels_while_contents_stand_still(shop: Path) -> None:
    config = shop_config(freeze_content_epochs=1)
    assembly = assemble(config, shop)
    content = assembly.all_content()
    assert content is not None
    bank = content[torch.from_numpy(assembly.item_index_of)]
    settings: dict[str, Any] = {"modality_dropout": 0.0, "repeats_forbidden": False}
    for epoch, names in ((0, set()), (1, set(LABELS))):
        loader = batch_loader(assembly.stream, epoch=epoch, first_batch=0, num_workers=0)
        batch = next(iter(loader))
        found = compute_losses(assembly.model, batch, bank, config.training, **settings)
        assert set(found.labels) == names


def test_labels_of_cold_items_are_told_better_than_the_commonest(shop_run: Path) -> None:
    metrics = evaluate_run(shop_run)
    colour, motif = metrics["labels"]["colour"], metrics["labels"]["motif"]
    assert colour["num_items"] == 20 and colour["num_labels"] == 3
    assert motif["num_labels"] == 4 and motif["unknown_labels"] == 1
    assert colour["accuracy"] > colour["accuracy_of_majority"] + 0.2
    assert colour["macro_f1"] > colour["macro_f1_of_majority"] + 0.2
    assert motif["p@1"] > motif["p@1_of_majority"] + 0.2
    assert motif["macro_f1"] > motif["macro_f1_of_majority"] + 0.2
    assert json.loads((shop_run / "metrics-test.json").read_text())["labels"] == metrics["labels"]
    page = (shop_run / "report.html").read_text()
    assert "What the model tells of new items" in page and "P@3 of the commonest" in page
    report = ReportDocument.model_validate_json((shop_run / "report.json").read_text())
    assert report.labels["motif"]["p@1"] == motif["p@1"]
    logged = [json.loads(line) for line in (shop_run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["colour_labels_loss"] for line in logged if "colour_labels_loss" in line]
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    rows = [("n1", "the old blue ship and tree"), ("n2", "with a red king in"), ("n3", "")]
    pl.DataFrame(rows, ["id", "title"], orient="row").write_csv(path)
    return path


def test_new_items_are_told_from_a_run_and_from_a_bundle_alike(
    shop_run: Path, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_run(shop_run, tmp_path / "out", bundle=True)
    answers = []
    for path in (shop_run, tmp_path / "out" / "bundle"):
        recommender = Recommender.load(path)
        caplog.clear()
        new = recommender.labels(recommender.new_items(table, table.parent))
        assert "items refused, no usable medium: 1 (n3)" in caplog.text
        assert [each["item_id"] for each in new] == ["n1", "n2"]
        assert next(iter(new[0]["colour"])) == "blue" and next(iter(new[1]["colour"])) == "red"
        assert sum(new[0]["colour"].values()) == pytest.approx(1, abs=1e-5)
        assert set(list(new[0]["motif"])[:2]) == {"ship", "tree"}
        for each in new:
            assert list(each["motif"].values()) == sorted(each["motif"].values(), reverse=True)
        known = recommender.labels(["i0", "i1"], k=1)
        assert all(len(each["colour"]) == len(each["motif"]) == 1 for each in known)
        answers.append([*new, *known])
    for first, second in zip(*answers, strict=True):
        for name in LABELS:
            assert first[name] == pytest.approx(second[name], abs=1e-5)
    with pytest.raises(ItemNotFound, match="item 'nothing' is not in the catalogue"):
        recommender.labels(["nothing"])


def test_the_command_tells_labels_of_known_and_of_new_items(
    shop_run: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = ["--new", str(table), "--source", str(table.parent)]
    assert main(["predict", str(shop_run), *new, "--json", "-k", "2"]) == 0
    first = json.loads(capsys.readouterr().out)["items"][0]
    assert first["item_id"] == "n1" and next(iter(first["colour"])) == "blue"
    assert len(first["motif"]) == 2
    assert main(["predict", str(shop_run), "--items", "i0,i1"]) == 0
    shown = capsys.readouterr().out
    assert "i0" in shown and "colour" in shown and "motif" in shown
    for options, words in (
        (["--items", "i0", *new], "--items and --new given"),
        (["--new", str(table)], "give --source"),
        ([*new, "--user", "u0"], "which no user has a part in"),
        (["--items", "i0", "--user", "u0", "--history", "i1"], "--user and --history given"),
        (["--items", "i0", "--user", "u0"], "the model has no heads"),
    ):
        assert main(["predict", str(shop_run), *options]) == 2
        assert words in capsys.readouterr().err.replace("\n", " ")


def test_a_model_without_labels_says_so_and_learns_as_before(shop: Path, tmp_path: Path) -> None:
    train(shop_config({}, max_epochs=1, evaluate_every=1), shop, tmp_path / "run")
    with pytest.raises(UserError, match="tells no labels of items; train one with model.labels"):
        Recommender.load(tmp_path / "run").labels(["i0"])
    assert not any(".of_" in name or "labels" in name for name in final_of(tmp_path / "run"))


@pytest.mark.parametrize(
    ("labels", "changes", "words"),
    [
        ({"size": {}}, {}, "'size' is no attribute .* a category or a set: colour, tags"),
        ({"price": {}}, {}, "'price' is a number; labels are"),
        ({"colour": {"labels": ["red", "pink"]}}, {}, "names 'pink', which no item of .*red"),
        ({"hue": {"attribute": "colour"}}, {"encoders.attributes.kind": "fields"},
         "encoders.attributes reads 'colour', .* set encoders.attributes.options.colour=false"),
        ({"colour": {}}, {"model.item": "id", "encoders": {}}, "model.item is 'id'"),
    ],
    ids=["unknown", "number", "label", "leak", "ids"],
)  # fmt: skip
def test_labels_that_cannot_be_told_are_refused_before_the_first_step(
    shop: Path, labels: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    config = change(shop_config(labels), changes, "test")
    with pytest.raises(ConfigError, match=words):
        assemble(config, shop)


def test_a_column_read_as_text_is_not_told_from_itself(tmp_path: Path) -> None:
    catalogue = write_shop(tmp_path / "source")
    document = yaml.safe_load(catalogue.read_text())
    document["items"]["text"] = ["title", "colour"]
    catalogue.write_text(yaml.safe_dump(document))
    prepare(catalogue, tmp_path / "source", tmp_path / "data", num_workers=1)
    with pytest.raises(ConfigError, match="encoders.text reads 'colour'"):
        assemble(shop_config(), tmp_path / "data")


def test_what_the_model_does_not_read_may_be_told(shop: Path) -> None:
    options = {"colour": False, "tags": False}
    changes = {"encoders.attributes": {"kind": "fields", "options": options}}
    assembly = assemble(change(shop_config(), changes, "test"), shop)
    (field,) = assembly.encoder_documents["attributes"]["fields"]
    assert field["name"] == "price" and set(assembly.model.label_sets) == set(LABELS)


def test_of_several_catalogues_each_tells_the_labels_it_has(shop: Path, tmp_path: Path) -> None:
    catalogue = write_shop(tmp_path / "source")
    document = yaml.safe_load(catalogue.read_text())
    del document["items"]["attributes"]["tags"]
    catalogue.write_text(yaml.safe_dump(document))
    prepare(catalogue, tmp_path / "source", tmp_path / "data", num_workers=1)
    folders = {"first": shop, "second": tmp_path / "data"}
    several = {"catalogues": {"first": {}, "second": {}}}
    mix = assemble_mix(change(shop_config(), several, "test"), folders)
    told = {name: set(each.model.label_sets) for name, each in mix.assemblies.items()}
    assert told == {"first": {"colour", "motif"}, "second": {"colour"}}
    with pytest.raises(ConfigError, match="model.labels.size: 'size' is no attribute of any"):
        assemble_mix(change(shop_config({"size": {}}), several, "test"), folders)


@pytest.mark.slow
def test_two_ranks_learn_labels_as_one_does(shop: Path, tmp_path: Path) -> None:
    config = shop_config(
        max_epochs=1, fresh_items=21, batch_size=7, optimiser="sgd", learning_rate=0.02, log_every=1
    )
    finals = []
    for world in (1, 2):
        run = tmp_path / str(world)
        finish(start(config, shop, run, world), run)
        finals.append(final_of(run))
    for name, each in finals[0].items():
        torch.testing.assert_close(finals[1][name], each, atol=1e-4, rtol=1e-4, msg=name)
    weights = finals[0]["labels.of_motif.out.weight"]
    assert float(weights.abs().max()) > 1e-3
