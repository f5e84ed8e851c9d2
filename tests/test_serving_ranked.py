"""The second stage over HTTP: lists in the library's order, where and only where it may be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_shown import shop_config, write_shop
from tiny_run import NUM_USERS

from data_prep.prepare import prepare
from mmrec.errors import CheckpointMismatch
from mmrec.ranking.settings import RankerConfig
from mmrec.ranking.train import train_ranker
from mmrec.recommender import RankedRecommendation, Recommender, Wishes
from mmrec.request import Request
from mmrec.retrieval.ranker_inputs import RankerInputs
from mmrec.retrieval.recommend import recommend_next
from mmrec.retrieval.second_stage import SecondStage
from mmrec.serving.app import build_app
from mmrec.serving.questions import ListQuestion, Task
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")
SMALL = RankerConfig(
    candidates=6, num_blocks=1, num_heads=2, max_epochs=3, batch_size=16, learning_rate=0.03
)  # enough to move lists, whatever that is worth


@pytest.fixture(scope="module")
def ranked_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a ranker whose numbers are not 0, whatever it is worth."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("ranked") / "run"))
    train_ranker(run, SMALL)
    return run


@pytest.fixture(scope="module")
def shop_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log says what was shown and not taken, so that probabilities can be told."""
    folder = tmp_path_factory.mktemp("ranked_shop")
    prepare(write_shop(folder / "source"), folder / "source", folder / "data", num_workers=1)
    train(shop_config(max_epochs=3, evaluate_every=3), folder / "data", folder / "run")
    train_ranker(folder / "run", SMALL)
    return folder / "run"


def used_unasked(run: Path, in_use: bool) -> None:
    """Writes what validation is to have said."""
    path = run / "ranker" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_use": in_use}))


