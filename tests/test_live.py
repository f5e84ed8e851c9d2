"""A retriever that follows the database equals one that was made anew of the same items."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from data_prep.catalogue import AttributeSpec
from mmrec.recommender import Recommender, Wishes
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.available import ALWAYS, FOR_EVER, Available
from mmrec.retrieval.filters import Condition
from mmrec.retrieval.retriever import Items, Retriever
from mmrec.serving.answering import content_bytes
from mmrec.serving.database import Event, ItemChange, What
from mmrec.serving.live import Live

pytest_plugins = ["tiny_run"]
SPECS = {"price": AttributeSpec(type="number"), "genre": AttributeSpec(type="set")}


@pytest.fixture(scope="module")
def retriever(tiny_run: Path) -> Retriever:
    """The tiny run with attributes and spans, of which the last item's has not begun."""
    found = Recommender.load(tiny_run).retriever
    num_items = len(found.items.item_ids)
    known = [{"price": n, "genre": ["rock", "pop"][: n % 3]} for n in range(num_items)]
    start = np.full(num_items, ALWAYS)
    start[2] = 2**40
    items = replace(
        found.items,
        read_attributes=lambda: ItemAttributes.of(known, SPECS),
        read_available=lambda: Available(start, np.full(num_items, FOR_EVER)),
    )
    catalogue = found.catalogue
    named = catalogue.items.model_copy(update={"attributes": SPECS})
    return replace(found, items=items, catalogue=catalogue.model_copy(update={"items": named}))


def change(number: int, item_id: str, what: What = "added") -> ItemChange:
    random = np.random.default_rng(number)
    content = torch.from_numpy(random.normal(size=16).astype(np.float32))
    return ItemChange(
        number, item_id, what, {"title": f"T {number}"} if number % 2 else {},
        {"price": 100 + number, "genre": ["jazz"]}, ["text"],
        content_bytes(content / content.norm()) if what == "added" else None,
    )  # fmt: skip


def made_anew(retriever: Retriever, changes: Sequence[ItemChange]) -> Retriever:
    """The slow way: every column put together again, everything else computed of it."""
    old, rows, deleted = retriever.items, dict(retriever.items.rows), list(retriever.items.deleted)
    added: list[ItemChange] = []
    for each in changes:
        if each.item_id in rows:
            deleted[rows[each.item_id]] = each.what != "restored"
        if each.what == "added":
            rows[each.item_id] = len(deleted)
            deleted.append(False)
            added.append(each)
    n = len(added)
    gone = np.array(deleted)
    contents = [
        torch.frombuffer(bytearray(each.content or b""), dtype=torch.float32) for each in added
    ]
    records = [
        old.attributes.table(SPECS),
        ItemAttributes.of([a.attributes for a in added], SPECS).table(SPECS),
    ]
    table = pl.concat(records)
    items = Items(
        item_ids=[*old.item_ids, *(each.item_id for each in added)],
        titles=[*old.titles, *(each.texts.get("title") for each in added)],
        has={name: np.append(has, [name == "text"] * n) for name, has in old.has.items()},
        deleted=gone,
        is_candidate=np.append(old.is_candidate, [True] * n) & ~gone,
        held_out=np.append(old.held_out, [False] * n),
        read_attributes=lambda: ItemAttributes.of_table(table),
        read_available=lambda: Available(
            np.append(old.available.start, [ALWAYS] * n),  # type: ignore[union-attr]
            np.append(old.available.until, [FOR_EVER] * n),  # type: ignore[union-attr]
        ),
    )
    assert retriever.content is not None
    items.__dict__["rows"] = rows  # an id that was taken again is its last item
    return replace(
        retriever, items=items, content=torch.cat([retriever.content, *(c[None] for c in contents)])
    )


CHANGES = [
    change(1, "n1"), change(2, "n2"), change(3, "i4", "removed"), change(4, "n1"),
    change(5, "n2", "removed"), change(6, "i4"), change(7, "n7"), change(8, "i0", "removed"),
    change(9, "i1", "removed"), change(10, "n7", "removed"), change(11, "i1", "restored"),
    change(12, "n7", "restored"),
]  # fmt: skip


