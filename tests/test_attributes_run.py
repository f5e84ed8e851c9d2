"""Attributes from the table to a score: prepared, trained, bundled, and of items nobody has met."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_run import CATALOGUE, tiny_config, write_source

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.build import assemble
from mmrec.config import parse_config
from mmrec.errors import CheckpointMismatch, ConfigError, UserError
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.retrieval.bundle import write_bundle
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.retrieval.filters import Condition
from mmrec.retrieval.indexes.build import IndexKind, load_index
from mmrec.retrieval.indexes.from_export import index_export
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]

TYPES: dict[str, Any] = {
    "tags": {"type": "set", "separator": "|"},
    "year": {"type": "number"},
    "studio": {"type": "category"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny catalogue with three attributes; the first item has none of them."""
    folder = tmp_path_factory.mktemp("attributes")
    write_source(folder / "source")
    table = pl.read_csv(folder / "source" / "items.csv")
    rows = [
        {"tags": "", "year": None, "studio": ""}
        if not n
        else {"tags": "a|b" if n % 2 else "b", "year": 1990 + n, "studio": f"s{n % 3}"}
        for n in range(len(table))
    ]
    table.hstack(pl.DataFrame(rows)).write_csv(folder / "source" / "items.csv")
    catalogue = {**CATALOGUE, "items": {**CATALOGUE["items"], "attributes": TYPES}}
    (folder / "catalogue.yaml").write_text(json.dumps(catalogue), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def configure(**options: Any) -> Any:
    document = tiny_config().model_dump()
    document["encoders"] = {
        "text": document["encoders"]["text"],
        "attributes": {"kind": "fields", "options": options},
    }
    return parse_config(document)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    run = data.parent / "run"
    train(configure(num_knots=4), data, run)
    return run


@pytest.fixture
def table(data: Path, tmp_path: Path) -> Path:
    """New items: as an old one, of a value never seen, of text alone, of nothing."""
    rows = [
        ("as-i3", "", "a|b", "1993", "s0"),
        ("new-studio", "", "", "", "s99"),
        ("words", "Old machine", "", "", ""),
        ("empty", "", "", "", ""),
    ]
    path = tmp_path / "new.csv"
    pl.DataFrame(rows, ["id", "title", "tags", "year", "studio"], orient="row").write_csv(path)
    return path


def test_prepared_folder_says_who_has_attributes(data: Path) -> None:
    items = PreparedData.open(data).items
    assert items.modalities == ("text", "image", "audio", "attributes")
    assert items.has("attributes").tolist() == [False] + [True] * (len(items) - 1)


@pytest.mark.parametrize("kind", ["exact", "lancedb"])
def test_index_of_an_export_is_filtered_by_attributes(
    kind: IndexKind, run: Path, data: Path, tiny_data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    export_run(run, tmp_path / "export")
    index_export(tmp_path / "export", kind, data=data).save(tmp_path / "index")
    index = load_index(tmp_path / "index")
    where = [Condition("year", minimum=1995), Condition("studio", any_of=("s0", "s1"))]
    users = Export.open(tmp_path / "export").users()[1]
    for found in index.search(users, 50, where=where).item_ids:
        assert sorted(found) == ["i10", "i12", "i13", "i6", "i7", "i9"]
    monkeypatch.chdir(tmp_path)
    for name in ("export", "index"):
        (tmp_path / name).rename(tmp_path / name.upper())
    page = Path(__file__).resolve().parent.parent / "docs" / "exports.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    (block,) = [each for each in blocks if "load_index" in each]
    told: dict[str, Any] = {}
    exec(block, told)  # as the page prints it
    assert len(told["hits"].item_ids[0]) == len(told["hits"].scores[0]) == 9
    with pytest.raises(CheckpointMismatch, match="is not what .*EXPORT was made of"):
        index_export(tmp_path / "EXPORT", kind, data=tiny_data)


def test_new_items_are_scored_from_attributes(run: Path, table: Path) -> None:
    recommender = Recommender.load(run)
    new = recommender.new_items(table, table.parent)
    found = recommender.embed_items(new)
    assert found.item_ids == ["as-i3", "new-studio", "words"]
    scores = recommender.score(new)
    made_of = dict(scores.select("item_id", "modalities").iter_rows())
    assert made_of == {
        "as-i3": ["attributes"],
        "new-studio": ["attributes"],
        "words": ["text"],
    }
    # what an attribute says reaches the vector
    assert not np.allclose(found.content[0], found.content[1], atol=1e-3)


def test_table_without_any_known_column_is_refused(run: Path, tmp_path: Path) -> None:
    recommender = Recommender.load(run)
    path = tmp_path / "new.csv"
    path.write_text("id,colour\nx,red\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no column of media or attributes.*tags, year, studio"):
        recommender.new_items(path, tmp_path)


def test_stored_and_new_item_of_the_same_fields_have_one_content(run: Path, table: Path) -> None:
    recommender = Recommender.load(run)
    title = pl.read_csv(run.parent / "source" / "items.csv").row(3, named=True)
    frame = pl.read_csv(table, infer_schema=False).with_columns(
        title=pl.lit(title["title"]), plot=pl.lit(title["plot"])
    )
    frame.head(1).write_csv(table)
    new = recommender.embed_items(recommender.new_items(table, table.parent))
    loaded = load_run(run)
    assert loaded.content is not None and loaded.item_ids[3] == "i3"
    np.testing.assert_allclose(new.content[0], loaded.content[3], atol=1e-5)


def test_bundle_needs_nothing_else(run: Path, table: Path, tmp_path: Path) -> None:
    write_bundle(Recommender.load(run).retriever, tmp_path / "bundle")
    whole, bundle = Recommender.load(run), Recommender.load(tmp_path / "bundle")
    contents = [each.embed_items(each.new_items(table, table.parent)) for each in (whole, bundle)]
    np.testing.assert_allclose(contents[0].content, contents[1].content, atol=1e-6)


def test_attribute_switched_off_says_nothing(data: Path, tmp_path: Path) -> None:
    train(configure(year=False, studio=False), data, tmp_path / "run")
    recommender = Recommender.load(tmp_path / "run")
    rows = [("a", "a", "1993", "s0"), ("b", "a", "2001", "s2"), ("c", "b", "1993", "s0")]
    path = tmp_path / "new.csv"
    pl.DataFrame(rows, ["id", "tags", "year", "studio"], orient="row").write_csv(path)
    content = recommender.embed_items(recommender.new_items(path, tmp_path)).content
    np.testing.assert_allclose(content[0], content[1], atol=1e-6)
    assert not np.allclose(content[0], content[2], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": False}, r"options.colour is False: allowed are .* tags, year, studio"),
        ({"year": 3}, "options.year is 3: allowed are .* of a number also log"),
        ({"studio": "log"}, "options.studio is log: allowed are"),
        ({"tags": False, "year": False, "studio": False}, "no attribute is left to encode"),
    ],
)
def test_wrong_options_are_refused(
    data: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"encoders.attributes: .*{words}"):
        train(configure(**options), data, tmp_path / "run")


def test_cold_items_teach_no_vocabulary(data: Path, run: Path) -> None:
    prepared = PreparedData.open(data)
    split = prepared.split()
    cold = set(split.items.filter(pl.col("role").str.starts_with("cold"))["item_index"])
    assert cold
    years = [
        prepared.items.record(row)["attributes"].get("year")
        for row in range(len(prepared.items))
        if row not in cold
    ]
    (year,) = [
        field
        for field in load_run(run).parts["attributes"].document["fields"]
        if field["name"] == "year"
    ]
    assert set(year["knots"]) <= {float(each) for each in years if each is not None}


def test_prices_are_scaled_by_items_of_training_and_those_below_0_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_source(tmp_path / "source")
    table = pl.read_csv(tmp_path / "source" / "items.csv")
    items = {**CATALOGUE["items"], "attributes": {"price": {"type": "number"}}}
    (tmp_path / "catalogue.yaml").write_text(json.dumps({**CATALOGUE, "items": items}))

    def prepared(prices: list[float]) -> PreparedData:
        table.with_columns(price=pl.Series(prices)).write_csv(tmp_path / "source" / "items.csv")
        prepare(tmp_path / "catalogue.yaml", tmp_path / "source", tmp_path / "data", num_workers=1)
        return PreparedData.open(tmp_path / "data")

    roles = prepared([1.0] * len(table)).split().items
    cold = roles.filter(pl.col("role").str.starts_with("cold"))["item_index"].to_list()
    warm = [row for row in range(len(table)) if row not in cold]
    prices = [10.0**row for row in range(len(table))]
    for row in cold:
        prices[row] = 1e12 + row
    prices[warm[0]], prices[warm[1]] = 0.0, -3.0
    prepared(prices)
    with caplog.at_level("INFO", logger="mmrec"):
        assembly = assemble(configure(price="log", num_knots=20), tmp_path / "data")
    (field,) = assembly.encoder_documents["attributes"]["fields"]
    assert field["knots"] == [0.0, *(prices[row] for row in warm[2:])]
    named = f"1 broken (first: item i{warm[1]}: attribute price is -3: a log scale begins at 0)"
    assert named in caplog.text
    assert assembly.source is not None
    present = assembly.source.caches["attributes"].present
    assert present.tolist() == [row != warm[1] for row in range(len(table))]


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_lists_know_attributes_of_the_catalogue(
    kind: str, run: Path, data: Path, tmp_path: Path
) -> None:
    recommender = Recommender.load(run)
    if kind == "bundle":
        write_bundle(recommender.retriever, tmp_path / "bundle")
        recommender = Recommender.load(tmp_path / "bundle")
    found = recommender.retriever.items.attributes
    assert found.names == ["studio", "tags", "year"] and found.of_item(0) == {}
    items = PreparedData.open(data).items
    for row in range(1, len(items)):
        expected = items.record(row)["attributes"]
        assert found.of_item(row) == {**expected, "studio": [expected["studio"]]}


def test_a_bundle_without_attributes_loads_and_refuses_conditions(
    run: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(Recommender.load(run).retriever, bundle)
    (bundle / "attributes.parquet").unlink()
    document = json.loads((bundle / "bundle.json").read_text())
    del document["files"]["attributes.parquet"]
    (bundle / "bundle.json").write_text(json.dumps(document))
    recommender = Recommender.load(bundle)
    assert recommender.recommend("u0")
    with pytest.raises(UserError, match="holds no attributes of items.*export it again"):
        _ = recommender.retriever.items.attributes
