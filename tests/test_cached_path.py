"""What is asked of known items reads their stored vectors: no encoder works at request time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mmrec.recommender import Recommender
from mmrec.retrieval.retriever import Retriever
from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run"]


@pytest.fixture
def calls(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recommender, Counter[str]]:
    """A recommender as it is loaded, and how often each encoder and the fusion are called since."""
    recommender, calls = Recommender.load(tiny_run), Counter[str]()
    count_calls(recommender.retriever, calls, monkeypatch)
    return recommender, calls


def count_calls(retriever: Retriever, calls: Counter[str], patched: pytest.MonkeyPatch) -> None:
    """Counts from now on, by name, each time an encoder or the fusion of a model works."""
    model = retriever.model

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in retriever.transforms:
        encoder = model.encoder(name)
        for part in ("below", "above"):
            patched.setattr(encoder, part, counted(name, getattr(encoder, part)))
    assert model.fusion is not None
    patched.setattr(model.fusion, "forward", counted("fusion", model.fusion.forward))


def test_known_items_are_never_encoded(calls: tuple[Recommender, Counter[str]]) -> None:
    recommender, made = calls
    recommender.recommend("u7", k=5)
    recommender.recommend(history=["i1", "i2"], k=5)
    recommender.recommend(history=[], k=5)
    recommender.similar("i1", k=5)
    recommender.embed_users([["i3"], ["i4", "i5"]])
    recommender.embed_items(["i1", "i6"])
    assert made == {}


def test_a_text_is_encoded_once(calls: tuple[Recommender, Counter[str]]) -> None:
    """The counters count: a question in words has to be read."""
    recommender, made = calls
    recommender.search("quiet river", k=5)
    assert made["text"] >= 1 and made["fusion"] >= 1


def test_a_service_encodes_nothing_for_known_items(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists, events and the lists behind them, stock and vectors; a text is read, so it counts."""
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    service, made = Service(ServiceSettings(path=tiny_run, database=url)), Counter[str]()
    with TestClient(build_app(service)) as client:
        assert service.live is not None
        count_calls(service.live.source, made, monkeypatch)
        event = {"user_id": "u7", "item_id": "i1"}
        for route, body in (
            ("recommend", {"user_id": "u7", "k": 5}),
            ("events", {"events": [event]}),
            ("recommend", {"user_id": "u7", "k": 5}),
            ("recommend", {"history": ["i1", "i2"], "wishes": {"diversity": 0.5}}),
            ("recommend", {"k": 5}),
            ("similar", {"item_id": "i1", "k": 5}),
            ("search", {"text": "river", "by": "lexical"}),
            ("embed", {"item_ids": ["i1", "i6"], "histories": [["i3"], ["i4", "i5"]]}),
        ):
            answer = client.post(f"/v1/{route}", json=body)
            assert answer.status_code == 200 and not answer.json().get("degraded"), answer.text
        assert client.put("/v1/items/i2", json={"listed": False}).status_code == 200
        assert client.post("/v1/recommend", json={"user_id": "u7"}).status_code == 200
        assert made == {}
        assert client.post("/v1/search", json={"text": "quiet river"}).status_code == 200
        assert made["text"] >= 1 and made["fusion"] >= 1
