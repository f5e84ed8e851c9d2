"""Search over HTTP: what the library finds, of items that come and go, with words read once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_run import NO_TEXT, NUM_ITEMS

from mmrec.recommender import Recommendation, Recommender, Wishes
from mmrec.retrieval import lexical
from mmrec.retrieval.lexical import LexicalIndex
from mmrec.retrieval.search import WAYS, Query, Searcher, Taste
from mmrec.serving import swap
from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["tiny_run"]


def settings(run: Path, folder: Path) -> ServiceSettings:
    url = f"sqlite:///{folder / 'service.sqlite'}"
    return ServiceSettings(path=run, database=url, limits=Limits(max_pixels=250_000, max_audio_s=9))


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def client(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that nothing is told."""
    service = Service(settings(tiny_run, tmp_path_factory.mktemp("search")))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def told(tiny_run: Path, tmp_path: Path) -> Iterator[tuple[TestClient, Service]]:
    """A service that may be told anything."""
    service = Service(settings(tiny_run, tmp_path))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client, service


def is_list_of(answer: Mapping[str, Any], expected: Sequence[Recommendation]) -> None:
    assert answer["degraded"] == [] and expected
    items = answer["items"]
    assert [each["item_id"] for each in items] == [each.item_id for each in expected]
    scores = [each["score"] for each in items]
    assert scores == pytest.approx([each.score for each in expected], abs=1e-5)
    assert [each["found_by"] for each in items] == [each.found_by for each in expected]
    assert answer["basis"] == expected[0].basis


ASKED: dict[str, dict[str, Any]] = {
    "as-ever": {"text": "The quiet storm"},
    "words": {"text": "quiet sea", "by": "lexical"},
    "meaning": {"text": "quiet sea", "by": "dense", "k": NUM_ITEMS},
    "user": {"text": "old garden", "user_id": "u3"},
    "user-a-little": {"text": "old garden", "user_id": "u3", "mix": 0.2, "by": "lexical"},
    "user-alone": {"text": "old garden", "user_id": "u3", "mix": 1.0},
    "history": {"text": "the sea", "history": ["i1", "i6"], "mix": 0.8},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_search_is_that_of_the_library(
    asked: dict[str, Any], client: TestClient, recommender: Recommender
) -> None:
    is_list_of(client.post("/v1/search", json=asked).json(), recommender.search(**asked))


def test_wishes_hold_of_a_search(client: TestClient, recommender: Recommender) -> None:
    wishes = {"without": ["i1", "i6"], "diversity": 0.5}
    answer = client.post("/v1/search", json={"text": "the", "k": 6, "wishes": wishes}).json()
    expected = Wishes(without=("i1", "i6"), diversity=0.5)
    is_list_of(answer, recommender.search("the", k=6, wishes=expected))
    refused = client.post("/v1/search", json={"text": "the", "wishes": {"why": "en"}})
    assert refused.status_code == 422 and "why" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        ({"k": 4}, {"image": "7.png"}),
        ({}, {"audio": "6.wav"}),
        ({"text": "quiet sea", "mix": 0.4, "user_id": "u2"}, {"image": "7.png", "audio": "6.wav"}),
        ({"by": "dense", "history": ["i1", "i4"], "text": "sea"}, {"image": "2.png"}),
        ({"text": "the red river", "by": "lexical"}, {}),
    ],
    ids=["picture", "sound", "all", "history", "text"],
)
def test_a_picture_and_a_sound_find_what_they_find_in_the_library(
    fields: dict[str, Any],
    files: dict[str, str],
    client: TestClient,
    recommender: Recommender,
    tiny_source: Path,
) -> None:
    kinds = {"image": "image/png", "audio": "audio/wav"}
    parts: list[tuple[str, Any]] = [
        (name, (None, value if isinstance(value, str) else json.dumps(value)))
        for name, value in fields.items()
    ]
    for name, file in files.items():
        parts.append((name, (file, (tiny_source / file).read_bytes(), kinds[name])))
    answer = client.post("/v1/search/media", files=parts)
    assert answer.status_code == 200, answer.text
    paths = {name: tiny_source / file for name, file in files.items()}
    is_list_of(answer.json(), recommender.search(**fields, **paths))


