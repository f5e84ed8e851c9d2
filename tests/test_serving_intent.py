"""What a user looks for, beside what he likes, over HTTP: the library's lists at every mix."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny_run import NUM_ITEMS

from mmrec.errors import UserError
from mmrec.ranking.settings import RankerConfig
from mmrec.ranking.train import train_ranker
from mmrec.recommender import Recommendation, Recommender, Wishes
from mmrec.retrieval.intent import Intent
from mmrec.retrieval.search import Query
from mmrec.serving.app import build_app
from mmrec.serving.client import Client
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")
SMALL = RankerConfig(candidates=6, num_blocks=1, num_heads=2, max_epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def ranked_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a second stage, which is used where it is asked for."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("ranked") / "run"))
    train_ranker(run, SMALL)
    return run


@pytest.fixture(scope="module")
def recommender(ranked_run: Path) -> Recommender:
    return Recommender.load(ranked_run)


@pytest.fixture(scope="module")
def client(ranked_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that nothing is told, and that explores where it may."""
    url = f"sqlite:///{tmp_path_factory.mktemp('intent') / 'service.sqlite'}"
    service = Service(ServiceSettings(path=ranked_run, database=url, explore=1.0))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client


def is_list_of(answer: Mapping[str, Any], expected: Sequence[Recommendation]) -> None:
    assert answer["degraded"] == [] and expected and answer["basis"] == expected[0].basis
    items = answer["items"]
    for name in ("item_id", "found_by"):
        assert [each[name] for each in items] == [getattr(each, name) for each in expected]
    scores = [each["score"] for each in items]
    assert scores == pytest.approx([each.score for each in expected], abs=1e-5)


