"""Lists over HTTP as a request wants them: how long, from which score, how likely, beside what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny_run import NUM_USERS

from mmrec.recommender import Recommender, Wishes
from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run"]
ALL = 100


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def client(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    url = f"sqlite:///{tmp_path_factory.mktemp('wishes') / 'service.sqlite'}"
    settings = ServiceSettings(path=tiny_run, database=url)
    with TestClient(build_app(Service(settings)), raise_server_exceptions=False) as client:
        yield client


def listed(client: TestClient, k: int = ALL, **asked: Any) -> list[dict[str, Any]]:
    """Items of a list; what is no field of a request is a wish."""
    who = {name: asked.pop(name) for name in ("user_id", "history") if name in asked}
    answer = client.post("/v1/recommend", json={**who, "k": k, "wishes": asked})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


@pytest.mark.parametrize("k", [1, 3, ALL])
def test_a_threshold_lists_what_reaches_it_and_no_more_than_k(client: TestClient, k: int) -> None:
    for user in range(NUM_USERS):
        whole = listed(client, user_id=f"u{user}")
        scores = [each["score"] for each in whole]
        assert len(whole) >= 3 and scores == sorted(scores, reverse=True)
        for least in (scores[0] + 1e-4, scores[2], scores[2] + 1e-4, scores[-1], -5.0):
            expected = [each for each in whole if each["score"] >= least][:k]
            found = listed(client, k=k, user_id=f"u{user}", at_least=least)
            assert [each["item_id"] for each in found] == [each["item_id"] for each in expected]
            assert all(each["score"] >= least for each in found)


def test_probabilities_are_of_one_user_over_all_that_he_may_be_shown(
    client: TestClient, recommender: Recommender
) -> None:
    """Whatever the length of his history, of the list, or the threshold that cuts it."""
    temperature = recommender.retriever.model.temperature.item()
    for history in (["i1"], ["i1", "i7"], ["i2", "i9", "i4", "i6", "i8", "i0"]):
        found = listed(client, history=history, probabilities=True)
        logits = np.array([each["score"] for each in found]) / temperature
        expected = np.exp(logits - logits.max())
        told = [each["probability"] for each in found]
        assert told == pytest.approx((expected / expected.sum()).tolist(), abs=1e-4)
        assert sum(told) == pytest.approx(1, abs=1e-5) and told == sorted(told, reverse=True)
        assert not {each["item_id"] for each in found} & set(history)
        few = listed(client, k=2, history=history, probabilities=True)
        cut = listed(client, history=history, probabilities=True, at_least=found[1]["score"] - 1e-6)
        for other in (few, cut):
            assert [each["probability"] for each in other] == pytest.approx(told[:2], abs=1e-6)
    assert all(each["probability"] is None for each in listed(client, history=["i1"]))


def test_similar_items_stand_beside_each(client: TestClient, recommender: Recommender) -> None:
    plain = listed(client, k=4, user_id="u3", num_similar=3)
    unwanted = plain[0]["similar"][0]["item_id"]  # what is not to be listed is not beside it either
    found = listed(client, k=4, user_id="u3", num_similar=3, without=[unwanted])
    told = recommender.recommend("u3", k=4, wishes=Wishes(num_similar=3, without=(unwanted,)))
    assert len(found) == 4
    for each, other in zip(found, told, strict=True):
        near = [item["item_id"] for item in each["similar"]]
        assert near == [item.item_id for item in other.similar]
        asked = {"item_id": each["item_id"], "k": 3, "wishes": {"without": [unwanted]}}
        alone = client.post("/v1/similar", json=asked).json()["items"]
        assert near == [item["item_id"] for item in alone] and len(near) == 3
        assert each["item_id"] not in near and unwanted not in near
        scores = [item["score"] for item in each["similar"]]
        assert scores == pytest.approx([item["score"] for item in alone], abs=1e-6)
    assert all(each["similar"] == [] for each in listed(client, k=4, user_id="u3"))


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"at_least": "much"}, "at_least"),
        ({"at_least": 1e300}, "at_least"),
        ({"num_similar": 21}, "num_similar"),
        ({"num_similar": -1}, "num_similar"),
        ({"probabilities": "perhaps"}, "probabilities"),
        ({"probability": True}, "probability"),
    ],
    ids=["no-number", "too-large", "too-many", "below-none", "no-truth", "another-name"],
)
def test_wishes_of_a_wrong_form_are_one_line(
    client: TestClient, wishes: dict[str, Any], says: str
) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "u3", "wishes": wishes})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert f"wishes.{says}" in message and "\n" not in message


def test_only_lists_to_users_tell_of_similar_items(client: TestClient) -> None:
    asked = {"item_id": "i1", "wishes": {"num_similar": 2}}
    answer = client.post("/v1/similar", json=asked)
    assert answer.status_code == 422
    assert "num_similar belongs to what is recommended" in answer.json()["error"]["message"]