def test_what_is_no_search_is_one_line(client: TestClient, tiny_source: Path) -> None:
    picture = ("p.png", (tiny_source / "2.png").read_bytes(), "image/png")
    for fields, files, status, says in (
        ({"mix": "2"}, {"image": picture}, 422, "mix: "),
        ({"by": "smell"}, {"image": picture}, 422, "by: "),
        ({"by": "lexical"}, {"image": picture}, 422, "needs a text"),
        ({"k": "0"}, {"image": picture}, 422, "k: "),
        ({"wishes": "{"}, {"image": picture}, 422, "wishes: "),
        ({"wishes": '{"where": [{"field": "price", "maximum": 1}]}'}, {"image": picture}, 422,
         "price"),
        ({"history": '["nobody"]'}, {"image": picture}, 404, "no known item"),
        ({"history": "[]", "user_id": "u1"}, {"image": picture}, 422, "allowed is one"),
        ({"colour": "red"}, {"image": picture}, 422, "colour: "),
        ({}, {"poster": picture}, 422, "allowed are image, audio"),
        ({}, {"audio": picture}, 415, "audio/*"),
        ({}, {"image": ("p", b"no picture", "")}, 422, "not an image"),
        ({"k": "3"}, {}, 422, "the query is empty"),
    ):  # fmt: skip
        parts = [*((name, (None, value)) for name, value in fields.items()), *files.items()]
        answer = client.post("/v1/search/media", files=parts)
        assert answer.status_code == status, answer.text
        assert says in answer.json()["error"]["message"]
    twice = [("user_id", (None, "u1")), ("user_id", (None, "u2")), ("text", (None, "sea"))]
    assert client.post("/v1/search/media", files=twice).status_code == 422
    for body in ({}, {"text": " "}, {"text": "a", "by": "both"}, {"text": "a", "mix": -1}):
        assert client.post("/v1/search", json=body).status_code == 422


def test_who_is_not_known_gets_the_search_alone(
    client: TestClient, recommender: Recommender
) -> None:
    answer = client.post("/v1/search", json={"text": "the sea", "user_id": "nobody"}).json()
    is_list_of(answer, recommender.search("the sea"))


def test_events_since_the_log_are_part_of_the_taste(
    told: tuple[TestClient, Service], recommender: Recommender
) -> None:
    client, _ = told
    events = [{"user_id": "new", "item_id": item} for item in ("i2", "i7")]
    assert client.post("/v1/events", json={"events": events}).json()["accepted"] == 2
    asked = {"text": "the sea", "user_id": "new", "mix": 0.9}
    is_list_of(
        client.post("/v1/search", json=asked).json(),
        recommender.search("the sea", history=["i2", "i7"], mix=0.9),
    )


def add(client: TestClient, item_id: str, title: str, plot: str, picture: Path) -> None:
    form = {"item_id": item_id, "title": title, "plot": plot}
    files = {"poster": ("p.png", picture.read_bytes(), "image/png")}
    assert client.post("/v1/items", data=form, files=files).status_code == 200


def found(client: TestClient, text: str, by: str) -> list[str]:
    answer = client.post("/v1/search", json={"text": text, "by": by, "k": 50})
    assert answer.status_code == 200, answer.text
    return [each["item_id"] for each in answer.json()["items"]]


def test_items_are_found_by_every_text_while_they_are_listed(
    told: tuple[TestClient, Service], tiny_source: Path, tmp_path: Path, tiny_run: Path
) -> None:
    """Whatever has come and gone, the words of a service are those of one that starts now."""
    client, _ = told
    add(client, "n1", "Zebra crossing", "A quiet xylophone.", tiny_source / "2.png")
    for by in WAYS:  # by its second field, too
        assert ("n1" in found(client, "xylophone", by)) and "n1" in found(client, "zebra", by)
    assert found(client, "xylophone", "lexical")[0] == "n1"
    for listed in (False, True, False):
        for item_id, text in (("n1", "xylophone"), ("i6", "the")):
            client.put(f"/v1/items/{item_id}", json={"listed": listed})
            for by in WAYS:
                assert (item_id in found(client, text, by)) == listed
    add(client, "n1", "Another walrus", "", tiny_source / "3.png")  # in its place
    for by in WAYS:
        assert found(client, "walrus", by).count("n1") == 1
    with TestClient(build_app(Service(settings(tiny_run, tmp_path)))) as again:
        for text in ("the quiet walrus", "zebra", "old garden storm"):
            for by in WAYS:
                body = {"text": text, "by": by, "k": 50}
                answers = [each.post("/v1/search", json=body).json() for each in (client, again)]
                assert answers[0] == answers[1]


