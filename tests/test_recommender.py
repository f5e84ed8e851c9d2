"""The Python API on a tiny run: lists against brute force, similar items, histories, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.errors import BrokenMedium
from data_prep.shards import PreparedData
from mmrec.cli import main
from mmrec.errors import CheckpointMismatch, ItemNotFound, UserError
from mmrec.recommender import Recommender
from mmrec.retrieval.content import encode_query

pytest_plugins = ["tiny_run"]
USERS = ("u0", "u7", "u29")


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def of_ids(tiny_run_id: Path) -> Recommender:
    return Recommender.load(tiny_run_id)


@pytest.mark.parametrize("kind", ["recommender", "of_ids"])
@pytest.mark.parametrize("user_id", USERS)
def test_list_is_the_brute_force_top_of_unseen_candidates(
    kind: str, user_id: str, tiny_data: Path, request: pytest.FixtureRequest
) -> None:
    used: Recommender = request.getfixturevalue(kind)
    data = PreparedData.open(tiny_data)
    split = data.split()
    user_index = data.user_index_of(user_id)
    assert user_index is not None
    complete = split.full.read(split.full.user_index.tolist().index(user_index)).item_index
    model, vectors = used.retriever.model, used.retriever.vectors
    roles = split.items.sort("item_index")["role"].to_list()
    history = torch.tensor(
        [row for row in complete.tolist() if used.retriever.has_vector[row]
         and not roles[row].startswith("cold")]
    )  # fmt: skip
    with torch.no_grad():
        user = model.query(vectors.embedding[history], torch.tensor([0, len(history)]))[0]
        tau = float(model.temperature)
    expected = sorted(
        (
            (-float(vectors.embedding[row] @ user) - tau * float(vectors.bias[row]), row)
            for row in range(len(data.items))
            if roles[row] != "no_events" and row not in complete
        ),
    )
    found = used.recommend(user_id, k=3)
    assert [each.item_id for each in found] == [data.items.item_ids[r] for _, r in expected[:3]]
    assert [each.score for each in found] == pytest.approx([-s for s, _ in expected[:3]], abs=1e-5)
    assert [each.rank for each in found] == [1, 2, 3]
    assert {each.basis for each in found} == {"history"}


def test_no_more_items_than_there_are(recommender: Recommender) -> None:
    found = recommender.recommend("u0", k=1000)
    ids = [each.item_id for each in found]
    seen = recommender.retriever.stored_user(0).seen
    assert len(set(ids)) == len(ids) == len(recommender.retriever.items.candidates) - len(seen)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_given_history_serves_like_the_stored_one(of_ids: Recommender) -> None:
    retriever = of_ids.retriever
    stored = retriever.stored_user(2)
    ids = [retriever.items.item_ids[row] for row in stored.history]
    assert of_ids.embed_users([ids])[0] == pytest.approx(
        retriever.user_vectors([stored])[0].numpy(), abs=1e-6
    )


def test_events_with_times_are_put_in_order(recommender: Recommender) -> None:
    timed = [("i2", None, 30.0), ("i1", "play", 10.0), ("i7", None, 20.0)]
    plain = ["i1", "i7", "i2"]
    assert recommender.recommend(history=timed) == recommender.recommend(history=plain)
    assert recommender.recommend(history=plain) != recommender.recommend(history=plain[::-1])


def test_unknown_items_are_dropped_and_told(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    found = recommender.recommend(history=["nowhere", "i1", "i7"], k=3)
    assert "1 of 3 items of the history are not known" in caplog.text
    assert found == recommender.recommend(history=["i1", "i7"], k=3)


def test_no_known_item_is_refused(recommender: Recommender) -> None:
    with pytest.raises(ItemNotFound, match="no known item among 'a', 'b'; ids are"):
        recommender.recommend(history=["a", "b"])
    with pytest.raises(ItemNotFound, match="no known user among 'nobody'"):
        recommender.recommend("nobody")


@pytest.mark.parametrize("history", [None, []], ids=["absent", "empty"])
def test_without_a_history_the_list_is_popularity_and_says_so(
    recommender: Recommender, history: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = recommender.recommend(history=history, k=5)
    counts = recommender.retriever.counts
    assert [each.score for each in found] == sorted(counts.tolist(), reverse=True)[:5]
    assert {each.basis for each in found} == {"popularity"}
    assert "most popular" in caplog.text


def test_an_item_is_never_similar_to_itself(recommender: Recommender) -> None:
    content = recommender.retriever.content
    assert content is not None
    for row, item_id in enumerate(recommender.retriever.items.item_ids):
        found = recommender.similar(item_id, k=100)
        assert item_id not in [each.item_id for each in found]
        assert len(found) == len(content) - 1
        expected = (content @ content[row]).tolist()
        expected.pop(row)
        assert [each.score for each in found] == pytest.approx(sorted(expected)[::-1], abs=1e-6)


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_query_by_one_medium_is_an_item_with_that_medium_alone(
    recommender: Recommender, tiny_source: Path, modality: str, tmp_path: Path
) -> None:
    column, file = {"image": ("poster", "5.png"), "audio": ("sound", "6.wav"),
                    "text": ("title", "the red river")}[modality]  # fmt: skip
    query: dict[str, Any] = {modality: file if modality == "text" else tiny_source / file}
    (tmp_path / "one.csv").write_text(f"id,{column}\nq,{file}\n")
    new = recommender.new_items(tmp_path / "one.csv", tiny_source)
    content = recommender.embed_items(new).content
    assert content is not None and recommender.retriever.content is not None
    expected = np.sort(recommender.retriever.content.numpy() @ content[0])[::-1][:5]
    found = recommender.similar(**query, k=5)
    assert [each.score for each in found] == pytest.approx(expected, abs=1e-5)


def test_questions_that_cannot_be_answered_are_one_line(
    recommender: Recommender, tiny_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nothing given, allowed is one of item_id, image"):
        recommender.similar()
    with pytest.raises(UserError, match="item_id and text given"):
        recommender.similar("i1", text="x")
    with pytest.raises(UserError, match="there is nothing in ''"):
        recommender.similar(text="")
    with pytest.raises(ItemNotFound, match="item 'x' is not in the catalogue of 14 items"):
        recommender.similar("x")
    with pytest.raises(BrokenMedium, match="log.csv: broken image"):
        recommender.similar(image=tiny_source / "log.csv")
    with pytest.raises(BrokenMedium, match="log.csv: broken audio: not of a format that is known"):
        recommender.search(image=tiny_source / "2.png", audio=tiny_source / "log.csv")
    with pytest.raises(UserError, match="No such file"):
        recommender.similar(audio=tmp_path / "none.wav")
    with pytest.raises(UserError, match="k is 0"):
        recommender.recommend("u0", k=0)
    with pytest.raises(UserError, match="user_id and history are both given"):
        recommender.recommend("u0", history=["i1"])


def test_model_of_ids_refuses_questions_about_content(
    of_ids: Recommender, tiny_source: Path
) -> None:
    for ask in (
        lambda: of_ids.similar("i1"),
        lambda: of_ids.similar(text="river"),
        lambda: of_ids.new_items(tiny_source / "items.csv", tiny_source),
    ):
        with pytest.raises(UserError, match=r"knows ids only \(model.item is 'id'\)") as caught:
            ask()
        assert "\n" not in str(caught.value)
    embedded = of_ids.embed_items(["i1"])
    assert embedded.content is None and np.linalg.norm(embedded.embedding) == pytest.approx(1)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="holds no finished model"):
        Recommender.load(tmp_path)


def test_what_a_user_says_he_likes_is_read_like_an_item(tiny_run: Path) -> None:
    recommender = Recommender.load(tiny_run)
    found = recommender.recommend(taste="quiet red river", k=5)
    assert found[0].basis == "taste" and len(found) == 5
    other = recommender.recommend(taste="old machine letter", k=5)
    assert [each.score for each in found] != [each.score for each in other]
    # an item's own text in the place of the item; with a history it is what came last
    retriever = recommender.retriever
    asked = retriever.given_user(["i1", "i2"])
    content = encode_query(retriever, "text", "quiet red river")
    user = retriever.user_vectors([asked, replace(asked, taste=content), asked])
    assert torch.equal(user[0], user[2]) and not torch.allclose(user[0], user[1])
    items = torch.cat([retriever.vectors.embedding[asked.history], content[None]])
    direct = retriever.model.query(items, torch.tensor([0, 3]))[0]
    torch.testing.assert_close(user[1], direct)
    assert recommender.recommend(history=["i1"], taste="sea", k=1)[0].basis == "history"


def test_a_taste_needs_a_model_that_reads_text(tiny_run_id: Path) -> None:
    with pytest.raises(UserError, match="a query by text"):
        Recommender.load(tiny_run_id).recommend(taste="anything")


def test_a_taste_is_told_on_the_command_line(
    tiny_run: Path, tiny_run_id: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence by itself, beside a few picks, and beside what a known user has met."""
    recommender = Recommender.load(tiny_run)

    def ask(*words: str, run: Path = tiny_run) -> list[tuple[str, str]]:
        assert main(["recommend", str(run), *words, "-k", "6", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["query"].get("taste") == (words[1] if words[0] == "--taste" else None)
        return [(each["item_id"], each["basis"]) for each in document["items"]]

    def expected(**asked: Any) -> list[tuple[str, str]]:
        return [(each.item_id, each.basis) for each in recommender.recommend(**asked, k=6)]

    quiet, old = "a quiet red river", "an old machine, a letter"
    alone = ask("--taste", quiet)
    assert alone == expected(taste=quiet) and {basis for _, basis in alone} == {"taste"}
    assert alone != ask("--taste", old)
    picks = ask("--history", "i1,i2")
    with_picks = ask("--taste", quiet, "--history", "i1,i2")
    assert with_picks == expected(taste=quiet, history=["i1", "i2"])
    assert {basis for _, basis in with_picks} == {"history"} and with_picks != picks
    known = ask("--taste", old, "--user", "u3")
    assert known == expected(taste=old, user_id="u3") and known != ask("--user", "u3")

    assert main(["recommend", str(tiny_run_id), "--taste", quiet]) == 2
    error = capsys.readouterr().err
    assert "query by text" in error and error.count("\n") == 1
    assert main(["recommend", str(tiny_run)]) == 2
    assert "none given, allowed is exactly one of" in capsys.readouterr().err