def asking(run: Path, folder: Path) -> TestClient:
    url = f"sqlite:///{folder / 'service.sqlite'}"
    service = Service(ServiceSettings(path=run, database=url))
    return TestClient(build_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(ranked_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    used_unasked(ranked_run, True)
    with asking(ranked_run, tmp_path_factory.mktemp("service")) as client:
        yield client


@pytest.fixture(scope="module")
def recommender(ranked_run: Path) -> Recommender:
    return Recommender.load(ranked_run)


def is_list_of(answer: dict[str, Any], expected: Any) -> None:
    items = answer["items"]
    assert [each["item_id"] for each in items] == [each.item_id for each in expected]
    scores = [each["score"] for each in items]
    assert scores == pytest.approx([each.score for each in expected], abs=1e-5)
    for item, each in zip(items, expected, strict=True):
        ranked = isinstance(each, RankedRecommendation)
        assert item["retrieval_rank"] == (each.retrieval_rank if ranked else None)
        assert item["heads"] == (pytest.approx(dict(each.heads), abs=1e-5) if ranked else {})


ASKED: dict[str, tuple[dict[str, Any], Wishes]] = {
    "unasked": ({"user_id": "u3", "k": 4}, Wishes()),
    "asked": ({"user_id": "u3", "k": 12, "ranked": True}, Wishes()),
    "not": ({"user_id": "u3", "k": 12, "ranked": False}, Wishes()),
    "history": ({"history": ["i1", "i7"], "k": 6}, Wishes(without=("i2",), diversity=0.5)),
    "nobody": ({"ranked": True}, Wishes()),
}


@pytest.mark.parametrize(("asked", "wishes"), ASKED.values(), ids=ASKED)
def test_a_ranked_list_is_that_of_the_library(
    asked: dict[str, Any], wishes: Wishes, client: TestClient, recommender: Recommender
) -> None:
    said = {"without": list(wishes.without), "diversity": wishes.diversity}
    answer = client.post("/v1/recommend", json={**asked, "wishes": said})
    assert answer.status_code == 200, answer.text
    is_list_of(answer.json(), recommender.recommend(**asked, wishes=wishes))


def test_users_who_ask_together_are_ranked_together_and_each_as_if_alone(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of several lengths, with histories of several lengths, a stage and none, and errors."""
    answering = client.app.state.service.answering  # type: ignore[attr-defined]
    batches: list[int] = []
    rank = SecondStage.rank_together

    def counted(stage: SecondStage, shortlists: Any) -> Any:
        batches.append(len(shortlists))
        return rank(stage, shortlists)

    monkeypatch.setattr(SecondStage, "rank_together", counted)

    def asks(**asked: Any) -> ListQuestion:
        given: dict[str, Any] = {"user_id": None, "history": None, "k": 4, "wishes": Wishes()}
        return ListQuestion(**given | asked, attributes=None, request=Request(), at=None)

    questions: list[Any] = [
        asks(user_id="u3"),
        asks(user_id="u5", k=12),
        asks(history=["i1"], k=1),
        asks(history=["i1", "i7", "i2", "i9", "i4"], wishes=Wishes(diversity=0.5)),
        asks(user_id="u1", ranked=False),
        asks(history=["nothing"]),
        asks(user_id="u2", calibrated=True),
        Task(lambda live: live.version),
        asks(user_id="u4", wishes=Wishes(without=tuple(f"i{n}" for n in range(100)))),
        asks(),
        asks(user_id="u6", wishes=Wishes(probabilities=True)),
    ]
    together = answering.answer(questions)
    assert batches == [5]
    for question, found in zip(questions, together, strict=True):
        [alone] = answering.answer([question])
        if isinstance(alone, Exception):
            assert type(found) is type(alone) and str(found) == str(alone)
            continue
        assert found.model_hash == alone.model_hash and not found.degraded
        if isinstance(question, Task):
            assert found.value == alone.value
            continue
        for one, other in zip(found.value, alone.value, strict=True):
            assert (one.item_id, type(one)) == (other.item_id, type(other))
            assert one.score == pytest.approx(other.score, abs=1e-5)
    assert [isinstance(each, Exception) for each in together] == [
        False, False, False, False, False, True, True, False, False, False, False
    ]  # fmt: skip


def test_one_whom_the_second_stage_fails_takes_no_other_list_with_him(
    ranked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = SecondStage.rank_together

    def fails(stage: SecondStage, shortlists: Any) -> Any:
        if any(each.asked.user_id == "u3" for each in shortlists):
            raise RuntimeError("out of memory")
        return rank(stage, shortlists)

    used_unasked(ranked_run, True)
    with asking(ranked_run, tmp_path) as client:
        monkeypatch.setattr(SecondStage, "rank_together", fails)
        answering = client.app.state.service.answering  # type: ignore[attr-defined]
        questions = [
            ListQuestion(f"u{n}", None, None, Request(), 4, None, Wishes()) for n in (1, 3, 5)
        ]
        found = answering.answer(questions)
    assert [each.degraded for each in found] == [[], ["model"], []]
    assert all(isinstance(each, RankedRecommendation) for each in found[0].value + found[2].value)


def test_the_second_stage_moves_lists(client: TestClient) -> None:
    """Else what is above would hold of a service that never looks at it."""
    bodies = [{"user_id": f"u{user}", "k": 12} for user in range(NUM_USERS)]
    unasked, alone = (
        [client.post("/v1/recommend", json={**each, **more}).json()["items"] for each in bodies]
        for more in ({}, {"ranked": False})
    )
    assert sum(one != two for one, two in zip(unasked, alone, strict=True)) == NUM_USERS
    orders = [[each["item_id"] for each in items] for items in (*unasked, *alone)]
    assert orders[:NUM_USERS] != orders[NUM_USERS:]


def test_it_is_used_unasked_only_where_validation_said_so(ranked_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ranked_run, tmp_path / "run"))
    used_unasked(run, False)
    with asking(run, tmp_path) as client:
        for more, ranked in (({}, False), ({"ranked": True}, True), ({"ranked": False}, False)):
            answer = client.post("/v1/recommend", json={"user_id": "u3", **more}).json()
            assert [each["retrieval_rank"] is not None for each in answer["items"]] == (
                [ranked] * len(answer["items"])
            )


def test_what_cannot_be_told_is_one_line(
    client: TestClient, tiny_run: Path, tmp_path: Path
) -> None:
    for body, says in (
        ({"user_id": "u3", "calibrated": True}, "no probability can be told"),
        ({"user_id": "u3", "calibrated": True, "ranked": False}, "ranked is False"),
    ):
        answer = client.post("/v1/recommend", json=body)
        assert answer.status_code == 422 and says in answer.json()["error"]["message"]
        assert "\n" not in answer.json()["error"]["message"]
    with asking(tiny_run, tmp_path) as without:
        for more in ({"ranked": True}, {"calibrated": True}):
            answer = without.post("/v1/recommend", json={"user_id": "u3", **more})
            assert answer.status_code == 422
            assert "there is no second stage" in answer.json()["error"]["message"]
        assert without.post("/v1/recommend", json={"user_id": "u3"}).status_code == 200


def test_an_added_item_is_ranked_as_all_items_are_now(
    ranked_run: Path, tiny_source: Path, tmp_path: Path
) -> None:
    with asking(ranked_run, tmp_path) as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        form = {"item_id": "n1", "title": "The quiet storm"}
        files = {"poster": ("p.png", (tiny_source / "2.png").read_bytes(), "image/png")}
        assert client.post("/v1/items", data=form, files=files).status_code == 200
        client.delete("/v1/items/i6")
        answer = client.post("/v1/recommend", json={"user_id": "u3", "k": 50}).json()
        items = {each["item_id"]: each for each in answer["items"]}
        assert "n1" in items and "i6" not in items
        assert service.live is not None
        now, told = service.live.retriever, service.live.second_stage
        assert told is not None
        inputs = RankerInputs(now.model, now.vectors, now.counts, told.inputs.latents)
        stage = SecondStage(now, told.ranker, inputs, told.document)
        row = now.users.index_of("u3")
        assert row is not None
        is_list_of(answer, recommend_next(now, now.stored_user(row), 50, second_stage=stage))
        # its inputs are made once per change of items, not at each list
        client.post("/v1/recommend", json={"user_id": "u4"})
        assert service.live.second_stage is told


def test_probabilities_are_those_of_the_library(shop_run: Path, tmp_path: Path) -> None:
    expected = Recommender.load(shop_run).recommend("u0", k=12, calibrated=True)
    with asking(shop_run, tmp_path) as client:
        asked = {"user_id": "u0", "k": 12, "calibrated": True}
        answer = client.post("/v1/recommend", json=asked)
        assert answer.status_code == 200, answer.text
        is_list_of(answer.json(), expected)
        told = [each["heads"] for each in answer.json()["items"][:6]]
        assert told and all(0 < each["click"] < 1 for each in told)


def test_a_ranker_of_another_model_does_not_answer(ranked_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ranked_run, tmp_path / "run"))
    path = run / "ranker" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_hash": "0" * 64}))
    with pytest.raises(CheckpointMismatch, match="was trained on the model 000000000000"):
        Service(ServiceSettings(path=run, database=f"sqlite:///{tmp_path / 's.sqlite'}")).load()