def test_a_live_search_is_that_of_a_searcher_of_all_items(
    told: tuple[TestClient, Service], tiny_source: Path
) -> None:
    client, service = told
    add(client, "n1", "The zebra", "Storm at sea.", tiny_source / "2.png")
    client.delete("/v1/items/i6")
    found(client, "the", "lexical")
    assert service.live is not None
    retriever = service.live.retriever
    row = retriever.users.index_of("u3")
    assert row is not None
    taste = Taste(retriever.stored_user(row), 0.4)
    for by in WAYS:
        asked = {"text": "the storm", "by": by, "user_id": "u3", "mix": 0.4}
        expected = Searcher(retriever).search(Query("the storm"), 10, by=by, taste=taste)
        is_list_of(client.post("/v1/search", json=asked).json(), expected)


class Counted(LexicalIndex):
    """Counts what is read."""

    made: list[int] = []
    read: list[int] = []

    def __init__(self, texts: Any = ()) -> None:
        super().__init__(texts)
        Counted.made.append(len(self))

    def add(self, item_index: int, text: str | None) -> None:
        Counted.read.append(item_index)
        super().add(item_index, text)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr(lexical, "LexicalIndex", Counted)
    Counted.made, Counted.read = [], []
    return Counted


def test_words_are_read_once_and_then_those_that_change(
    counted: type[Counted], told: tuple[TestClient, Service], tiny_source: Path
) -> None:
    client, _ = told
    assert counted.made == [NUM_ITEMS - 1]  # before the first request; one item has no text
    assert counted.read == list(range(NUM_ITEMS))
    for by in WAYS:
        for _ in range(3):
            found(client, "the sea", by)
    client.post("/v1/events", json={"events": [{"user_id": "u1", "item_id": "i1"}]})
    found(client, "the sea", "hybrid")
    assert len(counted.read) == NUM_ITEMS
    add(client, "n1", "The zebra", "", tiny_source / "2.png")
    for _ in range(3):
        assert "n1" in found(client, "zebra", "hybrid")
    client.delete("/v1/items/n1")
    found(client, "zebra", "hybrid")
    client.put("/v1/items/n1", json={"listed": True})
    for _ in range(3):
        assert "n1" in found(client, "zebra", "lexical")
    # the one that came, and again when it came back
    assert counted.read[NUM_ITEMS:] == [NUM_ITEMS, NUM_ITEMS] and len(counted.made) == 1


def test_words_of_many_items_are_read_when_they_are_first_asked_for(
    counted: type[Counted],
    monkeypatch: pytest.MonkeyPatch,
    tiny_run: Path,
    tmp_path: Path,
    tiny_source: Path,
) -> None:
    monkeypatch.setattr(swap, "MOST_READ_AT_START", NUM_ITEMS - 1)
    with TestClient(build_app(Service(settings(tiny_run, tmp_path)))) as client:
        found(client, "sea", "dense")
        assert not counted.made
        add(client, "n1", "The zebra", "", tiny_source / "2.png")
        assert found(client, "zebra", "lexical") == ["n1"]
        found(client, "zebra", "hybrid")
        assert len(counted.made) == 1


def test_an_item_without_texts_is_found_by_meaning_alone(client: TestClient) -> None:
    assert NO_TEXT in found(client, "sea", "dense")
    assert NO_TEXT not in found(client, "sea", "lexical")


def test_a_model_of_ids_is_searched_by_words(tiny_run_id: Path, tmp_path: Path) -> None:
    expected = Recommender.load(tiny_run_id).search("the quiet sea")
    with TestClient(build_app(Service(settings(tiny_run_id, tmp_path)))) as client:
        answer = client.post("/v1/search", json={"text": "the quiet sea"}).json()
        is_list_of(answer, expected)
        refused = client.post("/v1/search", json={"text": "sea", "by": "dense"})
        assert refused.status_code == 422