ASKED: dict[str, dict[str, Any]] = {
    "as-ever": {"user_id": "u3", "query": "the old garden"},
    "query-alone": {"user_id": "u3", "query": "the old garden", "mix": 0.0},
    "a-little": {"user_id": "u5", "query": "quiet sea", "mix": 0.2, "k": NUM_ITEMS},
    "nearly-alone": {"user_id": "u5", "query": "quiet sea", "mix": 0.99},
    "history": {"history": ["i1", "i6"], "query": "the sea", "mix": 0.7, "k": 4},
    "taste": {"taste": "a quiet storm", "query": "the sea", "mix": 0.6},
    "taste-and-history": {"taste": "a storm", "history": ["i2"], "query": "the", "mix": 0.4},
    "nobody": {"query": "the sea", "mix": 0.5},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_list_with_a_query_is_that_of_the_library(
    asked: dict[str, Any], client: TestClient, recommender: Recommender
) -> None:
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    is_list_of(answer.json(), recommender.recommend(**asked))


WISHES: dict[str, Wishes] = {
    "not-these": Wishes(without=("i1", "i7", "i9")),
    "varied": Wishes(diversity=0.6),
    "by-dpp": Wishes(diversity=0.6, diversify_by="dpp"),
    "good-ones": Wishes(at_least=0.3),
    "probable": Wishes(probabilities=True),
}


@pytest.mark.parametrize("wishes", WISHES.values(), ids=WISHES)
def test_wishes_hold_beside_a_query(
    wishes: Wishes, client: TestClient, recommender: Recommender
) -> None:
    said = {
        "without": list(wishes.without),
        "diversity": wishes.diversity,
        "diversify_by": wishes.diversify_by,
        "at_least": wishes.at_least,
        "probabilities": wishes.probabilities,
    }
    asked = {"user_id": "u3", "query": "the sea", "mix": 0.4, "k": 6}
    answer = client.post("/v1/recommend", json={**asked, "wishes": said}).json()
    expected = recommender.recommend(**asked, wishes=wishes)  # type: ignore[arg-type]
    is_list_of(answer, expected)
    chances = [each["probability"] for each in answer["items"]]
    assert chances == [
        None if each.probability is None else pytest.approx(each.probability, abs=1e-5)
        for each in expected
    ]


@pytest.mark.parametrize("ranked", [None, True, False])
def test_at_one_it_is_the_list_as_if_there_were_no_query(
    ranked: bool | None, client: TestClient, recommender: Recommender
) -> None:
    """With all that such a list may have: the second stage, reasons, similar items."""
    wishes = {"why": "en", "num_similar": 2}  # which also keep it from being explored
    asked = {"user_id": "u4", "k": 5, "ranked": ranked}
    plain = client.post("/v1/recommend", json={**asked, "wishes": wishes}).json()
    found = client.post(
        "/v1/recommend", json={**asked, "query": "the sea", "mix": 1, "wishes": wishes}
    ).json()
    assert found["items"] == plain["items"] and found["basis"] == plain["basis"]
    assert all(each["why"] and len(each["similar"]) == 2 for each in found["items"])
    expected = recommender.recommend("u4", k=5, ranked=ranked)
    assert recommender.recommend("u4", k=5, ranked=ranked, query="the sea", mix=1.0) == expected


def test_at_zero_it_is_the_search_without_what_was_met(client: TestClient) -> None:
    body = {"history": ["i1", "i6", "i2"], "query": "the", "mix": 0, "k": NUM_ITEMS}
    found = client.post("/v1/recommend", json=body).json()["items"]
    whole = client.post("/v1/search", json={"text": "the", "k": NUM_ITEMS}).json()["items"]
    ids = [each["item_id"] for each in whole]
    assert {"i1", "i6", "i2"} & set(ids)
    left = [each for each in ids if each not in {"i1", "i6", "i2"}]
    assert [each["item_id"] for each in found] == left


def test_two_tastes_order_what_one_query_finds_in_two_ways(client: TestClient) -> None:
    orders = []
    for history in (["i1", "i7", "i13"], ["i4", "i10", "i16"]):
        body = {"history": history, "query": "the sea", "k": 6}
        ends = []
        for mix in (0.0, 0.8):
            answer = client.post("/v1/recommend", json={**body, "mix": mix}).json()
            ends.append([each["item_id"] for each in answer["items"]])
        orders.append(ends)
    assert orders[0][1] != orders[1][1] and orders[0][0] != orders[0][1]


def test_what_does_not_go_with_a_query_is_one_line(client: TestClient, tmp_path: Path) -> None:
    for more, says in (
        ({"ranked": True}, "a query and the second stage are both asked for"),
        ({"calibrated": True}, "a query and the second stage are both asked for"),
        ({"wishes": {"why": "en"}}, "why belongs to what is recommended"),
        ({"wishes": {"num_similar": 2}}, "num_similar belongs to what is recommended"),
        ({"query": "  "}, "give a text with a word in it"),
        ({"query": ""}, "query: "),
        ({"mix": 1.01}, "mix: "),
        ({"mix": -0.1}, "mix: "),
        ({"wishes": {"where": [{"field": "price", "maximum": 1}]}}, "price"),
    ):
        body = {"user_id": "u3", "query": "the sea", **more}
        answer = client.post("/v1/recommend", json=body)
        assert answer.status_code == 422, answer.text
        message = answer.json()["error"]["message"]
        assert says in message and "\n" not in message
    broken = '{"query": "sea", "mix": NaN}'
    answer = client.post(
        "/v1/recommend", content=broken, headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500


def test_a_query_is_answered_by_nothing_that_is_merely_popular(
    ranked_run: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    service = Service(ServiceSettings(path=ranked_run, database=url))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        service.answering.live = None
        assert client.post("/v1/recommend", json={"user_id": "u1"}).json()["degraded"] == ["model"]
        answer = client.post("/v1/recommend", json={"user_id": "u1", "query": "sea"})
        assert answer.status_code == 503 and "Retry-After" in answer.headers


def test_the_document_of_the_service_says_what_it_takes(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    asked = schemas["RecommendRequest"]
    mix = asked["properties"]["mix"]
    assert (mix["minimum"], mix["maximum"], mix["default"]) == (0, 1, 0.5)
    queries = [each for each in asked["examples"] if "query" in each]
    assert queries
    for each in queries:
        assert client.post("/v1/recommend", json=each).status_code == 200


def test_the_client_asks_for_it(client: TestClient, recommender: Recommender) -> None:
    typed = Client("http://testserver")
    typed._http = client  # type: ignore[assignment]
    for mix in (0.0, 0.3, 1.0):
        asked: dict[str, Any] = {"history": ["i1", "i4"], "k": 4, "query": "sea", "mix": mix}
        expected = recommender.recommend(**asked)
        answer = typed.recommend(**asked)
        assert [each.item_id for each in answer.items] == [each.item_id for each in expected]


def test_an_intent_says_what_is_wrong_with_it() -> None:
    intent = Intent(Query("sea"), 1.0)
    assert not intent.counts
    intent.refuse_second_stage(ranked=True, calibrated=True)
    for mix in (-0.1, 1.5, np.nan):
        with pytest.raises(UserError, match="weight of the user's taste"):
            Intent(Query("sea"), mix)