@pytest.mark.parametrize("step", [1, 3, 12], ids=["one-by-one", "some", "at-once"])
def test_lists_are_those_of_a_retriever_made_anew(step: int, retriever: Retriever) -> None:
    live = Live(retriever, "run")
    for start in range(0, len(CHANGES), step):
        live.apply(CHANGES[start : start + step], lambda number: None)
    expected = made_anew(retriever, CHANGES)
    found = live.retriever
    assert live.followed == 12 and live.num_added == 5
    for name in ("item_side", "candidate_side", "content"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(found.vectors.bias, expected.vectors.bias)
    torch.testing.assert_close(found.vectors.embedding, expected.vectors.embedding)
    np.testing.assert_array_equal(found.items.candidates, expected.items.candidates)
    assert list(found.items.titles) == list(expected.items.titles)
    assert found.model_hash == retriever.model_hash
    asked: list[dict[str, Any]] = [
        {"user_id": "u1", "k": 20},
        {"history": ["n1", "i4", "n7"], "k": 20},
        {"k": 20},
        {"user_id": "u2", "k": 20, "wishes": Wishes(where=(Condition("price", minimum=5),))},
        {"user_id": "u2", "k": 20, "wishes": Wishes(where=(Condition("genre", any_of=("jazz",)),))},
        {"user_id": "u3", "k": 20, "wishes": Wishes(unmet=True, without=("n7",), diversity=0.5)},
    ]
    for each in asked:
        mine, theirs = Recommender(found).recommend(**each), Recommender(expected).recommend(**each)
        assert [each.item_id for each in mine] == [each.item_id for each in theirs]
        assert [each.title for each in mine] == [each.title for each in theirs]
    listed = [each.item_id for each in Recommender(found).recommend("u1", k=20)]
    assert {"n1", "i4", "n7"} <= set(listed) and not {"n2", "i0", "i2"} & set(listed)
    assert retriever.items.rows.keys().isdisjoint({"n1", "n7"})  # the source stays as it was


def test_an_item_that_cannot_be_encoded_is_not_listed(retriever: Retriever) -> None:
    live = Live(retriever, "run")
    unknown = replace(change(1, "n1"), content=None)
    live.apply([unknown, change(2, "n2")], lambda number: None)
    assert live.followed == 2 and not live.lists("n1") and live.lists("n2")
    live = Live(retriever, "run")
    live.apply([unknown], lambda number: change(number, "n1"))
    assert live.lists("n1") and not live.is_of_catalogue("n1") and live.is_of_catalogue("i1")


def test_where_encoding_fails_all_stays_as_it_was(retriever: Retriever) -> None:
    def fails(number: int) -> None:
        raise RuntimeError("the database does not answer")

    live = Live(retriever, "run")
    unknown = replace(change(3, "n3"), content=None)
    with pytest.raises(RuntimeError):
        live.apply([change(1, "n1"), change(2, "i1", "removed"), unknown], fails)
    assert live.followed == 0 and live.lists("i1") and not live.lists("n1")
    live.apply([change(1, "n1")], fails)
    assert live.retriever.items.item_ids[-1] == "n1"


def test_events_go_on_where_the_log_ends(retriever: Retriever) -> None:
    live = Live(retriever, "run")
    live.apply([change(1, "n1")], lambda number: None)
    before = retriever.users.complete(retriever.users.index_of("u1") or 0)
    live.use_events(
        {
            "u1": [Event("a", "u1", "n1", time=5.0), Event("b", "u1", "gone")],
            "w": [Event("c", "w", "i1"), Event("d", "w", "n1")],
            "x": [],
        }
    )
    users = live.retriever.users
    row = users.index_of("u1")
    assert row is not None
    found = users.complete(row)
    n1 = live.retriever.items.rows["n1"]
    assert found.item_index.tolist() == [*before.item_index.tolist(), n1]
    assert found.time is not None and found.time[-1] == 5
    new = users.index_of("w")
    assert new == len(retriever.users.user_ids) and users.index_of("x") is None
    assert users.complete(new).item_index.tolist() == [live.retriever.items.rows["i1"], n1]
    assert live.retriever.stored_user(new).user_id == "w"
    live.use_events({})
    assert users.index_of("w") is None
    np.testing.assert_array_equal(users.complete(row).item_index, before.item_index)


def test_it_is_gone_as_soon_as_nobody_holds_it(retriever: Retriever) -> None:
    gc.disable()  # nobody looks for circles
    try:
        live = Live(retriever, "one")
        live.apply([change(1, "n1")], lambda number: None)
        assert live.retriever.items.attributes.table(SPECS).height == len(live.retriever.items.rows)
        live.read_words()
        whole, view = weakref.ref(live), weakref.ref(live.retriever)
        del live
        assert whole() is None and view() is None
    finally:
        gc.enable()
