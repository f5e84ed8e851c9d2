"""Prices that change while the service runs: every worker's lists count them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from data_prep.catalogue import AttributeSpec
from mmrec.recommender import Recommender
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.serving import versions
from mmrec.serving.app import build_app
from mmrec.serving.database import Database
from mmrec.serving.live import Live
from mmrec.serving.patches import Patches
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run"]

SPECS = {
    "price": AttributeSpec(type="number"),
    "colour": AttributeSpec(type="category"),
    "tags": AttributeSpec(type="set"),
}


@pytest.fixture
def workers(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TestClient, TestClient]]:
    """Two workers on one database, with a price, a colour and tags of each item."""
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"

    def load(folder: Path, data: Path | None, version: str, database: Database) -> Live:
        plain = Recommender.load(folder).retriever
        rows = [{"price": 10.0 * n, "colour": "red"} for n in range(len(plain.items.item_ids))]
        known = ItemAttributes.of(rows, SPECS)
        items = plain.catalogue.items.model_copy(update={"attributes": SPECS})
        catalogue = plain.catalogue.model_copy(update={"items": items})
        priced = replace(plain.items, read_attributes=lambda: known)
        return Live(replace(plain, items=priced, catalogue=catalogue), version)

    monkeypatch.setattr(versions, "load_live", load)
    with ExitStack() as stack:
        here, there = (
            stack.enter_context(
                TestClient(build_app(Service(ServiceSettings(path=tiny_run, database=url))))
            )
            for _ in range(2)
        )
        yield here, there


def listed(client: TestClient, **condition: Any) -> set[str]:
    asked = {"history": ["i2"], "k": 20, "wishes": {"where": [condition]}}
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    return {each["item_id"] for each in answer.json()["items"]}


def test_a_new_price_counts_in_the_next_list_of_every_worker(
    workers: tuple[TestClient, TestClient],
) -> None:
    here, there = workers
    cheap: dict[str, Any] = {"field": "price", "maximum": 35}
    assert listed(here, **cheap) == listed(there, **cheap) == {"i0", "i1", "i3"}
    told = here.put("/v1/items/i9", json={"attributes": {"price": 5, "colour": "blue"}}).json()
    assert told == {"item_id": "i9", "listed": True, "changed": True}
    there.put("/v1/items/i1", json={"attributes": {"price": None, "tags": ["sale"]}})
    for client in workers:
        assert listed(client, **cheap) == {"i0", "i3", "i9"}
        assert listed(client, field="colour", any_of=["blue"]) == {"i9"}
        assert listed(client, field="tags", any_of=["sale"]) == {"i1"}
    # gone and back again, it keeps its price; what is popular leaves out what is gone
    told = here.put("/v1/items/i9", json={"listed": False, "attributes": {"price": 6}}).json()
    assert told == {"item_id": "i9", "listed": False, "changed": True}
    here.put("/v1/items/i9", json={"attributes": {"price": 7}})
    assert listed(there, **cheap) == {"i0", "i3"}
    service: Service = here.app.state.service  # type: ignore[attr-defined]
    assert "i9" not in [each[0] for each in service.database.popular()]
    there.put("/v1/items/i9", json={"listed": True})
    assert listed(here, field="price", minimum=7, maximum=7) == {"i9"}


@pytest.mark.parametrize(
    ("route", "query"),
    [("/v1/search", {"text": "the sea"}), ("/v1/recommend", {"query": "the sea", "mix": 0.3})],
    ids=["search", "recommend"],
)
def test_a_new_price_counts_in_what_a_query_finds(
    route: str, query: dict[str, Any], workers: tuple[TestClient, TestClient]
) -> None:
    here, there = workers
    wishes = {"where": [{"field": "price", "maximum": 35}]}
    body = {**query, "history": ["i2"], "k": 20, "wishes": wishes}

    def found(client: TestClient) -> set[str]:
        answer = client.post(route, json=body)
        assert answer.status_code == 200, answer.text
        return {each["item_id"] for each in answer.json()["items"]} - {"i2"}

    assert found(here) == found(there) == {"i0", "i1", "i3"}
    here.put("/v1/items/i9", json={"attributes": {"price": 5}})
    there.put("/v1/items/i1", json={"attributes": {"price": None}})
    assert found(here) == found(there) == {"i0", "i3", "i9"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "give listed, attributes, or both"),
        ({"attributes": {"smell": "sweet"}}, "allowed are price, colour, tags"),
        ({"attributes": {"price": "much"}}, "attributes.price is 'much': not a number"),
        ({"attributes": {"colour": ["red", "blue"]}}, "not a category"),
    ],
    ids=["nothing", "unknown", "number", "category"],
)
def test_what_is_no_attribute_is_refused(
    workers: tuple[TestClient, TestClient], told: dict[str, Any], message: str
) -> None:
    answer = workers[0].put("/v1/items/i1", json=told)
    assert answer.status_code == 422 and message in answer.json()["error"]["message"]


def test_what_was_known_before_stays_as_it_is() -> None:
    known = ItemAttributes.of([{"price": 1}, {"price": 2, "tags": ["a"]}, {}], SPECS)
    patches = Patches()
    patches.put(2, {"price": 3.5, "tags": ["b", "a"], "unknown": 1})
    patches.put(1, {"price": None})
    patches.put(2, {"price": 4.0})
    found = patches.over(known, SPECS)
    np.testing.assert_array_equal(found.numbers["price"], [1, np.nan, 4])
    assert [found.words["tags"].of(row) for row in range(3)] == [[], ["a"], ["b", "a"]]
    assert [found.words["colour"].of(row) for row in range(3)] == [[], [], []]
    np.testing.assert_array_equal(known.numbers["price"], [1, 2, np.nan])
    assert known.words["tags"].of(2) == []


@pytest.mark.parametrize("text", ["abc", "nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_none_is_named(text: str, workers: tuple[TestClient, TestClient]) -> None:
    here, _ = workers
    form = {"item_id": "odd", "title": "red", "price": text}
    answer = here.post("/v1/items", files={name: (None, each) for name, each in form.items()})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, "price")
    assert error["message"] == f"price is {text!r}: not a number"


def test_a_value_of_no_type_is_one_wrong_field(workers: tuple[TestClient, TestClient]) -> None:
    here, _ = workers
    for body, field in (
        (b'{"attributes": {"price": NaN}}', "attributes.price"),
        (b'{"attributes": {"query": NaN}}', "attributes.query"),
    ):
        answer = here.put(
            "/v1/items/i1", content=body, headers={"content-type": "application/json"}
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (422, field)
        assert "more field" not in error["message"] and "constrained" not in error["message"]
