"""A live service: routes against the library, events and items at the next request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import numpy as np
import polars as pl
import pytest
from live_servers import serving
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import openapi

from data_prep.catalogue import load_catalogue
from mmrec.data.items import NewItems
from mmrec.recommender import Recommender
from mmrec.retrieval.wishes import Wishes
from mmrec.serving.service import Service
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]
LIMITS = Limits(max_json_bytes=4096, max_upload_bytes=300_000, max_pixels=250_000, max_audio_s=60.0)


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def served(
    tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Service]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'service.sqlite'}"
    settings = ServiceSettings(path=tiny_run, database=url, limits=LIMITS)
    with serving(settings) as (address, service):
        with httpx.Client(base_url=address, timeout=30) as client:
            yield client, service


@pytest.fixture(scope="module")
def client(served: tuple[httpx.Client, Service]) -> httpx.Client:
    return served[0]


@pytest.fixture(scope="module")
def service(served: tuple[httpx.Client, Service]) -> Service:
    return served[1]


def listed(client: httpx.Client, **asked: Any) -> list[str]:
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    return [each["item_id"] for each in answer.json()["items"]]


@pytest.fixture
def media(tiny_source: Path) -> dict[str, Any]:
    return {
        "poster": ("p.png", (tiny_source / "2.png").read_bytes(), "image/png"),
        "sound": ("s.wav", (tiny_source / "6.wav").read_bytes(), "audio/wav"),
    }


WORDS = {"title": "The red river", "plot": "Quiet storm night sea."}


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        ({"user_id": "u0", "k": 5}, {"user_id": "u0", "k": 5}),
        ({"history": ["i1", {"item_id": "i2", "time": 5}]},
         {"history": ["i1", ("i2", None, 5.0, None)]}),
        ({"history": ["i1"], "taste": "quiet sea"}, {"history": ["i1"], "taste": "quiet sea"}),
        ({}, {}),
        ({"user_id": "u3", "wishes": {"without": ["i1"], "diversity": 0.5, "unmet": True}},
         {"user_id": "u3", "wishes": Wishes(without=("i1",), diversity=0.5, unmet=True)}),
    ],
    ids=["user", "history", "taste", "nobody", "wishes"],
)  # fmt: skip
def test_a_list_is_that_of_the_library(
    asked: dict[str, Any], called: dict[str, Any], client: httpx.Client, recommender: Recommender
) -> None:
    answer = client.post("/v1/recommend", json=asked).json()
    expected = recommender.recommend(**called)
    assert [each["item_id"] for each in answer["items"]] == [each.item_id for each in expected]
    scores = [each["score"] for each in answer["items"]]
    assert scores == pytest.approx([each.score for each in expected], abs=1e-5)
    assert answer["model"] == recommender.model_hash
    assert answer["basis"] == expected[0].basis and answer["degraded"] == []


def test_similar_items_are_those_of_the_library(
    client: httpx.Client, recommender: Recommender
) -> None:
    for asked in ({"item_id": "i1"}, {"text": "old garden"}):
        found = client.post("/v1/similar", json={**asked, "k": 4}).json()["items"]
        expected = recommender.similar(**asked, k=4)  # type: ignore[arg-type]
        assert [each["item_id"] for each in found] == [each.item_id for each in expected]


def test_one_medium_is_compared_and_reasons_are_given(
    client: httpx.Client, recommender: Recommender
) -> None:
    found = client.post("/v1/similar", json={"item_id": "i1", "by": "image", "k": 4}).json()
    expected = recommender.similar(item_id="i1", by="image", k=4)
    assert [each["item_id"] for each in found["items"]] == [each.item_id for each in expected]
    wrong = client.post("/v1/similar", json={"item_id": "i1", "by": "smell"})
    assert wrong.status_code == 422 and "smell" in wrong.json()["error"]["message"]
    asked = {"history": ["i1", "i7"], "k": 2, "wishes": {"why": "en"}}
    items = client.post("/v1/recommend", json=asked).json()["items"]
    told = recommender.recommend(history=["i1", "i7"], k=2, wishes=Wishes(why="en"))
    for item, each in zip(items, told, strict=True):
        assert each.why is not None and item["why"]["words"] == each.why.words
        assert [e["item_id"] for e in item["why"]["events"]] == [e.item_id for e in each.why.events]
        assert item["why"]["parts"].keys() == dict(each.why.parts).keys()


@pytest.fixture
def as_table(tiny_source: Path, tmp_path: Path) -> NewItems:
    """The same item as `media` and WORDS, by the way of files."""
    row = {"id": "new", **WORDS, "poster": "2.png", "sound": "6.wav"}
    pl.DataFrame([row]).write_csv(tmp_path / "new.csv")
    catalogue = load_catalogue(tiny_source.parent / "catalogue.yaml")
    return NewItems.from_file(tmp_path / "new.csv", catalogue, tiny_source)


def test_a_new_item_is_scored_and_embedded_as_the_library_does(
    client: httpx.Client, recommender: Recommender, media: dict[str, Any], as_table: NewItems
) -> None:
    vector = client.post("/v1/embed/media", data=WORDS, files=media).json()["items"][0]
    expected = recommender.embed_items(as_table)
    assert expected.content is not None
    np.testing.assert_allclose(vector["content"], expected.content[0], atol=1e-6)
    assert vector["modalities"] == ["text", "image", "audio"]
    answer = client.post("/v1/score", data={**WORDS, "user_id": ["u1", "u2"]}, files=media).json()
    scored = recommender.score(as_table, users=["u1", "u2"]).sort("score", descending=True)
    assert [each["user_id"] for each in answer["users"]] == scored["user_id"].to_list()
    assert [each["rank"] for each in answer["users"]] == scored["rank"].to_list()
    scores = [each["score"] for each in answer["users"]]
    assert scores == pytest.approx(scored["score"].to_list(), abs=1e-5)


def test_vectors_are_those_of_the_library(client: httpx.Client, recommender: Recommender) -> None:
    answer = client.post(
        "/v1/embed", json={"item_ids": ["i1", "i13"], "histories": [["i1", "i2"]], "texts": ["sea"]}
    ).json()
    expected = recommender.embed_items(["i1", "i13"])
    found = [each["embedding"] for each in answer["items"]]
    np.testing.assert_allclose(found, expected.embedding, atol=1e-6)
    users = recommender.embed_users([["i1", "i2"]])
    np.testing.assert_allclose(answer["users"], users, atol=1e-6)
    assert np.linalg.norm(answer["texts"][0]) == pytest.approx(1.0, abs=1e-5)


def test_an_event_counts_in_the_next_list(client: httpx.Client, recommender: Recommender) -> None:
    before = listed(client, user_id="u5", k=14)
    sent = {"events": [{"user_id": "u5", "item_id": before[0], "event_id": "e-u5"}]}
    assert client.post("/v1/events", json=sent).json() == {"accepted": 1, "known": 0}
    assert client.post("/v1/events", json=sent).json() == {"accepted": 0, "known": 1}
    after = listed(client, user_id="u5", k=14)
    assert before[0] not in after  # repeats are forbidden
    retriever = recommender.retriever
    row = retriever.users.index_of("u5")
    assert row is not None
    met = [retriever.items.item_ids[each] for each in retriever.users.complete(row).item_index]
    kept = [each for each in met if not retriever.items.held_out[retriever.items.rows[each]]]
    history = [*kept, before[0]]
    expected = recommender.recommend(history=history, k=14)
    assert after == [each.item_id for each in expected if each.item_id not in met]


def test_a_new_user_comes_to_be_by_his_events(
    client: httpx.Client, recommender: Recommender
) -> None:
    answer = client.post("/v1/recommend", json={"user_id": 'it\'s "new"', "k": 3}).json()
    assert answer["basis"] == "popularity"
    events = [{"user_id": 'it\'s "new"', "item_id": item} for item in ("i2", "i7", "no such")]
    assert client.post("/v1/events", json={"events": events}).json()["accepted"] == 3
    found = listed(client, user_id='it\'s "new"', k=3)
    expected = recommender.recommend(history=["i2", "i7"], k=3)
    assert found == [each.item_id for each in expected]
    form = {"title": "The sea", "user_id": 'it\'s "new"', "plot": ""}
    parts = [(name, (None, text)) for name, text in form.items()]
    scored = client.post("/v1/score", files=parts).json()["users"]  # type: ignore[arg-type]
    del form["user_id"]
    parts = [(name, (None, text)) for name, text in {**form, "history": '["i2", "i7"]'}.items()]
    by_history = client.post("/v1/score", files=parts).json()["users"]  # type: ignore[arg-type]
    assert scored[0]["score"] == pytest.approx(by_history[0]["score"], abs=1e-6)


def test_an_added_item_is_listed_until_it_is_removed(
    client: httpx.Client, media: dict[str, Any], recommender: Recommender, as_table: NewItems
) -> None:
    added = client.post("/v1/items", data={"item_id": "n/1", **WORDS}, files=media).json()
    assert added["created"] and added["modalities"] == ["text", "image", "audio"]
    again = client.post("/v1/items", data={"item_id": "n/1", **WORDS}, files=media).json()
    assert not again["created"]
    answer = client.post("/v1/recommend", json={"user_id": "u6", "k": 20}).json()["items"]
    found = {each["item_id"]: each for each in answer}
    assert found["n/1"]["title"] == WORDS["title"]
    content = recommender.embed_items(as_table)
    assert content.content is not None
    retriever = recommender.retriever
    rows, _ = retriever.stored_users(["u6"])
    user = retriever.user_vectors([retriever.stored_user(rows[0])])[0].numpy()
    popularity = float(retriever.popularity_of_new(retriever.content.new_tensor(content.content)))  # type: ignore[union-attr]
    expected = float(content.content[0] @ user) + popularity
    assert found["n/1"]["score"] == pytest.approx(expected, abs=1e-5)
    similar = client.post("/v1/similar", json={"item_id": "n/1", "k": 3}).json()["items"]
    assert len(similar) == 3 and "n/1" not in [each["item_id"] for each in similar]
    vector = client.post("/v1/embed", json={"item_ids": ["n/1"]}).json()["items"][0]
    np.testing.assert_allclose(vector["content"], content.content[0], atol=1e-6)
    removed = client.delete("/v1/items/n%2F1").json()
    assert removed == {"item_id": "n/1", "listed": False, "changed": True}
    assert not client.delete("/v1/items/n%2F1").json()["changed"]
    assert "n/1" not in listed(client, user_id="u6", k=20)
    assert client.post("/v1/similar", json={"item_id": "n/1"}).status_code == 404


def test_an_item_of_the_catalogue_can_go_and_its_id_be_taken(
    client: httpx.Client, media: dict[str, Any]
) -> None:
    refused = client.post("/v1/items", data={"item_id": "i9"}, files=media)
    assert refused.status_code == 409 and "i9" in refused.json()["error"]["message"]
    assert "i9" in listed(client, history=["i1"], k=20)
    for stock in (False, True, False):
        answer = client.put("/v1/items/i9", json={"listed": stock}).json()
        assert answer == {"item_id": "i9", "listed": stock, "changed": True}
        assert ("i9" in listed(client, history=["i1"], k=20)) == stock
    assert client.put("/v1/items/of-none", json={"listed": True}).status_code == 404
    assert client.post("/v1/items", data={"item_id": "i9"}, files=media).json()["created"]
    assert listed(client, history=["i1"], k=20).count("i9") == 1
    assert listed(client, history=["i1", "i9"], k=20).count("i9") == 0


def test_where_the_line_is_full_nothing_is_read(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, path in (
        (service.lists, "/v1/recommend"), (service.encoding, "/v1/score"),
        (service.writing, "/v1/events"),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(line, "max_waiting", 0)
            answer = client.post(path, content=b"no body of any type that is taken")
            assert answer.status_code == 429 and answer.json()["error"]["code"] == "busy"
            assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/healthz").status_code == 200
        assert client.post(path, content=b"the same").status_code == 415


def test_health_and_metrics_tell_what_happened(client: httpx.Client, service: Service) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz")
    assert ready.status_code == 200 and ready.json()["model"] == service.live.model_hash  # type: ignore[union-attr]
    client.post("/v1/recommend", json={"k": 0})
    client.get("/v1/of-which-there-is-none")
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = {
        (each.name, *sorted(each.labels.values())): each.value
        for family in families
        for each in family.samples
    }
    assert samples["mmrec_requests_total", "/v1/recommend", "422"] >= 1
    assert samples["mmrec_requests_total", "404", "other"] >= 1
    assert samples["mmrec_request_seconds_count", "/v1/recommend"] >= 2
    assert samples["mmrec_degraded", "model"] == 0


def test_the_document_of_the_service_names_every_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    routes = {"recommend", "score", "items", "items/{item_id}", "similar", "similar/media",
              "search", "search/media", "embed", "embed/media", "events", "model"}  # fmt: skip
    assert {f"/v1/{name}" for name in routes} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    for path, name in (("recommend", "RecommendRequest"), ("search", "SearchRequest")):
        assert len(schemas[name]["examples"]) >= 3
        for example in schemas[name]["examples"]:
            assert client.post(f"/v1/{path}", json=example).status_code in (200, 404)


def test_the_document_of_the_service_is_valid_openapi(client: httpx.Client) -> None:
    """By the schema of OpenAPI 3.1 itself, which a document without a title does not fulfil."""
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    openapi.from_dict(document).validate()
    with pytest.raises(jsonschema_rs.ValidationError, match="title"):
        openapi.from_dict({**document, "info": {"version": "1"}}).validate()


def test_a_condition_on_attributes_that_there_are_none_of_is_refused(client: httpx.Client) -> None:
    wishes = {"where": [{"field": "price", "maximum": 20}]}
    answer = client.post("/v1/recommend", json={"wishes": wishes})
    assert answer.status_code == 422 and "price" in answer.json()["error"]["message"]
