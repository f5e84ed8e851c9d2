"""Search by words, by meaning and by taste: what is asked for comes first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_run import NO_PICTURE, NO_TEXT, NUM_ITEMS, WITHOUT_EVENTS

from data_prep.catalogue import AvailableSpec
from mmrec.cli import main
from mmrec.errors import UserError
from mmrec.recommender import Recommendation, Recommender, Wishes
from mmrec.retrieval import query_encoder
from mmrec.retrieval.available import FOR_EVER, Available
from mmrec.retrieval.bundle import write_bundle
from mmrec.retrieval.filters import Condition
from mmrec.retrieval.lexical import read_words
from mmrec.retrieval.retriever import Asked, Items, Retriever
from mmrec.retrieval.search import WAYS, Query, Searcher, Taste, Way

pytest_plugins = ["tiny_run"]


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture(scope="module")
def titles(tiny_source: Path) -> dict[str, str]:
    table = pl.read_csv(tiny_source / "items.csv")
    return dict(table.select("id", "title").iter_rows())


def ids(found: Sequence[Recommendation]) -> list[str]:
    return [each.item_id for each in found]


@pytest.mark.parametrize("by", ["lexical", "hybrid"])
def test_each_item_is_found_by_its_title(
    by: Way, recommender: Recommender, titles: dict[str, str]
) -> None:
    for item, title in titles.items():
        if item != NO_TEXT:
            first = recommender.search(title, by=by, k=1)[0]
            assert first.item_id == item and first.basis == "search"
            assert first.found_by in ("text", "both")


def test_words_of_any_field_are_found(recommender: Recommender, tiny_source: Path) -> None:
    plots = dict(pl.read_csv(tiny_source / "items.csv").select("id", "plot").iter_rows())
    assert recommender.search(plots["i7"], by="lexical", k=1)[0].item_id == "i7"


def test_dense_search_is_what_similar_lists(recommender: Recommender, tiny_source: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"text": "a quiet sea"}, NO_TEXT),
        ({"image": tiny_source / "2.png"}, NO_PICTURE),
    ]
    for query, other in asked:  # what lacks the query's medium is levelled
        found = recommender.search(**query, by="dense", k=NUM_ITEMS)
        alike = recommender.similar(**query, k=NUM_ITEMS)
        assert len(found) == len(alike) == NUM_ITEMS
        ours, theirs = (
            [(each.item_id, each.score) for each in entries if each.item_id != other]
            for entries in (found, alike)
        )
        assert ours == theirs
        assert {each.found_by for each in found} == {"meaning"}


def test_items_without_the_medium_are_scored_like_those_with_it(tiny_run: Path) -> None:
    retriever = Recommender.load(tiny_run).retriever
    has = np.arange(NUM_ITEMS) % 2 == 0
    items = replace(retriever.items, has={**retriever.items.has, "text": has})
    searcher = Searcher(replace(retriever, items=items))
    split = searcher.match(Query("a quiet sea"), "dense").scores
    assert retriever.content is not None
    whole = retriever.content @ searcher.encoder.texts(["a quiet sea"])[0]
    assert torch.equal(split[has], whole[has])
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(split[~has]), moment(whole[has]))
    assert split[~has].argsort().tolist() == whole[~has].argsort().tolist()


def test_several_things_at_once_each_count_the_same(
    recommender: Recommender, tiny_source: Path
) -> None:
    searcher = recommender.searcher
    picture = tiny_source / "2.png"
    asked = (Query("a quiet sea"), Query(image=picture), Query("a quiet sea", picture))
    whole = [searcher.match(each, "dense").scores for each in asked]
    levelled = (recommender.retriever.items.rows[each] for each in (NO_TEXT, NO_PICTURE))
    kept = torch.ones(NUM_ITEMS, dtype=torch.bool)
    kept[list(levelled)] = False
    text, image, together = (each[kept] for each in whole)
    ratio = (text @ together + image @ together) / (together @ together)
    torch.testing.assert_close(text + image, ratio * together)


@pytest.mark.parametrize("by", WAYS)
def test_a_bundle_finds_what_its_run_finds(
    by: Way, recommender: Recommender, tmp_path: Path
) -> None:
    write_bundle(recommender.retriever, tmp_path / "bundle")
    bundle = Recommender.load(tmp_path / "bundle")
    for text in ("the old machine", "storm in the garden", "letter"):
        theirs, ours = (each.search(text, by=by, k=NUM_ITEMS) for each in (bundle, recommender))
        assert ids(theirs) == ids(ours)
        assert [each.score for each in theirs] == pytest.approx([each.score for each in ours])
        assert [each.found_by for each in theirs] == [each.found_by for each in ours]


def test_a_bundle_without_texts_searches_titles_and_says_so(
    recommender: Recommender,
    titles: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_bundle(recommender.retriever, tmp_path / "bundle")
    (tmp_path / "bundle" / "texts.parquet").unlink()
    path = tmp_path / "bundle" / "bundle.json"
    document = json.loads(path.read_text())
    del document["files"]["texts.parquet"]
    path.write_text(json.dumps(document))
    found = Recommender.load(tmp_path / "bundle").search(titles["i6"], by="lexical", k=1)
    assert found[0].item_id == "i6"
    assert (
        "no texts of items but titles" in caplog.text and "export the bundle again" in caplog.text
    )


def test_a_mix_is_exact_at_both_ends(recommender: Recommender) -> None:
    alone = recommender.search("the old machine", k=8)
    assert recommender.search("the old machine", user_id="u3", mix=0, k=8) == alone
    listed = recommender.recommend("u3", k=8)
    assert recommender.search("the old machine", user_id="u3", mix=1, k=8) == listed
    assert recommender.recommend("u3", query="the old machine", mix=1, k=8) == listed
    seen = {"i1", "i2", "i3"}
    found = recommender.recommend(history=sorted(seen), query="the", mix=0, k=NUM_ITEMS)
    whole = recommender.search("the", k=NUM_ITEMS)
    assert ids(found) == [each for each in ids(whole) if each not in seen]


def test_whoever_is_not_known_gets_the_search_alone(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    assert recommender.search("sea", history=[], k=5) == recommender.search("sea", k=5)
    assert "nothing is known of the user" in caplog.text


CATEGORIES, EACH = ("phone", "lamp", "chair", "boat"), 40


@pytest.fixture
def shop(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> Searcher:
    """Items of four kinds, each plain or ornate; a user is the mean of what he met."""
    random = np.random.default_rng(0)
    count = len(CATEGORIES) * EACH
    kind, ornate = np.arange(count) // EACH, np.arange(count) % 2
    content = random.normal(0, 0.1, (count, 16))
    content[np.arange(count), kind] += 1
    content[:, 5] += 0.6 * (2 * ornate - 1)
    vectors = torch.nn.functional.normalize(torch.from_numpy(content).float(), dim=1)
    yes, no = np.ones(count, np.bool_), np.zeros(count, np.bool_)
    names = [f"A {CATEGORIES[each]} of make {row:03}." for row, each in enumerate(kind)]
    items = Items(
        item_ids=[f"{CATEGORIES[each]}-{ornate[row]}-{row}" for row, each in enumerate(kind)],
        titles=names,
        has={"text": yes},
        deleted=no,
        is_candidate=yes,
        held_out=no,
        read_texts=lambda: names,
    )
    made = replace(recommender.retriever, items=items, content=vectors)
    made.__dict__["item_side"] = torch.cat([vectors, torch.zeros(count, 1)], 1)

    def mean_of_history(self: Retriever, asked: Sequence[Asked]) -> torch.Tensor:
        means = [vectors[torch.from_numpy(each.history)].mean(0) for each in asked]
        return torch.nn.functional.normalize(torch.stack(means), dim=1)

    monkeypatch.setattr(Retriever, "user_vectors", mean_of_history)
    searcher = Searcher(made)
    asked = {f"a {name}": torch.eye(16)[row] for row, name in enumerate(CATEGORIES)}
    monkeypatch.setattr(
        searcher.encoder, "texts", lambda texts: torch.stack([asked[each] for each in texts])
    )
    return searcher


@pytest.mark.parametrize("by", ["dense", "hybrid"])
def test_taste_orders_what_a_query_finds(by: Way, shop: Searcher) -> None:
    ornate_of = {name: name.split("-")[1] == "1" for name in shop.retriever.items.item_ids}
    users = {}
    for style in (0, 1):
        rows = [row for row in range(EACH, 3 * EACH) if row % 2 == style]  # none of the category
        asked = shop.retriever.given_user([shop.retriever.items.item_ids[row] for row in rows])
        users[style] = ids(shop.search(Query("a phone"), 10, by=by, taste=Taste(asked, 0.5)))
    for style, found in users.items():
        assert sum(each.startswith("phone") for each in found) >= 8
        assert sum(ornate_of[each] == bool(style) for each in found) >= 8
    assert users[0] != users[1]
    neither = [ornate_of[each] for each in ids(shop.search(Query("a phone"), 10, by=by))]
    assert 2 <= sum(neither) <= 8


def grown(retriever: Retriever, title: str, like: int) -> Retriever:
    """The retriever with one more row, whose content is that of another."""
    items, content = retriever.items, retriever.content
    assert content is not None
    return replace(
        retriever,
        content=torch.cat([content, content[like : like + 1]]),
        items=replace(
            items,
            item_ids=[*items.item_ids, "added"],
            titles=[*(items.titles[row] for row in range(NUM_ITEMS)), title],
            has={name: np.append(each, True) for name, each in items.has.items()},
            deleted=np.append(items.deleted, False),
            is_candidate=np.append(items.is_candidate, True),
            held_out=np.append(items.held_out, False),
            read_texts=None,
        ),
    )


def removed(retriever: Retriever, row: int) -> Retriever:
    deleted = retriever.items.deleted.copy()
    deleted[row] = True
    return replace(retriever, items=replace(retriever.items, deleted=deleted))


def test_an_added_item_is_found_at_once_and_a_removed_one_never(tiny_run: Path) -> None:
    searcher = Searcher(Recommender.load(tiny_run).retriever)
    assert not searcher.search(Query("青蛙"), 3, by="lexical")
    searcher.follow(grown(searcher.retriever, "一只青蛙。", like=2))
    for by in WAYS[:2]:
        assert searcher.search(Query("青蛙"), 1, by=by)[0].item_id == "added"
    assert "added" in ids(searcher.search(Query("sea"), NUM_ITEMS + 1, by="dense"))
    searcher.follow(removed(searcher.retriever, NUM_ITEMS))
    for by in WAYS:
        assert "added" not in ids(searcher.search(Query("青蛙"), NUM_ITEMS + 1, by=by))
    assert len(searcher.lexical) == NUM_ITEMS - 1  # one has no text


def test_a_removed_item_that_is_there_again_is_found_again(
    tiny_run: Path, titles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = Recommender.load(tiny_run).retriever
    searcher = Searcher(retriever)
    before = [searcher.search(Query(titles["i6"]), NUM_ITEMS, by=by) for by in WAYS]
    searcher.follow(removed(retriever, 6))
    assert "i6" not in ids(searcher.search(Query(titles["i6"]), NUM_ITEMS, by="lexical"))
    read: list[int] = []
    add = searcher.lexical.add

    def counted(item_index: int, text: str | None) -> None:
        read.append(item_index)
        add(item_index, text)

    monkeypatch.setattr(searcher.lexical, "add", counted)
    searcher.follow(retriever)
    assert [searcher.search(Query(titles["i6"]), NUM_ITEMS, by=by) for by in WAYS] == before
    assert read == [6]  # and no other


def test_words_read_elsewhere_follow_what_has_come_since(tiny_run: Path) -> None:
    retriever = Recommender.load(tiny_run).retriever
    words, searcher = read_words(retriever), Searcher(retriever)
    searcher.follow(removed(grown(retriever, "一只青蛙。", like=2), 6))
    assert not searcher.has_words
    searcher.take_words(words, retriever)
    assert searcher.search(Query("青蛙"), 1, by="lexical")[0].item_id == "added"
    assert len(words) == NUM_ITEMS - 1  # one has no text, one has gone, one has come


def test_bytes_of_a_file_are_as_good_as_its_path(
    recommender: Recommender, tiny_source: Path
) -> None:
    searcher = recommender.searcher
    for name, file in (("image", tiny_source / "2.png"), ("audio", tiny_source / "6.wav")):
        by_path, by_bytes = (Query(**{name: each}) for each in (file, file.read_bytes()))  # type: ignore[arg-type]
        assert searcher.search(by_bytes, 5) == searcher.search(by_path, 5)
        content = searcher.content(by_bytes)
        assert searcher.search(by_bytes, 5, content=content) == searcher.search(by_path, 5)


def test_a_deleted_item_is_not_read_at_all(tiny_run: Path, titles: dict[str, str]) -> None:
    searcher = Searcher(removed(Recommender.load(tiny_run).retriever, 6))
    for by in WAYS:
        assert "i6" not in ids(searcher.search(Query(titles["i6"]), NUM_ITEMS, by=by))


def test_items_nobody_met_and_items_without_text_are_found(recommender: Recommender) -> None:
    found = ids(recommender.search("the", k=NUM_ITEMS))
    assert {WITHOUT_EVENTS, NO_TEXT} <= set(found)
    assert NO_TEXT not in ids(recommender.search("the", by="lexical", k=NUM_ITEMS))


@pytest.fixture(scope="module")
def twins(recommender: Recommender) -> Recommender:
    """Items 6 and 7 are alike in all but their age: the second came an hour later."""
    retriever = recommender.retriever
    assert retriever.content is not None
    content = retriever.content.clone()
    content[7] = content[6]
    texts: list[Any] = [retriever.items.texts[row] for row in range(NUM_ITEMS)]
    texts[7] = texts[6]
    start = np.zeros(NUM_ITEMS, np.int64)
    start[7] = 3600
    spans = Available(start, np.full(NUM_ITEMS, FOR_EVER))
    table = retriever.catalogue.items.model_copy(
        update={"available": AvailableSpec.model_validate({"from": "released"})}
    )
    items = replace(retriever.items, read_texts=lambda: texts, read_available=lambda: spans)
    catalogue = retriever.catalogue.model_copy(update={"items": table})
    return Recommender(replace(retriever, items=items, content=content, catalogue=catalogue))


@pytest.mark.parametrize("by", WAYS)
def test_the_newer_of_two_equal_items_comes_first_where_asked(
    by: Way, twins: Recommender, titles: dict[str, str]
) -> None:
    def places(**options: Any) -> list[str]:
        found = twins.search(titles["i6"], by=by, k=NUM_ITEMS, time=7200, **options)
        return [each for each in ids(found) if each in ("i6", "i7")]

    assert places() == ["i6", "i7"]  # equal scores: in the order of the catalogue
    assert places(wishes=Wishes(half_life_hours=2)) == ["i7", "i6"]
    early = twins.search(titles["i6"], by=by, k=NUM_ITEMS, time=1800)
    assert "i7" not in ids(early)


def test_hard_wishes_hold_with_taste_too(recommender: Recommender) -> None:
    wishes = Wishes(without=("i1", "i6"))
    for mix in (0.0, 0.5, 1.0):
        found = recommender.search("the", user_id="u3", mix=mix, k=NUM_ITEMS, wishes=wishes)
        assert found and not {"i1", "i6"} & set(ids(found))
    with pytest.raises(UserError, match="price"):
        recommender.search("the", wishes=Wishes(where=(Condition("price", maximum=3),)))


def test_texts_are_encoded_in_one_batch_and_kept(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    encode = query_encoder.encode_queries

    def counted(retriever: Retriever, modality: str, queries: Sequence[Any]) -> torch.Tensor:
        batches.append(list(queries))
        return encode(retriever, modality, queries)

    monkeypatch.setattr(query_encoder, "encode_queries", counted)
    monkeypatch.setattr(query_encoder, "_KEPT", 2)
    searcher = Searcher(recommender.retriever)
    first = searcher.encoder.texts(["sea", "storm", "sea"])
    assert torch.equal(first[0], first[2])
    again = searcher.encoder.texts(["sea", "river"])  # storm, asked before sea, makes room
    torch.testing.assert_close(again[0], first[0])
    searcher.search(Query("sea"), 3)
    searcher.search(Query("storm"), 3)
    assert batches == [["sea", "storm"], ["river"], ["storm"]]


def test_a_model_of_ids_finds_by_words_and_says_so(
    tiny_run_id: Path, titles: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    recommender = Recommender.load(tiny_run_id)
    found = recommender.search(titles["i6"], k=3)
    assert found[0].item_id == "i6" and {each.found_by for each in found} == {"text"}
    assert "reads no text" in caplog.text
    assert recommender.search(titles["i6"], by="lexical", k=3) == found
    with pytest.raises(UserError, match="knows ids only"):
        recommender.search(titles["i6"], by="dense")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"text": " "}, "the query is ' ': give a text", id="blank"),
        pytest.param({}, "the query is empty", id="nothing"),
        pytest.param({"text": "sea", "k": 0}, "k is 0", id="k"),
        pytest.param({"text": "sea", "by": "smell"}, "by 'smell': allowed is one of", id="way"),
        pytest.param({"image": "2.png", "by": "lexical"}, "needs a text", id="no-words"),
        pytest.param({"image": "absent.png"}, "absent.png", id="no-file"),
        pytest.param(
            {"text": "sea", "user_id": "u1", "mix": 2}, "mix is 2: .* from 0 to 1", id="mix"
        ),
        pytest.param(
            {"text": "sea", "user_id": "u1", "history": ["i1"]}, "both given", id="two-users"
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_line(
    options: dict[str, Any], message: str, recommender: Recommender
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recommender.search(**options)
    assert "\n" not in str(caught.value)


def test_words_of_the_commands(
    tiny_run: Path, titles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(tiny_run), titles["i6"], "-k", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["query"] == {"text": titles["i6"], "by": "hybrid"}
    assert document["items"][0]["item_id"] == "i6" and len(document["items"]) == 3
    assert document["items"][0]["found_by"] in ("text", "both")
    asked = ["recommend", str(tiny_run), "--user", "u3", "--query", titles["i6"]]
    assert main([*asked, "--mix", "0.2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["query"]["query"] == titles["i6"]
    assert all(each["found_by"] for each in document["items"])
    assert main(["search", str(tiny_run), " "]) == 2
    assert "give a text with a word in it" in capsys.readouterr().err
    assert main(["search", str(tiny_run), "sea", "--by", "smell"]) == 2
